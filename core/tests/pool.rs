//! What a pool promises, seen from outside.

use offloop::pool::{Deliver, Event, HostedWorker, Next, OnFull, Outcome, SubmitOptions, Work};
use offloop::{CompletionQueue, Error, ErrorKind, ThreadPool, Value};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

fn pool(workers: usize) -> ThreadPool {
    ThreadPool::builder().max_workers(workers).name("test").build().expect("pool")
}

/// A task that runs until its sender sends or is dropped; says when it runs.
fn gate(pool: &ThreadPool, options: SubmitOptions) -> (mpsc::Sender<()>, offloop::Task) {
    let (open, wait) = mpsc::channel::<()>();
    let (started, starts) = mpsc::channel();
    let task = pool
        .submit(
            Work::call(move |_| {
                started.send(()).expect("test waits");
                let _ = wait.recv();
                Ok(Value::Int(7))
            }),
            options,
        )
        .expect("submit");
    starts.recv().expect("started");
    (open, task)
}

fn int(n: i64) -> Work {
    Work::call(move |_| Ok(Value::Int(n)))
}

fn kind(r: Result<Value, Error>) -> ErrorKind {
    r.expect_err("an error").kind()
}

#[test]
fn runs_a_task_and_gives_its_value_once() {
    let p = pool(2);
    let t = p.submit(int(5), SubmitOptions::default()).expect("submit");
    assert_eq!(t.wait(None).expect("value").as_int(), Some(5));
    assert!(t.is_done());
    assert_eq!(kind(t.wait(None)), ErrorKind::Invalid);
}

#[test]
fn many_tasks_from_many_threads_all_have_one_outcome() {
    let p = pool(3);
    let ran = Arc::new(AtomicUsize::new(0));
    std::thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| {
                for _ in 0..5_000 {
                    let ran = ran.clone();
                    let options = SubmitOptions { on_full: OnFull::Wait(None), ..Default::default() };
                    p.submit(
                        Work::call(move |_| {
                            ran.fetch_add(1, Ordering::Relaxed);
                            Ok(Value::Nil)
                        }),
                        options,
                    )
                    .expect("submit");
                }
            });
        }
    });
    p.shutdown(None).expect("shutdown");
    assert_eq!(ran.load(Ordering::Relaxed), 20_000);
    let s = p.stats();
    assert_eq!((s.submitted, s.completed, s.queued, s.running), (20_000, 20_000, 0, 0));
    assert_eq!(s.wait.count, 20_000);
    assert_eq!(s.run.count, 20_000);
}

#[test]
fn full_queue_rejects_gives_the_work_back_and_goes_on() {
    let p = ThreadPool::builder().max_workers(1).max_queue(2).build().expect("pool");
    let (open, first) = gate(&p, SubmitOptions::default());
    let a = p.submit(int(1), SubmitOptions::default()).expect("room");
    let b = p.submit(int(2), SubmitOptions::default()).expect("room");
    let refused = p.submit(int(3), SubmitOptions::default()).expect_err("full");
    assert_eq!(refused.error.kind(), ErrorKind::Full);
    assert!(refused.error.to_string().contains("max_queue=2"), "{}", refused.error);
    assert_eq!(refused.work.len(), 1);
    // `Admit` goes beyond, a timed wait gives up, a batch is all or nothing.
    let c = p.submit(int(3), SubmitOptions { on_full: OnFull::Admit, ..Default::default() }).expect("admitted");
    let waited = p.submit(int(4), SubmitOptions { on_full: OnFull::Wait(Some(Duration::from_millis(5))), ..Default::default() });
    assert_eq!(waited.expect_err("full").error.kind(), ErrorKind::Full);
    for (batch, on_full) in [(2, OnFull::Reject), (2, OnFull::Wait(Some(Duration::ZERO))), (3, OnFull::Reject), (3, OnFull::Wait(None))] {
        let refused = p.submit_many((0..batch).map(int).collect(), &SubmitOptions { on_full, ..Default::default() }).expect_err("full");
        assert_eq!((refused.error.kind(), refused.work.len()), (ErrorKind::Full, batch as usize));
        let text = refused.error.to_string();
        assert!(text.contains(&format!("max_queue=2, batch={batch}")), "{text}");
        assert_eq!(text.contains("longer than the pool's queue"), batch > 2, "{text}");
    }
    assert!(p.submit_many(Vec::new(), &SubmitOptions::default()).expect("nothing needs no room").is_empty());
    assert_eq!(p.stats().queued, 3);
    drop(open);
    for (t, n) in [(first, 7), (a, 1), (b, 2), (c, 3)] {
        assert_eq!(t.wait(None).expect("value").as_int(), Some(n));
    }
    p.submit(int(9), SubmitOptions::default()).expect("room again").wait(None).expect("value");
}

#[test]
fn a_blocked_submit_goes_on_when_there_is_room() {
    let p = ThreadPool::builder().max_workers(1).max_queue(1).build().expect("pool");
    let (open, _first) = gate(&p, SubmitOptions::default());
    p.submit(int(1), SubmitOptions::default()).expect("room");
    std::thread::scope(|s| {
        let blocked =
            s.spawn(|| p.submit(int(2), SubmitOptions { on_full: OnFull::Wait(None), ..Default::default() }).expect("room").wait(None));
        drop(open);
        assert_eq!(blocked.join().expect("join").expect("value").as_int(), Some(2));
    });
}

#[test]
fn a_queued_task_is_cancelled_at_once_and_never_starts() {
    let p = pool(1);
    let (open, first) = gate(&p, SubmitOptions::default());
    let ran = Arc::new(AtomicBool::new(false));
    let seen = ran.clone();
    let work = Work::call(move |_| {
        seen.store(true, Ordering::SeqCst);
        Ok(Value::Nil)
    });
    let t = p.submit(work, SubmitOptions::default()).expect("submit");
    assert!(t.cancel());
    assert!(!t.cancel(), "the outcome is decided");
    assert_eq!(kind(t.wait(None)), ErrorKind::Cancelled);
    assert_eq!(p.stats().queued, 0);
    drop(open);
    first.wait(None).expect("value");
    p.shutdown(None).expect("shutdown");
    assert!(!ran.load(Ordering::SeqCst));
    let s = p.stats();
    assert_eq!((s.cancelled, s.completed), (1, 1));
}

#[test]
fn cancelled_queued_tasks_make_room() {
    let p = ThreadPool::builder().max_workers(1).max_queue(4).build().expect("pool");
    let (open, _first) = gate(&p, SubmitOptions::default());
    for _ in 0..5_000 {
        let t = p.submit(int(1), SubmitOptions::default()).expect("room");
        assert!(t.cancel_queued());
    }
    drop(open);
    p.shutdown(None).expect("shutdown");
    assert_eq!(p.stats().cancelled, 5_000);
}

#[test]
fn a_running_task_that_looks_at_its_token_stops() {
    let p = pool(1);
    let (tx, rx) = mpsc::channel();
    let (started, starts) = mpsc::channel();
    let t = p
        .submit(
            Work::call(move |ctx| {
                started.send(()).expect("test waits");
                let e = loop {
                    if let Err(e) = ctx.check() {
                        break e;
                    }
                    std::thread::yield_now();
                };
                tx.send(e.kind()).expect("test waits");
                Err(e)
            }),
            SubmitOptions::default(),
        )
        .expect("submit");
    starts.recv().expect("started");
    assert!(t.is_running());
    assert!(!t.cancel_queued());
    assert!(t.cancel());
    assert_eq!(kind(t.wait(None)), ErrorKind::Cancelled);
    assert_eq!(rx.recv().expect("stopped"), ErrorKind::Cancelled);
    p.shutdown(None).expect("shutdown");
    assert_eq!(p.stats().overdue, 0);
}

#[test]
fn a_task_that_ignores_its_timeout_is_overdue_and_its_thread_replaced() {
    let p = pool(1);
    let (open, t) = gate(&p, SubmitOptions { timeout: Some(Duration::from_millis(20)), ..Default::default() });
    let e = t.wait(None).expect_err("timeout");
    assert_eq!(e.kind(), ErrorKind::Timeout);
    assert!(e.to_string().contains("limit_ms=20"), "{e}");
    assert_eq!(p.stats().overdue, 1);
    // The only worker is stuck; a new one runs this.
    assert_eq!(p.submit(int(1), SubmitOptions::default()).expect("submit").wait(None).expect("value").as_int(), Some(1));
    assert_eq!(p.stats().overdue, 1);
    drop(open);
    p.shutdown(None).expect("shutdown");
    while p.stats().overdue > 0 {
        std::thread::yield_now();
    }
    assert_eq!(p.stats().timed_out, 1);
}

#[test]
fn replacements_are_bounded_by_max_overdue() {
    let p = ThreadPool::builder().max_workers(1).max_overdue(0).build().expect("pool");
    let (open, t) = gate(&p, SubmitOptions { timeout: Some(Duration::from_millis(5)), ..Default::default() });
    assert_eq!(kind(t.wait(None)), ErrorKind::Timeout);
    let next = p.submit(int(1), SubmitOptions::default()).expect("submit");
    assert_eq!(kind(next.wait(Some(Duration::from_millis(50)))), ErrorKind::Timeout, "nobody is there to run it");
    drop(open);
    assert_eq!(next.wait(None).expect("value").as_int(), Some(1));
}

#[test]
fn queue_timeout_ends_a_waiting_task_and_is_inert_after_start() {
    let p = pool(1);
    let limit = SubmitOptions { queue_timeout: Some(Duration::from_millis(10)), ..Default::default() };
    let (open, first) = gate(&p, limit);
    let waiting = p.submit(int(1), SubmitOptions { queue_timeout: Some(Duration::from_millis(10)), ..Default::default() }).expect("submit");
    let e = waiting.wait(None).expect_err("timeout");
    assert_eq!(e.kind(), ErrorKind::Timeout);
    assert!(e.to_string().contains("limit_ms=10, waited_ms="), "{e}");
    drop(open);
    assert_eq!(first.wait(None).expect("it had started").as_int(), Some(7));
}

#[test]
fn higher_priority_goes_first_and_order_holds_within_a_class() {
    let p = pool(1);
    let (open, _first) = gate(&p, SubmitOptions::default());
    let order = Arc::new(Mutex::new(Vec::new()));
    let tasks: Vec<_> = [(0, 1), (5, 2), (-5, 3), (5, 4), (0, 5), (127, 6), (-128, 7)]
        .into_iter()
        .map(|(priority, n)| {
            let order = order.clone();
            let work = Work::call(move |_| {
                order.lock().expect("lock").push(n);
                Ok(Value::Nil)
            });
            p.submit(work, SubmitOptions { priority, ..Default::default() }).expect("submit")
        })
        .collect();
    drop(open);
    for t in tasks {
        t.wait(None).expect("value");
    }
    assert_eq!(*order.lock().expect("lock"), [6, 2, 4, 1, 5, 3, 7]);
}

#[test]
fn tasks_of_one_key_run_in_order_and_one_at_a_time() {
    let p = pool(4);
    let logs: Vec<_> = (0..10).map(|_| Arc::new(Mutex::new(Vec::new()))).collect();
    let inside: Vec<_> = (0..10).map(|_| Arc::new(AtomicBool::new(false))).collect();
    let mut tasks = Vec::new();
    for n in 0..2_000usize {
        let k = n % 10;
        let (log, inside) = (logs[k].clone(), inside[k].clone());
        let work = Work::call(move |_| {
            assert!(!inside.swap(true, Ordering::SeqCst), "two tasks of one key at once");
            log.lock().expect("lock").push(n);
            inside.store(false, Ordering::SeqCst);
            Ok(Value::Nil)
        });
        tasks.push(p.submit(work, SubmitOptions { key: Some(format!("key-{k}")), ..Default::default() }).expect("submit"));
    }
    for t in &tasks {
        t.wait(None).expect("value");
    }
    for log in logs {
        assert!(log.lock().expect("lock").is_sorted());
    }
}

#[test]
fn a_panic_is_an_error_of_its_task_and_the_worker_lives() {
    let p = pool(1);
    let e = p.submit(Work::call(|_| panic!("boom {}", 1)), SubmitOptions::default()).expect("submit").wait(None).expect_err("panic");
    assert_eq!((e.kind(), e.message()), (ErrorKind::Panic, "boom 1"));
    assert_eq!(p.submit(int(1), SubmitOptions::default()).expect("submit").wait(None).expect("value").as_int(), Some(1));
    assert_eq!(p.stats().workers, 1);
}

#[test]
fn a_closed_pool_refuses_and_finishes_what_it_has() {
    let p = pool(1);
    let (open, first) = gate(&p, SubmitOptions::default());
    let queued = p.submit(int(1), SubmitOptions::default()).expect("submit");
    p.close();
    assert!(p.is_closed());
    assert_eq!(p.submit(int(2), SubmitOptions::default()).expect_err("closed").error.kind(), ErrorKind::Closed);
    drop(open);
    p.shutdown(None).expect("shutdown");
    assert_eq!(first.wait(None).expect("value").as_int(), Some(7));
    assert_eq!(queued.wait(None).expect("value").as_int(), Some(1));
    assert_eq!(p.stats().workers, 0);
}

#[test]
fn shutdown_cancels_what_its_grace_does_not_cover() {
    let p = pool(1);
    let (open, first) = gate(&p, SubmitOptions::default());
    let queued: Vec<_> = (0..100).map(|n| p.submit(int(n), SubmitOptions::default()).expect("submit")).collect();
    p.shutdown(Some(Duration::from_millis(10))).expect("shutdown");
    assert_eq!(kind(first.wait(None)), ErrorKind::Cancelled);
    for t in queued {
        assert_eq!(kind(t.wait(None)), ErrorKind::Cancelled);
    }
    assert_eq!(p.stats().queued, 0);
    drop(open);
}

#[test]
fn cancel_queued_ends_what_waits_and_spares_what_runs() {
    let pool = pool(1);
    let (go, running) = gate(&pool, SubmitOptions::default());
    let waiting: Vec<_> = (0..100).map(|n| pool.submit(int(n), SubmitOptions::default()).expect("submit")).collect();
    assert_eq!(pool.cancel_queued(), 100);
    for task in waiting {
        assert_eq!(kind(task.wait(None)), ErrorKind::Cancelled);
    }
    assert!(!running.is_done());
    go.send(()).expect("running");
    running.wait(None).expect("result");
    assert_eq!(pool.submit(int(7), SubmitOptions::default()).expect("submit").wait(None).expect("result").as_int(), Some(7));
    assert_eq!((pool.stats().queued, pool.stats().cancelled), (0, 100));
}

#[test]
fn a_hosted_pool_is_closed_when_its_last_task_has_returned() {
    let spawner = |mut worker: HostedWorker| {
        std::thread::spawn(move || {
            loop {
                let mut task = match worker.try_next() {
                    Some(task) => task,
                    None => match worker.next() {
                        Next::Task(task) => task,
                        Next::Interrupted => continue,
                        Next::Exit => return,
                    },
                };
                let work = task.take_payload().expect("payload").downcast::<mpsc::Receiver<()>>().expect("a gate");
                let _ = work.recv();
                worker.finish(task, Ok(Value::Nil));
            }
        });
        Ok(())
    };
    let pool = ThreadPool::builder().max_workers(2).hosted(Arc::new(spawner)).build().expect("pool");
    let submit = || {
        let (go, gate) = mpsc::channel::<()>();
        (go, pool.submit(Work::hosted(Box::new(gate)), SubmitOptions::default()).expect("submit"))
    };
    let (first, second) = (submit(), submit());
    while !(first.1.is_running() && second.1.is_running()) {
        std::thread::yield_now();
    }
    pool.close();
    drop(first.0);
    first.1.wait(None).expect("result");
    assert!(!pool.wait_closed(Some(Duration::from_millis(50))), "one task is still running");
    drop(second.0);
    assert!(pool.wait_closed(None));
    assert!(second.1.is_done());
}

/// A pool of host threads that answers `Work::hosted` with 7, and may start a thread while `allowed` is above 0.
fn limited_pool(workers: usize, allowed: &Arc<AtomicUsize>) -> ThreadPool {
    let allowed = allowed.clone();
    let spawner = move |mut worker: HostedWorker| {
        if allowed.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_err() {
            return Err(worker);
        }
        std::thread::spawn(move || {
            loop {
                match worker.next() {
                    Next::Task(mut task) => {
                        let gate = task.take_payload().expect("payload").downcast::<Option<mpsc::Receiver<()>>>().expect("a gate");
                        let _ = gate.map(|gate| gate.recv());
                        worker.finish(task, Ok(Value::Int(7)));
                    }
                    Next::Interrupted => {}
                    Next::Exit => return,
                }
            }
        });
        Ok(())
    };
    ThreadPool::builder().max_workers(workers).hosted(Arc::new(spawner)).build().expect("pool")
}

fn answer() -> Work {
    Work::hosted(Box::new(None::<mpsc::Receiver<()>>))
}

#[test]
fn tasks_of_a_pool_that_can_start_no_worker_end_with_the_reason() {
    let allowed = Arc::new(AtomicUsize::new(0));
    let pool = limited_pool(2, &allowed);
    for key in [None, Some("k".to_owned())] {
        let task = pool.submit(answer(), SubmitOptions { key, ..Default::default() }).expect("submit");
        assert_eq!(kind(task.wait(Some(Duration::from_secs(30)))), ErrorKind::StartFailed);
    }
    let submitters: Vec<_> = (0..4)
        .map(|_| {
            let pool = pool.clone();
            std::thread::spawn(move || {
                for _ in 0..2000 {
                    let task = pool.submit(answer(), SubmitOptions::default()).expect("submit");
                    assert_eq!(kind(task.wait(Some(Duration::from_secs(30)))), ErrorKind::StartFailed);
                }
            })
        })
        .collect();
    for submitter in submitters {
        submitter.join().expect("every task has its outcome");
    }
    assert_eq!(pool.stats().queued, 0);
    allowed.store(2, Ordering::SeqCst);
    let task = pool.submit(answer(), SubmitOptions::default()).expect("submit");
    assert_eq!(task.wait(Some(Duration::from_secs(30))).expect("value").as_int(), Some(7), "the machine has threads again");
    pool.shutdown(None).expect("shutdown");
}

#[test]
fn a_worker_that_does_not_start_harms_nothing_while_others_are_there() {
    let allowed = Arc::new(AtomicUsize::new(1));
    let pool = limited_pool(4, &allowed);
    let (open, gate) = mpsc::channel::<()>();
    let first = pool.submit(Work::hosted(Box::new(Some(gate))), SubmitOptions::default()).expect("submit");
    while !first.is_running() {
        std::thread::yield_now();
    }
    let keys = (0..16).map(|k| Some(k.to_string())).chain([None]);
    let tasks: Vec<_> = keys.map(|key| pool.submit(answer(), SubmitOptions { key, ..Default::default() }).expect("submit")).collect();
    allowed.store(3, Ordering::SeqCst);
    drop(open);
    for task in tasks.iter().chain([&first]) {
        assert_eq!(task.wait(Some(Duration::from_secs(30))).expect("value").as_int(), Some(7));
    }
}

#[test]
fn a_dropped_pool_still_runs_what_is_queued() {
    let p = pool(2);
    let (open, first) = gate(&p, SubmitOptions::default());
    let t = p.submit(int(1), SubmitOptions::default()).expect("submit");
    drop(p);
    drop(open);
    assert_eq!(first.wait(None).expect("value").as_int(), Some(7));
    assert_eq!(t.wait(None).expect("value").as_int(), Some(1));
}

#[test]
fn resize_grows_and_shrinks() {
    let p = pool(1);
    let (open_a, a) = gate(&p, SubmitOptions::default());
    let b = p.submit(int(1), SubmitOptions::default()).expect("submit");
    p.resize(None, Some(3)).expect("resize");
    assert_eq!(b.wait(None).expect("a second worker runs it").as_int(), Some(1));
    p.resize(None, Some(1)).expect("resize");
    drop(open_a);
    a.wait(None).expect("value");
    while p.stats().workers > 1 {
        std::thread::yield_now();
    }
    for (min, max) in [(None, Some(0)), (None, Some(5000)), (Some(2), Some(1))] {
        assert_eq!(p.resize(min, max).expect_err("range").kind(), ErrorKind::Invalid);
    }
}

#[test]
fn idle_workers_leave_and_come_back() {
    let p = ThreadPool::builder().max_workers(2).idle_timeout(Duration::from_millis(5)).build().expect("pool");
    for round in 0..50 {
        assert_eq!(p.submit(int(round), SubmitOptions::default()).expect("submit").wait(None).expect("value").as_int(), Some(round));
        if round % 10 == 0 {
            while p.stats().workers > 0 {
                std::thread::yield_now();
            }
        }
    }
}

#[test]
fn bad_options_name_the_value_and_the_limit() {
    for (builder, text) in [
        (ThreadPool::builder().max_workers(0), "option=max_workers, value=0, min=1, max=1024"),
        (ThreadPool::builder().max_workers(1 << 40), "max_workers"),
        (ThreadPool::builder().max_queue(0), "max_queue"),
        (ThreadPool::builder().nice(99), "nice"),
        (ThreadPool::builder().name("a\0b"), "name"),
    ] {
        let e = builder.build().expect_err(text);
        assert_eq!(e.kind(), ErrorKind::Invalid);
        assert!(e.to_string().contains(text), "{e}");
    }
    let p = pool(1);
    let year = Some(Duration::from_secs(365 * 24 * 3600));
    let e = p.submit(int(1), SubmitOptions { timeout: year, ..Default::default() }).expect_err("too long").error;
    assert_eq!(e.kind(), ErrorKind::Invalid);
    let e = p.submit_op("no_such_op", vec![], &Value::Nil, SubmitOptions::default()).expect_err("unknown op");
    assert_eq!(e.kind(), ErrorKind::NotFound);
    let e = p.submit_op("noop", vec![], &Value::map([("slep", Value::Int(1))]), SubmitOptions::default()).expect_err("unknown option");
    assert!(e.to_string().contains("option=slep"), "{e}");
    assert_eq!(p.stats().submitted, 0);
}

#[test]
fn a_queue_delivers_every_task_once_with_its_tag_and_its_fd_is_level_triggered() {
    let p = pool(2);
    let q = CompletionQueue::new().expect("queue");
    let fd = q.fd().expect("fd");
    let readable = |timeout_ms: i32| {
        let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd.
        unsafe { libc::poll(&raw mut poll, 1, timeout_ms) == 1 }
    };
    assert!(readable(0), "a loop begins with a drain");
    assert_eq!(q.drain(16, &mut |_| unreachable!()), 0);
    assert!(!readable(0));
    let options = SubmitOptions { deliver: Deliver::Queue(q.clone(), 100), ..Default::default() };
    let tasks = p.submit_many((0..50).map(int).collect(), &options).expect("submit");
    let mut seen = [false; 50];
    let mut n = 0;
    while n < 50 {
        assert!(readable(10_000), "unread work keeps the fd readable (got {n} of 50)");
        let got = q.drain(3, &mut |e| {
            let Event::Done { tag, result } = e else { panic!("no progress here") };
            let i = usize::try_from(tag - 100).expect("tag");
            assert_eq!(result.expect("value").as_int(), Some(i as i64));
            assert!(!std::mem::replace(&mut seen[i], true), "delivered twice");
        });
        n += got;
    }
    assert_eq!(q.drain(3, &mut |_| unreachable!()), 0);
    assert!(!readable(0), "an armed empty queue is quiet");
    assert!(tasks.iter().all(offloop::Task::is_done));
}

#[test]
fn a_submitter_that_waits_sees_every_place_that_a_cancelled_task_leaves() {
    let p = ThreadPool::builder().max_workers(1).max_queue(1).build().expect("pool");
    let (want, wanted) = mpsc::channel::<()>();
    let (had, has) = mpsc::channel();
    let waiter = {
        let p = p.clone();
        std::thread::spawn(move || {
            for () in wanted {
                let options = SubmitOptions { on_full: OnFull::Wait(None), ..Default::default() };
                had.send(p.submit(int(1), options).expect("room").wait(None)).expect("test waits");
            }
        })
    };
    let rounds = if std::env::var_os("OFFLOOP_TORTURE").is_some() { 100_000 } else { 1_000 };
    for round in 0..rounds {
        let (runs, until) = (Arc::new(AtomicBool::new(false)), Arc::new(OnceLock::<Instant>::new()));
        let (says, end) = (runs.clone(), until.clone());
        let spin = Work::call(move |_| {
            says.store(true, Ordering::Release);
            while end.get().is_none_or(|end| Instant::now() < *end) {}
            Ok(Value::Nil)
        });
        let running = p.submit(spin, SubmitOptions { on_full: OnFull::Wait(None), ..Default::default() }).expect("submit");
        while !runs.load(Ordering::Acquire) {}
        let queued = p.submit(int(2), SubmitOptions { on_full: OnFull::Wait(None), ..Default::default() }).expect("submit");
        want.send(()).expect("waiter lives");
        std::thread::sleep(Duration::from_micros(60));
        // The worker clears the queue while the place is being given away.
        until.set(Instant::now() + Duration::from_nanos(round * 7_919 % 60_000)).expect("set once");
        queued.cancel();
        let waited = has.recv_timeout(Duration::from_secs(20));
        waited.unwrap_or_else(|_| panic!("round {round}: a place was free and the submitter sleeps")).expect("value");
        running.wait(None).expect("value");
    }
    drop(want);
    waiter.join().expect("waiter");
}

#[test]
fn progress_reaches_the_queue_before_the_outcome() {
    let p = pool(1);
    let q = CompletionQueue::new().expect("queue");
    let (go, wait) = mpsc::channel::<()>();
    let work = Work::call(move |ctx| {
        ctx.progress(Value::Int(50));
        let _ = wait.recv();
        Ok(Value::Nil)
    });
    p.submit(work, SubmitOptions { deliver: Deliver::Queue(q.clone(), 1), ..Default::default() }).expect("submit");
    let mut progress = None;
    while progress.is_none() {
        assert!(q.wait(None));
        q.drain(8, &mut |e| match e {
            Event::Progress { tag: 1, value } => progress = value.as_int(),
            other => panic!("{other:?}"),
        });
    }
    assert_eq!(progress, Some(50));
    drop(go);
    let mut done = false;
    while !done {
        let _ = q.wait(None);
        q.drain(8, &mut |e| done |= matches!(e, Event::Done { .. }));
    }
}

#[test]
fn an_undrained_queue_frees_its_tasks() {
    let p = pool(1);
    let alive = Arc::new(());
    let q = CompletionQueue::new().expect("queue");
    for _ in 0..10 {
        let keep = alive.clone();
        let options = SubmitOptions { deliver: Deliver::Queue(q.clone(), 1), ..Default::default() };
        p.submit(
            Work::call(move |_| {
                let _keep = keep;
                Ok(Value::Nil)
            }),
            options,
        )
        .expect("submit");
    }
    drop(q);
    p.shutdown(None).expect("shutdown");
    drop(p);
    while Arc::strong_count(&alive) > 1 {
        std::thread::yield_now();
    }
}

#[test]
fn callbacks_run_once_on_an_offloop_thread() {
    let p = pool(1);
    let here = std::thread::current().id();
    let (tx, rx) = mpsc::channel();
    let deliver =
        |tx: mpsc::Sender<_>| Deliver::Callback(Box::new(move |r| tx.send((std::thread::current().id(), r)).expect("test waits")));
    p.submit(int(1), SubmitOptions { deliver: deliver(tx.clone()), ..Default::default() }).expect("submit");
    let (thread, r) = rx.recv().expect("called");
    assert_ne!(thread, here);
    assert_eq!(r.expect("value").as_int(), Some(1));
    let (open, _first) = gate(&p, SubmitOptions::default());
    let t = p.submit(int(2), SubmitOptions { deliver: deliver(tx), ..Default::default() }).expect("submit");
    assert!(t.cancel());
    let (thread, r) = rx.recv().expect("called");
    assert_ne!(thread, here);
    assert_eq!(kind(r), ErrorKind::Cancelled);
    drop(open);
    assert!(rx.recv().is_err(), "exactly once");
}

#[test]
fn a_callback_may_wait_for_tasks_of_its_pool_and_for_their_callbacks() {
    fn nested(pool: &ThreadPool, levels: usize, done: mpsc::Sender<usize>) {
        let inner = pool.clone();
        let deliver = Deliver::Callback(Box::new(move |_| {
            inner.submit(int(1), SubmitOptions::default()).expect("submit").wait(None).expect("a worker is free");
            if levels > 0 {
                let (says, said) = mpsc::channel();
                nested(&inner, levels - 1, says);
                assert_eq!(said.recv(), Ok(levels - 1));
            }
            done.send(levels).expect("the level above waits");
        }));
        pool.post(int(levels as i64), SubmitOptions { deliver, ..Default::default() }).expect("submit");
    }
    let p = pool(1);
    let (done, said) = mpsc::channel();
    nested(&p, 5, done.clone());
    assert_eq!(said.recv_timeout(Duration::from_secs(60)), Ok(5));
    // `on_done` too.
    let inner = p.clone();
    p.submit(int(1), SubmitOptions::default()).expect("submit").on_done(move |_| {
        let other = inner.submit(int(2), SubmitOptions::default()).expect("submit");
        let (says, said) = mpsc::channel();
        other.on_done(move |_| says.send(()).expect("the callback waits"));
        said.recv().expect("called meanwhile");
        done.send(99).expect("test waits");
    });
    assert_eq!(said.recv_timeout(Duration::from_secs(60)), Ok(99));
}

/// What a function that runs in `pool` gets from `f`.
fn inside<R: Send + 'static>(pool: &ThreadPool, f: impl FnOnce(&ThreadPool) -> R + Send + 'static) -> R {
    let (says, said) = mpsc::channel();
    let own = pool.clone();
    let work = Work::call(move |_| {
        says.send(f(&own)).expect("test waits");
        Ok(Value::Nil)
    });
    pool.post(work, SubmitOptions { on_full: OnFull::Admit, ..Default::default() }).expect("submit");
    said.recv_timeout(Duration::from_secs(60)).expect("the function does not hang")
}

#[test]
fn a_function_that_would_wait_for_ever_for_its_own_pool_is_told_so() {
    let p = ThreadPool::builder().max_workers(1).max_queue(1).build().expect("pool");
    let submit = |pool: &ThreadPool| pool.submit(int(1), SubmitOptions::default()).expect("submit");
    let told = inside(&p, move |pool| {
        let task = submit(pool);
        let told = task.wait(None);
        // A wait that ends is nobody's harm, nor is one for another pool.
        assert_eq!(kind(task.wait(Some(Duration::from_millis(1)))), ErrorKind::Timeout);
        let full = pool.submit(int(2), SubmitOptions { on_full: OnFull::Wait(None), ..Default::default() });
        assert_eq!(full.expect_err("full for ever").error.kind(), ErrorKind::Invalid);
        assert_eq!(pool.shutdown(None).expect_err("its own end").kind(), ErrorKind::Invalid);
        task.cancel();
        self::pool(1).submit(int(3), SubmitOptions::default()).expect("submit").wait(None).expect("value");
        told
    });
    let text = told.as_ref().expect_err("stuck").to_string();
    assert_eq!(kind(told), ErrorKind::Invalid);
    assert!(text.contains("wait for ever") && text.contains("max_workers=1"), "{text}");
    assert_eq!(p.submit(int(4), SubmitOptions::default()).expect("open").wait(None).expect("value").as_int(), Some(4));
}

#[test]
fn a_function_may_wait_for_its_own_pool_while_a_thread_is_left() {
    let p = pool(2);
    for round in 0..200 {
        let got = inside(&p, move |pool| pool.submit(int(round), SubmitOptions::default()).expect("submit").wait(None));
        assert_eq!(got.expect("the other worker").as_int(), Some(round));
    }
    // The last of two that wait for what neither can run is told, the other gets its value then.
    let both = Arc::new(std::sync::Barrier::new(2));
    let waits = |_| {
        let (own, both) = (p.clone(), both.clone());
        let work = Work::call(move |_| {
            both.wait();
            let inner = own.submit(int(5), SubmitOptions::default())?;
            inner.wait(None)
        });
        p.submit(work, SubmitOptions::default()).expect("submit")
    };
    let tasks: Vec<_> = (0..2).map(waits).collect();
    let outcomes: Vec<_> = tasks.iter().map(|t| t.wait(Some(Duration::from_secs(60)))).collect();
    assert!(outcomes.iter().any(|o| o.as_ref().is_ok_and(|v| v.as_int() == Some(5))), "{outcomes:?}");
    assert!(outcomes.into_iter().filter_map(Result::err).all(|e| e.kind() == ErrorKind::Invalid));
}

#[test]
fn a_function_is_told_that_a_key_binds_the_task_it_waits_for_to_its_own_thread() {
    let p = pool(4);
    let keyed = || SubmitOptions { key: Some("k".into()), ..Default::default() };
    let (says, said) = mpsc::channel();
    let own = p.clone();
    let work = Work::call(move |_| {
        says.send(own.submit(int(1), keyed())?.wait(None)).expect("test waits");
        Ok(Value::Nil)
    });
    p.submit(work, keyed()).expect("submit");
    assert_eq!(kind(said.recv_timeout(Duration::from_secs(60)).expect("does not hang")), ErrorKind::Invalid);
}

#[test]
fn a_callback_that_waits_does_not_stop_deadlines() {
    let (p, other) = (pool(1), pool(1));
    let (open, _first) = gate(&p, SubmitOptions::default());
    let (unblock, blocked) = mpsc::channel::<()>();
    let (called, calls) = mpsc::channel();
    let deliver = Deliver::Callback(Box::new(move |_| {
        called.send(()).expect("test waits");
        let _ = blocked.recv();
    }));
    // Ends from outside, so its callback is not called on a worker.
    assert!(p.submit(int(1), SubmitOptions { deliver, ..Default::default() }).expect("submit").cancel());
    calls.recv().expect("called");
    let options = SubmitOptions { timeout: Some(Duration::from_millis(1)), ..Default::default() };
    let (open_other, late) = gate(&other, options);
    assert_eq!(kind(late.wait(Some(Duration::from_secs(30)))), ErrorKind::Timeout);
    assert!(late.is_done(), "the deadline's own outcome");
    drop((unblock, open, open_other));
}

#[test]
fn on_done_is_called_before_and_after_the_fact() {
    let p = pool(1);
    let (tx, rx) = mpsc::channel();
    let (open, t) = gate(&p, SubmitOptions::default());
    let early = tx.clone();
    t.on_done(move |t| early.send(t.is_done()).expect("test waits"));
    drop(open);
    assert!(rx.recv().expect("called"));
    t.on_done(move |t| tx.send(t.is_done()).expect("test waits"));
    assert!(rx.recv().expect("called"));
    assert!(rx.recv().is_err());
}

#[test]
fn long_tasks_behind_short_ones_are_not_stuck_in_a_batch() {
    let p = pool(2);
    // Teach the workers that tasks are short, so that they take batches.
    for _ in 0..50 {
        for t in p.submit_many((0..64).map(int).collect(), &SubmitOptions::default()).expect("submit") {
            t.wait(None).expect("value");
        }
    }
    // The first of a batch blocks for ever; everything else must still finish, by the other worker.
    let (open, wait) = mpsc::channel::<()>();
    let mut batch = vec![Work::call(move |_| {
        let _ = wait.recv();
        Ok(Value::Nil)
    })];
    batch.extend((0..63).map(int));
    let mut tasks = p.submit_many(batch, &SubmitOptions::default()).expect("submit");
    let first = tasks.remove(0);
    for t in tasks {
        t.wait(None).expect("value");
    }
    assert!(!first.is_done());
    drop(open);
    first.wait(None).expect("value");
}

#[test]
fn a_splitting_op_uses_idle_workers_and_never_more_than_max() {
    let p = pool(3);
    let now = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let done = Arc::new(AtomicU64::new(0));
    let body = |now: Arc<AtomicUsize>, most: Arc<AtomicUsize>, done: Arc<AtomicU64>| {
        Work::call(move |ctx| {
            ctx.parallel(200, &|i| {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_micros(200));
                now.fetch_sub(1, Ordering::SeqCst);
                done.fetch_add(i as u64, Ordering::SeqCst);
                Ok(())
            })?;
            Ok(Value::Nil)
        })
    };
    let tasks: Vec<_> =
        (0..4).map(|_| p.submit(body(now.clone(), most.clone(), done.clone()), SubmitOptions::default()).expect("submit")).collect();
    for t in tasks {
        t.wait(None).expect("value");
    }
    assert_eq!(done.load(Ordering::SeqCst), 4 * (0..200).sum::<u64>());
    let most = most.load(Ordering::SeqCst);
    assert!((2..=3).contains(&most), "at once: {most}");
}

#[test]
fn a_panic_in_a_split_is_an_error_of_its_task() {
    let p = pool(3);
    for _ in 0..20 {
        let work = Work::call(|ctx| {
            ctx.parallel(100, &|i| if i == 50 { panic!("piece 50") } else { Ok(()) })?;
            Ok(Value::Nil)
        });
        assert_eq!(kind(p.submit(work, SubmitOptions::default()).expect("submit").wait(None)), ErrorKind::Panic);
    }
    assert_eq!(p.submit(int(1), SubmitOptions::default()).expect("submit").wait(None).expect("value").as_int(), Some(1));
}

#[test]
fn no_wake_up_is_lost_around_sleeping_workers_and_loops() {
    // In full: OFFLOOP_ROUNDS=10000000.
    let rounds: u64 = std::env::var("OFFLOOP_ROUNDS").ok().and_then(|v| v.parse().ok()).unwrap_or(100_000);
    let p = pool(2);
    let q = CompletionQueue::new().expect("queue");
    let fd = q.fd().expect("fd");
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let spin = |us: u64| {
        let end = std::time::Instant::now() + Duration::from_micros(us);
        while std::time::Instant::now() < end {
            std::hint::spin_loop();
        }
    };
    let mut in_flight = 0u64;
    let mut done = 0u64;
    for round in 0..rounds {
        let r = random();
        p.submit(int(1), SubmitOptions { deliver: Deliver::Queue(q.clone(), round), ..Default::default() }).expect("submit");
        in_flight += 1;
        if r % 4 == 0 {
            spin((r >> 8) % 51);
        }
        if r % 8 == 1 {
            // Sleep as a loop does: drain until armed, then poll.
            while in_flight > 0 {
                let n = q.drain(7, &mut |_| ()) as u64;
                in_flight -= n;
                done += n;
                if n < 7 && in_flight > 0 {
                    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
                    // SAFETY: one valid pollfd.
                    let ready = unsafe { libc::poll(&raw mut poll, 1, 20_000) };
                    assert_eq!(ready, 1, "round {round}: {in_flight} in flight, nobody rang");
                }
            }
        }
    }
    while done < rounds {
        assert!(q.wait(Some(Duration::from_secs(20))), "{} of {rounds}", done);
        done += q.drain(64, &mut |_| ()) as u64;
    }
}

#[test]
fn a_polled_queue_rings_only_after_it_was_armed() {
    let p = pool(1);
    let (ring, rings) = mpsc::channel();
    let q = CompletionQueue::with_notify(Box::new(move || ring.send(()).expect("test listens")));
    let run = |n: i64| {
        let task = p.submit(int(n), SubmitOptions { deliver: Deliver::Queue(q.clone(), 0), ..Default::default() });
        task.expect("submit")
    };
    let poll_one = || {
        let mut seen = Vec::new();
        // A task is done a moment before its queue has it.
        while q.poll(8, &mut |e| seen.push(e)) == 0 {
            std::thread::yield_now();
        }
        assert_eq!(seen.len(), 1);
    };
    run(1);
    rings.recv().expect("armed when it was made");
    poll_one();
    for n in 2..100 {
        run(n);
        poll_one();
    }
    assert!(rings.try_recv().is_err(), "no ring while it is polled");
    let waiting = run(100);
    while !waiting.is_done() {
        std::thread::yield_now();
    }
    if q.arm() {
        rings.recv().expect("armed before the task reached its queue");
    }
    poll_one();
    assert!(q.arm());
    run(101);
    rings.recv().expect("rung");
    poll_one();
    assert_eq!(q.poll(8, &mut |_| ()), 0);
}

#[test]
fn submit_each_takes_as_many_as_fit_in_order() {
    let p = ThreadPool::builder().max_workers(1).max_queue(3).build().expect("pool");
    let q = CompletionQueue::new().expect("queue");
    let (open, first) = gate(&p, SubmitOptions::default());
    let refused = p.submit_each((0..5).map(int).collect(), &[10, 11, 12, 13, 14], &q).expect_err("full");
    assert_eq!((refused.error.kind(), refused.work.len()), (ErrorKind::Full, 2));
    assert!(refused.error.to_string().contains("max_queue=3"), "{}", refused.error);
    let stats = p.stats();
    assert_eq!((stats.submitted, stats.rejected, stats.queued), (4, 2, 3));
    let none = p.submit_each(vec![int(9)], &[0], &q).expect_err("no room at all");
    assert_eq!(none.work.len(), 1);
    drop(open);
    first.wait(None).expect("value");
    let mut seen = Vec::new();
    while seen.len() < 3 {
        q.drain(8, &mut |e| {
            if let Event::Done { tag, result } = e {
                seen.push((tag, result.expect("value").as_int()));
            }
        });
    }
    assert_eq!(seen, [(10, Some(0)), (11, Some(1)), (12, Some(2))]);
    p.submit_each(Vec::new(), &[], &q).expect("nothing is nothing");
    p.close();
    let closed = p.submit_each(vec![int(1)], &[1], &q).expect_err("closed");
    assert_eq!((closed.error.kind(), closed.work.len()), (ErrorKind::Closed, 1));
}

#[test]
fn no_wake_up_is_lost_between_polling_and_arming() {
    let rounds: u64 = std::env::var("OFFLOOP_ROUNDS").ok().and_then(|v| v.parse().ok()).unwrap_or(50_000);
    let p = pool(2);
    let (ring, rings) = mpsc::channel();
    let q = CompletionQueue::with_notify(Box::new(move || ring.send(()).expect("test listens")));
    let (mut submitted, mut done) = (0, 0);
    while done < rounds {
        let batch = (rounds - submitted).min(1 + submitted % 5);
        let tags: Vec<u64> = (0..batch).collect();
        p.submit_each(tags.iter().map(|n| int(*n as i64)).collect(), &tags, &q).expect("room");
        submitted += batch;
        // As a loop does: poll until there is nothing, arm, sleep.
        while done < submitted {
            let n = q.poll(3, &mut |_| ()) as u64;
            done += n;
            if n == 0 && q.arm() {
                rings.recv_timeout(Duration::from_secs(20)).expect("somebody rings");
            }
        }
    }
    assert_eq!(done, rounds);
}

fn traced() -> SubmitOptions {
    SubmitOptions { trace: true, ..Default::default() }
}

#[test]
fn a_traced_task_tells_how_long_it_waited_and_ran() {
    const PAUSE: Duration = Duration::from_millis(5);
    let p = pool(1);
    let (open, first) = gate(&p, SubmitOptions::default());
    let (before, unix) = (Instant::now(), SystemTime::now());
    let work = Work::call(|_| {
        std::thread::sleep(2 * PAUSE);
        Ok(Value::Nil)
    });
    let task = p.submit(work, traced()).expect("submit");
    assert_eq!(task.trace(), None, "it has no outcome");
    std::thread::sleep(PAUSE);
    drop(open);
    task.wait(None).expect("done");
    let trace = task.trace().expect("traced");
    let whole = before.elapsed();
    assert_eq!((trace.outcome, trace.worker), (Outcome::Completed, Some(0)));
    assert!(u128::from(trace.queue_ns) >= PAUSE.as_nanos() && u128::from(trace.run_ns) >= 2 * PAUSE.as_nanos(), "{trace:?}");
    assert!(u128::from(trace.queue_ns + trace.run_ns) <= whole.as_nanos(), "{trace:?}");
    // A microsecond for two clocks that are not read at one time.
    let since = |t: SystemTime| t.duration_since(UNIX_EPOCH).expect("after 1970").as_nanos();
    assert!(u128::from(trace.submitted_unix_ns) + 1000 >= since(unix), "{trace:?}");
    assert!(u128::from(trace.submitted_unix_ns + trace.queue_ns + trace.run_ns) <= since(SystemTime::now()) + 1000, "{trace:?}");
    first.wait(None).expect("opened");
    assert_eq!(first.trace(), None, "nobody asked for it");
}

#[test]
fn a_traced_task_tells_how_it_ended() {
    let p = pool(1);
    let outcome = |task: &offloop::Task| {
        let _ = task.wait(None);
        task.trace().expect("traced").clone()
    };
    let failing = p.submit(Work::call(|_| Err(Error::invalid("no"))), traced()).expect("submit");
    assert_eq!(outcome(&failing).outcome, Outcome::Failed);
    let limit = Duration::from_millis(5);
    let (open, late) = gate(&p, SubmitOptions { timeout: Some(limit), ..traced() });
    // Its thread is replaced, by that of the next gate.
    let timeout = outcome(&late);
    assert_eq!((timeout.outcome, timeout.worker), (Outcome::TimedOut, Some(0)));
    assert!(u128::from(timeout.run_ns) >= limit.as_nanos(), "{timeout:?}");
    let (_open, running) = gate(&p, traced());
    let queued = p.submit_many(vec![int(1), int(2)], &traced()).expect("submit");
    let waiting = p.submit(int(3), SubmitOptions { queue_timeout: Some(limit), ..traced() }).expect("submit");
    for task in &queued {
        assert!(task.cancel());
        let cancelled = outcome(task);
        assert_eq!((cancelled.outcome, cancelled.run_ns, cancelled.worker), (Outcome::Cancelled, 0, None));
    }
    let timeout = outcome(&waiting);
    assert_eq!((timeout.outcome, timeout.run_ns, timeout.worker), (Outcome::TimedOut, 0, None));
    assert!(u128::from(timeout.queue_ns) >= limit.as_nanos(), "{timeout:?}");
    assert!(running.cancel());
    let cancelled = outcome(&running);
    assert_eq!((cancelled.outcome, cancelled.worker), (Outcome::Cancelled, Some(0)));
    drop(open);
}
