//! Workers in event loops, with threads that do what a host's loop does: sleep in a queue of messages, begin tasks by the words of the board.

use offloop::pool::{Board, Given, LoopHost, LoopOptions, LoopWorker, Outcome, SubmitOptions, Taken, Work, word};
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
    /// Whoever has it keeps loops from being ready.
    entry: Mutex<()>,
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
        let entry = host.clone();
        let run = move || match broken {
            true => worker.not_started(Error::new(ErrorKind::StartFailed, "broken")),
            false => {
                drop(entry.entry.lock().expect("lock"));
                run_loop(worker, wake, &woken);
            }
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
    let board = worker.board().expect("no lane");
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

/// A task that ends its thread in its first `deaths` runs; `runs` counts them.
fn mortal(runs: &Arc<AtomicU32>, deaths: u32) -> Work {
    let runs = runs.clone();
    work(move || DIES.set(runs.fetch_add(1, Ordering::SeqCst) < deaths))
}

fn retried(n: u32) -> SubmitOptions {
    SubmitOptions { retries: n, ..SubmitOptions::default() }
}

#[test]
fn a_task_whose_worker_is_lost_runs_again_as_often_as_its_retries_allow() {
    let host = Arc::<Host>::default();
    let pool = pool(1, &host);
    // Retries, runs that end their thread → runs, poison of the error.
    for (retries, deaths, want, poison) in
        [(0, 1, 1, Some(false)), (1, 1, 2, None), (3, 3, 4, None), (1, 2, 2, Some(true)), (3, u32::MAX, 4, Some(true))]
    {
        let runs = Arc::<AtomicU32>::default();
        let before = pool.stats();
        let outcome = pool.submit(mortal(&runs, deaths), retried(retries)).expect("submit").wait(Some(Duration::from_secs(60)));
        let stats = pool.stats();
        assert_eq!(runs.load(Ordering::SeqCst), want, "retries {retries}, deaths {deaths}");
        assert_eq!(outcome.is_err(), poison.is_some());
        if let Err(error) = outcome {
            let marked = error.context().iter().any(|(name, value)| *name == "poison" && value == "true");
            assert_eq!((error.kind(), error.message(), Some(marked)), (ErrorKind::WorkerLost, "died", poison));
        }
        let of = |after: u64, before: u64| after - before;
        assert_eq!(of(stats.retried, before.retried), u64::from(want - 1));
        assert_eq!((of(stats.lost, before.lost), of(stats.completed, before.completed)), if poison.is_some() { (1, 0) } else { (0, 1) });
    }
    end(&pool, &host);
}

#[test]
fn a_task_that_runs_again_goes_before_what_waits_with_a_key_and_without() {
    for key in [None, Some("k".to_owned())] {
        let host = Arc::<Host>::default();
        let pool = pool(3, &host);
        if key.is_none() {
            // Without a key only one worker has an order.
            pool.resize(None, Some(1)).expect("resize");
            warm(&pool);
        }
        let ran = Arc::<Mutex<Vec<usize>>>::default();
        let deaths = Arc::<AtomicU32>::default();
        let note = |i: usize| {
            let (ran, deaths) = (ran.clone(), deaths.clone());
            work(move || {
                // The 20th, and the 70th twice.
                if [20, 70, 70].get(deaths.load(Ordering::SeqCst) as usize) == Some(&i) {
                    bump(&deaths);
                    return DIES.set(true);
                }
                ran.lock().expect("lock").push(i);
            })
        };
        let options = SubmitOptions { retries: 2, key, ..SubmitOptions::default() };
        let tasks = pool.submit_many((0..200).map(note).collect(), &options).expect("submit");
        tasks.iter().for_each(|task| drop(task.wait(Some(Duration::from_secs(60))).expect("outcome")));
        assert_eq!(*ran.lock().expect("lock"), (0..200).collect::<Vec<_>>());
        end(&pool, &host);
        assert_eq!((deaths.load(Ordering::SeqCst), pool.stats().retried), (3, 3));
    }
}

#[test]
fn a_task_that_was_cancelled_is_not_run_again() {
    let host = Arc::<Host>::default();
    let pool = pool(1, &host);
    let (door, runs) = (Arc::<Door>::default(), Arc::<AtomicU32>::default());
    let body = {
        let (door, runs) = (door.clone(), runs.clone());
        work(move || {
            bump(&runs);
            door.wait();
            DIES.set(true);
        })
    };
    let keyed = SubmitOptions { key: Some("k".to_owned()), ..retried(5) };
    let task = pool.submit(body, keyed).expect("submit");
    door.until(1);
    assert!(task.cancel());
    door.open();
    let behind = pool.submit(work(|| {}), SubmitOptions { key: Some("k".to_owned()), ..SubmitOptions::default() }).expect("submit");
    behind.wait(Some(Duration::from_secs(60))).expect("its key is free");
    assert_eq!(task.wait(None).expect_err("cancelled").kind(), ErrorKind::Cancelled);
    end(&pool, &host);
    let stats = pool.stats();
    assert_eq!((runs.load(Ordering::SeqCst), stats.retried, stats.overdue, stats.queued), (1, 0, 0, 0));
}

#[test]
fn a_storm_of_losses_runs_each_task_as_often_as_it_must() {
    let host = Arc::<Host>::default();
    let pool = pool(3, &host);
    let runs: Vec<Arc<AtomicU32>> = (0..20_000).map(|_| Arc::default()).collect();
    let deaths = |i: usize| if i.is_multiple_of(100) { i as u32 / 100 % 4 } else { 0 };
    let tasks: Vec<Task> = (0..runs.len())
        .map(|i| {
            let key = i.is_multiple_of(7).then(|| format!("{}", i % 4));
            pool.submit(mortal(&runs[i], deaths(i)), SubmitOptions { key, priority: (i % 5) as i8, ..retried(2) }).expect("submit")
        })
        .collect();
    for (i, task) in tasks.iter().enumerate() {
        let outcome = task.wait(Some(Duration::from_secs(60)));
        assert_eq!((outcome.is_ok(), runs[i].load(Ordering::SeqCst)), (deaths(i) < 3, 3.min(deaths(i) + 1)), "task {i}");
    }
    end(&pool, &host);
    let stats = pool.stats();
    assert_eq!((stats.queued, stats.running, stats.overdue, stats.workers), (0, 0, 0, 0));
    assert_eq!((stats.lost, stats.retried), (50, 50 + 2 * 50 + 2 * 50));
}

/// A pool whose workers begin at most so many tasks each; `of` counts the tasks by the loop that ran them.
fn recycling(max: usize, tasks: u64, host: &Arc<Host>) -> ThreadPool {
    let options = LoopOptions { host: Arc::new(Shared(host.clone())), concurrency: 1, cancel_grace: Duration::from_millis(1) };
    ThreadPool::builder().max_workers(max).max_tasks_per_worker(tasks).looped(options).build().expect("pool")
}

#[test]
fn a_worker_begins_no_more_tasks_than_its_limit_and_nothing_is_lost() {
    for (workers, limit) in [(1, 1), (1, 7), (2, 100), (3, 20)] {
        let host = Arc::<Host>::default();
        let pool = recycling(workers, limit, &host);
        let by = Arc::<Mutex<HashMap<std::thread::ThreadId, u64>>>::default();
        let order = Arc::<Mutex<Vec<usize>>>::default();
        let note = |i: usize| {
            let (by, order) = (by.clone(), order.clone());
            work(move || {
                *by.lock().expect("lock").entry(std::thread::current().id()).or_default() += 1;
                order.lock().expect("lock").push(i);
            })
        };
        for start in [0, 500] {
            let tasks = pool.submit_many((start..start + 500).map(note).collect(), &SubmitOptions::default()).expect("submit");
            tasks.iter().for_each(|task| drop(task.wait(Some(Duration::from_secs(60))).expect("outcome")));
        }
        end(&pool, &host);
        let by = by.lock().expect("lock");
        assert_eq!(by.values().sum::<u64>(), 1000);
        assert!(by.values().all(|n| *n <= limit), "limit {limit}: {by:?}");
        let stats = pool.stats();
        assert_eq!((stats.lost, stats.completed, stats.workers), (0, 1000, 0));
        assert!(stats.recycled >= (1000 / limit).saturating_sub(workers as u64), "{} of {limit}", stats.recycled);
        if workers == 1 {
            assert_eq!(*order.lock().expect("lock"), (0..1000).collect::<Vec<_>>(), "limit {limit}");
        }
    }
}

#[test]
fn tasks_of_a_key_stay_in_order_and_apart_while_workers_are_replaced() {
    let host = Arc::<Host>::default();
    let pool = recycling(3, 5, &host);
    let inside = Arc::new([const { AtomicU32::new(0) }; 4]);
    let ran = Arc::new([const { Mutex::new(Vec::new()) }; 4]);
    let tasks: Vec<Task> = (0..2000)
        .map(|i| {
            let (inside, ran) = (inside.clone(), ran.clone());
            let body = work(move || {
                assert_eq!(inside[i % 4].fetch_add(1, Ordering::SeqCst), 0, "two at once");
                ran[i % 4].lock().expect("lock").push(i);
                if i % 100 == 99 {
                    DIES.set(true);
                }
                inside[i % 4].fetch_sub(1, Ordering::SeqCst);
            });
            let options = SubmitOptions { key: Some(format!("{}", i % 4)), ..SubmitOptions::default() };
            pool.submit(body, options).expect("submit")
        })
        .collect();
    for (i, task) in tasks.iter().enumerate() {
        let outcome = task.wait(Some(Duration::from_secs(60)));
        assert_eq!(outcome.map_err(|e| e.kind()).err(), (i % 100 == 99).then_some(ErrorKind::WorkerLost), "task {i}");
    }
    end(&pool, &host);
    for (k, ran) in ran.iter().enumerate() {
        assert_eq!(*ran.lock().expect("lock"), (k..2000).step_by(4).collect::<Vec<_>>());
    }
}

#[test]
fn a_worker_goes_on_until_its_successor_is_ready_and_then_passes_its_place_on() {
    let host = Arc::<Host>::default();
    let pool = recycling(1, 1000, &host);
    submit(&pool, || {}).wait(None).expect("the first worker");
    let entry = host.entry.lock().expect("lock");
    let thread = || {
        let (tell, told) = channel();
        submit(&pool, move || tell.send(std::thread::current().id()).expect("test waits")).wait(None).expect("outcome");
        told.recv().expect("told")
    };
    let first = thread();
    while host.starts.load(Ordering::SeqCst) < 2 {
        assert_eq!(thread(), first);
    }
    // Asked for, and kept from being ready: nothing waits for it.
    for _ in 0..20 {
        assert_eq!(thread(), first);
    }
    assert_eq!((pool.stats().recycled, pool.stats().workers), (0, 1));
    drop(entry);
    while thread() == first {}
    assert_eq!((pool.stats().recycled, pool.stats().workers, host.starts.load(Ordering::SeqCst)), (1, 1, 2));
    end(&pool, &host);
}

#[test]
fn a_worker_that_sleeps_is_replaced_when_it_is_old() {
    let host = Arc::<Host>::default();
    let options = LoopOptions { host: Arc::new(Shared(host.clone())), concurrency: 1, cancel_grace: Duration::from_millis(1) };
    let pool = ThreadPool::builder().max_workers(2).max_worker_age(Duration::from_millis(5)).looped(options).build().expect("pool");
    submit(&pool, || {}).wait(None).expect("outcome");
    while pool.stats().recycled < 10 {
        std::thread::yield_now();
    }
    assert_eq!(pool.stats().workers, 1);
    submit(&pool, || {}).wait(None).expect("the eleventh does as well");
    end(&pool, &host);
}

#[test]
fn a_successor_that_does_not_start_is_asked_for_again_and_harms_nobody() {
    let host = Arc::<Host>::default();
    let pool = recycling(1, 3, &host);
    submit(&pool, || {}).wait(None).expect("the first worker");
    host.broken.store(1, Ordering::SeqCst);
    let done = (0..50).filter(|_| submit(&pool, || {}).wait(Some(Duration::from_secs(60))).is_ok()).count();
    // What is spent leaves its place without a successor, and what waits then for a worker that does not start ends with its error.
    assert!(done >= 49, "{done} of 50");
    assert!(pool.stats().recycled >= 15);
    end(&pool, &host);
    assert_eq!((pool.stats().queued, pool.stats().workers), (0, 0));
}

#[test]
fn a_storm_of_losses_cancels_and_successions_leaves_each_task_one_outcome() {
    let host = Arc::<Host>::default();
    let pool = recycling(3, 40, &host);
    let runs: Vec<Arc<AtomicU32>> = (0..20_000).map(|_| Arc::default()).collect();
    let deaths = |i: usize| u32::from(i.is_multiple_of(300));
    let tasks: Vec<Task> = (0..runs.len())
        .map(|i| {
            let key = i.is_multiple_of(7).then(|| format!("{}", i % 4));
            let task = pool.submit(mortal(&runs[i], deaths(i)), SubmitOptions { key, ..retried(1) }).expect("submit");
            if i % 11 == 0 {
                task.cancel();
            }
            task
        })
        .collect();
    for (i, task) in tasks.iter().enumerate() {
        let ran = match task.wait(Some(Duration::from_secs(60))) {
            Ok(_) => 1 + deaths(i),
            Err(e) => {
                assert_eq!((e.kind(), i % 11), (ErrorKind::Cancelled, 0), "task {i}: {e}");
                continue;
            }
        };
        assert_eq!(runs[i].load(Ordering::SeqCst), ran, "task {i}");
    }
    end(&pool, &host);
    let stats = pool.stats();
    assert_eq!((stats.queued, stats.running, stats.overdue, stats.workers, stats.lost), (0, 0, 0, 0, 0));
}

#[test]
fn limits_of_workers_that_are_nothing_are_refused_by_name() {
    for (builder, option) in [
        (ThreadPool::builder().max_tasks_per_worker(0), "max_tasks_per_worker"),
        (ThreadPool::builder().max_worker_age(Duration::ZERO), "max_worker_age"),
        (ThreadPool::builder().max_worker_age(Duration::MAX), "max_worker_age"),
    ] {
        let error = builder.build().expect_err(option);
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(option), "{error}");
    }
}

#[test]
fn a_successor_whose_place_is_no_more_leaves() {
    let host = Arc::<Host>::default();
    let pool = recycling(1, 1000, &host);
    submit(&pool, || {}).wait(None).expect("the first worker");
    let entry = host.entry.lock().expect("lock");
    while host.starts.load(Ordering::SeqCst) < 2 {
        submit(&pool, || {}).wait(None).expect("outcome");
    }
    pool.close();
    assert!(pool.wait_closed(Some(Duration::from_secs(60))), "nobody waits for it");
    drop(entry);
    // Its thread ends, or this does not.
    end(&pool, &host);
    assert_eq!((pool.stats().workers, pool.stats().lost, pool.stats().recycled), (0, 0, 0));
}

#[test]
fn a_traced_task_of_a_loop_waits_until_it_begins_wherever_it_lies() {
    const PAUSE: Duration = Duration::from_millis(5);
    let traced = |retries| SubmitOptions { trace: true, ..retried(retries) };
    let host = Arc::<Host>::default();
    let pool = pool(1, &host);
    warm(&pool);
    let door = Arc::<Door>::default();
    let held = door.clone();
    let first = pool.submit(work(move || held.wait()), traced(0)).expect("submit");
    let behind = pool.submit_many((0..20).map(|_| work(|| {})).collect(), &traced(0)).expect("submit");
    door.until(1);
    std::thread::sleep(PAUSE);
    // Most were handed out with the first, and none has begun.
    assert!(behind[0].cancel());
    door.open();
    let trace = |task: &Task| {
        let _ = task.wait(Some(Duration::from_secs(60)));
        task.trace().expect("traced").clone()
    };
    assert_eq!((trace(&first).outcome, trace(&first).worker), (Outcome::Completed, Some(0)));
    let cancelled = trace(&behind[0]);
    assert_eq!((cancelled.outcome, cancelled.run_ns, cancelled.worker), (Outcome::Cancelled, 0, None));
    for task in &behind[1..] {
        let trace = trace(task);
        assert_eq!(trace.outcome, Outcome::Completed);
        assert!(u128::from(trace.queue_ns) >= PAUSE.as_nanos(), "{trace:?}");
    }
    let runs = Arc::<AtomicU32>::default();
    let again = trace(&pool.submit(mortal(&runs, 1), traced(1)).expect("submit"));
    assert_eq!((again.outcome, runs.load(Ordering::SeqCst)), (Outcome::Completed, 2));
    let lost = trace(&pool.submit(mortal(&Arc::default(), 1), traced(0)).expect("submit"));
    assert_eq!((lost.outcome, lost.worker), (Outcome::Lost, Some(0)));
    end(&pool, &host);
}
