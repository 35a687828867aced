//! Pools of worker processes, real ones: this very program is the worker.
#![expect(clippy::unwrap_used, reason = "a test may")]

use offloop::ops::Control;
use offloop::pool::call::{Call, decode_reply};
use offloop::pool::{
    PoolOptions, ProcessPool, ProcessPoolBuilder, Running, Sent, SharedPart, Streamed, SubmitOptions, Worker, frame, serve,
};
use offloop::supervisor::{self, Event};
use offloop::sys::poll;
use offloop::sys::process::Spec;
use offloop::value::ErrorValue;
use offloop::wire::lane::Header;
use offloop::{Error, ErrorKind, Task, Value};
use std::collections::HashSet;
use std::ffi::OsString;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Ends a hang; nothing is measured by it.
const WATCHDOG: Duration = Duration::from_secs(60);
const MODE: &str = "OFFLOOP_TEST_MODE";

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + WATCHDOG;
    while !done() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(ms(1));
    }
}

/// Fds, threads and children of this process are counted: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    let guard = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    eventually("the threads of the test before end", || !has_thread("offloop-super") && !has_thread("offloop-lanes"));
    guard
}

fn has_thread(name: &str) -> bool {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    tasks.into_iter().any(|t| std::fs::read_to_string(t.path().join("comm")).is_ok_and(|comm| comm.trim() == name))
}

fn fds() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn children() -> usize {
    let of = |t: std::fs::DirEntry| std::fs::read_to_string(t.path().join("children")).unwrap_or_default().split_whitespace().count();
    std::fs::read_dir("/proc/self/task").unwrap().flatten().map(of).sum()
}

/// A process that does nothing until this is dropped.
struct Stopped(i32);

impl Stopped {
    fn new(pid: i32) -> Stopped {
        let stopped = Stopped(pid);
        stopped.signal(libc::SIGSTOP);
        // `kill` does not wait for a process that runs on another core.
        let state = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        eventually("it has stopped", || state().rsplit(')').next().unwrap().starts_with(" T"));
        stopped
    }

    fn signal(&self, signal: i32) {
        // SAFETY: a signal to a child that the test has, and nobody has waited for.
        assert_eq!(unsafe { libc::kill(self.0, signal) }, 0);
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        self.signal(libc::SIGCONT);
    }
}

// ---- the worker's part ----

#[test]
fn worker_part() {
    let Ok(mode) = std::env::var(MODE) else { return };
    let worker = Worker::attach().unwrap().expect("started by a pool");
    match mode.as_str() {
        "broken" => {
            worker.fail("SyntaxError: unexpected token");
            end(1);
        }
        "scribble" => scribble(&worker),
        "hoard" => hoard(&worker),
        "overwrite" => overwrite(&worker),
        "share" => share(&worker),
        "listens" => listens(&worker),
        "floods" => floods(&worker),
        "leaves" => {
            worker.ready();
            let _ = worker.wait(None);
            end(3);
        }
        _ => {
            if let Err(e) = serve(&worker, &mut function) {
                end(if e.kind() == ErrorKind::Forked && worker.is_forked() { 0 } else { 1 });
            }
        }
    }
    end(0);
}

fn end(code: i32) -> ! {
    // SAFETY: ends a process of the test, without the harness.
    unsafe { libc::_exit(code) }
}

#[expect(clippy::disallowed_methods, reason = "what a user's function may do")]
fn function(call: Call, running: &Running<'_>) -> Result<Value, Box<ErrorValue>> {
    let number = call.args.first().and_then(Value::as_int);
    let sleep = |n: Option<i64>| std::thread::sleep(ms(u64::try_from(n.unwrap_or(0)).unwrap()));
    match call.name.as_str() {
        "echo" => Ok(call.args.into_iter().next().unwrap_or_default()),
        "pid" => Ok(Value::Int(i64::from(std::process::id()))),
        "sleep" => {
            sleep(number);
            Ok(Value::Int(i64::from(std::process::id())))
        }
        "fail" => Err(Box::new(ErrorValue::new("RangeError", "no such row"))),
        // Comes back twice.
        // SAFETY: the child returns to the loop of a worker, and ends.
        "fork" => Ok(Value::Int(i64::from(unsafe { libc::fork() }))),
        "exit" => end(number.unwrap_or(0) as i32),
        "signal" => {
            // SAFETY: ends this process of the test.
            unsafe { libc::kill(libc::getpid(), number.unwrap_or(9) as i32) };
            std::thread::sleep(WATCHDOG);
            Ok(Value::Nil)
        }
        "segfault" => {
            // SAFETY: none: it is to fault.
            unsafe { std::ptr::write_volatile(std::ptr::without_provenance_mut::<u8>(8), 1) };
            Ok(Value::Nil)
        }
        "busy" => loop {
            std::hint::black_box(0);
        },
        "listen" => loop {
            if let Err(e) = running.check() {
                return Err(Box::new(ErrorValue::new("Stopped", e.to_string())));
            }
            std::thread::sleep(ms(1));
        },
        "tell" => {
            for i in 0..number.unwrap_or(1) {
                running.progress(Value::Int(i));
                std::thread::sleep(ms(5));
            }
            Ok(Value::Nil)
        }
        // A reply that is too long for a cell, after what is told in one.
        "tell_long" => {
            running.progress(Value::Int(4711));
            Ok(Value::Bytes(vec![7; 9000].into()))
        }
        // Numbers from 0 on, then how many were taken; a second argument fails the call after them.
        "count" => {
            let mut taken = 0;
            for i in 0..number.unwrap_or(0) {
                if !running.give(&Value::Int(i)).map_err(|e| Box::new(ErrorValue::new("Give", e.to_string())))? {
                    break;
                }
                taken = i + 1;
            }
            match call.args.get(1).and_then(Value::as_str) {
                Some("fail") => Err(Box::new(ErrorValue::new("RangeError", "no more"))),
                Some("die") => end(7),
                _ => Ok(Value::Int(taken)),
            }
        }
        "arrays" => {
            for i in 0..number.unwrap_or(0) {
                running.give(&Value::Bytes(vec![i as u8; 100_000].into())).map_err(|e| Box::new(ErrorValue::new("Give", e.to_string())))?;
            }
            Ok(Value::Nil)
        }
        // Keeps so many MiB for good.
        "grow" => {
            std::mem::forget(std::hint::black_box(vec![1u8; (number.unwrap_or(0) as usize) << 20]));
            Ok(Value::Int(i64::from(std::process::id())))
        }
        "long" => Ok(Value::Bytes(vec![7; number.unwrap_or(0) as usize].into())),
        other => Err(Box::new(ErrorValue::new("NotFound", format!("no function {other}")))),
    }
}

/// Does its job, and writes before that what it may not: of what the request says, in the first process only.
fn scribble(worker: &Worker) -> ! {
    use offloop::wire::lane::{Header, PLACE, reply};
    use std::os::unix::fs::FileExt;
    const TASKS: u32 = 129;
    let map = Header { minor: 0, tasks: TASKS, concurrency: 1, setup: 0, payloads: 0, results: 1, shared: 0 }.map();
    let fd = std::env::var("OFFLOOP_LANE").unwrap().split(',').nth(1).unwrap().to_owned();
    let file = std::fs::OpenOptions::new().write(true).open(format!("/proc/self/fd/{fd}")).unwrap();
    let put = |at: usize, bytes: &[u8]| file.write_all_at(bytes, at as u64).unwrap();
    let word_at = |index: usize| reply::WORDS + 4 * index;
    worker.ready();
    loop {
        while let Some(job) = worker.try_take() {
            let what = String::from_utf8_lossy(&job.request()[..5]).into_owned();
            let others = (0..TASKS as usize).filter(|i| *i != job.index);
            match what.as_str() {
                _ if worker.supervisor().id().incarnation > 1 => {}
                "state" => put(word_at(job.index), &0xDEAD_BEEFu32.to_le_bytes()),
                "never" => put(word_at(job.index), &0u32.to_le_bytes()),
                // READY: tasks that it was never given.
                "ready" => others.for_each(|i| put(word_at(i), &1u32.to_le_bytes())),
                // Long requests that it never had, or had often.
                "given" => (1..=256).for_each(|ticket| put(map.returned + 4 * ticket, &0x7FFF_FFFFu32.to_le_bytes())),
                // A reply of holes, and that it is there.
                "holes" => {
                    let (at, len, ticket) = (0u64, 1u64 << 30, 1u64);
                    put(map.reply_places + PLACE * job.index, &[at, len, ticket].map(u64::to_le_bytes).concat());
                    put(word_at(job.index), &6u32.to_le_bytes());
                }
                // That nobody has to be rung for.
                "quiet" => put(reply::POOL_SLEEPS, &0u32.to_le_bytes()),
                _ => {}
            }
            if matches!(what.as_str(), "state" | "never" | "holes") && worker.supervisor().id().incarnation == 1 {
                // Whoever scribbles may ring as well: for a number that it has left alone.
                worker.progress(TASKS as usize, b"").unwrap();
                std::thread::sleep(WATCHDOG);
            }
            let reply = offloop::pool::call::encode_reply(Ok(Value::Int(job.request().len() as i64))).unwrap();
            worker.finish(&job, false, &[&reply]).unwrap();
        }
        let _ = worker.wait(None);
    }
}

/// Keeps every long request.
fn hoard(worker: &Worker) -> ! {
    let mut kept = Vec::new();
    worker.ready();
    loop {
        while let Some(mut job) = worker.try_take() {
            let sum: u64 = job.request().iter().map(|b| u64::from(*b)).sum();
            kept.extend(job.take_payload());
            let reply = offloop::pool::call::encode_reply(Ok(Value::Int(sum as i64))).unwrap();
            worker.finish(&job, false, &[&reply]).unwrap();
        }
        let _ = worker.wait(None);
    }
}

/// One job at a time, each until nobody waits for it: it hears of that by the fd alone, whatever waits behind it.
fn listens(worker: &Worker) -> ! {
    worker.ready();
    loop {
        while let Some(job) = worker.try_take() {
            while job.request() == b"wait" {
                worker.clear();
                worker.listen();
                if worker.is_cancelled(job.index).is_some() {
                    break;
                }
                poll::wait_readable(&mut [poll::readable(worker.fd().as_raw_fd())], None);
            }
            let reply = offloop::pool::call::encode_reply(Ok(Value::Int(i64::from(std::process::id())))).unwrap();
            worker.finish(&job, false, &[&reply]).unwrap();
        }
        let _ = worker.wait(None);
    }
}

/// Replies with the first byte of a long request; the first process of all writes another one there, and ends.
fn overwrite(worker: &Worker) -> ! {
    worker.ready();
    loop {
        while let Some(mut job) = worker.try_take() {
            let payload = job.take_payload().unwrap();
            let first = payload.as_ref()[0];
            // SAFETY: a payload is the holder's to write.
            unsafe { payload.as_ptr().write_bytes(99, payload.len()) };
            if worker.supervisor().id().incarnation == 1 {
                end(1);
            }
            let reply = offloop::pool::call::encode_reply(Ok(Value::Int(i64::from(first)))).unwrap();
            drop(payload);
            worker.finish(&job, false, &[&reply]).unwrap();
        }
        let _ = worker.wait(None);
    }
}

/// Sends its first frame properly, and says of a second one that it were there.
fn floods(worker: &Worker) -> ! {
    worker.ready();
    loop {
        if let Some(job) = worker.try_take() {
            let frame = frame::head(&[]);
            assert_eq!(worker.try_frame(job.index, &[&frame]).unwrap(), Sent::Sent);
            // `frames` is what the next frame would add 1 to: found by its value and its place behind `returned`.
            let numbers = std::env::var("OFFLOOP_LANE").unwrap();
            let fd: i32 = numbers.split(',').nth(1).unwrap().parse().unwrap();
            let at = frames_at(129) + 4 * job.index as u64;
            use std::os::unix::fs::FileExt;
            let file = std::fs::OpenOptions::new().write(true).open(format!("/proc/self/fd/{fd}")).unwrap();
            file.write_at(&9u32.to_le_bytes(), at).unwrap();
            worker.progress(129, b"").unwrap();
            std::thread::sleep(WATCHDOG);
        }
        let _ = worker.wait(None);
    }
}

/// Where the counts of frames lie in `replies` of a lane for so many tasks.
fn frames_at(tasks: u32) -> u64 {
    let header = Header { minor: 0, tasks, concurrency: 1, setup: 0, payloads: 0, results: 0, shared: 0 };
    header.map().frames as u64
}

/// Adds 1 to each byte that a request refers to, and keeps what begins with `k` until something else comes.
fn share(worker: &Worker) -> ! {
    let mut kept = Vec::new();
    worker.ready();
    loop {
        while let Some(mut job) = worker.try_take() {
            let request = job.request().to_vec();
            let payload = job.take_payload();
            kept.clear();
            let number = |at: usize| u64::from_le_bytes(request[at..at + 8].try_into().unwrap());
            let reply = match worker.shared(number(1), number(9)) {
                Ok(ptr) => {
                    // SAFETY: `payload` keeps these bytes, which nobody else looks at meanwhile.
                    let bytes = unsafe { std::slice::from_raw_parts_mut(ptr, number(9) as usize) };
                    bytes.iter_mut().for_each(|b| *b += 1);
                    Ok(Value::Int(i64::from(bytes[0])))
                }
                Err(e) => Err(Box::new(offloop::pool::call::error_value(&e))),
            };
            if request[0] == b'k' {
                kept.extend(payload);
            }
            let failed = reply.is_err();
            let reply = offloop::pool::call::encode_reply(reply).unwrap();
            worker.finish(&job, failed, &[&reply]).unwrap();
        }
        let _ = worker.wait(None);
    }
}

// ---- the pool's part ----

fn launch(mode: &'static str) -> impl FnMut(supervisor::WorkerId) -> Result<Spec<'static>, Error> {
    move |_| {
        let mut spec = Spec::new(std::env::current_exe().unwrap());
        spec.args = ["--exact", "worker_part", "--quiet", "--test-threads=1"].map(OsString::from).to_vec();
        let mut env: Vec<_> = std::env::vars_os().filter(|(name, _)| name != MODE).collect();
        env.push((MODE.into(), mode.into()));
        spec.env = Some(env);
        Ok(spec)
    }
}

fn options(workers: usize) -> PoolOptions {
    PoolOptions { max_workers: Some(workers), name: "procs".to_owned(), ..PoolOptions::default() }
}

fn build(builder: ProcessPoolBuilder, mode: &'static str) -> ProcessPool {
    builder.build(launch(mode)).unwrap()
}

fn pool(workers: usize) -> ProcessPool {
    build(ProcessPool::builder().options(options(workers)), "serve")
}

fn call(name: &str, args: Vec<Value>) -> Vec<u8> {
    Call { name: name.to_owned(), args, named: Vec::new() }.encode().unwrap()
}

fn submit_with(pool: &ProcessPool, name: &str, args: Vec<Value>, options: SubmitOptions) -> Task {
    let request = pool.request(&[&call(name, args)]).unwrap();
    pool.submit(request, options).unwrap()
}

fn submit(pool: &ProcessPool, name: &str, args: Vec<Value>) -> Task {
    submit_with(pool, name, args, SubmitOptions::default())
}

fn outcome(task: &Task) -> Result<Result<Value, Box<ErrorValue>>, Error> {
    let reply = match task.wait(Some(WATCHDOG))? {
        Value::Buffer(buffer) => buffer.to_vec()?,
        other => other.into_bytes()?.into_vec(),
    };
    decode_reply(&reply)
}

fn value(task: &Task) -> Value {
    outcome(task).unwrap().unwrap()
}

fn lost(task: &Task) -> Error {
    let e = outcome(task).expect_err("lost");
    assert_eq!(e.kind(), ErrorKind::WorkerLost, "{e}");
    e
}

fn close(pool: &ProcessPool) {
    pool.shutdown(Some(WATCHDOG)).unwrap();
    assert_eq!(children(), 0, "no process is left");
}

#[test]
fn calls_go_to_processes_and_come_back() {
    let _alone = alone();
    let pool = pool(2);
    let tasks: Vec<Task> = (0..1000).map(|i| submit(&pool, "echo", vec![Value::Int(i)])).collect();
    for (i, task) in tasks.iter().enumerate() {
        assert_eq!(value(task).as_int(), Some(i as i64));
    }
    let own = i64::from(std::process::id());
    assert_ne!(value(&submit(&pool, "pid", vec![])).as_int(), Some(own));
    let error = outcome(&submit(&pool, "fail", vec![])).unwrap().unwrap_err();
    assert_eq!((error.name.as_str(), error.message.as_str()), ("RangeError", "no such row"));
    let stats = pool.pool().stats();
    assert_eq!((stats.completed, stats.failed, stats.submitted), (1001, 1, 1002));
    close(&pool);
}

#[test]
fn one_call_at_a_time_wakes_whoever_sleeps() {
    let _alone = alone();
    let pool = pool(1);
    for i in 0..2000 {
        assert_eq!(value(&submit(&pool, "echo", vec![Value::Int(i)])).as_int(), Some(i));
    }
    close(&pool);
}

/// One waiter at a time looks after the workers; the others, and callbacks, are served by it or by the pool's thread, whoever comes and goes.
#[test]
fn waiters_take_turns_in_looking_after_the_workers() {
    let _alone = alone();
    let pool = pool(2);
    std::thread::scope(|scope| {
        for thread in 0..4i64 {
            let pool = &pool;
            scope.spawn(move || {
                for i in 0..1000 {
                    let number = thread * 1_000_000 + i;
                    // Now and then somebody gives up waiting, and leaves the lead with the task on its way.
                    let task = submit(pool, "echo", vec![Value::Int(number)]);
                    if i % 7 == 0 {
                        let _ = task.wait_slice(Duration::from_micros(5));
                    }
                    assert_eq!(value(&task).as_int(), Some(number));
                }
            });
        }
        for _ in 0..500 {
            let (tell, told) = std::sync::mpsc::channel();
            submit(&pool, "echo", vec![Value::Int(1)]).on_done(move |_| tell.send(()).unwrap());
            told.recv_timeout(WATCHDOG).unwrap();
        }
    });
    assert_eq!(pool.pool().stats().completed, 4500);
    close(&pool);
}

/// The outcome comes from elsewhere than a lane while its waiter looks after lanes.
#[test]
fn a_waiter_that_looks_after_the_workers_sees_its_own_deadline_and_its_workers_death() {
    let _alone = alone();
    let pool = pool(2);
    let late = submit_with(&pool, "sleep", vec![Value::Int(2_000)], SubmitOptions { timeout: Some(ms(50)), ..SubmitOptions::default() });
    assert_eq!(outcome(&late).expect_err("late").kind(), ErrorKind::Timeout);
    for _ in 0..20 {
        lost(&submit(&pool, "signal", vec![Value::Int(9)]));
    }
    let task = submit(&pool, "sleep", vec![Value::Int(200)]);
    assert!(!task.wait_slice(ms(20)), "its wait ends before it does");
    value(&task);
    pool.terminate().unwrap();
}

#[test]
fn long_requests_and_results_go_through_shared_memory() {
    let _alone = alone();
    let pool = pool(2);
    for len in [0, 1, 2030, 2032, 2033, 2048, 2049, 4096, 100_000, 16 << 20] {
        let bytes: Vec<u8> = (0..len).map(|i| (i * 7 % 251) as u8).collect();
        let back = value(&submit(&pool, "echo", vec![Value::Bytes(bytes.clone().into())])).into_bytes().unwrap();
        assert!(*back == *bytes, "{len} bytes");
    }
    // Many at once, more than there are tickets of one lane.
    let tasks: Vec<Task> = (0..1000).map(|i| submit(&pool, "echo", vec![Value::Bytes(vec![i as u8; 5000].into())])).collect();
    for (i, task) in tasks.iter().enumerate() {
        let bytes = value(task).into_bytes().unwrap();
        assert!(bytes.len() == 5000 && bytes.iter().all(|b| *b == i as u8));
    }
    close(&pool);
}

#[test]
fn results_that_are_kept_stay_as_they_are() {
    let _alone = alone();
    let pool = pool(1);
    // As many as the lane has tickets, unread.
    let tasks: Vec<Task> = (0..200).map(|i| submit(&pool, "long", vec![Value::Int(3000 + i)])).collect();
    let kept: Vec<Value> = tasks.iter().map(|task| task.wait(Some(WATCHDOG)).unwrap()).collect();
    let more: Vec<Task> = (0..50).map(|_| submit(&pool, "long", vec![Value::Int(9000)])).collect();
    more.iter().for_each(|task| drop(value(task)));
    for (i, value) in kept.into_iter().enumerate() {
        let reply = match value {
            Value::Buffer(buffer) => buffer.to_vec().unwrap(),
            // What is kept beyond half of the tickets was copied.
            other => other.into_bytes().unwrap().into_vec(),
        };
        let bytes = decode_reply(&reply).unwrap().unwrap().into_bytes().unwrap();
        assert!(bytes.len() == 3000 + i && bytes.iter().all(|b| *b == 7));
    }
    close(&pool);
}

#[test]
fn a_worker_that_keeps_long_requests_gets_more() {
    let _alone = alone();
    let pool = build(ProcessPool::builder().options(options(1)), "hoard");
    let tasks: Vec<Task> =
        (0..1000).map(|i| pool.submit(pool.request(&[&vec![(i % 3) as u8; 3000]]).unwrap(), SubmitOptions::default()).unwrap()).collect();
    for (i, task) in tasks.iter().enumerate() {
        assert_eq!(value(task).as_int(), Some((i as i64 % 3) * 3000));
    }
    close(&pool);
}

/// A request of 5,000 bytes has one of 256 tickets of its lane.
#[test]
fn long_requests_that_were_taken_back_do_not_use_their_lane_up() {
    let _alone = alone();
    let pool = pool(2);
    let long = || pool.request(&[&call("echo", vec![Value::Bytes(vec![3; 5000].into())])]).unwrap();
    let sleep = |n| pool.request(&[&call("sleep", vec![Value::Int(n)])]).unwrap();
    for round in 0..60 {
        let blocks = pool.submit_many(vec![sleep(5), sleep(5)], &SubmitOptions::default()).unwrap();
        let behind = pool.submit_many((0..16).map(|_| long()).collect(), &SubmitOptions::default()).unwrap();
        // Half of them are cancelled, of the others idle workers steal some.
        for (i, task) in behind.iter().enumerate() {
            if i % 2 == round % 2 {
                task.cancel();
            }
        }
        blocks.iter().for_each(|task| drop(value(task)));
        for task in &behind {
            match outcome(task) {
                Ok(back) => assert_eq!(back.unwrap().into_bytes().unwrap().len(), 5000),
                Err(e) => assert_eq!(e.kind(), ErrorKind::Cancelled),
            }
        }
    }
    close(&pool);
}

#[test]
fn a_function_that_writes_into_its_argument_writes_into_its_own_copy() {
    let _alone = alone();
    let pool = build(ProcessPool::builder().options(options(1)), "overwrite");
    let again = || SubmitOptions { retries: 1, ..SubmitOptions::default() };
    let long = |byte: u8| pool.request(&[&vec![byte; 9000]]).unwrap();
    let first = pool.submit(long(1), again()).unwrap();
    assert_eq!(value(&first).as_int(), Some(1), "not what the process wrote that was lost");
    for byte in 2..40 {
        // The same memory, for another request.
        assert_eq!(value(&pool.submit(long(byte), again()).unwrap()).as_int(), Some(i64::from(byte)));
    }
    close(&pool);
}

#[test]
fn what_ends_before_a_long_task_is_told() {
    let _alone = alone();
    let pool = pool(1);
    // Tasks take long, as far as is known: they are sent one by one.
    value(&submit(&pool, "sleep", vec![Value::Int(20)]));
    for _ in 0..3 {
        let requests = [("echo", 1), ("sleep", 60_000)].map(|(name, n)| pool.request(&[&call(name, vec![Value::Int(n)])]).unwrap());
        let tasks = pool.submit_many(requests.into(), &SubmitOptions::default()).unwrap();
        eventually("it is told while the other one runs", || tasks[0].is_done());
        assert!(!tasks[1].is_done());
        tasks[1].cancel();
    }
    pool.terminate().unwrap();
}

/// Who waits for a task looks after the workers, and gives all of them back to the pool's thread.
#[test]
fn a_lane_that_went_idle_while_somebody_led_is_heard_afterwards() {
    let _alone = alone();
    let pool = pool(2);
    let both: Vec<Task> = (0..2).map(|_| submit(&pool, "sleep", vec![Value::Int(50)])).collect();
    both.iter().for_each(|task| drop(value(task)));
    let long = submit(&pool, "sleep", vec![Value::Int(150)]);
    let short = submit(&pool, "sleep", vec![Value::Int(50)]);
    value(&long);
    value(&short);
    let blocks = submit(&pool, "sleep", vec![Value::Int(60_000)]);
    eventually("one worker is busy", || pool.pool().stats().running == 1);
    let task = submit(&pool, "sleep", vec![Value::Int(5)]);
    eventually("nobody waits for it in the pool, and it is told", || task.is_done());
    assert!(!blocks.is_done());
    pool.terminate().unwrap();
}

#[test]
fn nobody_is_told_how_far_an_earlier_task_was() {
    let _alone = alone();
    let pool = pool(1);
    value(&submit(&pool, "tell_long", vec![]));
    let options = SubmitOptions { timeout: Some(WATCHDOG), ..SubmitOptions::default() };
    let task = submit_with(&pool, "sleep", vec![Value::Int(50)], options);
    while !task.is_done() {
        let said = task.take_progress();
        assert!(said.is_none(), "{said:?}");
        std::thread::sleep(ms(1));
    }
    close(&pool);
}

#[test]
fn a_worker_that_ends_loses_what_it_had_begun_and_nothing_else() {
    let _alone = alone();
    let pool = pool(2);
    for (name, args, text) in
        [("exit", vec![Value::Int(3)], "exit_code=3"), ("signal", vec![Value::Int(9)], "signal=9"), ("segfault", vec![], "signal=11")]
    {
        let before: Vec<Task> = (0..40).map(|i| submit(&pool, "echo", vec![Value::Int(i)])).collect();
        let dies = submit(&pool, name, args);
        let after: Vec<Task> = (0..40).map(|i| submit(&pool, "echo", vec![Value::Int(i)])).collect();
        let e = lost(&dies);
        assert!(e.to_string().contains(text), "{e}");
        for tasks in [before, after] {
            for (i, task) in tasks.iter().enumerate() {
                assert_eq!(value(task).as_int(), Some(i as i64), "{name}");
            }
        }
    }
    let exits = || pool.processes().unwrap().exits;
    eventually("each is put down to a task", || exits().total() == 3);
    assert_eq!((exits().charged, exits().crash), (3, 0));
    assert_eq!(pool.pool().stats().lost, 3);
    close(&pool);
}

#[test]
fn what_is_behind_a_long_task_does_not_wait_for_it() {
    let _alone = alone();
    let pool = pool(2);
    value(&submit(&pool, "echo", vec![Value::Nil]));
    let long = submit(&pool, "sleep", vec![Value::Int(3_000)]);
    let short: Vec<Task> = (0..500).map(|i| submit(&pool, "echo", vec![Value::Int(i)])).collect();
    for task in &short {
        value(task);
    }
    assert!(!long.is_done(), "the short ones were not behind it");
    long.cancel();
    pool.terminate().unwrap();
}

#[test]
fn a_timeout_ends_a_task_that_does_not_listen_with_its_process() {
    let _alone = alone();
    let pool = build(ProcessPool::builder().options(options(1)).cancel_grace(ms(50)), "serve");
    let pid = value(&submit(&pool, "pid", vec![])).as_int();
    let options = || SubmitOptions { timeout: Some(ms(100)), ..SubmitOptions::default() };
    let busy = submit_with(&pool, "busy", vec![], options());
    let behind: Vec<Task> = (0..20).map(|i| submit(&pool, "echo", vec![Value::Int(i)])).collect();
    assert_eq!(outcome(&busy).expect_err("late").kind(), ErrorKind::Timeout);
    for (i, task) in behind.iter().enumerate() {
        assert_eq!(value(task).as_int(), Some(i as i64));
    }
    let now = value(&submit(&pool, "pid", vec![])).as_int();
    assert_ne!(pid, now, "another process");
    // One that listens ends itself, and its process stays.
    let listens = submit_with(&pool, "listen", vec![], options());
    assert_eq!(outcome(&listens).expect_err("late").kind(), ErrorKind::Timeout);
    assert_eq!(value(&submit(&pool, "pid", vec![])).as_int(), now);
    assert_eq!(pool.processes().unwrap().exits.charged, 1);
    close(&pool);
}

#[test]
fn a_cancelled_task_never_begins_or_is_told() {
    let _alone = alone();
    let pool = pool(1);
    value(&submit(&pool, "echo", vec![Value::Nil]));
    let listens = submit(&pool, "listen", vec![]);
    eventually("it runs", || pool.pool().stats().running == 1);
    let queued = submit(&pool, "echo", vec![Value::Nil]);
    assert!(queued.cancel() && listens.cancel());
    for task in [&queued, &listens] {
        assert_eq!(outcome(task).expect_err("cancelled").kind(), ErrorKind::Cancelled);
    }
    value(&submit(&pool, "echo", vec![Value::Nil]));
    close(&pool);
}

#[test]
fn a_worker_whose_tasks_were_all_taken_back_before_they_began_gets_more() {
    let _alone = alone();
    let pool = pool(1);
    let Value::Int(pid) = value(&submit(&pool, "pid", vec![])) else { panic!("no pid") };
    // One, and more than are handed out at once. Some rounds, because a worker that is about to sleep has none in hand yet.
    for tasks in [1, 40].repeat(10) {
        // Nothing begins, and nothing that ends is heard of.
        let stopped = Stopped::new(pid as i32);
        let taken_back: Vec<Task> = (0..tasks).map(|_| submit(&pool, "echo", vec![Value::Nil])).collect();
        assert!(taken_back.iter().all(Task::cancel));
        drop(stopped);
        let next = submit(&pool, "echo", vec![Value::Nil]);
        // Whoever waits for it would look after the workers.
        eventually("it is run", || next.is_done());
    }
    close(&pool);
}

#[test]
fn a_pool_that_closes_ends_what_goes_on_after_its_grace() {
    let _alone = alone();
    let (signalled, signals) = std::sync::mpsc::channel();
    let busy = |name: &'static str, grace: Duration| {
        let signalled = signalled.clone();
        let listener = move |event: &Event| {
            if let Event::Signalled { .. } = event {
                signalled.send(name).unwrap();
            }
        };
        let pool = build(ProcessPool::builder().options(options(1)).cancel_grace(grace).on_event(listener), "serve");
        let task = submit(&pool, "busy", vec![]);
        eventually("it runs", || pool.pool().stats().running == 1);
        (pool, task)
    };
    // The one that closes first has longer.
    let all = [busy("longer", ms(3000)), busy("shorter", ms(100))];
    for (pool, task) in &all {
        pool.close_within(Some(Duration::ZERO), Box::new(|| {})).unwrap();
        assert_eq!(outcome(task).expect_err("cancelled").kind(), ErrorKind::Cancelled);
    }
    assert_eq!(signals.recv_timeout(WATCHDOG).unwrap(), "shorter");
    all.iter().for_each(|(pool, _)| pool.terminate().unwrap());
    eventually("no process is left", || children() == 0);
}

#[test]
fn a_pool_that_closes_waits_for_no_process_whose_tasks_were_cancelled() {
    let _alone = alone();
    let supervision = supervisor::Options { boot_timeout: 10 * WATCHDOG, hang_timeout: Duration::ZERO, workers: 0, ..Default::default() };
    // It never says that it is ready.
    let launch = |_| {
        let mut spec = Spec::new("/bin/sleep");
        spec.args = vec!["600".into()];
        Ok(spec)
    };
    let pool = ProcessPool::builder().options(options(1)).supervision(supervision).build(launch).unwrap();
    let task = submit(&pool, "echo", vec![Value::Nil]);
    eventually("it is started", || children() == 1);
    pool.close_within(None, Box::new(|| {})).unwrap();
    std::thread::sleep(ms(50));
    assert_eq!(pool.pool().cancel_queued(), 1);
    assert!(task.is_done() && pool.wait_closed(Some(WATCHDOG)));
    close(&pool);
}

#[test]
fn a_worker_with_work_ahead_hears_of_the_job_that_it_runs() {
    let _alone = alone();
    let pool = build(ProcessPool::builder().options(options(1)).cancel_grace(WATCHDOG), "listens");
    let submit = |request: &[u8]| pool.submit(pool.request(&[request]).unwrap(), SubmitOptions::default()).unwrap();
    let before = value(&submit(b"")).as_int();
    let waits = submit(b"wait");
    eventually("it runs", || pool.pool().stats().running == 1);
    let behind: Vec<Task> = (0..20).map(|_| submit(b"")).collect();
    assert!(waits.cancel());
    for task in &behind {
        assert_eq!(value(task).as_int(), before, "the same process");
    }
    pool.terminate().unwrap();
}

#[test]
fn a_task_says_how_far_it_is() {
    let _alone = alone();
    let pool = pool(1);
    let task = submit(&pool, "tell", vec![Value::Int(40)]);
    let mut seen = Vec::new();
    while !task.is_done() {
        if let Some(said) = task.take_progress() {
            seen.push(decode_reply(&said.into_bytes().unwrap()).unwrap().unwrap().as_int().unwrap());
        }
        std::thread::sleep(ms(1));
    }
    assert!(seen.len() > 1 && seen.windows(2).all(|w| w[0] < w[1]), "{seen:?}");
    close(&pool);
}

fn stream(pool: &ProcessPool, name: &str, args: Vec<Value>) -> Streamed {
    let request = pool.request(&[&call(name, args)]).unwrap();
    pool.stream(request, SubmitOptions::default()).unwrap()
}

fn next(stream: &Streamed) -> Option<Value> {
    stream.next(Some(WATCHDOG), |record| decode_reply(record).unwrap().unwrap()).unwrap()
}

#[test]
fn what_a_task_gives_arrives_in_order_and_before_its_end() {
    let _alone = alone();
    let pool = pool(2);
    let streams: Vec<Streamed> = (0..2).map(|_| stream(&pool, "count", vec![Value::Int(50_000)])).collect();
    for i in 0..50_000 {
        for stream in &streams {
            assert_eq!(next(stream).and_then(|v| v.as_int()), Some(i));
        }
    }
    for stream in &streams {
        assert!(next(stream).is_none());
        assert_eq!(value(stream.task()).as_int(), Some(50_000));
        assert!(next(stream).is_none(), "the end stays the end");
    }
    // Its number has another task now, which is no stream.
    assert_eq!(value(&submit(&pool, "count", vec![Value::Int(10)])).as_int(), Some(0), "nobody takes what is given in a plain call");
    close(&pool);
}

#[test]
fn long_values_of_a_stream_are_given_back() {
    let _alone = alone();
    let pool = pool(1);
    // More than there are tickets, twice.
    let stream = stream(&pool, "arrays", vec![Value::Int(600)]);
    for i in 0..600i64 {
        let Some(Value::Bytes(bytes)) = next(&stream) else { panic!("an array") };
        assert!(bytes.len() == 100_000 && bytes.as_slice().iter().all(|b| *b == i as u8));
    }
    assert!(next(&stream).is_none());
    drop(stream);
    close(&pool);
}

#[test]
fn a_function_waits_for_whoever_takes_its_values() {
    let _alone = alone();
    let pool = pool(1);
    let stream = stream(&pool, "count", vec![Value::Int(1_000_000)]);
    for i in 0..10 {
        assert_eq!(next(&stream).and_then(|v| v.as_int()), Some(i));
    }
    // It comes to its bound, whenever that is, and stays there.
    std::thread::sleep(ms(200));
    assert!(!stream.task().is_done());
    stream.stop();
    let given = value(stream.task()).as_int().unwrap();
    assert!((10..1000).contains(&given), "{given} were given ahead of 10 that were taken");
    assert_eq!(stream.next(Some(WATCHDOG), |_| ()).unwrap(), None, "a stream that was stopped has no more values");
    close(&pool);
}

#[test]
fn a_closing_pool_shares_what_waits_among_its_workers_and_starts_no_more_than_these() {
    let _alone = alone();
    // New ones, and some that have already run tasks as long as these.
    for warm in [0, 4] {
        let pool = pool(4);
        let first: Vec<Task> = (0..warm).map(|_| submit(&pool, "sleep", vec![Value::Int(200)])).collect();
        first.iter().for_each(|task| drop(value(task)));
        let tasks: Vec<Task> = (0..8).map(|_| submit(&pool, "sleep", vec![Value::Int(300)])).collect();
        pool.close_within(None, Box::new(|| {})).unwrap();
        let by: HashSet<i64> = tasks.iter().map(|task| value(task).as_int().unwrap()).collect();
        assert_eq!(by.len(), 4, "workers that ran something, warm={warm}");
        assert!(pool.wait_closed(Some(WATCHDOG)));
        let started = pool.processes().unwrap().spawned;
        assert_eq!(started, 4, "processes, warm={warm}");
    }
}

#[test]
fn tasks_that_were_sent_ahead_of_a_long_one_are_still_waiting() {
    let _alone = alone();
    let pool = pool(1);
    let tasks: Vec<Task> = (0..8).map(|_| submit(&pool, "sleep", vec![Value::Int(700)])).collect();
    eventually("the first one runs", || tasks[0].is_running());
    assert_eq!(tasks.iter().filter(|t| t.is_running()).count(), 1);
    // At once, and when a tick has seen that the first one is long.
    assert!(tasks[7].cancel_queued() && !tasks[0].cancel_queued());
    std::thread::sleep(ms(50));
    assert!(tasks[6].cancel_queued() && tasks[6].is_done());
    let urgent = submit_with(&pool, "pid", vec![], SubmitOptions { priority: 1, ..SubmitOptions::default() });
    let _ = value(&urgent);
    assert!(!tasks[2].is_done(), "what is urgent came second, not eighth");
    // A pool that is to end at once cancels all but what runs.
    pool.pool().close();
    assert!(pool.pool().cancel_queued() >= 3);
    assert!(tasks[3].is_done() && outcome(&tasks[3]).unwrap_err().kind() == ErrorKind::Cancelled);
    assert!(pool.wait_closed(Some(WATCHDOG)));
    let stats = pool.pool().stats();
    assert_eq!((stats.queued, stats.running), (0, 0));
    assert_eq!(stats.completed + stats.cancelled, 9, "one outcome each");
}

#[test]
fn tasks_of_one_key_start_no_process_that_may_not_run_them() {
    let _alone = alone();
    let o = PoolOptions { idle_timeout: ms(50), ..options(4) };
    let pool = build(ProcessPool::builder().options(o), "serve");
    let keyed = || SubmitOptions { key: Some("one".to_owned()), ..SubmitOptions::default() };
    let tasks: Vec<Task> = (0..6).map(|_| submit_with(&pool, "sleep", vec![Value::Int(100)], keyed())).collect();
    let by: HashSet<i64> = tasks.iter().map(|task| value(task).as_int().unwrap()).collect();
    assert_eq!(by.len(), 1);
    let started = pool.processes().unwrap().spawned;
    assert!(started <= 4, "{started} processes");
    pool.shutdown(None).unwrap();
}

#[test]
fn a_child_that_a_function_leaves_behind_is_no_worker() {
    let _alone = alone();
    let pool = pool(1);
    for _ in 0..3 {
        let child = value(&submit(&pool, "fork", vec![])).as_int().unwrap();
        assert!(child > 0, "the child's reply came: {child}");
        for i in 0..200 {
            assert_eq!(value(&submit(&pool, "echo", vec![Value::Int(i)])).as_int(), Some(i));
        }
        let ended = || std::fs::read_to_string(format!("/proc/{child}/stat")).map_or(true, |stat| stat.contains(") Z "));
        eventually("the child ends", ended);
    }
    pool.shutdown(None).unwrap();
}

#[test]
fn values_before_a_failure_or_a_death_are_taken_before_it() {
    let _alone = alone();
    let pool = pool(1);
    for how in ["fail", "die"] {
        let stream = stream(&pool, "count", vec![Value::Int(3), Value::str(how)]);
        let taken: Vec<_> = std::iter::from_fn(|| next(&stream)).map(|v| v.as_int().unwrap()).collect();
        if how == "fail" {
            assert_eq!(taken, [0, 1, 2]);
            assert_eq!(outcome(stream.task()).unwrap().unwrap_err().message, "no more");
        } else {
            // The first was sent; the others may have died with it.
            assert!(!taken.is_empty() && taken.iter().enumerate().all(|(i, n)| i as i64 == *n), "{taken:?}");
            assert!(lost(stream.task()).to_string().contains("exit_code=7"));
        }
    }
    close(&pool);
}

#[test]
fn a_stream_that_nobody_has_any_more_ends_its_task() {
    let _alone = alone();
    let pool = pool(1);
    drop(stream(&pool, "count", vec![Value::Int(i64::MAX)]));
    let left = stream(&pool, "count", vec![Value::Int(i64::MAX)]);
    assert_eq!(next(&left).and_then(|v| v.as_int()), Some(0));
    drop(left);
    assert_eq!(value(&submit(&pool, "echo", vec![Value::Int(1)])).as_int(), Some(1), "the worker is free again");
    assert_eq!(pool.pool().stats().cancelled, 2);
    close(&pool);
}

#[test]
fn a_reader_that_gives_up_waiting_may_come_back() {
    let _alone = alone();
    let pool = pool(1);
    let busy = submit(&pool, "sleep", vec![Value::Int(100)]);
    let stream = stream(&pool, "count", vec![Value::Int(2)]);
    let e = stream.next(Some(ms(1)), |_| ()).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Timeout);
    assert_eq!([next(&stream), next(&stream), next(&stream)].map(|v| v.and_then(|v| v.as_int())), [Some(0), Some(1), None]);
    value(&busy);
    close(&pool);
}

/// What was handed to a worker and taken back by another is not begun: one that has asked for its successor may be below its limit again.
#[test]
fn a_worker_that_asked_for_its_successor_too_early_leaves_when_it_is_idle() {
    let _alone = alone();
    let limits = PoolOptions { max_tasks_per_worker: Some(20), min_workers: 2, idle_timeout: ms(5), ..options(2) };
    let pool = build(ProcessPool::builder().options(limits), "serve");
    for round in 0..150i64 {
        pool.pool().resize(Some(2), None).unwrap();
        let tasks: Vec<Task> = (0..5 + round % 37).map(|i| submit(&pool, "echo", vec![Value::Int(i)])).collect();
        tasks.iter().for_each(|task| drop(value(task)));
        pool.pool().resize(Some(0), None).unwrap();
        eventually("idle workers leave", || pool.pool().stats().workers == 0);
    }
    close(&pool);
}

/// Nobody's task is to blame: such workers are counted, with pauses between them, until the pool gives up.
#[test]
fn workers_that_leave_instead_of_taking_what_was_sent_are_not_replaced_for_ever() {
    let _alone = alone();
    let pool = build(ProcessPool::builder().options(options(1)), "leaves");
    let task = submit(&pool, "echo", vec![Value::Int(1)]);
    let e = outcome(&task).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Degraded, "{e}");
    // The others hear it without a pause: with those of failed starts these would take minutes.
    let since = Instant::now();
    for _ in 0..30 {
        assert_eq!(outcome(&submit(&pool, "echo", vec![Value::Int(1)])).unwrap_err().kind(), ErrorKind::Degraded);
    }
    assert!(since.elapsed() < WATCHDOG, "a call of a degraded pool waits");
    pool.terminate().unwrap();
}

#[test]
fn a_worker_that_sends_frames_out_of_turn_is_ended() {
    let _alone = alone();
    let pool = build(ProcessPool::builder().options(options(1)), "floods");
    let stream = stream(&pool, "any", vec![]);
    assert!(next(&stream).is_none());
    lost(stream.task());
    close(&pool);
}

#[test]
fn a_process_with_too_much_memory_is_replaced_and_no_call_is_lost() {
    let _alone = alone();
    let limit = PoolOptions { max_worker_memory: Some(64 << 20), ..options(1) };
    let pool = build(ProcessPool::builder().options(limit), "serve");
    let ask = |name, mib| value(&submit(&pool, name, vec![Value::Int(mib)])).as_int();
    let small = ask("grow", 1);
    std::thread::sleep(ms(1500));
    assert_eq!(ask("pid", 0), small, "one within the limit stays");
    assert_eq!(ask("grow", 100), small);
    eventually("another process has its place", || ask("pid", 0) != small);
    let stats = pool.pool().stats();
    assert_eq!((stats.recycled, stats.lost, stats.failed), (1, 0, 0));
    // One that is idle is looked at as well.
    let idle = ask("grow", 100);
    eventually("an idle one is replaced", || pool.pool().stats().recycled == 2);
    assert_ne!(ask("pid", 0), idle);
    close(&pool);
}

#[test]
fn a_worker_that_cannot_start_fails_the_tasks_with_its_own_words() {
    let _alone = alone();
    let pool = build(ProcessPool::builder().options(options(2)), "broken");
    let tasks: Vec<Task> = (0..10).map(|_| submit(&pool, "echo", vec![])).collect();
    for task in &tasks {
        let e = outcome(task).expect_err("no worker");
        assert_eq!(e.kind(), ErrorKind::StartFailed, "{e}");
        assert!(e.to_string().contains("SyntaxError: unexpected token"), "{e}");
    }
    pool.terminate().unwrap();
    eventually("no process is left", || children() == 0);
    let missing = ProcessPool::builder().options(options(1)).build(|_| Ok(Spec::new("/no/such/interpreter"))).unwrap();
    let e = outcome(&submit(&missing, "echo", vec![])).expect_err("no program");
    assert!(e.kind() == ErrorKind::NotFound && e.to_string().contains("/no/such/interpreter"), "{e}");
}

#[test]
fn a_worker_that_scribbles_on_its_lane_is_ended_and_harms_only_its_own_tasks() {
    let _alone = alone();
    for what in ["state", "never", "ready", "given", "holes", "quiet"] {
        let pool = build(ProcessPool::builder().options(options(1)), "scribble");
        let ask = |text: &str| {
            let request = pool.request(&[text.as_bytes(), &[7; 5000]]).unwrap();
            outcome(&pool.submit(request, SubmitOptions::default()).unwrap())
        };
        let first = ask(what);
        if matches!(what, "state" | "never" | "holes") {
            let e = first.expect_err("scribbled");
            assert!(matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::WorkerLost), "{what}: {e}");
        } else {
            assert_eq!(first.unwrap().unwrap().as_int(), Some(5005), "{what}");
        }
        // The next ones are served, by another process if this one was found out.
        for _ in 0..300 {
            if let Ok(reply) = ask("plain") {
                assert_eq!(reply.unwrap().as_int(), Some(5005), "{what}");
            }
        }
        assert_eq!(ask("plain").unwrap().unwrap().as_int(), Some(5005), "{what}");
        if what != "quiet" {
            eventually("it is ended", || pool.processes().unwrap().exits.total() == 1);
        }
        pool.terminate().unwrap();
    }
}

#[test]
fn idle_processes_leave_and_come_back_with_work() {
    let _alone = alone();
    let pool = build(ProcessPool::builder().options(PoolOptions { idle_timeout: ms(50), ..options(2) }), "serve");
    for _ in 0..3 {
        let tasks: Vec<Task> = (0..4).map(|_| submit(&pool, "sleep", vec![Value::Int(20)])).collect();
        tasks.iter().for_each(|task| drop(value(task)));
        eventually("they leave", || children() == 0);
        assert_eq!(pool.pool().stats().workers, 0);
    }
    let stats = pool.processes().unwrap();
    assert_eq!((stats.exits.total(), stats.wanted), (stats.exits.scale, 0), "{stats:?}");
    close(&pool);
}

#[test]
fn tasks_with_one_key_run_in_order_in_one_process() {
    let _alone = alone();
    let pool = pool(2);
    let keyed = |key: &str| SubmitOptions { key: Some(key.to_owned()), ..SubmitOptions::default() };
    for key in ["a", "b", "c"] {
        let tasks: Vec<Task> = (0..30).map(|_| submit_with(&pool, "pid", vec![], keyed(key))).collect();
        let pids: Vec<Option<i64>> = tasks.iter().map(|t| value(t).as_int()).collect();
        assert!(pids.windows(2).all(|w| w[0] == w[1]), "{key}: {pids:?}");
    }
    close(&pool);
}

#[test]
fn a_full_queue_refuses_and_nothing_is_lost() {
    let _alone = alone();
    let pool = build(ProcessPool::builder().options(PoolOptions { max_queue: 4, ..options(1) }), "serve");
    value(&submit(&pool, "echo", vec![Value::Nil]));
    let mut accepted = Vec::new();
    let mut refused = 0;
    for i in 0..200 {
        let request = pool.request(&[&call("sleep", vec![Value::Int(i % 2)])]).unwrap();
        match pool.submit(request, SubmitOptions::default()) {
            Ok(task) => accepted.push(task),
            Err(e) => {
                assert_eq!(e.error.kind(), ErrorKind::Full);
                refused += 1;
            }
        }
    }
    assert!(refused > 0);
    accepted.iter().for_each(|task| drop(value(task)));
    close(&pool);
}

#[test]
fn shared_memory_is_the_same_in_every_process_and_lives_as_long_as_somebody_refers_to_it() {
    let _alone = alone();
    let pool = build(ProcessPool::builder().options(options(1)), "share");
    let memory = pool.share(10_000).unwrap();
    // SAFETY: the memory is as long; a worker writes it in the tasks below alone.
    let byte = |at: usize| unsafe { memory.as_ptr().add(at).read_volatile() };
    assert_eq!((memory.len(), byte(0), byte(9_999)), (10_000, 0, 0));
    let refer = |flag: u8, at: u64, len: u64, shared: Vec<SharedPart>| {
        let parts = [&[flag][..], &at.to_le_bytes(), &len.to_le_bytes()];
        pool.submit(pool.request_with(&parts, shared).unwrap(), SubmitOptions::default()).unwrap()
    };
    let (found, at) = pool.shared_at(memory.as_ptr().wrapping_add(5000), 5000).unwrap().expect("inside");
    assert_eq!((found.at(), at), (memory.at(), memory.at() + 5000));
    for (from, len) in [(5000, 5001), (0, 10_001), (10_001, 1)] {
        assert!(pool.shared_at(memory.as_ptr().wrapping_add(from), len).unwrap().is_none(), "{from} {len}");
    }
    assert!(pool.shared_at([1u8].as_ptr(), 1).unwrap().is_none());
    assert_eq!(value(&refer(b'd', at, 5000, vec![found])).as_int(), Some(1));
    assert_eq!([byte(4999), byte(5000), byte(9_999)], [0, 1, 1]);
    // What a worker keeps is not given to anybody else, though the host has let go of it.
    assert_eq!(value(&refer(b'k', at, 1, vec![memory.clone()])).as_int(), Some(2));
    let place = memory.at();
    drop(memory);
    let other = pool.share(10_000).unwrap();
    assert_ne!(other.at(), place);
    // What is free again begins with zeros.
    assert_eq!(value(&refer(b'd', other.at(), 1, vec![other.clone()])).as_int(), Some(1));
    eventually("the memory is free", || {
        let again = pool.share(10_000).unwrap();
        // SAFETY: as above.
        let first = unsafe { again.as_ptr().add(5000).read_volatile() };
        again.at() == place && first == 0
    });
    let outside = outcome(&refer(b'd', u64::MAX - 1, 10, Vec::new())).unwrap().expect_err("outside");
    assert!(outside.message.contains("outside of the pool's"), "{}", outside.message);
    close(&pool);
    drop(other);
}

#[test]
fn everything_is_given_back() {
    let _alone = alone();
    // The first pool leaves what a process has once: the thread of deadlines.
    for round in 0..4 {
        static BEFORE: AtomicUsize = AtomicUsize::new(0);
        let p = pool(2);
        let tasks: Vec<Task> = (0..20).map(|i| submit(&p, if i == 7 { "exit" } else { "echo" }, vec![Value::Int(1)])).collect();
        tasks.iter().for_each(|task| drop(outcome(task)));
        close(&p);
        drop(p);
        eventually("its threads end", || !has_thread("offloop-super") && !has_thread("offloop-lanes"));
        if round == 0 {
            BEFORE.store(fds(), Ordering::Relaxed);
        } else {
            assert_eq!(fds(), BEFORE.load(Ordering::Relaxed), "round {round}");
        }
    }
}

#[test]
fn a_dropped_pool_still_runs_what_is_queued() {
    let _alone = alone();
    let pool = pool(2);
    let tasks: Vec<Task> = (0..50).map(|i| submit(&pool, "echo", vec![Value::Int(i)])).collect();
    drop(pool);
    for (i, task) in tasks.iter().enumerate() {
        assert_eq!(value(task).as_int(), Some(i as i64));
    }
    drop(tasks);
    eventually("the processes end", || children() == 0);
}

#[test]
fn a_storm_of_kills_loses_no_outcome() {
    let _alone = alone();
    let kills = if std::env::var_os("OFFLOOP_TORTURE").is_some() { 5000 } else { 100 };
    // Who is killed while it has nothing to do is not put down to a task.
    let supervision = supervisor::Options { max_failures: Some(10_000), hang_timeout: Duration::ZERO, ..supervisor::Options::default() };
    let builder = ProcessPool::builder().options(options(3)).supervision(supervision);
    let pool = build(builder, "serve");
    let (mut done, mut gone) = (0u64, 0u64);
    let mut killed = HashSet::new();
    let mut tasks: Vec<(i64, Task)> = Vec::new();
    let mut next = 0;
    while killed.len() < kills {
        while tasks.len() < 60 {
            let name = ["pid", "echo", "sleep"][usize::try_from(next % 3).unwrap()];
            tasks.push((next, submit(&pool, name, vec![Value::Int(if name == "sleep" { 1 } else { next })])));
            next += 1;
        }
        let mut victim = None;
        for (i, task) in tasks.drain(..) {
            match outcome(&task) {
                Ok(value) if i % 3 == 1 => assert_eq!(value.unwrap().as_int(), Some(i)),
                Ok(value) => victim = value.unwrap().as_int(),
                Err(e) => {
                    assert_eq!(e.kind(), ErrorKind::WorkerLost, "{e}");
                    gone += 1;
                    continue;
                }
            }
            done += 1;
            if let Some(pid) = victim.take()
                && killed.insert(pid)
            {
                // While the rest of the batch is on its way.
                // SAFETY: a plain call. The process is a worker of this pool, or was one a moment ago and is not yet reaped by many others.
                unsafe { libc::kill(pid as i32, libc::SIGKILL) };
            }
        }
    }
    let stats = pool.pool().stats();
    println!("{{\"kills\":{},\"done\":{done},\"lost\":{gone},\"exits\":{}}}", killed.len(), pool.processes().unwrap().exits.total());
    assert_eq!((stats.submitted, stats.completed, stats.lost), (done + gone, done, gone));
    close(&pool);
}
