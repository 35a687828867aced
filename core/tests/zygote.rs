//! Workers that are forks of a zygote, real ones: this very program is zygote, worker, and where the whole process matters, the host.
#![expect(clippy::unwrap_used, reason = "a test may")]

use offloop::pool::call::{Call, decode_reply};
use offloop::pool::{self, PoolOptions, ProcessPool, Running, SubmitOptions};
use offloop::supervisor::{Builder, Cause, Ended, Event, Launch, Supervisor, WorkerId, Zygote, worker, zygote};
use offloop::sys::fork::PrivateFd;
use offloop::sys::process::{Child, Exit, Spec, spawn};
use offloop::{ErrorKind, Task, Value};
use std::collections::HashMap;
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Ends a hang; nothing is measured by it.
const WATCHDOG: Duration = Duration::from_secs(60);
const MODE: &str = "OFFLOOP_TEST_MODE";
const OWN: &str = "OFFLOOP_TEST_OWN";

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Children of this process are counted: one test at a time.
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

/// Zygote or worker.
fn part(mode: &str) -> Spec<'static> {
    let mut spec = again("", mode);
    spec.args.clear();
    spec
}

fn end(code: i32) -> ! {
    // SAFETY: ends a process of the test, without the harness.
    unsafe { libc::_exit(code) }
}

fn send_signal(pid: i32, signal: i32) {
    // SAFETY: a plain call; the process is one of this test's and not reaped yet.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0, "{}", io::Error::last_os_error());
}

// ---- the zygote's and the worker's part ----

/// A zygote has one thread, and the test harness two: these parts begin before it.
#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = before_main;

/// `MODE` is `<what the zygote does>/<what its workers do>`; the setup is a file that makes the first zygote of several another one.
extern "C" fn before_main() {
    let Ok(mode) = std::env::var(MODE) else { return };
    let Some((zygote_mode, worker_mode)) = mode.split_once('/') else { return };
    if std::env::var_os("OFFLOOP_ZYGOTE").is_some() {
        be_zygote(zygote_mode);
    }
    be_worker(worker_mode);
}

#[allow(clippy::disallowed_methods, reason = "a zygote's program forks")]
fn fork() -> io::Result<i32> {
    // SAFETY: the child has this thread alone and calls what a worker calls.
    let pid = unsafe { libc::fork() };
    if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(pid) }
}

fn die() -> ! {
    // SAFETY: a plain call.
    unsafe { libc::raise(libc::SIGKILL) };
    end(9)
}

/// Returns in a worker.
fn be_zygote(mode: &str) {
    let zygote = zygote::attach().unwrap().expect("it was started as one");
    assert_eq!(zygote::attach().unwrap_err().kind(), ErrorKind::Invalid, "once");
    let setup = String::from_utf8(zygote.setup().to_vec()).unwrap();
    let first = std::fs::remove_file(&setup).is_ok();
    match mode {
        "fails" => {
            zygote.fail("no module named scoring");
            end(1);
        }
        "exits" => end(4),
        "hangs" => std::thread::sleep(WATCHDOG),
        "dies at load" if first => die(),
        "has a thread" => {
            let (send, named) = channel();
            let sleeps = move || {
                send.send(()).unwrap();
                std::thread::sleep(WATCHDOG);
            };
            std::thread::Builder::new().name("somebody".into()).spawn(sleeps).unwrap();
            // It takes its name itself.
            named.recv().unwrap();
        }
        "has a thread that forks end" => end_thread_at_fork(),
        "has few fds" => {
            let limit = libc::rlimit { rlim_cur: 34, rlim_max: 1024 };
            // SAFETY: a valid rlimit.
            assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
        }
        _ => {}
    }
    let parent = std::process::id() as i32;
    let mut forks = 0;
    let served = zygote.serve(|| {
        forks += 1;
        match mode {
            "dies before the fork" if first => die(),
            "cannot fork" if forks <= 2 => Err(io::Error::from_raw_os_error(libc::EAGAIN)),
            "dies after the fork" if first => match fork()? {
                0 => {
                    // Says that it is there when nobody else would.
                    while std::os::unix::process::parent_id() as i32 == parent {
                        std::thread::sleep(ms(1));
                    }
                    Ok(0)
                }
                _ => die(),
            },
            "scribbles" if first && forks == 1 => {
                // SAFETY: a plain call with readable bytes, on the number that a zygote's socket has.
                unsafe { libc::send(zygote::RESERVED, [0xffu8; 24].as_ptr().cast(), 24, 0) };
                fork()
            }
            _ => fork(),
        }
    });
    match served.unwrap() {
        zygote::Served::Over => end(0),
        zygote::Served::Worker => {}
    }
    if mode == "dies when its worker begins" && std::fs::remove_file(format!("{setup}.2")).is_ok() {
        // The worker ends it.
        send_signal(parent, libc::SIGKILL);
    }
}

/// As OpenBLAS does it.
fn end_thread_at_fork() {
    static STOP: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);
    static THREAD: Mutex<Option<std::thread::JoinHandle<()>>> = Mutex::new(None);
    extern "C" fn prepare() {
        STOP.store(true, Ordering::SeqCst);
        if let Some(thread) = THREAD.lock().unwrap().take() {
            thread.join().unwrap();
        }
    }
    let busy = || {
        while !STOP.load(Ordering::SeqCst) {
            std::thread::sleep(ms(1));
        }
    };
    *THREAD.lock().unwrap() = Some(std::thread::spawn(busy));
    // SAFETY: the handler joins a thread, which a handler that runs before a fork may do.
    assert_eq!(unsafe { libc::pthread_atfork(Some(prepare), None, None) }, 0);
}

fn be_worker(mode: &str) -> ! {
    let (mode, number) = mode.split_once(':').unwrap_or((mode, "0"));
    let number: u64 = number.parse().unwrap();
    assert!(std::env::var_os("OFFLOOP_ZYGOTE").is_none(), "it is none");
    if mode == "serves" {
        let worker = pool::Worker::attach().unwrap().expect("of a pool");
        pool::serve(&worker, &mut |call: Call, _: &Running<'_>| match call.name.as_str() {
            "family" => Ok(Value::Array([std::process::id(), std::os::unix::process::parent_id()].map(|n| Value::Int(n.into())).into())),
            _ => die(),
        })
        .unwrap();
        end(0);
    }
    let worker = worker::attach().unwrap().expect("supervised");
    if mode == "looks" {
        let link = |fd: i32| std::fs::read_link(format!("/proc/self/fd/{fd}")).map(|p| p.display().to_string()).unwrap_or_default();
        // SAFETY: plain queries.
        let (leads, parent) = unsafe { (libc::getpgid(0) == libc::getpid(), libc::getppid()) };
        let open = (3..zygote::RESERVED).filter(|fd| link(*fd) == "/dev/null").count();
        let name = link(7);
        let own = std::env::var(OWN).unwrap_or_default();
        // SAFETY: given by the test for this purpose.
        let mut out = unsafe { std::fs::File::from_raw_fd(7) };
        writeln!(out, "{own} {leads} {parent} {open} {}", name.starts_with("pipe:")).unwrap();
    }
    worker.ready();
    let begun = Instant::now();
    loop {
        match mode {
            "crashes" if begun.elapsed() >= ms(number) => end(3),
            "aborts" if begun.elapsed() >= ms(number) => {
                // SAFETY: ends this process as a fault would.
                unsafe { libc::raise(libc::SIGSEGV) };
            }
            _ if worker.is_draining() => {
                worker.drained();
                end(0);
            }
            _ => {}
        }
        worker.beat();
        std::thread::sleep(worker.beat_interval().min(ms(20)) / 2);
    }
}

// ---- the owner's part ----

struct Watched {
    supervisor: Supervisor,
    events: Receiver<Event>,
    seen: Vec<Event>,
    files: [PathBuf; 2],
}

fn quick() -> Builder {
    Supervisor::builder().boot_timeout(WATCHDOG).beat(ms(50)).hang_timeout(Duration::ZERO).kill_grace(ms(300)).orphan_grace(ms(300))
}

fn watch(builder: Builder, mode: &'static str) -> Watched {
    watch_with(builder, mode, move |_| {
        let mut spec = part(mode);
        spec.new_group = true;
        Ok(spec.into())
    })
}

fn watch_with(builder: Builder, mode: &'static str, launch: impl FnMut(WorkerId) -> offloop::Result<Launch> + Send + 'static) -> Watched {
    static MADE: AtomicUsize = AtomicUsize::new(0);
    let name = format!("offloop-zygote-{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
    let file = std::env::temp_dir().join(name);
    let files = [file.clone(), PathBuf::from(format!("{}.2", file.display()))];
    files.iter().for_each(|f| std::fs::write(f, "").unwrap());
    let setup = file.display().to_string().into_bytes();
    let (send, events) = channel();
    let builder = builder
        .on_event(move |event| {
            let _ = send.send(event.clone());
        })
        .zygote(move || Ok(Zygote { launch: part(mode).into(), setup: setup.clone() }));
    Watched { supervisor: builder.build(launch).unwrap(), events, seen: Vec::new(), files }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.files.iter().for_each(|f| drop(std::fs::remove_file(f)));
    }
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
    fn exited(&mut self) -> (WorkerId, Cause, Ended) {
        self.until(|e| match e {
            Event::Exited { worker, cause, ended, .. } => Some((*worker, *cause, *ended)),
            _ => None,
        })
    }

    #[track_caller]
    fn zygote_ready(&mut self) -> i32 {
        self.until(|e| if let Event::ZygoteReady { pid, .. } = e { Some(*pid) } else { None })
    }

    /// Of the first one; now or before.
    #[track_caller]
    fn zygote_ended(&mut self) -> Exit {
        let exit = |e: &Event| if let Event::ZygoteEnded { exit, .. } = e { Some(*exit) } else { None };
        self.seen.iter().find_map(exit).unwrap_or_else(|| self.until(exit))
    }

    fn pid(&self, worker: WorkerId) -> i32 {
        let pids = self.seen.iter().filter_map(|e| match e {
            Event::Spawned { worker: w, pid } => Some((*w, *pid)),
            _ => None,
        });
        pids.collect::<HashMap<_, _>>()[&worker]
    }

    /// Every process that there was.
    fn pids(&self) -> Vec<i32> {
        let pid = |e: &Event| match e {
            Event::Spawned { pid, .. } | Event::ZygoteStarted { pid } => Some(*pid),
            _ => None,
        };
        self.seen.iter().filter_map(pid).collect()
    }

    /// Nothing is left when `wait_stopped` returns, and no zombie but one that its zygote has left to the system.
    #[track_caller]
    fn stop(&mut self, grace: Duration) {
        self.supervisor.stop(grace).unwrap();
        self.supervisor.wait_stopped(Some(WATCHDOG)).unwrap();
        self.until(|e| (*e == Event::Stopped).then_some(()));
        self.pids().into_iter().for_each(|pid| assert!(!is_ours(pid), "{pid} is left; seen {:#?}", self.seen));
        assert_eq!(children(), Vec::<String>::new());
    }
}

fn code(code: i32) -> Exit {
    Exit { code: Some(code), signal: None, core_dumped: false }
}

fn signal(signal: i32) -> Exit {
    Exit { code: None, signal: Some(signal), core_dumped: false }
}

/// A process of that number runs this program: it may be another's by now.
fn is_ours(pid: i32) -> bool {
    let field = |of: &str, name: &str| {
        let text = std::fs::read_to_string(format!("/proc/{of}/status")).unwrap_or_default();
        text.lines().find_map(|l| l.strip_prefix(name).map(str::to_owned)).unwrap_or_default()
    };
    let of = pid.to_string();
    field(&of, "Name:") == field("self", "Name:") && !field(&of, "State:").contains('Z')
}

fn parent(pid: i32) -> i32 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    text.lines().find_map(|l| l.strip_prefix("PPid:")).unwrap().trim().parse().unwrap()
}

fn children() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let lists = tasks.filter_map(|t| std::fs::read_to_string(t.unwrap().path().join("children")).ok());
    lists.flat_map(|l| l.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect()
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

fn pipe() -> (OwnedFd, OwnedFd) {
    let mut fds = [0; 2];
    // SAFETY: two writable ints; the fds are new and ours.
    unsafe {
        assert_eq!(libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC), 0);
        (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1]))
    }
}

#[test]
fn a_forked_worker_has_what_an_execd_one_has() {
    let _alone = alone();
    let (read, write) = pipe();
    let mut lines = BufReader::new(std::fs::File::from(read));
    let mut ends = vec![write.try_clone().unwrap(), write];
    let mut w = watch_with(quick().workers(1), "good/looks", move |_| {
        let mut spec = part("good/looks");
        spec.new_group = true;
        let env = vec![(OWN.into(), "own".into())];
        Ok(Launch { spec, env, fds: vec![(PrivateFd::new(ends.pop().unwrap()), 7)] })
    });
    let zygote = w.zygote_ready();
    let worker = w.ready();
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert_eq!(line.trim(), format!("own true {zygote} 0 true"));
    assert_eq!(parent(w.pid(worker)), zygote);
    let stats = w.supervisor.stats().unwrap();
    assert_eq!((stats.forked, stats.spawned, stats.zygotes), (1, 1, 1));
    w.stop(WATCHDOG);
}

#[test]
fn the_zygote_is_there_before_a_worker_is_wanted_and_after_the_last_has_left() {
    let _alone = alone();
    let mut w = watch(quick().workers(0), "good/good");
    let zygote = w.zygote_ready();
    assert_eq!(children(), [zygote.to_string()]);
    for incarnation in 1..=2 {
        w.supervisor.scale(1).unwrap();
        let worker = w.ready();
        assert_eq!((worker.incarnation, parent(w.pid(worker))), (incarnation, zygote));
        w.supervisor.scale(0).unwrap();
        assert_eq!(w.exited(), (worker, Cause::Scale, Ended { exit: code(0), oom: false }));
    }
    w.stop(Duration::ZERO);
}

#[test]
fn the_zygote_tells_how_a_worker_ended() {
    let _alone = alone();
    let mut w = watch(quick(), "good/crashes:10");
    assert_eq!(w.exited().2.exit, code(3));
    w.stop(Duration::ZERO);
    let mut w = watch(quick(), "good/aborts:10");
    let exit = w.exited().2.exit;
    assert_eq!((exit.code, exit.signal), (None, Some(libc::SIGSEGV)));
    w.stop(Duration::ZERO);
    let mut w = watch(quick(), "good/good");
    let worker = w.ready();
    send_signal(w.pid(worker), libc::SIGKILL);
    assert_eq!(w.exited(), (worker, Cause::Crash, Ended { exit: signal(libc::SIGKILL), oom: false }));
    w.ready();
    w.stop(Duration::ZERO);
}

#[test]
fn workers_outlive_their_zygote_and_the_next_start_makes_another() {
    let _alone = alone();
    let mut w = watch(quick().workers(2), "good/good");
    let zygote = w.zygote_ready();
    let workers = [w.ready(), w.ready()];
    send_signal(zygote, libc::SIGKILL);
    assert_eq!(w.zygote_ended(), signal(libc::SIGKILL));
    assert_eq!((w.supervisor.stats().unwrap().ready, w.supervisor.stats().unwrap().zygotes), (2, 1));
    // Nobody is left who would say how it ended, unless the kernel does.
    send_signal(w.pid(workers[0]), libc::SIGKILL);
    let (worker, cause, ended) = w.exited();
    assert_eq!((worker, cause), (workers[0], Cause::Crash));
    assert!([None, Some(libc::SIGKILL)].contains(&ended.exit.signal), "{ended:?}");
    let second = w.zygote_ready();
    let next = w.ready();
    assert_eq!((parent(w.pid(next)), w.supervisor.stats().unwrap().zygotes), (second, 2));
    w.stop(WATCHDOG);
}

#[test]
fn a_zygote_that_dies_at_any_step_costs_a_start_at_most() {
    let _alone = alone();
    let modes = [
        "dies at load/good",
        "dies before the fork/good",
        "dies after the fork/good",
        "dies when its worker begins/good",
        "scribbles/good",
    ];
    for mode in modes {
        let mut w = watch(quick().workers(2).back_off(ms(10)).max_failures(100), mode);
        let both = |s: &Supervisor| s.stats().unwrap().ready == 2;
        eventually(mode, || both(&w.supervisor));
        // The old one is known to have ended, and another one was made where it was needed.
        assert_eq!(w.zygote_ended(), signal(libc::SIGKILL), "{mode}");
        let stats = w.supervisor.stats().unwrap();
        assert!(stats.ready == 2 && stats.live == 2, "{mode}: {stats:?}");
        w.stop(WATCHDOG);
    }
}

#[test]
fn a_worker_that_was_forked_by_a_zygote_that_died_meanwhile_is_kept() {
    let _alone = alone();
    let mut w = watch(quick().workers(1), "dies after the fork/good");
    let worker = w.ready();
    w.zygote_ended();
    assert_eq!((worker.incarnation, w.supervisor.stats().unwrap().zygotes), (1, 1));
    w.stop(WATCHDOG);
}

#[test]
fn what_a_zygote_says_of_its_failure_is_the_start_error() {
    let _alone = alone();
    let error = |mode: &'static str| {
        let mut w = watch(quick().workers(2).boot_timeout(ms(300)), mode);
        let error = w.supervisor.wait_ready(Some(WATCHDOG)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StartFailed, "{error}");
        w.stop(Duration::ZERO);
        error.to_string()
    };
    assert_eq!(error("fails/good"), "start failed: no module named scoring (exit_code=1)");
    let ended = "start failed: the process that workers are forked from ended before it was ready (exit_code=4)";
    assert_eq!(error("exits/good"), ended);
    let late = "start failed: the process that workers are forked from did not answer in time (boot_timeout_ms=300)";
    assert_eq!(error("hangs/good"), late);
}

#[test]
fn a_zygote_with_threads_that_a_fork_would_lose_is_not_forked() {
    let _alone = alone();
    let mut w = watch(quick().workers(2), "has a thread/good");
    let text = w.until(|e| if let Event::ZygoteRefused { text } = e { Some(text.clone()) } else { None });
    assert!(text.contains("2 threads") && text.contains("somebody"), "{text}");
    let workers = [w.ready(), w.ready()];
    workers.iter().for_each(|worker| assert_eq!(parent(w.pid(*worker)), std::process::id() as i32));
    assert_eq!(w.supervisor.stats().unwrap().forked, 0);
    send_signal(w.pid(workers[0]), libc::SIGKILL);
    w.ready();
    assert_eq!((w.supervisor.stats().unwrap().forked, w.supervisor.stats().unwrap().zygotes), (0, 1), "it is not tried again");
    w.stop(WATCHDOG);
}

#[test]
fn threads_that_their_library_ends_before_a_fork_do_not_count() {
    let _alone = alone();
    let mut w = watch(quick(), "has a thread that forks end/good");
    w.ready();
    assert_eq!(w.supervisor.stats().unwrap().forked, 1);
    w.stop(WATCHDOG);
}

#[test]
fn a_fork_that_fails_is_tried_again() {
    let _alone = alone();
    let failed = |w: &mut Watched| w.until(|e| if let Event::SpawnFailed { error, .. } = e { Some(error.errno()) } else { None });
    let mut w = watch(quick().back_off(ms(1)), "cannot fork/good");
    assert_eq!([failed(&mut w), failed(&mut w)], [Some((libc::EAGAIN, "fork")); 2]);
    w.ready();
    assert_eq!(w.supervisor.stats().unwrap().zygotes, 1);
    w.stop(WATCHDOG);
    let mut w = watch(quick().back_off(ms(1)).max_failures(1000), "has few fds/good");
    assert_eq!(failed(&mut w), Some((libc::EMFILE, "fork")));
    w.stop(WATCHDOG);
}

#[test]
fn a_zygote_that_is_stopped_is_replaced_when_a_worker_was_due() {
    let _alone = alone();
    let mut w = watch(quick().workers(0).boot_timeout(ms(500)), "good/good");
    let zygote = w.zygote_ready();
    send_signal(zygote, libc::SIGSTOP);
    w.supervisor.scale(1).unwrap();
    let error = w.until(|e| if let Event::SpawnFailed { error, .. } = e { Some(error.clone()) } else { None });
    assert!(error.to_string().contains("did not answer in time"), "{error}");
    assert_eq!(w.zygote_ended(), signal(libc::SIGKILL));
    w.ready();
    w.stop(WATCHDOG);
}

#[test]
fn a_worker_that_is_not_wanted_any_more_is_ended_when_it_is_there() {
    let _alone = alone();
    let mut w = watch(quick().workers(0), "good/good");
    let zygote = w.zygote_ready();
    send_signal(zygote, libc::SIGSTOP);
    w.supervisor.scale(2).unwrap();
    w.supervisor.scale(0).unwrap();
    for _ in 0..2 {
        let error = w.until(|e| if let Event::SpawnFailed { error, .. } = e { Some(error.kind()) } else { None });
        assert_eq!(error, ErrorKind::Cancelled);
    }
    send_signal(zygote, libc::SIGCONT);
    eventually("its forks are gone", || {
        let children = std::fs::read_to_string(format!("/proc/{zygote}/task/{zygote}/children")).unwrap();
        children.trim().is_empty()
    });
    w.supervisor.scale(1).unwrap();
    let worker = w.ready();
    assert_eq!((parent(w.pid(worker)), w.supervisor.stats().unwrap().spawned), (zygote, 1));
    // A zygote that is stopped does not hold up the end.
    send_signal(zygote, libc::SIGSTOP);
    w.stop(Duration::ZERO);
}

#[test]
fn an_end_of_which_the_zygote_says_nothing_is_told_all_the_same() {
    let _alone = alone();
    let mut w = watch(quick(), "good/good");
    let zygote = w.zygote_ready();
    let worker = w.ready();
    send_signal(zygote, libc::SIGSTOP);
    send_signal(w.pid(worker), libc::SIGKILL);
    assert_eq!(w.exited(), (worker, Cause::Crash, Ended { exit: Exit { code: None, signal: None, core_dumped: false }, oom: false }));
    send_signal(zygote, libc::SIGCONT);
    w.ready();
    w.stop(WATCHDOG);
}

#[test]
fn a_worker_whose_fds_have_other_numbers_is_started_by_exec() {
    let _alone = alone();
    let mut w = watch_with(quick(), "good/good", |_| {
        let null = std::fs::File::open("/dev/null").unwrap();
        Ok(Launch { spec: part("good/good"), env: vec![], fds: vec![(PrivateFd::new(null.into()), zygote::RESERVED)] })
    });
    let worker = w.ready();
    assert_eq!(parent(w.pid(worker)), std::process::id() as i32);
    w.stop(WATCHDOG);
}

#[test]
fn a_zygote_that_cannot_be_launched_is_the_workers_failure() {
    let _alone = alone();
    let built =
        quick().zygote(|| Err(offloop::Error::new(ErrorKind::NotFound, "no such app"))).build(|_| Ok(Spec::new("/bin/true").into()));
    let supervisor = built.unwrap();
    assert_eq!(supervisor.wait_ready(Some(WATCHDOG)).unwrap_err().kind(), ErrorKind::NotFound);
    drop(supervisor);
    let supervisor = quick().zygote(|| panic!("in the launcher")).build(|_| Ok(Spec::new("/bin/true").into())).unwrap();
    assert_eq!(supervisor.wait_ready(Some(WATCHDOG)).unwrap_err().kind(), ErrorKind::Panic);
}

#[test]
fn starting_and_ending_many_leaves_no_fd() {
    let _alone = alone();
    let fds = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let mut w = watch(quick().workers(0).max_starting(4), "good/good");
    w.zygote_ready();
    let zygote_fds = || {
        let pid = w.pids()[0];
        std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
    };
    let before = (fds(), zygote_fds());
    for _ in 0..10 {
        w.supervisor.scale(4).unwrap();
        w.supervisor.wait_ready(Some(WATCHDOG)).unwrap();
        w.supervisor.scale(0).unwrap();
        eventually("all have left", || w.supervisor.stats().unwrap().live == 0);
    }
    // One that is about to be closed may be among them for a moment.
    eventually("no fd is left", || fds() <= before.0 && zygote_fds() <= before.1);
    w.stop(WATCHDOG);
}

// ---- pools ----

fn pool() -> (ProcessPool, Receiver<Event>) {
    let (send, events) = channel();
    let listener = move |event: &Event| {
        let _ = send.send(event.clone());
    };
    let options = PoolOptions { max_workers: Some(2), min_workers: 2, ..PoolOptions::default() };
    // A start that falls together with the end of a zygote is a failure.
    let supervision = offloop::supervisor::Options {
        workers: 0,
        hang_timeout: Duration::ZERO,
        max_failures: Some(10_000),
        back_off: ms(1),
        max_back_off: ms(10),
        ..offloop::supervisor::Options::default()
    };
    let builder = ProcessPool::builder().options(options).supervision(supervision).on_event(listener);
    let builder = builder.zygote(b"no such file".to_vec(), || Ok(part("good/serves")));
    (builder.build(|_| Ok(part("good/serves"))).unwrap(), events)
}

fn submit(pool: &ProcessPool, name: &str) -> Task {
    let bytes = Call { name: name.to_owned(), args: vec![], named: vec![] }.encode().unwrap();
    pool.submit(pool.request(&[&bytes]).unwrap(), SubmitOptions::default()).unwrap()
}

/// Worker and its parent.
fn family(task: &Task) -> Result<(i32, i32), offloop::Error> {
    let reply = task.wait(Some(WATCHDOG))?.into_bytes()?.into_vec();
    let numbers = decode_reply(&reply)?;
    let Ok(Value::Array(numbers)) = numbers else { panic!("{numbers:?}") };
    let pid = |at: usize| numbers[at].as_int().unwrap() as i32;
    Ok((pid(0), pid(1)))
}

fn started(events: &Receiver<Event>) -> i32 {
    loop {
        if let Event::ZygoteStarted { pid } = events.recv_timeout(WATCHDOG).unwrap() {
            return pid;
        }
    }
}

#[test]
fn a_pools_zygote_starts_with_the_pool_and_its_workers_are_forks() {
    let _alone = alone();
    let (pool, events) = pool();
    let zygote = started(&events);
    assert_eq!(pool.pool().stats().submitted, 0);
    let (worker, parent) = family(&submit(&pool, "family")).unwrap();
    assert_eq!((parent, crate::parent(worker)), (zygote, zygote));
    // The group of a terminal's Ctrl-C is the host's.
    // SAFETY: plain queries of live processes.
    assert_eq!(unsafe { [libc::getpgid(zygote), libc::getpgid(worker)] }, [zygote, worker]);
    pool.shutdown(None).unwrap();
    assert!(!is_ours(zygote) && !is_ours(worker));
}

#[test]
fn each_task_has_one_outcome_whichever_of_workers_and_zygotes_are_killed() {
    let _alone = alone();
    let kills = if std::env::var_os("OFFLOOP_TORTURE").is_some() { 2000 } else { 60 };
    let (pool, events) = pool();
    let mut zygote = started(&events);
    let (mut lost, mut zygotes) = (0, 1);
    for kill in 0..kills {
        let tasks = [submit(&pool, "family"), submit(&pool, "dies"), submit(&pool, "family")];
        if kill % 10 == 3 && is_ours(zygote) {
            send_signal(zygote, libc::SIGKILL);
        }
        for (at, task) in tasks.iter().enumerate() {
            match family(task) {
                Ok((_, parent)) => assert!(at != 1 && parent > 0),
                Err(e) => {
                    assert!(e.kind() == ErrorKind::WorkerLost, "{e}");
                    lost += 1;
                }
            }
        }
        for event in events.try_iter() {
            if let Event::ZygoteStarted { pid } = event {
                (zygote, zygotes) = (pid, zygotes + 1);
            }
        }
    }
    assert!(lost >= kills && zygotes > kills / 20, "{lost} lost, {zygotes} zygotes of {kills}");
    let stats = pool.processes().unwrap();
    assert_eq!(stats.forked, stats.spawned, "{stats:?}");
    pool.shutdown(None).unwrap();
    assert_eq!(children(), Vec::<String>::new());
    assert_eq!(pool.pool().stats().lost as usize, lost);
}

// ---- hosts: what concerns a whole process ----

/// A host in a process of its own: what it writes to fd 3, and what it reads from fd 4.
struct Host {
    child: Child,
    lines: BufReader<std::fs::File>,
    /// Kept open.
    _orders: std::fs::File,
}

fn host(mode: &str) -> Host {
    let ((read, write), (order_read, order_write)) = (pipe(), pipe());
    let mut spec: Spec<'_> = again("host_part", mode);
    spec.fds = vec![(write.as_fd(), 3), (order_read.as_fd(), 4)];
    let child = spawn(&spec).unwrap();
    Host { child, lines: BufReader::new(read.into()), _orders: order_write.into() }
}

impl Host {
    #[track_caller]
    fn pid(&mut self) -> OwnedFd {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        let pid: i32 = line.trim_end().parse().unwrap();
        // SAFETY: a plain call; the fd is new.
        unsafe { OwnedFd::from_raw_fd(libc::syscall(libc::SYS_pidfd_open, pid, 0) as i32) }
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
    let mut say = move |pid: i32| out.write_all(format!("{pid}\n").as_bytes()).unwrap();
    if mode == "loading" {
        let mut w = watch(quick().workers(1), "hangs/good");
        say(w.until(|e| if let Event::ZygoteStarted { pid } = e { Some(*pid) } else { None }));
        let _ = orders.read_exact(&mut [0]);
    } else {
        let mut w = watch(quick().workers(2), "good/good");
        say(w.zygote_ready());
        for _ in 0..2 {
            let worker = w.ready();
            say(w.pid(worker));
        }
        let fork = fork().unwrap();
        if fork == 0 {
            // It has whatever a fork leaves it.
            std::thread::sleep(WATCHDOG);
            end(0);
        }
        say(fork);
        let _ = orders.read_exact(&mut [0]);
    }
    end(0);
}

#[track_caller]
fn wait_gone(pidfd: &OwnedFd) {
    let mut p = libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid pollfd.
    assert_eq!(unsafe { libc::poll(&raw mut p, 1, WATCHDOG.as_millis() as i32) }, 1, "an orphan is left");
}

#[test]
fn zygote_and_workers_of_a_killed_supervisor_end() {
    let _alone = alone();
    let rounds = if std::env::var_os("OFFLOOP_TORTURE").is_some() { 200 } else { 5 };
    for _ in 0..rounds {
        let mut host = host("master");
        let ours = [host.pid(), host.pid(), host.pid()];
        // A forked child of the host outlives it, and holds no socket of the zygote's.
        let fork = host.pid();
        host.child.kill(libc::SIGKILL).unwrap();
        ours.iter().for_each(wait_gone);
        // SAFETY: a plain call on a live pidfd.
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fork.as_raw_fd(), libc::SIGKILL, 0usize, 0) };
    }
    let mut host = host("loading");
    let zygote = host.pid();
    host.child.kill(libc::SIGKILL).unwrap();
    wait_gone(&zygote);
}
