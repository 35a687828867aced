//! Supervised processes, real ones: this very program is the worker, and where the whole process matters, the host.
#![expect(clippy::unwrap_used, reason = "a test may")]

use offloop::ErrorKind;
use offloop::supervisor::{Builder, Cause, Ended, Event, Expiry, Launch, State, Supervisor, Worker, WorkerId, Zygote, worker};
use offloop::sys::fork::PrivateFd;
use offloop::sys::process::{Child, Exit, Spec, spawn};
use offloop::sys::thread;
use offloop::wire::supervisor::{ENV, MAX_STACK, PAGE_LEN, parse_env, word};
use std::collections::HashMap;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Ends a hang; nothing is measured by it.
const WATCHDOG: Duration = Duration::from_secs(60);
const MODE: &str = "OFFLOOP_TEST_MODE";

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Fds, threads and children of this process are counted: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    let guard = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    eventually("the thread of the test before ends", || !has_thread("offloop-super"));
    guard
}

/// This program again, in another part.
fn again(test: &str, mode: &str) -> Spec<'static> {
    let mut spec = Spec::new(std::env::current_exe().unwrap());
    spec.args = ["--exact", test, "--nocapture", "--test-threads=1"].map(OsString::from).to_vec();
    let mut env: Vec<_> = std::env::vars_os().filter(|(name, _)| name != MODE).collect();
    env.push((MODE.into(), mode.into()));
    spec.env = Some(env);
    spec
}

// ---- the worker's part ----

#[test]
fn worker_part() {
    let Ok(mode) = std::env::var(MODE) else { return };
    be_worker(&mode);
}

fn end(code: i32) -> ! {
    // SAFETY: ends a process of the test, without the harness.
    unsafe { libc::_exit(code) }
}

fn be_worker(mode: &str) -> ! {
    let (mode, number) = mode.split_once(':').unwrap_or((mode, "0"));
    let number: u64 = number.parse().unwrap();
    if mode == "plain" {
        std::thread::sleep(WATCHDOG);
        end(9);
    }
    if mode == "closes" {
        let (page, lifeline) = parse_env(&std::env::var(ENV).unwrap()).unwrap();
        // SAFETY: fds that this process was given.
        unsafe { (libc::close(page), libc::close(lifeline)) };
        std::thread::sleep(WATCHDOG);
        end(9);
    }
    if mode == "scribbles" {
        scribble();
    }
    if mode == "lies" {
        std::thread::spawn(lie(parse_env(&std::env::var(ENV).unwrap()).unwrap()));
    }
    let worker = worker::attach().unwrap().expect("supervised");
    assert_eq!(worker::attach().unwrap_err().kind(), ErrorKind::InUse);
    match mode {
        "fails" => {
            worker.fail("cannot load app.mjs: no such file");
            end(1);
        }
        "never" => {
            std::thread::sleep(WATCHDOG);
            end(9);
        }
        "stubborn" => ignore(libc::SIGTERM),
        "stalls" => hook(&worker, number),
        _ => {}
    }
    worker.ready();
    let begun = Instant::now();
    // Every page of it is used.
    let _memory = vec![1u8; if mode == "grows" && worker.id().incarnation == 1 { 128 << 20 } else { 0 }];
    loop {
        let drains = worker.is_draining();
        match mode {
            "serves" if worker.id().incarnation == 1 && !drains => worker.served(10),
            "crashes" if begun.elapsed() >= ms(number) && number > 0 => end(3),
            "segfaults" if begun.elapsed() >= ms(number) => {
                // SAFETY: ends this process as a fault would.
                unsafe { libc::raise(libc::SIGSEGV) };
            }
            "blocks" if begun.elapsed() >= ms(number) => block(),
            "lies" if begun.elapsed() >= ms(1) => block(),
            // Until the test has heard of it.
            "stalls" if begun.elapsed() >= ms(1) => {
                while std::fs::remove_file(goes_on(std::process::id().cast_signed())).is_err() {
                    std::thread::sleep(ms(1));
                }
            }
            "stubborn" => {}
            _ if drains => {
                worker.drained();
                end(0);
            }
            _ => {}
        }
        worker.beat();
        std::thread::sleep(worker.beat_interval().min(ms(20)) / 2);
    }
}

#[allow(clippy::disallowed_methods, reason = "a worker of this test, which may do what it likes")]
fn ignore(signal: i32) {
    // SAFETY: SIG_IGN is no handler.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

fn block() -> ! {
    loop {
        std::thread::sleep(ms(10));
    }
}

/// A file of this name lets the loop of that process go on.
fn goes_on(pid: i32) -> PathBuf {
    std::env::temp_dir().join(format!("ofl-goes-on-{pid}"))
}

/// Says where the loop stands, in one of several ways.
fn hook(worker: &Worker, way: u64) {
    let own = thread::id();
    let calls = AtomicU32::new(0);
    worker.on_stall(move |stall| {
        assert_ne!(thread::id(), own, "not on the thread that stands still");
        let call = calls.fetch_add(1, Ordering::Relaxed) + 1;
        match way {
            0 => Some(format!("in turn {call} (wörker.rs:7)\nby its own thread: {}\n", stall.thread == own)),
            1 => None,
            2 => panic!("a hook that fails"),
            3 => block(),
            _ => Some(format!("at stall {call}\n").repeat(1000)),
        }
    });
}

/// Answers what nobody has asked, by what is no text, and rings as often as it can.
fn lie((page, lifeline): (i32, i32)) -> impl FnOnce() + Send {
    // SAFETY: fds that this process was given.
    let [page, lifeline] = [page, lifeline].map(|fd| unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned().unwrap());
    move || {
        let put = |at: usize, bytes: &[u8]| {
            // SAFETY: a plain call with readable bytes.
            let put = unsafe { libc::pwrite(page.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), at as i64) };
            assert_eq!(put, bytes.len() as isize);
        };
        put(word::STACK, &[0xFF; PAGE_LEN - word::STACK]);
        put(word::HOOKED, &u32::MAX.to_le_bytes());
        for round in 0u32.. {
            put(word::STACK_LEN, &[0, MAX_STACK as u32, u32::MAX][round as usize % 3].to_le_bytes());
            put(word::TOLD, &(round % 4).to_le_bytes());
            // SAFETY: as above.
            unsafe { libc::send(lifeline.as_raw_fd(), [1u8].as_ptr().cast(), 1, libc::MSG_DONTWAIT) };
        }
    }
}

/// Writes what no worker may, and then waits.
fn scribble() -> ! {
    let (page, lifeline) = parse_env(&std::env::var(ENV).unwrap()).unwrap();
    let state = 77u32.to_le_bytes();
    // SAFETY: plain calls on fds that this process was given, with readable bytes.
    unsafe {
        assert_eq!(libc::pwrite(page, state.as_ptr().cast(), 4, word::STATE as i64), 4);
        assert_eq!(libc::send(lifeline, state.as_ptr().cast(), 4, 0), 4);
    }
    std::thread::sleep(WATCHDOG);
    end(9)
}

// ---- the owner's part ----

struct Watched {
    supervisor: Supervisor,
    events: Receiver<Event>,
    seen: Vec<Event>,
}

fn quick() -> Builder {
    Supervisor::builder().boot_timeout(WATCHDOG).beat(ms(50)).hang_timeout(Duration::ZERO).kill_grace(ms(300)).orphan_grace(ms(300))
}

fn watch(builder: Builder, mode: &'static str) -> Watched {
    watch_with(builder, move |_| Ok(again("worker_part", mode).into()))
}

fn watch_with(builder: Builder, launch: impl FnMut(WorkerId) -> offloop::Result<Launch> + Send + 'static) -> Watched {
    let (send, events) = channel();
    let builder = builder.on_event(move |event| {
        let _ = send.send(event.clone());
    });
    Watched { supervisor: builder.build(launch).unwrap(), events, seen: Vec::new() }
}

impl Watched {
    /// Goes on until an event is what is looked for.
    #[track_caller]
    fn until<T>(&mut self, found: impl Fn(&Event) -> Option<T>) -> T {
        loop {
            match self.events.recv_timeout(WATCHDOG) {
                Ok(event) => {
                    let what = found(&event);
                    self.seen.push(event);
                    if let Some(what) = what {
                        return what;
                    }
                }
                Err(e) => panic!("{e}; seen {:#?}", self.seen),
            }
        }
    }

    #[track_caller]
    fn ready(&mut self) -> WorkerId {
        self.until(|e| if let Event::Ready { worker, .. } = e { Some(*worker) } else { None })
    }

    #[track_caller]
    fn exited(&mut self) -> (WorkerId, Cause, Ended, bool) {
        self.until(|e| match e {
            Event::Exited { worker, cause, ended, forced, .. } => Some((*worker, *cause, *ended, *forced)),
            _ => None,
        })
    }

    fn pid(&self, worker: WorkerId) -> i32 {
        let pids = self.seen.iter().filter_map(|e| match e {
            Event::Spawned { worker: w, pid } => Some((*w, *pid)),
            _ => None,
        });
        pids.collect::<HashMap<_, _>>()[&worker]
    }

    #[track_caller]
    fn stop(&mut self, grace: Duration) {
        self.supervisor.stop(grace).unwrap();
        self.supervisor.wait_stopped(Some(WATCHDOG)).unwrap();
        self.until(|e| (*e == Event::Stopped).then_some(()));
    }
}

fn id(slot: u32, incarnation: u64) -> WorkerId {
    WorkerId { slot, generation: 1, incarnation }
}

fn send_signal(pid: i32, signal: i32) {
    // SAFETY: a plain call; the process is ours and not reaped yet.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

fn children() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let lists = tasks.filter_map(|t| std::fs::read_to_string(t.unwrap().path().join("children")).ok());
    lists.flat_map(|l| l.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect()
}

fn open_fds() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn has_thread(name: &str) -> bool {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    tasks.filter_map(|t| std::fs::read_to_string(t.unwrap().path().join("comm")).ok()).any(|comm| comm.trim() == name)
}

#[track_caller]
fn eventually(what: &str, holds: impl Fn() -> bool) {
    let until = Instant::now() + WATCHDOG;
    while !holds() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(ms(2));
    }
}

/// The lines of a process's or a thread's status that are about signals.
fn signal_state(of: &str) -> Vec<String> {
    let text = std::fs::read_to_string(format!("/proc/{of}/status")).unwrap();
    text.lines().filter(|l| l.starts_with("Sig") && !l.starts_with("SigQ")).map(str::to_owned).collect()
}

#[test]
fn a_stopped_supervisor_leaves_nothing_behind_and_no_signal_of_the_host_is_touched() {
    let _alone = alone();
    // Of this thread: while the harness makes another one, the C library blocks the first thread's signals.
    let (fds, signals) = (open_fds(), signal_state("thread-self"));
    for round in 0..5 {
        let mut w = watch(quick().workers(3).max_starting(3), "good");
        w.supervisor.wait_ready(Some(WATCHDOG)).unwrap();
        let stats = w.supervisor.stats().unwrap();
        assert_eq!((stats.wanted, stats.live, stats.ready, stats.spawned), (3, 3, 3, 3), "{stats:?}");
        let first = w.ready();
        // Once it makes no thread any more, see above.
        let blocks_none = |l: &String| l.starts_with("SigBlk") && l.ends_with("0000000000000000");
        eventually("a worker begins with no signal blocked", || signal_state(&w.pid(first).to_string()).iter().any(blocks_none));
        let score = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim().parse::<i32>().unwrap();
        assert_eq!(score(&w.pid(first).to_string()), (score("self") + 200).min(1000), "it goes before its host when memory runs out");
        assert_eq!(children().len(), 3);
        assert!(has_thread("offloop-super"));
        w.stop(WATCHDOG);
        let stats = w.supervisor.stats().unwrap();
        assert_eq!((stats.live, stats.exits.stop, stats.exits.total(), stats.forced), (0, 3, 3, 0), "{stats:?}");
        assert_eq!(w.supervisor.scale(1).unwrap_err().kind(), ErrorKind::Closed);
        w.supervisor.stop(Duration::ZERO).unwrap();
        drop(w);
        assert_eq!(children(), Vec::<String>::new(), "no child and no zombie in round {round}");
        eventually("the thread ends with its last supervisor", || !has_thread("offloop-super"));
        eventually("its fds are closed", || open_fds() == fds);
    }
    assert_eq!(signal_state("thread-self"), signals);
}

#[test]
fn dropping_a_supervisor_kills_its_workers() {
    let _alone = alone();
    let mut w = watch(quick().workers(2), "stubborn");
    w.supervisor.wait_ready(Some(WATCHDOG)).unwrap();
    w.ready();
    drop(w.supervisor);
    assert_eq!(children(), Vec::<String>::new());
}

#[test]
fn a_worker_that_has_served_enough_or_has_grown_is_replaced_by_its_successor() {
    let _alone = alone();
    let limits = |mode: &str| if mode == "serves" { quick().max_requests(50) } else { quick().max_memory(64 << 20) };
    for (mode, why) in [("serves", Expiry::Requests), ("grows", Expiry::Memory)] {
        let mut w = watch(limits(mode), mode);
        assert_eq!(w.ready(), id(0, 1));
        assert_eq!(w.until(|e| if let Event::Expired { worker, why } = e { Some((*worker, *why)) } else { None }), (id(0, 1), why));
        assert_eq!(w.ready(), id(0, 2));
        let (worker, cause, ended, _) = w.exited();
        assert_eq!((worker, cause, ended.exit.code), (id(0, 1), Cause::Retire, Some(0)));
        let stats = w.supervisor.stats().unwrap();
        assert_eq!((stats.expired.memory + stats.expired.requests, stats.retired, stats.exits.unasked()), (1, 1, 0), "{stats:?}");
        w.stop(WATCHDOG);
    }
}

#[test]
fn a_worker_that_crashes_is_replaced_at_once_and_then_with_delay() {
    let _alone = alone();
    let mut w = watch(quick(), "crashes:1");
    for incarnation in 1..=3 {
        assert_eq!(w.ready(), id(0, incarnation));
        let (worker, cause, ended, forced) = w.exited();
        assert_eq!((worker, cause, forced), (id(0, incarnation), Cause::Crash, false));
        assert_eq!(ended, Ended { exit: Exit { code: Some(3), signal: None, core_dumped: false }, oom: false });
        let delay = w.until(|e| if let Event::BackOff { delay, .. } = e { Some(*delay) } else { None });
        match incarnation {
            1 => assert_eq!(delay, Duration::ZERO),
            2 => assert!((ms(80)..=ms(120)).contains(&delay), "{delay:?}"),
            _ => assert!((ms(160)..=ms(240)).contains(&delay), "{delay:?}"),
        }
    }
    w.stop(Duration::ZERO);
    let stats = w.supervisor.stats().unwrap();
    assert!(stats.exits.crash >= 3 && stats.live == 0, "{stats:?}");
}

#[test]
fn an_exit_that_was_charged_to_a_task_is_replaced_without_delay_however_often() {
    let _alone = alone();
    let (send, events) = channel();
    let own: std::sync::Arc<std::sync::OnceLock<Supervisor>> = std::sync::Arc::default();
    let (listener, mut rests) = (own.clone(), 0);
    let builder = quick().on_event(move |event| {
        if let Event::Exited { worker, .. } = event {
            listener.get().expect("set before a worker is ready").report_charged(*worker).unwrap();
        }
        let _ = send.send(event.clone());
    });
    let supervisor = builder.build(|_| Ok(again("worker_part", "segfaults:30").into())).unwrap();
    own.set(supervisor.clone()).unwrap();
    let mut w = Watched { supervisor, events, seen: Vec::new() };
    for incarnation in 1..=8 {
        assert_eq!(w.ready(), id(0, incarnation));
        let (_, _, ended, _) = w.exited();
        assert_eq!(ended.exit.signal, Some(libc::SIGSEGV));
    }
    w.stop(Duration::ZERO);
    rests += w.seen.iter().filter(|e| matches!(e, Event::BackOff { .. } | Event::Degraded { .. })).count();
    let stats = w.supervisor.stats().unwrap();
    assert!(rests == 0 && stats.exits.charged >= 8 && stats.exits.crash == 0, "{rests} {stats:?}");
}

#[test]
fn workers_that_always_fail_at_their_start_end_in_a_degraded_supervisor_after_a_few_tries() {
    let _alone = alone();
    let mut w = watch(quick().back_off(ms(1)), "fails");
    let error = w.supervisor.wait_ready(Some(WATCHDOG)).unwrap_err();
    assert_eq!(error.to_string(), "start failed: cannot load app.mjs: no such file (slot=0, exit_code=1)");
    let failures = w.until(|e| if let Event::Degraded { failures, .. } = e { Some(*failures) } else { None });
    w.until(|e| matches!(e, Event::Quarantined { slot: 0 }).then_some(()));
    let stats = w.supervisor.stats().unwrap();
    assert_eq!((failures, stats.spawned, stats.exits.boot), (6, 6, 6), "{stats:?}");
    // Nothing more happens until the probe, which is half a minute away.
    assert_eq!(w.events.recv_timeout(ms(300)), Err(RecvTimeoutError::Timeout));
    assert_eq!(w.supervisor.slots().unwrap(), [(id(0, 6), State::Quarantined)]);
    w.stop(Duration::ZERO);
}

#[test]
fn a_degraded_supervisor_recovers_when_a_probe_is_stable() {
    let _alone = alone();
    let healthy = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let seen = healthy.clone();
    let builder = quick().workers(2).back_off(ms(1)).probe_interval(ms(100)).min_uptime(ms(50));
    let mut w = watch_with(builder, move |_| {
        let mode = if seen.load(std::sync::atomic::Ordering::SeqCst) { "good" } else { "fails" };
        Ok(again("worker_part", mode).into())
    });
    w.until(|e| matches!(e, Event::Degraded { .. }).then_some(()));
    assert_eq!(w.supervisor.wait_ready(Some(WATCHDOG)).unwrap_err().kind(), ErrorKind::StartFailed);
    healthy.store(true, std::sync::atomic::Ordering::SeqCst);
    w.until(|e| (*e == Event::Recovered).then_some(()));
    w.supervisor.wait_ready(Some(WATCHDOG)).unwrap();
    let stats = w.supervisor.stats().unwrap();
    assert!(!stats.degraded && stats.ready == 2 && stats.recoveries == 1, "{stats:?}");
    w.stop(WATCHDOG);
}

#[test]
fn a_worker_that_does_not_become_ready_is_ended_in_time() {
    let _alone = alone();
    for mode in ["never", "plain", "closes"] {
        let mut w = watch(quick().boot_timeout(ms(200)), mode);
        let (worker, cause, ended, _) = w.exited();
        assert_eq!((worker, cause, ended.exit.signal), (id(0, 1), Cause::BootTimeout, Some(libc::SIGTERM)), "{mode}");
        let error = w.supervisor.wait_ready(Some(WATCHDOG)).unwrap_err();
        assert!(error.to_string().contains("not ready in time (boot_timeout_ms=200"), "{error}");
        w.stop(Duration::ZERO);
    }
}

#[test]
fn a_program_that_knows_of_no_supervisor_is_ready_when_it_lasts_and_ends_by_sigterm() {
    let _alone = alone();
    let options = || quick().ready_after(ms(100)).hang_timeout(ms(200)).beat(ms(20));
    for mode in ["plain", "closes"] {
        let mut w = watch(options(), mode);
        assert_eq!(w.ready(), id(0, 1), "{mode}");
        // It shows no beat, for longer than anybody else may.
        std::thread::sleep(ms(400));
        w.supervisor.retire(0).unwrap();
        let (worker, cause, ended, forced) = w.exited();
        assert_eq!((worker, cause, ended.exit.signal, forced), (id(0, 1), Cause::Retire, Some(libc::SIGTERM), false), "{mode}");
        w.stop(WATCHDOG);
    }
    // Who attaches says itself when it is ready.
    let mut w = watch(options().boot_timeout(ms(300)), "never");
    assert_eq!(w.exited().1, Cause::BootTimeout);
    w.stop(Duration::ZERO);
    let zygote = || Ok(Zygote { launch: Spec::new("/bin/true").into(), setup: Vec::new() });
    let refused = options().zygote(zygote).build(|_| Ok(Spec::new("/bin/true").into())).unwrap_err();
    assert!(refused.to_string().contains("option=ready_after"), "{refused}");
}

#[test]
fn a_blocked_loop_is_told_from_a_stopped_process_and_both_are_replaced() {
    let _alone = alone();
    let patient = || quick().hang_timeout(ms(400)).abort_grace(ms(50));
    let suspect = |e: &Event| if let Event::Suspect { worker, cause, .. } = e { Some((*worker, *cause)) } else { None };

    let mut w = watch(patient(), "blocks:1");
    assert_eq!(w.until(suspect), (id(0, 1), Cause::Blocked));
    let (worker, cause, ended, _) = w.exited();
    assert_eq!((worker, cause, ended.exit.signal), (id(0, 1), Cause::Blocked, Some(libc::SIGABRT)));
    assert_eq!(w.ready(), id(0, 2));
    w.stop(Duration::ZERO);

    let mut w = watch(patient(), "good");
    let worker = w.ready();
    send_signal(w.pid(worker), libc::SIGSTOP);
    assert_eq!(w.until(suspect), (id(0, 1), Cause::Frozen));
    let (_, cause, ended, _) = w.exited();
    assert_eq!((cause, ended.exit.signal), (Cause::Frozen, Some(libc::SIGKILL)), "a stopped process does not see SIGABRT");
    w.stop(Duration::ZERO);
}

#[test]
fn a_suspect_that_goes_on_is_kept() {
    let _alone = alone();
    let mut w = watch(quick().hang_timeout(ms(300)).abort_grace(WATCHDOG), "good");
    let worker = w.ready();
    send_signal(w.pid(worker), libc::SIGSTOP);
    w.until(|e| matches!(e, Event::Suspect { .. }).then_some(()));
    send_signal(w.pid(worker), libc::SIGCONT);
    w.until(|e| (*e == Event::Resumed { worker }).then_some(()));
    assert_eq!(w.supervisor.slots().unwrap(), [(worker, State::Ready)]);
    w.stop(WATCHDOG);
    assert_eq!(w.supervisor.stats().unwrap().exits.stop, 1);
}

#[test]
fn what_a_worker_has_served_and_how_late_its_loop_is_are_seen_at_any_time() {
    let _alone = alone();
    let mut w = watch(quick(), "serves");
    let worker = w.ready();
    let supervisor = w.supervisor.clone();
    let load = || supervisor.loads().unwrap().into_iter().find(|(id, _)| *id == worker).map(|(_, load)| load);
    eventually("it serves", || load().is_some_and(|load| load.served >= 20 && load.loop_delay.is_some()));
    send_signal(w.pid(worker), libc::SIGSTOP);
    eventually("it is late for as long as it stands still", || load().and_then(|load| load.loop_delay).is_some_and(|late| late >= ms(700)));
    let before = load().unwrap().served;
    send_signal(w.pid(worker), libc::SIGCONT);
    eventually("it goes on", || load().unwrap().served > before);
    let after = load().unwrap().loop_delay.unwrap();
    assert!(after >= ms(80), "it was late by 700 ms, and half of that is left each second: {after:?}");
    eventually("which fades", || load().unwrap().loop_delay.unwrap() < ms(80));
    w.supervisor.kill(worker).unwrap();
    w.exited();
    assert_eq!(load(), None);
    let mut plain = watch(quick().ready_after(ms(50)), "plain");
    let other = plain.ready();
    assert_eq!(plain.supervisor.loads().unwrap(), [(other, offloop::supervisor::Load::default())], "it does not beat");
    plain.stop(Duration::ZERO);
    w.stop(WATCHDOG);
}

#[test]
fn a_suspect_is_asked_for_its_stacks() {
    let _alone = alone();
    // Without a handler the signal ends the worker, and so shows that it came.
    let mut w = watch(quick().hang_timeout(ms(300)).abort_grace(WATCHDOG).dump_signal(libc::SIGUSR2), "blocks:1");
    let (_, cause, ended, _) = w.exited();
    assert_eq!((cause, ended.exit.signal), (Cause::Blocked, Some(libc::SIGUSR2)));
    w.stop(Duration::ZERO);
}

fn stack(e: &Event) -> Option<(WorkerId, Option<String>)> {
    if let Event::Suspect { worker, stack, .. } = e { Some((*worker, stack.clone())) } else { None }
}

#[test]
fn a_suspect_says_where_its_loop_stands() {
    let _alone = alone();
    let patient = || quick().hang_timeout(ms(400)).abort_grace(ms(2000));
    let says = |mode: &'static str| {
        let mut w = watch(patient(), mode);
        let (worker, said) = w.until(stack);
        assert_eq!(worker, id(0, 1), "{mode}");
        let (worker, cause, ended, _) = w.exited();
        assert_eq!((worker, cause, ended.exit.signal), (id(0, 1), Cause::Blocked, Some(libc::SIGABRT)), "{mode}");
        let told = w.seen.iter().filter(|e| matches!(e, Event::Suspect { worker, .. } if *worker == id(0, 1))).count();
        assert_eq!(told, 1, "{mode}");
        w.stop(Duration::ZERO);
        said
    };
    assert_eq!(says("stalls:0").as_deref(), Some("in turn 1 (wörker.rs:7)\nby its own thread: true"));
    assert_eq!(says("stalls:1"), None, "its hook knows nothing");
    assert_eq!(says("stalls:2"), None, "its hook panics");
    assert_eq!(says("stalls:3"), None, "its hook does not come back");
    assert_eq!(says("blocks:1"), None, "it has no hook");
}

#[test]
fn a_suspicion_is_told_before_what_comes_of_it() {
    let _alone = alone();
    // It is aborted long before its hook's time is up.
    let mut w = watch(quick().hang_timeout(ms(400)).abort_grace(ms(1)), "stalls:3");
    w.exited();
    let of_it = |e: &&Event| matches!(e, Event::Suspect { .. } | Event::Signalled { .. } | Event::Exited { .. });
    let order: Vec<&Event> = w.seen.iter().filter(of_it).collect();
    assert!(matches!(order[..], [Event::Suspect { stack: None, .. }, Event::Signalled { .. }, Event::Exited { .. }]), "{order:?}");
    w.stop(Duration::ZERO);
}

#[test]
fn a_loop_that_stands_still_again_is_asked_again() {
    let _alone = alone();
    let mut w = watch(quick().hang_timeout(ms(400)).abort_grace(WATCHDOG), "stalls:4");
    for turn in 1..=2 {
        let (_, said) = w.until(stack);
        let said = said.unwrap();
        let line = format!("at stall {turn}");
        assert!(said.lines().all(|l| l == line) && said.len() <= MAX_STACK && said.len() > MAX_STACK - 12, "{turn}: {said}");
        if turn == 1 {
            std::fs::write(goes_on(w.pid(id(0, 1))), "").unwrap();
            w.until(|e| (*e == Event::Resumed { worker: id(0, 1) }).then_some(()));
        }
    }
    assert_eq!(w.supervisor.stats().unwrap().suspected, 2);
    w.stop(Duration::ZERO);
}

#[test]
fn a_worker_that_lies_about_where_it_stands_harms_nobody() {
    let _alone = alone();
    let mut w = watch(quick().workers(2).hang_timeout(ms(400)).abort_grace(ms(200)), "lies");
    for _ in 0..4 {
        let (_, said) = w.until(stack);
        assert!(said.is_none_or(|said| said.len() <= 3 * MAX_STACK && said.chars().all(|c| c == char::REPLACEMENT_CHARACTER)));
        let (_, cause, ..) = w.exited();
        assert_eq!(cause, Cause::Blocked);
    }
    w.stop(Duration::ZERO);
}

#[test]
fn who_ignores_every_request_is_killed_in_the_end() {
    let _alone = alone();
    let mut w = watch(quick(), "stubborn");
    w.ready();
    w.stop(ms(50));
    let signals: Vec<i32> =
        w.seen.iter().filter_map(|e| if let Event::Signalled { signal, .. } = e { Some(*signal) } else { None }).collect();
    assert_eq!(signals, [libc::SIGTERM, libc::SIGKILL]);
    let stats = w.supervisor.stats().unwrap();
    assert_eq!((stats.forced, stats.exits.stop), (1, 1), "{stats:?}");
}

#[test]
fn a_replacement_is_ready_before_the_old_worker_drains() {
    let _alone = alone();
    let mut w = watch(quick().workers(2), "good");
    w.supervisor.wait_ready(Some(WATCHDOG)).unwrap();
    w.supervisor.retire(0).unwrap();
    w.supervisor.retire(1).unwrap();
    w.supervisor.retire(7).unwrap();
    let mut gone = Vec::new();
    while gone.len() < 2 {
        let (worker, cause, _, forced) = w.exited();
        assert_eq!((cause, forced), (Cause::Retire, false));
        gone.push(worker);
    }
    assert_eq!(gone, [id(0, 1), id(1, 1)], "one at a time, in order");
    for slot in [0, 1] {
        let at = |found: &dyn Fn(&Event) -> bool| w.seen.iter().position(found).unwrap();
        let new = at(&|e| matches!(e, Event::Ready { worker, .. } if *worker == id(slot, 2)));
        let old = at(&|e| matches!(e, Event::Draining { worker, cause: Cause::Retire } if *worker == id(slot, 1)));
        assert!(new < old);
    }
    eventually("the last end is settled", || w.supervisor.stats().unwrap().exits.retire == 2);
    let stats = w.supervisor.stats().unwrap();
    assert_eq!((stats.ready, stats.live, stats.retired), (2, 2, 2), "{stats:?}");
    w.stop(WATCHDOG);
}

#[test]
fn scaling_starts_and_ends_workers_and_the_youngest_leaves_first() {
    let _alone = alone();
    let mut w = watch(quick().workers(0), "good");
    w.supervisor.wait_ready(Some(WATCHDOG)).unwrap();
    assert_eq!(w.supervisor.scale(1025).unwrap_err().kind(), ErrorKind::Invalid);
    w.supervisor.scale(3).unwrap();
    w.supervisor.wait_ready(Some(WATCHDOG)).unwrap();
    assert_eq!(w.supervisor.stats().unwrap().ready, 3);
    w.supervisor.scale(1).unwrap();
    let mut gone = [w.exited().0, w.exited().0];
    gone.sort_unstable();
    assert_eq!(gone, [id(1, 1), id(2, 1)]);
    w.supervisor.kill(id(0, 1)).unwrap();
    assert_eq!(w.exited().1, Cause::Killed);
    w.supervisor.wait_ready(Some(WATCHDOG)).unwrap();
    let slots = w.supervisor.slots().unwrap();
    assert_eq!(slots, [(id(0, 2), State::Ready), (id(1, 1), State::Empty), (id(2, 1), State::Empty)]);
    assert!(!w.seen.iter().any(|e| matches!(e, Event::BackOff { .. })), "nothing failed");
    w.stop(WATCHDOG);
}

#[test]
fn a_worker_that_scribbles_into_its_page_is_ended() {
    let _alone = alone();
    let mut w = watch(quick(), "scribbles");
    let (_, cause, ended, _) = w.exited();
    assert_eq!((cause, ended.exit.signal), (Cause::Corrupt, Some(libc::SIGKILL)));
    w.stop(Duration::ZERO);
}

#[test]
fn a_launcher_that_fails_or_panics_is_a_failed_start() {
    let _alone = alone();
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let mut tries = 0;
    let mut w = watch_with(quick().back_off(ms(1)), move |worker| {
        tries += 1;
        match tries {
            1 => panic!("no plan"),
            2 => Err(offloop::Error::new(ErrorKind::NotFound, "no such interpreter").with("slot", worker.slot)),
            3 => Ok(Spec::new("/nonexistent/program").into()),
            _ => Ok(again("worker_part", "good").into()),
        }
    });
    assert_eq!(w.ready(), id(0, 4));
    std::panic::set_hook(hook);
    let kinds: Vec<_> =
        w.seen.iter().filter_map(|e| if let Event::SpawnFailed { error, .. } = e { Some(error.kind()) } else { None }).collect();
    assert_eq!(kinds, [ErrorKind::Panic, ErrorKind::NotFound, ErrorKind::NotFound]);
    w.stop(WATCHDOG);
    assert_eq!(w.supervisor.stats().unwrap().spawn_failed, 3);
}

#[test]
fn a_worker_gets_the_fds_of_its_launch_and_its_supervisors_beside_them() {
    let _alone = alone();
    let (read, write) = pipe();
    let write = Mutex::new(Some(write));
    let mut w = watch_with(quick(), move |_| {
        let mut spec = Spec::new("/bin/sh");
        spec.args = ["-c", "echo $OFFLOOP_SUPERVISOR >&3; sleep 60"].map(OsString::from).to_vec();
        let out = write.lock().unwrap().take().ok_or_else(|| offloop::Error::invalid("started twice"))?;
        Ok(Launch { spec, env: vec![], fds: vec![(PrivateFd::new(out), 3)] })
    });
    let mut line = String::new();
    BufReader::new(std::fs::File::from(read)).read_line(&mut line).unwrap();
    assert_eq!(parse_env(line.trim()).unwrap(), (4, 5));
    w.stop(Duration::ZERO);
}

#[test]
fn two_supervisors_share_a_thread_and_an_event_may_not_wait() {
    let _alone = alone();
    let mut a = watch(quick(), "good");
    let own: std::sync::Arc<std::sync::OnceLock<Supervisor>> = std::sync::Arc::default();
    let (listener, (send, answers)) = (own.clone(), channel());
    let builder = quick().on_event(move |event| {
        if matches!(event, Event::Ready { .. }) {
            let _ = send.send(listener.get().unwrap().wait_ready(None).unwrap_err().kind());
            panic!("a listener's own trouble");
        }
    });
    let b = builder.build(|_| Ok(again("worker_part", "crashes:100").into())).unwrap();
    own.set(b.clone()).unwrap();
    assert_eq!(answers.recv_timeout(WATCHDOG), Ok(ErrorKind::Invalid));
    assert_eq!(answers.recv_timeout(WATCHDOG), Ok(ErrorKind::Invalid), "the next one is told too");
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let ours =
        tasks.filter(|t| std::fs::read_to_string(t.as_ref().unwrap().path().join("comm")).is_ok_and(|c| c.trim() == "offloop-super"));
    assert_eq!(ours.count(), 1);
    b.stop_now().unwrap();
    b.wait_stopped(Some(WATCHDOG)).unwrap();
    assert_eq!(a.ready(), id(0, 1));
    assert_eq!(a.supervisor.stats().unwrap().live, 1, "the other one is not touched");
    a.stop(WATCHDOG);
}

// ---- hosts: what concerns a whole process ----

fn pipe() -> (OwnedFd, OwnedFd) {
    let mut fds = [0; 2];
    // SAFETY: two writable ints; the fds are new and ours.
    unsafe {
        assert_eq!(libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC), 0);
        (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1]))
    }
}

/// A host in a process of its own: what it writes to fd 3, and what it reads from fd 4.
struct Host {
    child: Child,
    lines: BufReader<std::fs::File>,
    orders: std::fs::File,
}

fn host(mode: &str) -> Host {
    let ((read, write), (order_read, order_write)) = (pipe(), pipe());
    let mut spec = again("host_part", mode);
    spec.fds = vec![];
    let mut spec: Spec<'_> = spec;
    spec.fds = vec![(write.as_fd(), 3), (order_read.as_fd(), 4)];
    let child = spawn(&spec).unwrap();
    Host { child, lines: BufReader::new(read.into()), orders: order_write.into() }
}

impl Host {
    #[track_caller]
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn order(&mut self) {
        self.orders.write_all(b"x").unwrap();
    }

    #[track_caller]
    fn ends_well(self) {
        let exit = self.child.wait(Some(WATCHDOG)).unwrap().expect("it ends");
        assert_eq!(exit.code, Some(0), "{exit:?}");
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.child.kill(libc::SIGKILL);
        let _ = self.child.wait(Some(WATCHDOG));
    }
}

#[test]
fn host_part() {
    let Ok(mode) = std::env::var(MODE) else { return };
    // SAFETY: given by `host` for this purpose.
    let (mut out, mut orders) = unsafe { (std::fs::File::from_raw_fd(3), std::fs::File::from_raw_fd(4)) };
    let mut order = move || orders.read_exact(&mut [0]).unwrap();
    let mut say = move |text: String| out.write_all(format!("{text}\n").as_bytes()).unwrap();
    match mode.as_str() {
        "master" | "master by lifeline" => {
            let by_lifeline = mode == "master by lifeline";
            let mut w = watch_with(quick().workers(2), move |_| {
                let mut spec = again("worker_part", "good");
                // A signal that is ignored: then the lifeline alone ends the worker.
                spec.death_signal = by_lifeline.then_some(libc::SIGURG);
                Ok(spec.into())
            });
            for _ in 0..2 {
                let worker = w.ready();
                say(w.pid(worker).to_string());
            }
            say(sleeping_fork().to_string());
            order();
        }
        "ignores" | "reaps" => {
            if mode == "ignores" {
                ignore(libc::SIGCHLD);
            } else {
                std::thread::spawn(|| {
                    loop {
                        // SAFETY: what a host's code may do.
                        unsafe { libc::waitpid(-1, std::ptr::null_mut(), 0) };
                        std::thread::sleep(Duration::from_micros(50));
                    }
                });
            }
            let mut w = watch(quick(), "crashes:50");
            for _ in 0..3 {
                w.ready();
                say(format!("{:?}", w.exited().2.exit));
            }
            let worker = w.ready();
            // SAFETY: a plain query of a live process.
            say(format!("{}", unsafe { libc::kill(w.pid(worker), 0) }));
            w.stop(Duration::ZERO);
        }
        "no fds" => {
            let limit = |n| {
                let limit = libc::rlimit { rlim_cur: n, rlim_max: 1024 };
                // SAFETY: a valid rlimit.
                assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
            };
            let mut w = watch(quick().workers(0).back_off(ms(1)).max_failures(1000), "good");
            w.supervisor.wait_ready(None).unwrap();
            limit(64);
            let mut held: Vec<std::fs::File> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();
            w.supervisor.scale(1).unwrap();
            // Each of the fds that a start needs is missing in turn.
            for _ in 0..8 {
                let error = w.until(|e| match e {
                    Event::SpawnFailed { error, .. } => Some(Some(error.clone())),
                    Event::Ready { .. } => Some(None),
                    _ => None,
                });
                let Some(error) = error else { break };
                let text = error.to_string();
                assert!(text.contains("Too many open files"), "{text}");
                held.pop();
            }
            drop(held);
            limit(1024);
            w.supervisor.wait_ready(None).unwrap_or_else(|e| assert_eq!(e.kind(), ErrorKind::StartFailed));
            eventually("it starts in the end", || w.supervisor.stats().unwrap().ready == 1);
            say(format!("{}", w.supervisor.stats().unwrap().spawn_failed > 0));
            w.stop(WATCHDOG);
            say(format!("{}", children().len()));
        }
        "forks" => forks(&mut say),
        "held up" => {
            let mut w = watch(quick().workers(2).hang_timeout(ms(400)).abort_grace(Duration::ZERO), "good");
            for _ in 0..2 {
                let worker = w.ready();
                say(w.pid(worker).to_string());
            }
            order();
            // Long enough for a hang to be seen, if one were.
            std::thread::sleep(ms(1200));
            let stats = w.supervisor.stats().unwrap();
            say(format!("{} {} {}", stats.spawned, stats.suspected, stats.ready));
            w.stop(WATCHDOG);
        }
        other => panic!("{other}"),
    }
    end(0);
}

/// A child that has whatever a fork leaves it, and does nothing.
#[allow(clippy::disallowed_methods, reason = "what a forked child keeps open is tested")]
fn sleeping_fork() -> i32 {
    // SAFETY: the child only waits for a signal.
    unsafe {
        let pid = libc::fork();
        if pid == 0 {
            loop {
                libc::pause();
            }
        }
        pid
    }
}

#[allow(clippy::disallowed_methods, reason = "what a forked child sees is tested")]
fn forks(say: &mut impl FnMut(String)) {
    let mut w = watch(quick(), "good");
    let worker = w.ready();
    // SAFETY: the child calls offloop, whose promise after a fork is what is tested, and then `_exit`.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let refused =
            [w.supervisor.stats().map(|_| ()), w.supervisor.scale(2), w.supervisor.stop(Duration::ZERO), w.supervisor.wait_stopped(None)];
        let forked = refused.iter().all(|r| r.as_ref().is_err_and(|e| e.kind() == ErrorKind::Forked));
        drop(w);
        let mut own = watch(quick(), "good");
        own.ready();
        own.stop(WATCHDOG);
        end(if forked { 5 } else { 6 });
    }
    let mut status = 0;
    // SAFETY: our own child, a valid out pointer.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    say(format!("{}", libc::WEXITSTATUS(status)));
    // The worker's supervisor is here still, and the child's end was not taken for its.
    std::thread::sleep(ms(500));
    assert_eq!(w.supervisor.slots().unwrap(), [(worker, State::Ready)]);
    w.stop(WATCHDOG);
    say(format!("{:?}", w.supervisor.stats().unwrap().exits.total()));
}

fn pidfd(pid: i32) -> OwnedFd {
    // SAFETY: a plain call; the fd is new.
    unsafe { OwnedFd::from_raw_fd(libc::syscall(libc::SYS_pidfd_open, pid, 0) as i32) }
}

#[track_caller]
fn wait_gone(pidfd: &OwnedFd) {
    let mut p = libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid pollfd.
    assert_eq!(unsafe { libc::poll(&raw mut p, 1, WATCHDOG.as_millis() as i32) }, 1, "an orphan is left");
}

#[test]
fn workers_of_a_killed_supervisor_end() {
    let _alone = alone();
    let rounds = if std::env::var_os("OFFLOOP_TORTURE").is_some() { 200 } else { 5 };
    for round in 0..rounds {
        let mut host = host(if round % 2 == 0 { "master by lifeline" } else { "master" });
        let workers = [host.line(), host.line()].map(|pid| pidfd(pid.parse().unwrap()));
        // A forked child of the host outlives it, and holds no worker's lifeline.
        let fork = host.line().parse().unwrap();
        host.child.kill(libc::SIGKILL).unwrap();
        workers.iter().for_each(wait_gone);
        send_signal(fork, libc::SIGKILL);
    }
}

/// What the kernel keeps of a process that somebody else has reaped, from Linux 6.15 on.
fn keeps_exits() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut parts = release.split(['.', '-']).map(|p| p.parse::<u32>().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= (6, 15)
}

#[test]
fn a_host_that_ignores_sigchld_or_reaps_greedily_hides_no_exit() {
    let _alone = alone();
    for mode in ["ignores", "reaps"] {
        let mut host = host(mode);
        for _ in 0..3 {
            let exit = host.line();
            let known = exit == format!("{:?}", Exit { code: Some(3), signal: None, core_dumped: false });
            let unknown = exit == format!("{:?}", Exit { code: None, signal: None, core_dumped: false });
            assert!(known || (unknown && !keeps_exits()), "{mode}: {exit}");
        }
        assert_eq!(host.line(), "0", "its replacement lives");
        host.ends_well();
    }
}

#[test]
fn a_start_without_fds_is_tried_again() {
    let _alone = alone();
    let mut host = host("no fds");
    assert_eq!([host.line(), host.line()], ["true", "0"]);
    host.ends_well();
}

#[test]
fn a_forked_child_of_the_host_has_no_part_in_its_supervisors() {
    let _alone = alone();
    let mut host = host("forks");
    assert_eq!([host.line(), host.line()], ["5", "1"]);
    host.ends_well();
}

#[test]
fn a_supervisor_that_was_held_up_blames_nobody() {
    let _alone = alone();
    let mut host = host("held up");
    let workers = [host.line(), host.line()].map(|pid| pid.parse::<i32>().unwrap());
    // The whole group, as a terminal's Ctrl-Z or a suspended machine does it, for several times the hang time-out.
    let all = |signal| {
        workers.iter().for_each(|pid| send_signal(*pid, signal));
        host.child.kill(signal).unwrap();
    };
    host.child.kill(libc::SIGSTOP).unwrap();
    workers.iter().for_each(|pid| send_signal(*pid, libc::SIGSTOP));
    std::thread::sleep(ms(1500));
    all(libc::SIGCONT);
    host.order();
    assert_eq!(host.line(), "2 0 2", "started, suspected, ready");
    host.ends_well();
}
