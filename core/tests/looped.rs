//! Workers in event loops, with threads that do what a host's loop does: sleep in a queue of messages, begin tasks by the words of the board.

use offloop::pool::{Board, Given, LoopHost, LoopOptions, LoopWorker, SubmitOptions, Taken, Work, word};
use offloop::{Error, ErrorKind, Task, ThreadPool, Value};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What a task does when a loop runs it.
type Body = Box<dyn Fn() + Send + Sync>;

/// What wakes a loop.
enum Message {
    Wake,
    End,
}

#[derive(Default)]
struct Host {
    last: AtomicUsize,
    loops: Mutex<HashMap<u64, Sender<Message>>>,
    threads: Mutex<Vec<std::thread::JoinHandle<()>>>,
    /// So many starts fail.
    broken: AtomicUsize,
    starts: AtomicUsize,
    ended: AtomicUsize,
}

/// A `LoopHost` must be shared with its loops.
struct Shared(Arc<Host>);

impl LoopHost for Shared {
    fn start(&self, worker: LoopWorker) -> Result<(), LoopWorker> {
        let host = self.0.clone();
        host.starts.fetch_add(1, Ordering::SeqCst);
        let tag = host.last.fetch_add(1, Ordering::SeqCst) as u64 + 1;
        worker.set_tag(tag);
        let (wake, woken) = channel();
        host.loops.lock().expect("lock").insert(tag, wake.clone());
        let broken = host.broken.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok();
        let run = move || match broken {
            true => worker.not_started(Error::new(ErrorKind::StartFailed, "broken")),
            false => run_loop(worker, wake, &woken),
        };
        host.threads.lock().expect("lock").push(std::thread::spawn(run));
        Ok(())
    }

    fn end(&self, tag: u64) {
        self.0.ended.fetch_add(1, Ordering::SeqCst);
        if let Some(wake) = self.0.loops.lock().expect("lock").get(&tag) {
            let _ = wake.send(Message::End);
        }
    }
}

fn words(board: &Board) -> &[AtomicU32] {
    // SAFETY: the words come first, one per task.
    unsafe { std::slice::from_raw_parts(board.memory().0.cast::<AtomicU32>(), board.tasks()) }
}

thread_local! {
    /// Set by a body: its thread ends in the middle of the task.
    static DIES: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

fn run_loop(mut worker: LoopWorker, wake: Sender<Message>, woken: &Receiver<Message>) {
    let board = worker.board();
    worker.ready(Box::new(move || drop(wake.send(Message::Wake))));
    loop {
        let mut given = Vec::new();
        let taken = worker.take(true, &mut |Given { index, payload, begun }| {
            given.push((index, payload.downcast_ref::<Arc<Body>>().expect("a body").clone(), begun));
        });
        match taken {
            Taken::Leave => return,
            Taken::Asleep => match woken.recv() {
                Ok(Message::Wake) => {}
                Ok(Message::End) | Err(_) => return worker.lost(&Error::new(ErrorKind::WorkerLost, "ended")),
            },
            Taken::Tasks(n) => assert_eq!(n, given.len()),
        }
        for (index, body, begun) in given {
            let word = &words(&board)[index];
            let claim = || word.compare_exchange(word::READY, word::CLAIMED, Ordering::SeqCst, Ordering::SeqCst).is_ok();
            if if begun { word.load(Ordering::SeqCst) == word::REVOKED } else { !claim() } {
                continue;
            }
            body();
            if DIES.get() {
                return worker.lost(&Error::new(ErrorKind::WorkerLost, "died"));
            }
            word.store(word::DONE, Ordering::SeqCst);
        }
    }
}

fn pool(max: usize, host: &Arc<Host>) -> ThreadPool {
    let options = LoopOptions { host: Arc::new(Shared(host.clone())), concurrency: 32, cancel_grace: Duration::from_millis(1) };
    ThreadPool::builder().max_workers(max).looped(options).build().expect("pool")
}

fn end(pool: &ThreadPool, host: &Host) {
    pool.shutdown(None).expect("shutdown");
    for thread in host.threads.lock().expect("lock").drain(..) {
        thread.join().expect("a loop");
    }
}

fn work(body: impl Fn() + Send + Sync + 'static) -> Work {
    Work::hosted(Box::new(Arc::new(Box::new(body) as Body)))
}

fn submit(pool: &ThreadPool, body: impl Fn() + Send + Sync + 'static) -> Task {
    pool.submit(work(body), SubmitOptions::default()).expect("submit")
}

fn bump(n: &AtomicU32) {
    n.fetch_add(1, Ordering::SeqCst);
}

/// A door that tasks wait at.
#[derive(Default)]
struct Door(AtomicBool, AtomicUsize);

impl Door {
    fn wait(&self) {
        self.1.fetch_add(1, Ordering::SeqCst);
        while !self.0.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
    }
    fn until(&self, n: usize) {
        while self.1.load(Ordering::SeqCst) < n {
            std::thread::yield_now();
        }
    }
    fn open(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn a_loop_that_sleeps_is_woken_for_every_task() {
    let host = Arc::<Host>::default();
    let pool = pool(3, &host);
    // One after another: each begins with loops that lie down, or are about to.
    for i in 0..20_000 {
        let tasks: Vec<Task> = (0..1 + i % 3).map(|_| submit(&pool, || {})).collect();
        for task in tasks {
            task.wait(Some(Duration::from_secs(60))).expect("no wake is lost");
        }
    }
    end(&pool, &host);
}

#[test]
fn many_submitters_and_loops_run_everything_once() {
    let host = Arc::<Host>::default();
    let pool = pool(3, &host);
    let runs = Arc::new((0..40_000).map(|_| AtomicU32::new(0)).collect::<Vec<_>>());
    std::thread::scope(|scope| {
        for part in 0..4 {
            let (pool, runs) = (&pool, &runs);
            scope.spawn(move || {
                for i in (part..runs.len()).step_by(4) {
                    let runs = runs.clone();
                    let task = submit(pool, move || bump(&runs[i]));
                    if i % 97 < 4 {
                        task.wait(Some(Duration::from_secs(60))).expect("outcome");
                    }
                }
            });
        }
    });
    end(&pool, &host);
    assert!(runs.iter().all(|n| n.load(Ordering::SeqCst) == 1));
}

/// Teaches the workers that tasks are short, so that they take many ahead.
fn warm(pool: &ThreadPool) {
    for _ in 0..20 {
        let tasks = pool.submit_many((0..500).map(|_| work(|| {})).collect(), &SubmitOptions::default()).expect("submit");
        tasks.iter().for_each(|task| drop(task.wait(None)));
    }
}

#[test]
fn a_thread_that_ends_loses_what_it_had_begun_and_nothing_else_in_order() {
    let host = Arc::<Host>::default();
    let pool = pool(1, &host);
    warm(&pool);
    let ran = Arc::<Mutex<Vec<usize>>>::default();
    let note = |i: usize| {
        let ran = ran.clone();
        work(move || {
            if i == 60 {
                return DIES.set(true);
            }
            ran.lock().expect("lock").push(i);
        })
    };
    let tasks = pool.submit_many((0..200).map(note).collect(), &SubmitOptions::default()).expect("submit");
    for (i, task) in tasks.iter().enumerate() {
        match task.wait(Some(Duration::from_secs(60))) {
            Ok(_) => assert_ne!(i, 60),
            Err(e) => assert_eq!((i, e.kind(), e.message()), (60, ErrorKind::WorkerLost, "died")),
        }
    }
    assert_eq!(*ran.lock().expect("lock"), (0..200).filter(|i| *i != 60).collect::<Vec<_>>());
    end(&pool, &host);
}

#[test]
fn results_before_a_long_task_are_collected_and_what_is_behind_it_is_stolen() {
    let host = Arc::<Host>::default();
    let pool = pool(2, &host);
    warm(&pool);
    let door = Arc::<Door>::default();
    let make = |i: usize| {
        let door = door.clone();
        work(move || {
            if i == 20 {
                door.wait()
            }
        })
    };
    let tasks = pool.submit_many((0..200).map(make).collect(), &SubmitOptions::default()).expect("submit");
    for (i, task) in tasks.iter().enumerate().filter(|(i, _)| *i != 20) {
        task.wait(Some(Duration::from_secs(60))).unwrap_or_else(|e| panic!("task {i}: {e}"));
    }
    assert!(!tasks[20].is_done());
    assert_eq!((pool.stats().running, pool.stats().queued), (1, 0));
    door.open();
    tasks[20].wait(None).expect("the long one");
    end(&pool, &host);
}

#[test]
fn a_task_that_was_taken_ahead_is_cancelled_without_a_trace() {
    let host = Arc::<Host>::default();
    let pool = pool(1, &host);
    warm(&pool);
    let door = Arc::<Door>::default();
    let ran = Arc::<AtomicUsize>::default();
    let make = |i: usize| {
        let (door, ran) = (door.clone(), ran.clone());
        work(move || if i == 0 { door.wait() } else { _ = ran.fetch_add(1, Ordering::SeqCst) })
    };
    let tasks = pool.submit_many((0..100).map(make).collect(), &SubmitOptions::default()).expect("submit");
    door.until(1);
    for task in tasks.iter().skip(1).step_by(2) {
        assert!(task.cancel());
    }
    assert_eq!((pool.stats().overdue, pool.stats().queued), (0, 49));
    door.open();
    let done = tasks.iter().filter(|task| task.wait(None).is_ok()).count();
    end(&pool, &host);
    assert_eq!((done, ran.load(Ordering::SeqCst), pool.stats().cancelled), (50, 49, 50));
}

#[test]
fn a_loop_inside_a_task_that_nobody_waits_for_is_ended_after_the_grace() {
    let host = Arc::<Host>::default();
    let pool = pool(1, &host);
    warm(&pool);
    let door = Arc::<Door>::default();
    let stuck = {
        let door = door.clone();
        submit(&pool, move || {
            door.wait();
            DIES.set(true); // as a thread that was ended
        })
    };
    door.until(1);
    let behind: Vec<Task> = (0..50).map(|_| submit(&pool, || {})).collect();
    assert!(stuck.cancel());
    while host.ended.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
    assert_eq!(pool.stats().queued, 50);
    door.open();
    for task in behind {
        task.wait(Some(Duration::from_secs(60))).expect("its successor runs it");
    }
    end(&pool, &host);
    assert_eq!((host.ended.load(Ordering::SeqCst), pool.stats().overdue, pool.stats().lost), (1, 0, 0));
}

#[test]
fn loops_that_do_not_start_end_what_waits_and_are_tried_again_after_a_pause() {
    let host = Arc::<Host>::default();
    host.broken.store(3, Ordering::SeqCst);
    let pool = pool(1, &host);
    for _ in 0..3 {
        let error = submit(&pool, || {}).wait(Some(Duration::from_secs(60))).expect_err("no worker");
        assert_eq!((error.kind(), error.message()), (ErrorKind::StartFailed, "broken"));
    }
    assert!(matches!(submit(&pool, || {}).wait(Some(Duration::from_secs(60))), Ok(Value::Bytes(_))));
    assert_eq!(host.starts.load(Ordering::SeqCst), 4);
    end(&pool, &host);
}

#[test]
fn a_storm_of_ends_and_cancels_leaves_each_task_one_outcome() {
    let host = Arc::<Host>::default();
    let pool = pool(3, &host);
    let runs = Arc::new((0..20_000).map(|_| AtomicU32::new(0)).collect::<Vec<_>>());
    let tasks: Vec<Task> = (0..runs.len())
        .map(|i| {
            let runs = runs.clone();
            let options = SubmitOptions {
                timeout: (i % 5 == 0).then(|| Duration::from_micros(i as u64 % 300)),
                key: (i % 7 == 0).then(|| format!("{}", i % 4)),
                ..SubmitOptions::default()
            };
            let body = work(move || {
                runs[i].fetch_add(1, Ordering::SeqCst);
                if i % 500 == 499 {
                    DIES.set(true);
                }
            });
            let task = pool.submit(body, options).expect("submit");
            if i % 3 == 0 {
                task.cancel();
            }
            task
        })
        .collect();
    for (i, task) in tasks.iter().enumerate() {
        let outcome = task.wait(Some(Duration::from_secs(60)));
        let ran = runs[i].load(Ordering::SeqCst);
        assert!(ran <= 1, "task {i} ran {ran} times");
        match outcome {
            Ok(_) => assert_eq!(ran, 1),
            Err(e) => assert!(matches!(e.kind(), ErrorKind::Cancelled | ErrorKind::Timeout | ErrorKind::WorkerLost), "task {i}: {e}"),
        }
    }
    end(&pool, &host);
    let stats = pool.stats();
    assert_eq!((stats.queued, stats.running, stats.overdue, stats.workers), (0, 0, 0, 0));
}
