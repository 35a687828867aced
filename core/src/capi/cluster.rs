//! Clusters for C: the side that keeps the workers. `capi/member.rs` is the worker's.

use crate::abi::ffi::{self, Options, UserArg, offloop_status};
use crate::abi::handle::{self, Handle, Place};
use crate::abi::offloop_value;
use crate::capi::channel::{offloop_incoming, sending};
use crate::capi::pool::{count, duration};
use crate::capi::process::{os, texts, variable};
use crate::capi::{offloop_channel, offloop_cluster};
use crate::channel::{Channel, Incoming};
use crate::cluster::{Address, Builder, Cluster, Command, Event, Log, Rotation, Stream};
use crate::error::{Error, ErrorKind, Result};
use crate::supervisor::{self, Cause, Event as Of, WorkerId};
use crate::sync::lock;
use crate::sys::confine::{self, Confine};
use std::collections::HashMap;
use std::ffi::{CString, c_char, c_void};
use std::path::PathBuf;
use std::ptr;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

/// A worker was started.
pub const OFFLOOP_CLUSTER_FORK: i32 = 1;
/// It got a socket that it has asked for: `text` says where.
pub const OFFLOOP_CLUSTER_LISTENING: i32 = 2;
/// It takes connections.
pub const OFFLOOP_CLUSTER_READY: i32 = 3;
/// Its loop shows nothing: it is ended, unless it goes on. `stack` says where it stands, if the worker can tell; `cause`.
pub const OFFLOOP_CLUSTER_UNRESPONSIVE: i32 = 4;
/// It is to finish what it has: `cause`.
pub const OFFLOOP_CLUSTER_DRAINING: i32 = 5;
/// It has ended: `cause`, `exit_code`, `signal`, `forced`, `oom`; `text` is its own last words.
pub const OFFLOOP_CLUSTER_EXIT: i32 = 6;
/// All workers are of `generation` now.
pub const OFFLOOP_CLUSTER_RELOADED: i32 = 7;
/// The reload to `generation` failed: `text` says why.
pub const OFFLOOP_CLUSTER_RELOAD_FAILED: i32 = 8;
/// Too many workers fail.
pub const OFFLOOP_CLUSTER_DEGRADED: i32 = 9;
/// It goes on after having been degraded.
pub const OFFLOOP_CLUSTER_RECOVERED: i32 = 10;
/// No process is left. The last event.
pub const OFFLOOP_CLUSTER_STOPPED: i32 = 11;

/// It is to be replaced, and goes on until its successor is there: `text` says why ("age", "memory", "requests").
pub const OFFLOOP_CLUSTER_EXPIRED: i32 = 12;
/// Something is not as it should be, and the cluster goes on: `text` says what.
pub const OFFLOOP_CLUSTER_WARNING: i32 = 13;

/// A spare is loaded, and waits; its slot is 1,024 or higher.
pub const OFFLOOP_CLUSTER_SPARE: i32 = 14;
/// A spare, the process `pid`, has the place `slot` of a worker that has ended, and takes connections.
pub const OFFLOOP_CLUSTER_ACTIVATED: i32 = 15;

/// What happened in a cluster. It and its texts are gone when the callback returns.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct offloop_cluster_event {
    /// sizeof(offloop_cluster_event) of the library.
    pub struct_size: usize,
    /// OFFLOOP_CLUSTER_...; one that this program does not know is to be ignored.
    pub kind: i32,
    /// The worker's place, from 0 on, where the event is about one.
    pub slot: u32,
    /// The (re)load that it belongs to, from 1 on.
    pub generation: u32,
    /// Its process id, or 0.
    pub pid: i32,
    /// Its exit code, or -1.
    pub exit_code: i32,
    /// The signal that ended it, or 0.
    pub signal: i32,
    /// 1: it did not finish in time when it was to, and was signalled.
    pub forced: i32,
    /// 1: the kernel killed it for want of memory.
    pub oom: i32,
    /// NUL-terminated, or NULL.
    pub text: *const c_char,
    /// Where the loop of OFFLOOP_CLUSTER_UNRESPONSIVE stands: lines of text, NUL-terminated; NULL where the worker does not say (workers in C do not).
    pub stack: *const c_char,
    /// Why: "crash", "boot", "bootTimeout", "blocked", "frozen", "corrupt", "killed", "scale", "retire" (a reload, or its age, memory or requests), "stop"; NULL where the event has none.
    pub cause: *const c_char,
}

/// Hears of events.
pub type offloop_cluster_event_fn = Option<unsafe extern "C" fn(event: *const offloop_cluster_event, user: *mut c_void)>;

/// Hears of what workers say. The value and the fds of `message` are the callee's to free and to close, where it is OFFLOOP_OK that `message->status` has. A request is answered by
/// offloop_channel_reply on `from`, which is the library's: a handle of the channel to that worker, and none any more once OFFLOOP_CLUSTER_EXIT was told of it.
pub type offloop_cluster_message_fn = Option<
    unsafe extern "C" fn(slot: u32, generation: u32, from: *mut offloop_channel, message: *const offloop_incoming, user: *mut c_void),
>;

/// A line that a worker has printed. It and its bytes are gone when the callback returns.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct offloop_cluster_line {
    /// sizeof(offloop_cluster_line) of the library.
    pub struct_size: usize,
    /// The worker's place.
    pub slot: u32,
    /// The (re)load that it belongs to, from 1 on.
    pub generation: u32,
    /// Its process id.
    pub pid: i32,
    /// 1: on its standard output, 2: on its standard error output.
    pub stream: i32,
    /// What, without the newline and without a NUL behind it.
    pub bytes: *const u8,
    /// How many.
    pub len: usize,
    /// 1: the line is longer than 64 KiB, and the next one of this worker and stream is more of it.
    pub more: i32,
    /// 0.
    pub reserved: u32,
}

/// Hears of what workers print.
pub type offloop_cluster_line_fn = Option<unsafe extern "C" fn(line: *const offloop_cluster_line, user: *mut c_void)>;

/// How a cluster is made. 0 or NULL means the default everywhere but in command; start from OFFLOOP_CLUSTER_OPTIONS_INIT. Texts are copied.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct offloop_cluster_options {
    /// sizeof(offloop_cluster_options).
    pub struct_size: usize,
    /// What each worker runs: a program (a path, or a name to look for in PATH), its arguments, NULL. "{fd}" in an argument is replaced by the number
    /// of the first listening socket, "{fd1}" by that of the second.
    pub command: *const *const c_char,
    /// Texts "NAME=VALUE", NULL: added to this process's environment. Default: none.
    pub env: *const *const c_char,
    /// Working directory of the workers. Default: this process's.
    pub cwd: *const c_char,
    /// Where to listen: texts "PORT", "HOST:PORT", "unix:PATH", "fd:NUMBER", NULL. Bound before the first worker starts, and inherited from fd 3 on (LISTEN_FDS). "fd:NUMBER" is a socket of this
    /// process that listens: offloop_cluster_start makes a copy and makes it non-blocking, and the fd stays the caller's; one that is none is OFFLOOP_ERR_INVALID there.
    pub listen: *const *const c_char,
    /// How connections come to workers: "shared" (the default), "round-robin", "least-connections", "ip-hash", "reuseport".
    pub balance: *const c_char,
    /// Workers, 1 to 1024. Default: usable cores.
    pub workers: i64,
    /// From the start of a worker until it is ready, in nanoseconds. Default 30 s.
    pub ready_timeout_ns: i64,
    /// How long a new worker has to be ready before the old one is asked to finish, in nanoseconds. Default 1 s.
    pub min_ready_ns: i64,
    /// What a worker that leaves has to finish, in nanoseconds. Default 30 s.
    pub drain_timeout_ns: i64,
    /// From SIGTERM to SIGKILL, in nanoseconds. Default 2 s.
    pub kill_grace_ns: i64,
    /// How often a worker's loop is to call offloop_worker_beat, in nanoseconds, from 10 ms. Default 1 s.
    pub beat_ns: i64,
    /// How long it may call it not before it is ended, in nanoseconds, at least four times beat_ns; below 0: for ever. Default 10 s.
    pub hang_timeout_ns: i64,
    /// A worker that was ready for so long, ±10 %, is replaced, its successor first: in nanoseconds, from 1 s. Default: none is.
    pub max_age_ns: i64,
    /// So is one that has more memory, bytes of PSS, at three looks in a row, one a second: from 1 MiB. Default: none is.
    pub max_memory: i64,
    /// So is one that has told of so many requests (offloop_worker_served), ±10 %. Default: none is.
    pub max_requests: i64,
    /// Workers beside those that load and wait: when one has ended, a spare takes its place at once, and another is started. With the workers no more than 1024; not with
    /// "reuseport". Their program takes connections by offloop_worker_accept, or heeds offloop_worker_active_fd. Default: none.
    pub spares: i64,
    /// Added to the niceness of the workers. Default 0.
    pub nice: i32,
    /// Not 0: each worker runs on one core, by its slot, the usable cores counted round.
    pub pin_cpus: u32,
    /// Called with each event on threads of the library, one call at a time. offloop_cluster_start, _reload and _stop, which wait for workers, are OFFLOOP_ERR_INVALID in it and do
    /// nothing. Default: none.
    pub on_event: offloop_cluster_event_fn,
    /// Passed to it.
    pub event_user: *mut c_void,
    /// Called with event_user when no event can come any more. May be NULL.
    pub event_user_free: Option<unsafe extern "C" fn(*mut c_void)>,
    /// Called with each message and request of the workers on a thread of the library, one call at a time. It holds up what other workers say, and who sends more than there is room
    /// for waits. It may call what on_event may. Default: none; they wait for offloop_channel_recv on offloop_cluster_channel.
    pub on_message: offloop_cluster_message_fn,
    /// Passed to it.
    pub message_user: *mut c_void,
    /// Called with message_user when no message can come any more. May be NULL.
    pub message_user_free: Option<unsafe extern "C" fn(*mut c_void)>,
    /// Whose workers are: "USER" or "USER:GROUP", by name or number, without supplementary groups. Another than this process's takes privileges. Default: this process's.
    pub user: *const c_char,
    /// Soft and hard limits of the workers: texts "NAME=NUMBER" or "NAME=unlimited", NULL; names as for prlimit(1): "nofile", "core", "as" ... Default: this process's.
    pub limits: *const *const c_char,
    /// oom_score_adj of the workers, -1000 to 1000: how much rather than others they are killed when memory runs out. 0: this process's.
    pub oom_score: i32,
    /// 0.
    pub reserved: u32,
    /// Where a thread of the library answers HTTP requests: /metrics for Prometheus, /status as JSON, / a page that shows them as they change. "HOST:PORT" or "unix:PATH", as listen has it;
    /// port 0 is one that the system chooses. Whoever can connect reads them: name 127.0.0.1. Default: nowhere.
    pub metrics: *const c_char,
    /// Where what workers print goes, as whole lines in the order of their streams: "prefixed" (to this process's outputs, each line as "[slot:pid] line"), "raw" (without the prefix),
    /// "none", or the path of a file, which gets the prefix, too. Lines that cannot be written are lost. Default: with on_line nowhere, else workers have this process's outputs.
    pub log: *const c_char,
    /// A file of log that would grow beyond so many bytes becomes FILE.1, that FILE.2 and so on, 1 to 2^50. Default 10 MiB.
    pub log_size: i64,
    /// So many of those are kept, up to 1000; below 0: none. Default 5.
    pub log_keep: i32,
    /// 0.
    pub reserved2: u32,
    /// Called with each line that workers print on a thread of the library, one call at a time, before the line goes where log says. Who prints faster than it returns waits in its own write, so
    /// it must not wait for what a thread holds that waits in a call of this cluster. The last lines of a worker come before OFFLOOP_CLUSTER_EXIT, unless it holds them up for more
    /// than 100 ms; what processes that it has left behind print comes after that, until the end of the cluster. Default: none.
    pub on_line: offloop_cluster_line_fn,
    /// Passed to it.
    pub line_user: *mut c_void,
    /// Called with line_user when no line can come any more. May be NULL.
    pub line_user_free: Option<unsafe extern "C" fn(*mut c_void)>,
}

// SAFETY: `repr(C)`, plain data, all-zero is valid, `struct_size` first.
unsafe impl Options for offloop_cluster_options {
    const MIN_SIZE: usize = std::mem::offset_of!(offloop_cluster_options, user);
    const NAME: &'static str = "offloop_cluster_options";
}

/// Counts of a cluster.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct offloop_cluster_counts {
    /// sizeof(offloop_cluster_counts), set by the caller.
    pub struct_size: usize,
    /// Of the last (re)load that succeeded.
    pub generation: u32,
    /// 1: too many workers fail.
    pub degraded: i32,
    /// Workers wanted.
    pub wanted: u64,
    /// Workers' processes.
    pub live: u64,
    /// Workers that take connections.
    pub ready: u64,
    /// Spares that wait.
    pub spares: u64,
    /// Processes started.
    pub spawned: u64,
    /// Ends that nobody has asked for.
    pub crashed: u64,
    /// Workers that did not finish in time.
    pub forced: u64,
    /// Workers that were to be replaced for their age, memory or requests.
    pub expired: u64,
    /// Times that a loop was found to show nothing.
    pub unresponsive: u64,
    /// Reloads that succeeded.
    pub reloads: u64,
    /// Reloads that failed.
    pub reloads_failed: u64,
    /// What workers have told of by offloop_worker_served, those that have ended too.
    pub served: u64,
}

// SAFETY: `repr(C)`, plain data, all-zero is valid, `struct_size` first.
unsafe impl Options for offloop_cluster_counts {
    const MIN_SIZE: usize = size_of::<offloop_cluster_counts>();
    const NAME: &'static str = "offloop_cluster_counts";
}

/// What a worker does.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct offloop_cluster_load {
    /// sizeof(offloop_cluster_load), set by the caller.
    pub struct_size: usize,
    /// The (re)load that the worker belongs to, from 1 on.
    pub generation: u32,
    /// 0.
    pub reserved: u32,
    /// What it has told of by offloop_worker_served since its start.
    pub served: u64,
    /// By how much its loop is late, in nanoseconds: what its next beat is overdue by now, or the greatest lateness of one before, of which half is left after each second. -1 before its
    /// first beat.
    pub loop_delay_ns: i64,
}

// SAFETY: `repr(C)`, plain data, all-zero is valid, `struct_size` first.
unsafe impl Options for offloop_cluster_load {
    const MIN_SIZE: usize = size_of::<offloop_cluster_load>();
    const NAME: &'static str = "offloop_cluster_load";
}

/// What a reload has done.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct offloop_reload_report {
    /// sizeof(offloop_reload_report), set by the caller.
    pub struct_size: usize,
    /// The new generation.
    pub generation: u32,
    /// Workers that were replaced.
    pub replaced: u32,
    /// Old workers that did not finish within drain_timeout_ns.
    pub forced: u64,
    /// From its beginning to the end of the last old worker, in nanoseconds.
    pub took_ns: i64,
}

// SAFETY: `repr(C)`, plain data, all-zero is valid, `struct_size` first.
unsafe impl Options for offloop_reload_report {
    const MIN_SIZE: usize = size_of::<offloop_reload_report>();
    const NAME: &'static str = "offloop_reload_report";
}

/// One that may not have been started yet.
struct Held {
    /// Until it is started.
    made: Mutex<Option<(Builder, Command)>>,
    cluster: OnceLock<Cluster>,
}

impl Held {
    fn cluster(&self) -> Result<&Cluster> {
        self.cluster.get().ok_or_else(|| Error::new(ErrorKind::Closed, "the cluster was not started"))
    }
}

fn lookup(cluster: *const offloop_cluster) -> Result<Arc<Held>> {
    handle::shared(cluster)
}

/// The cluster of a handle, once it was started.
pub(super) fn running(cluster: *const offloop_cluster) -> Result<Cluster> {
    Ok(lookup(cluster)?.cluster()?.clone())
}

/// The channels that `on_message` was shown.
type Shown = Arc<Mutex<HashMap<WorkerId, Handle>>>;

/// The host's callback for messages.
struct Letters {
    call: unsafe extern "C" fn(u32, u32, *mut offloop_channel, *const offloop_incoming, *mut c_void),
    user: UserArg,
    shown: Shown,
}

impl Letters {
    fn hand_over(&self, id: WorkerId, channel: &Channel, incoming: Incoming) {
        // Without room for handles there is nobody to show it to.
        let (Ok(place), Ok(from)) = (Place::new(), self.from(id, channel)) else { return };
        let message = offloop_incoming::of(place, incoming);
        // SAFETY: the caller of offloop_cluster_new says that it may be called so; the message outlives the call.
        unsafe { (self.call)(id.slot, id.generation, from, &raw const message, self.user.get()) };
    }

    fn from(&self, id: WorkerId, channel: &Channel) -> Result<*mut offloop_channel> {
        let mut shown = lock(&self.shown);
        if let Some(handle) = shown.get(&id) {
            return Ok(handle.as_ptr());
        }
        let from = Place::new()?.fill_shared(Arc::new(channel.clone()));
        shown.insert(id, Handle::of(from));
        Ok(from)
    }
}

/// The host's callback, and what it knows a worker by.
struct Teller {
    call: offloop_cluster_event_fn,
    user: UserArg,
    pids: HashMap<WorkerId, i32>,
    shown: Shown,
}

impl Teller {
    fn tell(&mut self, event: &Event) {
        self.call(event);
        if let Event::Worker(Of::Exited { worker, .. }) = event {
            self.pids.remove(worker);
            let shown = lock(&self.shown).remove(worker);
            if let Some(handle) = shown {
                let _ = handle::free::<offloop_channel>(handle.as_ptr());
            }
        }
    }

    fn call(&mut self, event: &Event) {
        let none = offloop_cluster_event {
            struct_size: size_of::<offloop_cluster_event>(),
            kind: 0,
            slot: 0,
            generation: 0,
            pid: 0,
            exit_code: -1,
            signal: 0,
            forced: 0,
            oom: 0,
            text: ptr::null(),
            stack: ptr::null(),
            cause: ptr::null(),
        };
        if let Event::Worker(Of::Spawned { worker, pid }) = event {
            self.pids.insert(*worker, *pid);
        }
        if let Event::Worker(Of::Activated { spare, worker }) = event {
            let pid = self.pids.remove(spare);
            self.pids.extend(pid.map(|pid| (*worker, pid)));
            let mut shown = lock(&self.shown);
            let channel = shown.remove(spare);
            shown.extend(channel.map(|channel| (*worker, channel)));
        }
        let of = |kind, id: &WorkerId| offloop_cluster_event {
            kind,
            slot: id.slot,
            generation: id.generation,
            pid: self.pids.get(id).copied().unwrap_or(0),
            ..none
        };
        let (mut text, mut lines, mut why) = (None, None, None);
        let mut told = match event {
            Event::Listening { worker, address } => {
                text = Some(address.to_string());
                of(OFFLOOP_CLUSTER_LISTENING, worker)
            }
            Event::Warning(error) => {
                text = Some(error.to_string());
                offloop_cluster_event { kind: OFFLOOP_CLUSTER_WARNING, ..none }
            }
            Event::Worker(event) => match event {
                Of::Spawned { worker, .. } => of(OFFLOOP_CLUSTER_FORK, worker),
                Of::Ready { worker, .. } => of(OFFLOOP_CLUSTER_READY, worker),
                Of::Spare { worker, .. } => of(OFFLOOP_CLUSTER_SPARE, worker),
                Of::Activated { worker, .. } => of(OFFLOOP_CLUSTER_ACTIVATED, worker),
                Of::Suspect { worker, cause, stack } => {
                    lines.clone_from(stack);
                    why = Some(*cause);
                    of(OFFLOOP_CLUSTER_UNRESPONSIVE, worker)
                }
                Of::Draining { worker, cause } => {
                    why = Some(*cause);
                    of(OFFLOOP_CLUSTER_DRAINING, worker)
                }
                Of::Expired { worker, why } => {
                    text = Some(why.name().to_owned());
                    of(OFFLOOP_CLUSTER_EXPIRED, worker)
                }
                Of::Exited { worker, cause, ended, forced, text: words, .. } => {
                    text.clone_from(words);
                    why = Some(*cause);
                    offloop_cluster_event {
                        exit_code: ended.exit.code.unwrap_or(-1),
                        signal: ended.exit.signal.unwrap_or(0),
                        forced: (*forced).into(),
                        oom: ended.oom.into(),
                        ..of(OFFLOOP_CLUSTER_EXIT, worker)
                    }
                }
                Of::Reloaded(report) => offloop_cluster_event { kind: OFFLOOP_CLUSTER_RELOADED, generation: report.generation, ..none },
                Of::ReloadFailed { generation, error, .. } => {
                    text = Some(error.to_string());
                    offloop_cluster_event { kind: OFFLOOP_CLUSTER_RELOAD_FAILED, generation: *generation, ..none }
                }
                Of::Degraded { .. } => offloop_cluster_event { kind: OFFLOOP_CLUSTER_DEGRADED, ..none },
                Of::Recovered => offloop_cluster_event { kind: OFFLOOP_CLUSTER_RECOVERED, ..none },
                Of::Stopped => offloop_cluster_event { kind: OFFLOOP_CLUSTER_STOPPED, ..none },
                _ => return,
            },
        };
        // A NUL in what a worker says would end the text.
        let [text, lines, why] = [text, lines, why.map(|cause: Cause| cause.name().to_owned())]
            .map(|said: Option<String>| said.and_then(|said| CString::new(said.replace('\0', "\u{FFFD}")).ok()));
        let pointer = |said: &Option<CString>| said.as_ref().map_or(ptr::null(), |said| said.as_ptr());
        (told.text, told.stack, told.cause) = (pointer(&text), pointer(&lines), pointer(&why));
        if let Some(call) = self.call {
            // SAFETY: the caller of offloop_cluster_new says that it may be called so; the event outlives the call.
            unsafe { call(&raw const told, self.user.get()) };
        }
    }
}

/// # Safety
/// The texts are as the fields of the options say.
unsafe fn command(o: &offloop_cluster_options, args: *const *const c_char) -> Result<Command> {
    // SAFETY: this function's contract.
    let (args, added, cwd) = unsafe { (texts(args, "command")?, texts(o.env, "env")?, os(o.cwd)) };
    let env = added.iter().map(|text| variable(text).map(|(name, value)| (name, Some(value)))).collect::<Result<_>>()?;
    let command = Command { args, env, cwd: cwd.map(PathBuf::from) };
    command.check()?;
    Ok(command)
}

/// Makes a cluster. Nothing is bound and no process starts before offloop_cluster_start. OFFLOOP_ERR_INVALID names the option, its value and its limits.
///
/// # Safety
/// `options` is as long as it says, its texts as its fields say; on_event, on_message and on_line may be called with their user on any
/// thread; `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_cluster_new(options: *const offloop_cluster_options, out: *mut *mut offloop_cluster) -> offloop_status {
    ffi::call(|| {
        let out = ffi::out(out, "out")?;
        // SAFETY: this function's contract.
        let o = unsafe { ffi::options(options) }?;
        ffi::unused("reserved", o.reserved)?;
        ffi::unused("reserved2", o.reserved2)?;
        // SAFETY: this function's contract.
        let (command, listen) = unsafe { (command(&o, o.command)?, texts(o.listen, "listen")?) };
        let defaults = Builder::default_supervision();
        let time = |name, ns, default| Ok::<_, Error>(duration(name, ns)?.unwrap_or(default));
        let supervision = supervisor::Options {
            boot_timeout: time("ready_timeout_ns", o.ready_timeout_ns, defaults.boot_timeout)?,
            min_ready: time("min_ready_ns", o.min_ready_ns, defaults.min_ready)?,
            drain_timeout: time("drain_timeout_ns", o.drain_timeout_ns, defaults.drain_timeout)?,
            kill_grace: time("kill_grace_ns", o.kill_grace_ns, defaults.kill_grace)?,
            beat: time("beat_ns", o.beat_ns, defaults.beat)?,
            hang_timeout: match o.hang_timeout_ns {
                ..0 => Duration::ZERO,
                ns => time("hang_timeout_ns", ns, defaults.hang_timeout)?,
            },
            max_age: duration("max_age_ns", o.max_age_ns)?,
            max_memory: count("max_memory", o.max_memory)?.map(|n| n as u64),
            max_requests: count("max_requests", o.max_requests)?.map(|n| n as u64),
            ..defaults
        };
        supervision.check()?;
        let mut builder = Cluster::builder().supervision(supervision);
        if let Some(workers) = count("workers", o.workers)? {
            builder = builder.workers(workers);
        }
        for text in listen {
            builder = builder.listen(text.to_string_lossy().parse::<Address>()?);
        }
        // SAFETY: this function's contract.
        if let Some(balance) = unsafe { os(o.balance) } {
            builder = builder.balance(balance.to_string_lossy().parse()?);
        }
        // SAFETY: this function's contract.
        let (user, limits) = unsafe { (os(o.user), texts(o.limits, "limits")?) };
        let ids = user.map(|user| confine::parse_user(&user.to_string_lossy())).transpose()?;
        let limits = limits.iter().map(|text| confine::parse_limit(&text.to_string_lossy())).collect::<Result<_>>()?;
        let oom_score = Some(o.oom_score).filter(|n| *n != 0);
        builder = builder
            .confine(Confine {
                nice: o.nice,
                uid: ids.map(|ids| ids.0),
                gid: ids.map(|ids| ids.1),
                limits,
                oom_score,
                ..Confine::default()
            })
            .pin_cpus(o.pin_cpus != 0);
        // SAFETY: this function's contract.
        if let Some(metrics) = unsafe { os(o.metrics) } {
            builder = builder.metrics(metrics.to_string_lossy().parse()?);
        }
        // SAFETY: as above.
        if let Some(log) = unsafe { os(o.log) } {
            let mut rotation = Rotation::default();
            if let Some(size) = count("log_size", o.log_size)? {
                rotation.size = size as u64;
            }
            if o.log_keep != 0 {
                rotation.keep = u32::try_from(o.log_keep).unwrap_or(0);
            }
            builder = builder.log(Log::parse(&log, rotation));
        }
        builder = builder.spares(count("spares", o.spares)?.unwrap_or(0));
        builder.check()?;
        let place = Place::new()?;
        let shown = Shown::default();
        if let Some(call) = o.on_message {
            let letters = Letters { call, user: UserArg::new(o.message_user, o.message_user_free), shown: Arc::clone(&shown) };
            builder = builder.on_message(move |id, channel, incoming| letters.hand_over(id, channel, incoming));
        }
        if let Some(call) = o.on_line {
            let user = UserArg::new(o.line_user, o.line_user_free);
            builder = builder.on_line(move |line| {
                let told = offloop_cluster_line {
                    struct_size: size_of::<offloop_cluster_line>(),
                    slot: line.worker.slot,
                    generation: line.worker.generation,
                    pid: line.pid,
                    stream: if line.stream == Stream::Out { 1 } else { 2 },
                    bytes: line.bytes.as_ptr(),
                    len: line.bytes.len(),
                    more: line.is_cut.into(),
                    reserved: 0,
                };
                // SAFETY: the caller of offloop_cluster_new says that it may be called so; the line outlives the call.
                unsafe { call(&raw const told, user.get()) };
            });
        }
        if o.on_event.is_some() || o.on_message.is_some() {
            let user = UserArg::new(o.event_user, o.event_user_free.filter(|_| o.on_event.is_some()));
            let mut teller = Teller { call: o.on_event, user, pids: HashMap::new(), shown };
            builder = builder.on_event(move |event| teller.tell(event));
        }
        out.set(place.fill_shared(Arc::new(Held { made: Mutex::new(Some((builder, command))), cluster: OnceLock::new() })));
        Ok(())
    })
}

/// Binds the sockets, starts the workers, and waits until all are ready, at most `timeout_ns` (below 0: for ever). Called again, it waits only. OFFLOOP_ERR_OS with the
/// address for a socket that cannot be bound: then the handle is only good to be freed. OFFLOOP_ERR_START_FAILED with the worker's own words when none comes up, OFFLOOP_ERR_DEGRADED,
/// OFFLOOP_ERR_TIMEOUT: the cluster goes on trying until offloop_cluster_stop.
///
/// # Safety
/// Any pointer is safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_cluster_start(cluster: *mut offloop_cluster, timeout_ns: i64) -> offloop_status {
    ffi::call(|| {
        let held = lookup(cluster)?;
        supervisor::check_wait()?;
        {
            let mut made = lock(&held.made);
            if let Some((builder, command)) = made.take() {
                let _ = held.cluster.set(builder.build(command)?);
            }
        }
        held.cluster()?.wait_ready(ffi::forever_or(timeout_ns))
    })
}

/// Replaces all workers by a new generation, one after the other, and waits for the end of it, at most `timeout_ns` (below 0: for ever). `command`: what the new ones run, with
/// the environment of before; NULL: the same. The first new worker is tried before any old one is asked to finish: if it fails, that is OFFLOOP_ERR_START_FAILED with its
/// own words, and nothing has changed. OFFLOOP_ERR_IN_USE while a reload is under way, OFFLOOP_ERR_TIMEOUT while it goes on. `report_io` may be NULL.
///
/// # Safety
/// `command` is NULL or texts that end with NULL, `report_io` is NULL or as long as it says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_cluster_reload(
    cluster: *mut offloop_cluster,
    command: *const *const c_char,
    timeout_ns: i64,
    report_io: *mut offloop_reload_report,
) -> offloop_status {
    ffi::call(|| {
        let held = lookup(cluster)?;
        supervisor::check_wait()?;
        let cluster = held.cluster()?;
        // SAFETY: this function's contract.
        let place = if report_io.is_null() { None } else { Some(unsafe { ffi::filled(report_io) }?) };
        let new = if command.is_null() {
            None
        } else {
            // SAFETY: this function's contract.
            Some(Command { args: unsafe { texts(command, "command") }?, ..cluster.command()? })
        };
        let generation = cluster.reload(new)?;
        let report = cluster.wait_reload(generation, ffi::forever_or(timeout_ns))?;
        if let Some(place) = place {
            let took_ns = i64::try_from(report.took.as_nanos()).unwrap_or(i64::MAX);
            let replaced = report.replaced as u32;
            let struct_size = place.struct_size;
            place.set(offloop_reload_report { struct_size, generation, replaced, forced: report.forced, took_ns });
        }
        Ok(())
    })
}

/// So many workers from now on, 1 to 1024; offloop_cluster_start waits for them. Who is one too many finishes what it has.
///
/// # Safety
/// Any pointer is safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_cluster_scale(cluster: *mut offloop_cluster, workers: i64) -> offloop_status {
    ffi::call(|| lookup(cluster)?.cluster()?.scale(usize::try_from(workers).unwrap_or(0)))
}

/// Ends the worker that offloop_cluster_send means by `slot` with SIGKILL; another takes its place. OFFLOOP_ERR_NOT_FOUND for a slot without a worker.
///
/// # Safety
/// Any pointer is safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_cluster_kill(cluster: *mut offloop_cluster, slot: u32) -> offloop_status {
    ffi::call(|| {
        let held = lookup(cluster)?;
        let cluster = held.cluster()?;
        cluster.kill(cluster.worker_at(slot)?)
    })
}

/// Ends all workers, which have `grace_ns` to finish what they have (0: none, they are killed; below 0: drain_timeout's default, 30 s), and waits until no
/// process is left. Later calls get OFFLOOP_ERR_CLOSED.
///
/// # Safety
/// Any pointer is safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_cluster_stop(cluster: *mut offloop_cluster, grace_ns: i64) -> offloop_status {
    ffi::call(|| {
        let held = lookup(cluster)?;
        supervisor::check_wait()?;
        let cluster = held.cluster()?;
        match u64::try_from(grace_ns) {
            Ok(0) => cluster.stop_now()?,
            Ok(ns) => cluster.stop(Duration::from_nanos(ns))?,
            Err(_) => cluster.stop(supervisor::Options::default().drain_timeout)?,
        }
        cluster.wait_stopped(None)
    })
}

/// Sends a value, whose buffers move, and fds, which are duplicated, to the worker of `slot`: the ready one that was started last, else one that starts, else one that finishes. Waits
/// for room at most `timeout_ns` (0: not at all; below 0: for ever). OFFLOOP_ERR_NOT_FOUND for a slot without a worker; OFFLOOP_ERR_FULL or OFFLOOP_ERR_TIMEOUT when the worker has not received the
/// 64 KiB that were sent before; the errors of offloop_channel_send. Each names the slot.
///
/// # Safety
/// `value_io` points at a value of the caller, `fds` points at `fd_count` numbers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_cluster_send(
    cluster: *mut offloop_cluster,
    slot: u32,
    value_io: *mut *mut offloop_value,
    fds: *const i32,
    fd_count: usize,
    timeout_ns: i64,
) -> offloop_status {
    ffi::call(|| {
        let held = lookup(cluster)?;
        let cluster = held.cluster()?;
        // SAFETY: this function's contract.
        unsafe { sending(value_io, fds, fd_count, |value, fds| cluster.send(slot, value, fds, ffi::forever_or(timeout_ns))) }
    })
}

/// Sends a copy of a value, and fds, to every worker that lives; the value is moved if the call succeeds. Does not wait: `*missed_count` is how many did not get it, because they have
/// not received what was sent before or are about to end; their slots are in `missed`, as far as it has `missed_room`. The others did. OFFLOOP_ERR_INVALID for a value with a buffer, which
/// moves to one worker only. `missed` may be NULL with no room, `missed_count` may be NULL.
///
/// # Safety
/// `value_io` points at a value of the caller, `fds` points at `fd_count` numbers, `missed` is valid for writing `missed_room` numbers, `missed_count` is NULL or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_cluster_broadcast(
    cluster: *mut offloop_cluster,
    value_io: *mut *mut offloop_value,
    fds: *const i32,
    fd_count: usize,
    missed: *mut u32,
    missed_room: usize,
    missed_count: *mut usize,
) -> offloop_status {
    ffi::call(|| {
        let held = lookup(cluster)?;
        let cluster = held.cluster()?;
        if missed_room > 0 {
            let _ = ffi::out(missed, "missed")?; // for NULL
        }
        // SAFETY: this function's contract.
        let failed = unsafe { sending(value_io, fds, fd_count, |value, fds| cluster.broadcast(value, fds)) }?;
        for (at, (worker, _)) in failed.iter().take(missed_room).enumerate() {
            // SAFETY: `missed_room` writable numbers by this function's contract, of which this is one.
            unsafe { missed.add(at).write(worker.slot) };
        }
        if !missed_count.is_null() {
            ffi::out(missed_count, "missed_count")?.set(failed.len());
        }
        Ok(())
    })
}

/// The channel to the worker that offloop_cluster_send means by `slot`, as a handle of the caller's to free, which ends nothing: for requests (offloop_channel_request), and for who
/// receives without on_message. It ends with that worker, after the last message that it has sent. OFFLOOP_ERR_NOT_FOUND for a slot without a worker.
///
/// # Safety
/// `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_cluster_channel(
    cluster: *mut offloop_cluster,
    slot: u32,
    out: *mut *mut offloop_channel,
) -> offloop_status {
    ffi::call(|| {
        let out = ffi::out(out, "out")?;
        let held = lookup(cluster)?;
        let cluster = held.cluster()?;
        let place = Place::new()?;
        out.set(place.fill_shared(Arc::new(cluster.channel(cluster.worker_at(slot)?)?)));
        Ok(())
    })
}

/// Writes where the socket `index` listens, as a NUL-terminated text, into `text`, which has room for `len` bytes: those of the option first, then those that workers have asked
/// for. OFFLOOP_ERR_NOT_FOUND behind the last, OFFLOOP_ERR_TOO_LARGE where there is no room.
///
/// # Safety
/// `text` is valid for writing `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_cluster_address(
    cluster: *mut offloop_cluster,
    index: usize,
    text: *mut c_char,
    len: usize,
) -> offloop_status {
    ffi::call(|| {
        let _ = ffi::out(text, "text")?; // for NULL
        let held = lookup(cluster)?;
        let all = held.cluster()?.addresses();
        let none = || Error::new(ErrorKind::NotFound, "cluster has no such socket").with("index", index).with("sockets", all.len());
        // SAFETY: this function's contract.
        unsafe { written(all.get(index).ok_or_else(none)?, text, len) }
    })
}

/// Writes where the option metrics is to be had, as offloop_cluster_address does. OFFLOOP_ERR_NOT_FOUND without that option.
///
/// # Safety
/// `text` is valid for writing `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_cluster_metrics_address(cluster: *mut offloop_cluster, text: *mut c_char, len: usize) -> offloop_status {
    ffi::call(|| {
        let _ = ffi::out(text, "text")?; // for NULL
        let held = lookup(cluster)?;
        let at = held.cluster()?.metrics_address();
        let at = at.ok_or_else(|| Error::new(ErrorKind::NotFound, "cluster was made without metrics"))?;
        // SAFETY: this function's contract.
        unsafe { written(&at, text, len) }
    })
}

/// # Safety
/// `text` is valid for writing `len` bytes.
unsafe fn written(address: &Address, text: *mut c_char, len: usize) -> Result<()> {
    let address = address.to_string();
    if address.len() >= len {
        return Err(Error::new(ErrorKind::TooLarge, "text has no room for the address").with("len", len).with("need", address.len() + 1));
    }
    // SAFETY: `len` writable bytes by this function's contract, of which these are fewer.
    unsafe {
        ptr::copy_nonoverlapping(address.as_ptr().cast(), text, address.len());
        text.add(address.len()).write(0);
    }
    Ok(())
}

/// Reads counts.
///
/// # Safety
/// `counts_io` is as long as it says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_cluster_stats(cluster: *mut offloop_cluster, counts_io: *mut offloop_cluster_counts) -> offloop_status {
    ffi::call(|| {
        // SAFETY: this function's contract.
        let place = unsafe { ffi::filled(counts_io) }?;
        let held = lookup(cluster)?;
        let s = held.cluster()?.stats()?;
        let struct_size = place.struct_size;
        place.set(offloop_cluster_counts {
            struct_size,
            generation: s.generation,
            degraded: s.degraded.into(),
            wanted: s.wanted as u64,
            live: s.live as u64,
            ready: s.ready as u64,
            spares: s.spares as u64,
            spawned: s.spawned,
            crashed: s.exits.unasked(),
            forced: s.forced,
            expired: s.expired.total(),
            unresponsive: s.suspected,
            reloads: s.reloads,
            reloads_failed: s.reloads_failed,
            served: s.served,
        });
        Ok(())
    })
}

/// Reads what the worker does that offloop_cluster_send means by `slot`. OFFLOOP_ERR_NOT_FOUND for a slot without a worker.
///
/// # Safety
/// `load_io` is as long as it says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_cluster_worker_load(
    cluster: *mut offloop_cluster,
    slot: u32,
    load_io: *mut offloop_cluster_load,
) -> offloop_status {
    ffi::call(|| {
        // SAFETY: this function's contract.
        let place = unsafe { ffi::filled(load_io) }?;
        let held = lookup(cluster)?;
        let cluster = held.cluster()?;
        let id = cluster.worker_at(slot)?;
        let found = cluster.loads()?.into_iter().find(|(other, _)| *other == id);
        let (_, load) = found.ok_or_else(|| Error::new(ErrorKind::NotFound, "slot has no worker").with("slot", slot))?;
        let loop_delay_ns = load.loop_delay.map_or(-1, |late| i64::try_from(late.as_nanos()).unwrap_or(i64::MAX));
        let struct_size = place.struct_size;
        place.set(offloop_cluster_load { struct_size, generation: id.generation, reserved: 0, served: load.served, loop_delay_ns });
        Ok(())
    })
}

/// Frees the handle; workers that still run are killed. NULL is allowed.
///
/// # Safety
/// Any pointer is safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_cluster_free(cluster: *mut offloop_cluster) {
    if !cluster.is_null() {
        ffi::call(|| handle::free(cluster));
    }
}
