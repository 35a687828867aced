//! The worker's side: [`attach`], then [`Worker::beat`] from the program's own loop, and [`Worker::ready`].

use super::event::WorkerId;
use super::page::Page;
use super::stall::{Stall, Stalls};
use crate::error::{Error, ErrorKind, Result};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sys::eventfd::EventFd;
use crate::sys::fork::{self, ForkCell, PrivateFd};
use crate::sys::{clock, pipe, poll, socket, thread};
use crate::wire::supervisor::{ENV, Header, parse_env, state};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// This process as a worker. Copies of the handle are the same worker; it stays one when all are dropped.
#[derive(Clone, Debug)]
pub struct Worker(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    page: Page,
    header: Header,
    /// The end of the socket whose other end the supervisor has.
    lifeline: PrivateFd,
    /// Readable from when the worker is to finish.
    drain: EventFd,
    /// Readable from when the worker takes work.
    active: EventFd,
    loaded: AtomicBool,
    orphaned: AtomicBool,
    stalls: Stalls,
    epoch: u64,
}

/// Of this process; a forked child is no worker.
static ATTACHED: ForkCell<AtomicBool> = ForkCell::new();
/// In this line of forks: what was inherited is used up.
static EVER: AtomicBool = AtomicBool::new(false);

/// Makes this process the worker that its supervisor started, and starts the native thread that shows its life and watches that of the
/// supervisor. `None` when the environment names no supervisor, or names fds that are not there: a program that a worker starts inherits
/// its variables, but not its fds. The two inherited fds are taken over.
///
/// From here on the end of the supervisor ends this process after `orphan_grace`: [`Worker::drain_fd`] tells before. Call it on the first
/// thread: what else would end the process at once (`PR_SET_PDEATHSIG`) is kept per thread, and switched off here.
///
/// # Errors
/// `Invalid` when the variable or the fds are not what a supervisor leaves, `Corrupt` and `Version` for the page, `InUse` at a second call,
/// `Forked` in a child of a worker, `Os` when an fd or the thread cannot be made: then the process can be no worker, and is to end.
pub fn attach() -> Result<Option<Worker>> {
    match std::env::var_os(ENV) {
        None => Ok(None),
        Some(text) => {
            let fds = parse_env(&text.to_string_lossy())?;
            let inherited = [fds.0, fds.1].into_iter().any(is_inherited);
            if inherited || EVER.load(Ordering::Relaxed) { attach_to(fds).map(Some) } else { Ok(None) }
        }
    }
}

/// The fd is open, and not one that this program has opened itself.
fn is_inherited(fd: i32) -> bool {
    // SAFETY: a plain query.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 && !fork::is_owned(fd) }
}

/// # Errors
/// `Invalid` for the first of them that is not inherited.
pub(super) fn check_inherited(fds: [i32; 2]) -> Result<()> {
    match fds.into_iter().find(|fd| !is_inherited(*fd)) {
        Some(fd) => Err(Error::invalid("fd of the supervisor is not there").with("fd", fd)),
        None => Ok(()),
    }
}

fn attach_to((page, lifeline): (i32, i32)) -> Result<Worker> {
    let attached = ATTACHED.get(AtomicBool::default);
    if attached.swap(true, Ordering::Relaxed) {
        return Err(Error::new(ErrorKind::InUse, "process is attached to its supervisor already"));
    }
    if EVER.load(Ordering::Relaxed) {
        return Err(Error::new(ErrorKind::Forked, "process is a child of a worker"));
    }
    let worker = open(page, lifeline);
    if worker.is_err() {
        attached.store(false, Ordering::Relaxed);
    } else {
        EVER.store(true, Ordering::Relaxed);
    }
    worker
}

fn open(page_fd: i32, lifeline_fd: i32) -> Result<Worker> {
    check_inherited([page_fd, lifeline_fd])?;
    // SAFETY: both are open, as was asked, and stay so: nobody else knows them.
    let (page_at, lifeline_at) = unsafe { (BorrowedFd::borrow_raw(page_fd), BorrowedFd::borrow_raw(lifeline_fd)) };
    let (page, header) = Page::attach(page_at)?;
    socket::check_kind(lifeline_at).map_err(|_| Error::invalid("fd is not the lifeline of a worker").with("fd", lifeline_fd))?;
    socket::adopt(lifeline_at)?;
    let (drain, active) = (EventFd::new()?, EventFd::new()?);
    // SAFETY: what was inherited for this purpose has no other owner.
    let (page_own, lifeline) = unsafe { (OwnedFd::from_raw_fd(page_fd), OwnedFd::from_raw_fd(lifeline_fd)) };
    let inner = Inner {
        page,
        header,
        lifeline: PrivateFd::new(lifeline),
        drain,
        active,
        loaded: AtomicBool::new(false),
        orphaned: AtomicBool::new(false),
        stalls: Stalls::default(),
        epoch: fork::epoch(),
    };
    let worker = Worker(Arc::new(inner));
    if !worker.is_spare() {
        worker.0.active.signal();
    }
    let own = worker.clone();
    let options = thread::Options { name: "offloop-beat".to_owned(), stack_size: Some(64 << 10), nice: 0 };
    drop(page_own);
    drop(thread::spawn(&options, move || own.watch())?);
    if worker.0.header.orphan_ns > 0 {
        // SAFETY: a plain call. The lifeline does it from here on, and leaves time to finish.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, 0) };
    }
    be_killed_before_the_host();
    worker.0.page.hello(worker.0.header.incarnation);
    worker.ring();
    Ok(worker)
}

/// What a worker is killed before its supervisor by, when memory runs out. The scale ends at 1,000.
const OOM_SCORE: i32 = 200;

/// Unless somebody has chosen another score for it than its parent's.
fn be_killed_before_the_host() {
    let score = |process: &str| {
        let text = std::fs::read_to_string(format!("/proc/{process}/oom_score_adj")).ok()?;
        text.trim().parse::<i32>().ok()
    };
    let parent = score(&std::os::unix::process::parent_id().to_string());
    if let Some(own) = score("self").filter(|own| parent.is_none_or(|parent| parent == *own)) {
        // Not there without /proc; then the kernel decides by size alone.
        let _ = std::fs::write("/proc/self/oom_score_adj", (own + OOM_SCORE).min(1000).to_string());
    }
}

impl Worker {
    /// Slot, generation and incarnation. Those of a spare change when it takes the place of a worker.
    #[must_use]
    pub fn id(&self) -> WorkerId {
        let Header { slot, generation, incarnation, .. } = self.0.header;
        let started = WorkerId { slot, generation, incarnation };
        let activated = self.0.page.activated().filter(|_| started.is_spare());
        activated.map_or(started, |(slot, incarnation)| WorkerId { slot, generation, incarnation })
    }

    /// It is a spare, and waits: it is to load, to say that it is [`ready`](Self::ready), to beat, and to take no work.
    #[must_use]
    pub fn is_spare(&self) -> bool {
        self.id().is_spare()
    }

    /// Readable from when the worker takes work, and for good: that of a spare from when it takes a place, that of any other from the start. Poll it, do not read it.
    #[must_use]
    pub fn active_fd(&self) -> BorrowedFd<'_> {
        self.0.active.fd()
    }

    /// Waits until it takes work, at most `timeout` (`None`: without end); true if it does.
    #[must_use]
    pub fn wait_active(&self, timeout: Option<Duration>) -> bool {
        wait_until(self.0.active.fd(), timeout, || !self.is_spare())
    }

    /// How often the loop is to call [`beat`](Self::beat).
    #[must_use]
    pub fn beat_interval(&self) -> Duration {
        Duration::from_nanos(self.0.header.beat_ns)
    }

    /// How long the loop may show nothing; `None`: as long as it likes.
    #[must_use]
    pub fn hang_timeout(&self) -> Option<Duration> {
        Some(Duration::from_nanos(self.0.header.hang_ns)).filter(|d| !d.is_zero())
    }

    /// Shows that the loop turns: call it from a timer of the loop that does the work, and from no other thread. It is expected again after
    /// [`beat_interval`](Self::beat_interval), and by how much it comes later is the loop's delay ([`Load`](super::Load)). Tens of nanoseconds.
    pub fn beat(&self) {
        self.beat_within(self.beat_interval());
    }

    /// As [`beat`](Self::beat), from a timer that comes again after `next`, which is at most the interval.
    pub fn beat_within(&self, next: Duration) {
        let next = u64::try_from(next.as_nanos()).unwrap_or(u64::MAX);
        self.0.stalls.turned();
        // The first one may be what `ready` waits for.
        if self.0.page.beat_loop(clock::monotonic_ns(), next) == 0 {
            self.show_ready();
        }
    }

    /// Counts `n` requests that it has served, for the supervisor's `max_requests`. A few nanoseconds; any thread may.
    pub fn served(&self, n: u64) {
        if self.is_current() {
            self.0.page.serve(n);
        }
    }

    /// Says that the program is loaded. The worker is ready with this and the first [`beat`](Self::beat), in either order.
    pub fn ready(&self) {
        // SeqCst, as the page's own words are Relaxed: either this call or the first beat sees both.
        self.0.loaded.store(true, Ordering::SeqCst);
        self.show_ready();
    }

    fn show_ready(&self) {
        crate::sync::atomic::fence(Ordering::SeqCst);
        let (loaded, beaten) = (self.0.loaded.load(Ordering::SeqCst), self.0.page.has_beaten());
        if loaded && beaten && self.is_current() && self.0.page.show(state::READY) {
            self.ring();
        }
    }

    /// Leaves the reason of a failure for the supervisor, 3,072 bytes at most; the process is to end afterwards. The last text counts.
    pub fn fail(&self, text: &str) {
        if self.is_current() {
            self.0.page.say(text);
        }
    }

    /// Calls `hook` when the supervisor finds that the loop stands still, for the text of [`Event::Suspect`](super::Event::Suspect): lines that say where, the innermost call
    /// first where there may be many. 4,096 bytes at most; whole lines beyond are cut off. It is called on a thread of its own, while the loop stands or has gone on, and may itself wait for what
    /// the loop holds: one call at a time, and what comes after [`Stall::patience`] is not heard. `None`: it does not know. The last hook counts.
    pub fn on_stall(&self, hook: impl Fn(&Stall) -> Option<String> + Send + Sync + 'static) {
        if self.is_current() {
            self.0.stalls.set(Arc::new(hook));
            self.0.page.hook();
        }
    }

    /// Readable from when the worker is to take no more work and to finish what it has, and for good: poll it, do not read it.
    #[must_use]
    pub fn drain_fd(&self) -> BorrowedFd<'_> {
        self.0.drain.fd()
    }

    /// [`drain_fd`](Self::drain_fd) is readable.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.0.page.is_asked_to_drain() || self.is_orphan()
    }

    /// The supervisor's process is gone. This one ends `orphan_grace` later.
    #[must_use]
    pub fn is_orphan(&self) -> bool {
        self.0.orphaned.load(Ordering::Relaxed)
    }

    /// Waits until it is to finish, at most `timeout` (`None`: without end); true if it is.
    #[must_use]
    pub fn wait_drain(&self, timeout: Option<Duration>) -> bool {
        wait_until(self.0.drain.fd(), timeout, || self.is_draining())
    }

    /// Says that everything is finished. The process is to end by itself, within `kill_grace`.
    pub fn drained(&self) {
        if self.is_current() && self.0.page.show(state::DRAINED) {
            self.ring();
        }
    }

    fn is_current(&self) -> bool {
        fork::is_current(self.0.epoch)
    }

    /// Wakes the supervisor. One datagram that is there already does as well.
    fn ring(&self) {
        let _ = socket::send(self.0.lifeline.as_fd(), &[1], &[]);
    }

    /// Has the hook say where the loop stands, on a thread that may come to stand still itself.
    fn answer(&self, number: u32) {
        let own = self.clone();
        let options = thread::Options { name: "offloop-stall".to_owned(), ..thread::Options::default() };
        let asked = thread::spawn(&options, move || own.tell_stack(number, &own.0.stalls.ask()));
        if asked.is_err() {
            self.tell_stack(number, "");
        }
    }

    fn tell_stack(&self, number: u32, stack: &str) {
        self.0.page.tell_stack(number, stack);
        self.0.stalls.end();
        self.ring();
    }

    /// The native thread.
    fn watch(&self) {
        let inner = &*self.0;
        // Twice as often as is looked at.
        let pause = Duration::from_nanos(inner.header.beat_ns) / 2;
        let (mut told, mut waits) = (false, self.is_spare());
        let mut answered = 0;
        loop {
            inner.page.beat_native();
            if waits && !self.is_spare() {
                waits = false;
                inner.active.signal();
            }
            if inner.page.is_asked_to_drain() && !told {
                told = true;
                inner.drain.signal();
            }
            let asked = inner.page.asked();
            if asked != answered && inner.stalls.begin() {
                answered = asked;
                self.answer(asked);
            }
            poll::wait_readable(&mut [poll::readable(inner.lifeline.as_fd().as_raw_fd())], Some(pause));
            socket::skip(inner.lifeline.as_fd());
            if socket::is_hung_up(inner.lifeline.as_fd()) {
                break;
            }
        }
        // What it prints went to who is gone: it would end the requests that it finishes.
        [1, 2].into_iter().for_each(pipe::detach_broken);
        inner.orphaned.store(true, Ordering::Relaxed);
        inner.drain.signal();
        std::thread::sleep(Duration::from_nanos(inner.header.orphan_ns));
        // SAFETY: ends the process without its handlers, which may wait for what a dead supervisor would have given.
        unsafe { libc::_exit(1) };
    }
}

/// Until `holds`, which `fd` becomes readable with.
fn wait_until(fd: BorrowedFd<'_>, timeout: Option<Duration>, holds: impl Fn() -> bool) -> bool {
    let until = timeout.and_then(|t| Instant::now().checked_add(t));
    loop {
        let left = until.map(|u| u.saturating_duration_since(Instant::now()));
        if holds() || left.is_some_and(|l| l.is_zero()) {
            return holds();
        }
        poll::wait_readable(&mut [poll::readable(fd.as_raw_fd())], left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_supervisor_left_is_refused() {
        let kind = |text: &str| parse_env(text).and_then(attach_to).expect_err(text).kind();
        assert_eq!(kind("nonsense"), ErrorKind::Invalid);
        assert_eq!(kind("1000000,1000001"), ErrorKind::Invalid);
        let (a, b) = socket::pair().expect("pair");
        let e = attach_to((a.as_raw_fd(), b.as_raw_fd())).expect_err("no page");
        assert_eq!(e.kind(), ErrorKind::Invalid, "{e}");
        // Neither was taken over: both still close here.
        let header = Header { minor: 0, slot: 0, generation: 1, incarnation: 1, beat_ns: 1, hang_ns: 0, orphan_ns: 0 };
        let (page, _mapped) = Page::create(&header).expect("page");
        let null = std::fs::File::open("/dev/null").expect("null");
        let e = attach_to((page.as_raw_fd(), null.as_raw_fd())).expect_err("no lifeline");
        assert!(e.to_string().contains("lifeline"), "{e}");
    }
}
