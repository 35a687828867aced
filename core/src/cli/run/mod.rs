//! `offloop run`: a cluster in the foreground.
//!
//! ```text
//!  signals ──────────┐                         ┌── offloop-super: starts, watches, ends workers
//!  control clients ──┼──► this thread ── Cluster ── offloop-gate: sockets for those who ask
//!  events ◄── bell ──┘   (one epoll)
//! ```
//!
//! This thread waits for nothing but its epoll, and supervision does not wait for it.

mod config;
mod hooks;
mod options;
mod output;
mod service;
mod told;
mod voice;
mod watch;

use super::control::server::{LISTENER, Request, Server};
use super::{NOT_STARTED, Stop};
use crate::cluster::{Address, Cluster, Command, Event};
use crate::error::{Error, ErrorKind, Result};
use crate::supervisor::{self, Cause, Stats, WorkerId};
use crate::sync::lock;
use crate::sys::eventfd::EventFd;
use crate::sys::poll::Epoll;
use crate::sys::signals::Signals;
use crate::sys::{files, net, orphans};
use clap::ArgMatches;
use hooks::Hooks;
use options::Run;
use output::Output;
use serde_json::{Value, json};
use service::Manager;
use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use voice::Voice;
use watch::{Due, Watched};

pub(super) use options::command;

/// It was stopped as asked, and workers had to be killed.
const KILLED: u8 = 4;
/// A signal that could not wait: this and its number.
const AT_ONCE: u8 = 128;

const SIGNAL: u64 = 1;
const BELL: u64 = 2;
const CHANGED: u64 = 3;
/// Names that are tried when nobody has given one.
const NAMES: usize = 100;
/// After how long a worker that says nothing is taken as ready: where nothing else is to be expected, and where a hook is to say it.
const PLAIN: Duration = Duration::from_secs(1);
const HOOKED: Duration = Duration::from_secs(10);
/// What the outputs have at the end to take what workers have printed.
const PRINTING: Duration = Duration::from_secs(5);
/// The same, before somebody is told of a failure in the workers' own words.
const WORDS: Duration = Duration::from_millis(500);
/// What changes so soon after workers have started or ended may be of their making.
const SETTLED: Duration = Duration::from_millis(500);
/// What the cluster's threads tell this one.
#[derive(Default)]
struct Mailbox(Mutex<Vec<Event>>);

/// What a client waits for.
enum Wait {
    /// The start, to reload then.
    Start,
    Reload(u32),
    Scale(usize),
    Stop,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Starting,
    /// Nothing came up, and the next change is waited for.
    Failed,
    Running,
    Stopping,
}

struct Conductor<'a> {
    run: &'a Run,
    name: String,
    cluster: Cluster,
    server: Server,
    epoll: &'a Epoll,
    voice: Voice,
    phase: Phase,
    output: Arc<Output>,
    /// Clients that read what workers print, and the number of the next line for each.
    readers: HashMap<u64, u64>,
    waits: Vec<(u64, Wait)>,
    /// It is to reload when it has started.
    later: bool,
    /// Its exit status, once that is known.
    status: u8,
    /// Why the last worker that never was ready has ended.
    last_failure: Option<Cause>,
    /// Workers that had been killed when the stop began.
    forced_before: u64,
    /// The signal that has stopped it.
    stopped_by: Option<i32>,
    has_terminal: bool,
    manager: Manager,
    watched: Option<Watched>,
    /// Workers that start or end, and when the last one did.
    moving: HashSet<WorkerId>,
    moved: Instant,
    over: bool,
}

pub(super) fn run(args: &ArgMatches, err: &mut dyn Write) -> std::result::Result<(), Stop> {
    let file = config::find(args).map(|path| config::read(&path)).transpose().map_err(Stop::Usage)?;
    match Run::of(args, file.as_ref()).map_err(Stop::Usage).and_then(|run| conduct(&run)) {
        Ok(0) => Ok(()),
        Ok(status) => Err(Stop::Ended(status)),
        // The arguments do not say so.
        Err(stop) if file.is_some_and(|file| file.get_flag("json")) => Err(Stop::Ended(super::report(stop, true, err))),
        Err(stop) => Err(stop),
    }
}

/// The exit status.
fn conduct(run: &Run) -> std::result::Result<u8, Stop> {
    let cwd = std::env::current_dir().unwrap_or_default().join(run.cwd.as_deref().unwrap_or("".as_ref()));
    if !cwd.is_dir() {
        let error = Error::new(ErrorKind::NotFound, "working directory is not there").with("cwd", cwd.display());
        return Err(Stop::NotStarted(error, String::new()));
    }
    // A cluster of many workers has a dozen for each.
    let _files = files::raise();
    // Before there is another thread: each one blocks them, and workers begin with none blocked.
    let reaps = orphans::come_here();
    let chld = reaps.then_some(libc::SIGCHLD);
    let signals = Signals::take(&[libc::SIGINT, libc::SIGTERM, libc::SIGHUP].into_iter().chain(chld).collect::<Vec<_>>())?;
    if reaps {
        // Those that were there before.
        orphans::reap();
    }
    let (epoll, bell) = (Epoll::new()?, Arc::new(EventFd::new()?));
    epoll.add_tagged(signals.as_fd(), SIGNAL)?;
    epoll.add_tagged(bell.fd(), BELL)?;
    let (name, server) = open_server(run, &epoll)?;
    let hooks = Hooks::find(&run.command[0], &cwd);
    let after = run.ready_after.unwrap_or(if hooks.reach(&run.command[0], &cwd) { HOOKED } else { PLAIN });
    // What connections are passed to has to know how to take them.
    let ready_after = Some(after.min(run.supervision.boot_timeout)).filter(|after| !after.is_zero() && !run.balance.passes());
    let supervision = supervisor::Options { ready_after, ..run.supervision.clone() };
    let watched = if run.watch.is_empty() { None } else { Some(Watched::new(&run.watch, run.log.file(), &cwd, &epoll, CHANGED)?) };
    let voice = Voice::new(std::io::stderr())?;
    let output = Output::new(Arc::clone(&bell));
    let mut env = run.env.clone();
    env.extend(service::OWN.map(|name| (name.into(), None)));
    let command = Command { args: run.command.clone(), env: hooks.env(&env), cwd: run.cwd.clone() };
    let mailbox = Arc::new(Mailbox::default());
    let (theirs, rings) = (Arc::clone(&mailbox), Arc::clone(&bell));
    let mut builder = run.builder().name(&*name).supervision(supervision).pin_cpus(run.pin_cpus);
    if let Some(address) = &run.metrics {
        builder = builder.metrics(address.clone());
    }
    builder = builder.on_event(move |event| {
        lock(&theirs.0).push(event.clone());
        rings.signal();
    });
    let kept = Arc::clone(&output);
    builder = builder.on_line(move |line| kept.keep(line));
    for fd in service::sockets(|name| std::env::var_os(name)) {
        builder = builder.adopt(fd);
    }
    for address in &run.listen {
        builder = builder.listen(address.clone());
    }
    let cluster = builder.build(command).map_err(|e| {
        let more = hint(&e, &run.listen);
        Stop::NotStarted(e, more)
    })?;
    let mut conductor = Conductor {
        run,
        name,
        cluster,
        server,
        epoll: &epoll,
        voice,
        phase: Phase::Starting,
        output,
        readers: HashMap::new(),
        waits: Vec::new(),
        later: false,
        status: 0,
        last_failure: None,
        forced_before: 0,
        stopped_by: None,
        has_terminal: has_terminal(),
        manager: Manager::find(|name| std::env::var_os(name)),
        watched,
        moving: HashSet::new(),
        moved: Instant::now(),
        over: false,
    };
    let mut ready = Vec::with_capacity(64);
    while !conductor.over {
        let changed = conductor.watched.as_ref().and_then(Watched::deadline);
        let deadlines = conductor.server.deadline().into_iter().chain(conductor.manager.deadline()).chain(changed);
        let patience = deadlines.min().map(|at| at.saturating_duration_since(Instant::now()));
        epoll.wait_for(&mut ready, patience);
        for token in ready.drain(..) {
            match token {
                SIGNAL => {
                    while let Some(signal) = signals.next() {
                        conductor.signalled(signal);
                    }
                }
                BELL => {
                    bell.clear();
                    let events = std::mem::take(&mut *lock(&mailbox.0));
                    for event in &events {
                        conductor.heard(event);
                    }
                    conductor.look();
                    conductor.feed();
                }
                CHANGED => {
                    let busy = conductor.is_busy();
                    conductor.watched.iter_mut().for_each(|watched| watched.read(busy));
                }
                LISTENER => conductor.server.accept(&epoll),
                client => {
                    if let Some(request) = conductor.server.ready(client, &epoll) {
                        conductor.asked(client, &request);
                    }
                }
            }
        }
        conductor.server.expire(&epoll);
        conductor.manager.beat();
        conductor.follow();
    }
    // What the last worker has printed.
    conductor.cluster.wait_lines(|_| true, PRINTING);
    conductor.feed();
    Ok(conductor.status)
}

fn has_terminal() -> bool {
    std::fs::File::open("/dev/tty").is_ok()
}

/// The name that was given, or the first that is free of those that are made of the command.
fn open_server(run: &Run, epoll: &Epoll) -> Result<(String, Server)> {
    if let Some(name) = &run.name {
        return Ok((name.clone(), Server::open(name, epoll)?));
    }
    let first = options::default_name(&run.command);
    for n in 1.. {
        let name = if n == 1 { first.clone() } else { format!("{first}-{n}") };
        match Server::open(&name, epoll) {
            Err(e) if e.kind() == ErrorKind::InUse && n < NAMES => {}
            Err(e) => return Err(e),
            Ok(server) => return Ok((name, server)),
        }
    }
    unreachable!("the last name gives a result")
}

/// What to do about an error, as further lines.
fn hint(error: &Error, listen: &[Address]) -> String {
    let text = error.to_string();
    let errno = error.errno().map(|(errno, _)| errno);
    if text.contains(net::OTHER) {
        return "\n  remove it, or choose another path".to_owned();
    }
    if errno == Some(libc::EADDRINUSE)
        || text.contains("EADDRINUSE")
        || text.contains("Address already in use")
        || text.contains("address already in use")
    {
        return "\n  another program listens there: `ss -ltnp` shows which one; end it, or choose another address".to_owned();
    }
    if errno == Some(libc::EMFILE) || text.contains("Too many open files") {
        return format!(
            "\n  this process may have {} files open, and has a dozen for each worker: fewer workers, or a higher hard limit:\n  ulimit -Hn, LimitNOFILE= of systemd, --ulimit nofile= of docker",
            files::most()
        );
    }
    let first =
        std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").ok().and_then(|text| text.trim().parse::<u16>().ok());
    let is_low = |address: &Address| match address {
        Address::Any(port) => first.is_some_and(|first| *port < first),
        Address::Tcp(address) => first.is_some_and(|first| address.port() < first),
        Address::Unix(_) | Address::Fd(_) => false,
    };
    if errno == Some(libc::EACCES) && listen.iter().any(is_low) {
        let first = first.unwrap_or(1024);
        return format!(
            "\n  ports below {first} are the system's: choose a higher one, let systemd or a proxy listen there, or allow it:\n  sysctl net.ipv4.ip_unprivileged_port_start, or CAP_NET_BIND_SERVICE"
        );
    }
    String::new()
}

impl Conductor<'_> {
    /// A line of its own.
    fn say(&mut self, text: &str) {
        // As JSON it is an event.
        if !self.run.json {
            self.voice.say(format!("offloop: {text}"));
        }
    }

    /// The same of what is no event.
    fn note(&mut self, text: &str) {
        if self.run.json {
            self.voice.say(json!({"event": "note", "text": text}).to_string());
        } else {
            self.say(text);
        }
    }

    fn stats(&self) -> Stats {
        self.cluster.stats().unwrap_or_default()
    }

    // ---- what happens ----

    fn heard(&mut self, event: &Event) {
        use supervisor::Event as E;
        match event {
            Event::Worker(E::Exited { cause, .. }) if !cause.is_asked() => self.last_failure = Some(*cause),
            Event::Worker(E::StartFailed { error }) if self.phase == Phase::Starting => self.start_failed(error),
            Event::Worker(E::Stopped) => self.ended(),
            _ => {}
        }
        self.follow_workers(event);
        self.tell_manager(event);
        if (self.run.json || self.server.is_heard())
            && let Some(line) = told::as_json(event)
        {
            if self.run.json {
                self.voice.say(line.to_string());
            }
            self.server.tell(&line, self.epoll);
        }
        // One that fails to come up says so itself, and at the end of the start so does the cluster.
        let is_news = match event {
            Event::Worker(E::SpawnFailed { .. }) => self.phase != Phase::Failed,
            Event::Worker(E::Reloading { .. } | E::ReloadFailed { .. }) | Event::Warning(_) => true,
            _ => !matches!(self.phase, Phase::Starting | Phase::Failed),
        };
        if is_news && let Some(mut text) = told::as_text(event) {
            if let Event::Worker(E::SpawnFailed { error, .. }) = event {
                text.push_str(&hint(error, &[]));
            }
            self.say(&text);
        }
    }

    fn follow_workers(&mut self, event: &Event) {
        use supervisor::Event as E;
        match event {
            Event::Worker(E::Spawned { worker, .. } | E::Draining { worker, .. } | E::Signalled { worker, .. }) => {
                self.moving.insert(*worker);
            }
            Event::Worker(E::Ready { worker, .. } | E::Spare { worker, .. } | E::Exited { worker, .. } | E::SpawnFailed { worker, .. }) => {
                self.moving.remove(worker);
                self.moved = Instant::now();
            }
            _ => {}
        }
    }

    /// Workers start or end, or have just done so.
    fn is_busy(&self) -> bool {
        !self.moving.is_empty() || self.moved.elapsed() < SETTLED
    }

    fn tell_manager(&self, event: &Event) {
        use supervisor::Event as E;
        let Event::Worker(event) = event else { return };
        match event {
            E::Reloading { .. } => self.manager.tell_reloading(),
            E::Reloaded(report) => self.manager.tell(&format!("READY=1\nSTATUS=generation {}", report.generation)),
            E::ReloadFailed { generation, .. } => self.manager.tell(&format!("READY=1\nSTATUS=reload to generation {generation} failed")),
            E::Degraded { failures, .. } => self.manager.tell(&format!("STATUS=degraded: {failures} workers failed")),
            E::Recovered => self.manager.tell("STATUS=recovered"),
            _ => {}
        }
    }

    fn start_failed(&mut self, error: &Error) {
        let mut text = format!("{error}{}", hint(error, &self.run.listen));
        match self.last_failure {
            Some(Cause::BootTimeout) => text.push_str(
                "\n  the program runs, and no server of it listens. One that a program starts as a child (`npm start`, a shell script without exec) is not seen:\n  run the server itself. --ready-timeout is for one that needs longer",
            ),
            _ if error.kind() == ErrorKind::NotFound => text.push_str("\n  is it installed, and in PATH?"),
            _ => {}
        }
        if self.watched.is_some() {
            self.phase = Phase::Failed;
            self.later = false;
            let waits = std::mem::take(&mut self.waits);
            let (failed, others) = waits.into_iter().partition(|(_, wait)| matches!(wait, Wait::Start));
            self.waits = others;
            failed.into_iter().for_each(|(client, _): (u64, Wait)| self.server.fail(client, error, "", self.epoll));
            text.push_str("\n  waiting for a change, and trying again from time to time");
            return self.say(&text);
        }
        self.say(&text);
        self.status = NOT_STARTED;
        self.phase = Phase::Stopping;
        // Fails in a forked child only.
        let _ = self.cluster.stop_now();
    }

    /// Who waits for what is so by now.
    fn look(&mut self) {
        let stats = self.stats();
        if matches!(self.phase, Phase::Starting | Phase::Failed) && stats.wanted > 0 && stats.ready >= stats.wanted {
            self.phase = Phase::Running;
            let addresses = self.addresses().join(", ");
            let at = if addresses.is_empty() { String::new() } else { format!(" at {addresses}") };
            let line = format!("{}: {} worker{} ready{at}", self.name, stats.ready, if stats.ready == 1 { " is" } else { "s are" });
            self.say(&line);
            let metrics = self.cluster.metrics_address().map(|at| at.to_string());
            if let Some(at) = &metrics {
                self.say(&format!("metrics at {at}"));
            }
            self.manager.tell(&format!("READY=1\nSTATUS={line}"));
            if self.run.json {
                let (workers, listen) = (stats.ready, self.addresses());
                let started = json!({"event": "started", "name": self.name, "workers": workers, "listen": listen, "metrics": metrics});
                self.voice.say(started.to_string());
            }
            if std::mem::take(&mut self.later) {
                self.reload_late();
            }
        }
        for (client, wait) in std::mem::take(&mut self.waits) {
            match wait {
                Wait::Start => self.waits.push((client, wait)),
                Wait::Reload(generation) => match self.cluster.wait_reload(generation, Some(Duration::ZERO)) {
                    Err(e) if e.kind() == ErrorKind::Timeout => self.waits.push((client, wait)),
                    Err(e) => {
                        // Its own words come by another way than its end.
                        self.cluster.wait_lines(|id| id.generation == generation, WORDS);
                        let words = self.output.words(generation);
                        self.server.fail(client, &e, &words, self.epoll);
                    }
                    Ok(report) => {
                        let mut line = told::reloaded(&report);
                        line["ok"] = json!(true);
                        self.server.say(client, &line, true, self.epoll);
                    }
                },
                Wait::Scale(n) if stats.degraded => {
                    let e = Error::new(ErrorKind::Degraded, "too many workers fail").with("ready", stats.ready).with("wanted", n);
                    self.server.fail(client, &e, "", self.epoll);
                }
                Wait::Scale(n) if stats.wanted == n && stats.ready >= n && stats.live <= n => {
                    self.server.say(client, &json!({"ok": true, "workers": n}), true, self.epoll);
                }
                Wait::Scale(n) if self.phase == Phase::Stopping => {
                    let e = Error::new(ErrorKind::Closed, "the cluster was stopped").with("workers", n);
                    self.server.fail(client, &e, "", self.epoll);
                }
                wait => self.waits.push((client, wait)),
            }
        }
    }

    fn ended(&mut self) {
        if self.status == 0 && self.stats().forced > self.forced_before {
            self.status = KILLED;
        }
        self.over = true;
        let line = json!({"ok": true, "status": self.status});
        for (client, wait) in std::mem::take(&mut self.waits) {
            match wait {
                Wait::Stop => self.server.say(client, &line, true, self.epoll),
                Wait::Start => {
                    self.server.fail(client, &Error::new(ErrorKind::Closed, "the cluster has ended before it had started"), "", self.epoll)
                }
                _ => self.server.fail(client, &Error::new(ErrorKind::Closed, "the cluster was stopped"), "", self.epoll),
            }
        }
    }

    // ---- what is asked ----

    fn signalled(&mut self, signal: i32) {
        if signal == libc::SIGCHLD {
            // Workers are children of the cluster's threads, and theirs to reap.
            orphans::reap();
            return;
        }
        // A terminal that is gone has no use for what it started.
        if signal == libc::SIGHUP && (!self.has_terminal || has_terminal()) {
            if self.phase == Phase::Starting {
                return self.reload_later();
            }
            if let Err(e) = self.reload() {
                self.note(&format!("reload: {e}"));
            }
            return;
        }
        let is_second = self.stopped_by.is_some() && signal != libc::SIGHUP;
        self.stopped_by = Some(signal);
        if is_second {
            self.status = AT_ONCE.saturating_add(u8::try_from(signal).unwrap_or(0));
        }
        self.stop(is_second);
    }

    /// What has changed is what runs next.
    fn follow(&mut self) {
        let path = match self.watched.as_mut().and_then(Watched::due) {
            None => return,
            Some(Due::Reload(path)) => path,
            Some(Due::Own(path)) => {
                return self.note(&format!(
                    "{} has changed again and again while workers start or end: they seem to write it themselves, so that is no reload any more; write it elsewhere, or name what to --watch",
                    path.display()
                ));
            }
        };
        match self.reload() {
            Ok(_) => self.note(&format!("{} has changed: reloading", path.display())),
            // One is under way, or the start.
            Err(e) if e.kind() == ErrorKind::InUse => return self.watched.iter_mut().for_each(Watched::again),
            Err(e) => self.note(&format!("{} has changed: {e}", path.display())),
        }
        self.moved = Instant::now();
        self.watched.iter_mut().for_each(Watched::done);
    }

    fn reload(&mut self) -> Result<u32> {
        if self.phase == Phase::Starting {
            return Err(Error::new(ErrorKind::InUse, "the cluster has not started yet"));
        }
        self.cluster.reload(None)
    }

    /// What starts may have read what was there before: who reloads means what is there now.
    fn reload_later(&mut self) {
        self.later = true;
        self.note("reload: it comes when the start is over");
    }

    fn reload_late(&mut self) {
        let done = self.reload();
        for (client, wait) in std::mem::take(&mut self.waits) {
            match (wait, &done) {
                (Wait::Start, Ok(generation)) => self.waits.push((client, Wait::Reload(*generation))),
                (Wait::Start, Err(e)) => self.server.fail(client, e, "", self.epoll),
                (wait, _) => self.waits.push((client, wait)),
            }
        }
        if let Err(e) = done {
            self.note(&format!("reload: {e}"));
        }
    }

    fn stop(&mut self, fast: bool) {
        if self.phase != Phase::Stopping {
            self.phase = Phase::Stopping;
            self.manager.tell("STOPPING=1");
            self.forced_before = self.stats().forced;
            if !fast {
                let workers = self.stats().live;
                self.say(&format!(
                    "stopping: {workers} worker{} to finish, at most {} s",
                    if workers == 1 { " has" } else { "s have" },
                    self.run.supervision.drain_timeout.as_secs_f64()
                ));
            }
        }
        // Each fails in a forked child only: the option was checked.
        let _ = if fast { self.cluster.stop_now() } else { self.cluster.stop(self.run.supervision.drain_timeout) };
    }

    fn asked(&mut self, client: u64, request: &Request) {
        let done = match request {
            Request::Status => {
                let status = self.status_json();
                self.server.say(client, &status, true, self.epoll);
                Ok(())
            }
            Request::Metrics => {
                let line = json!({"ok": true, "text": self.cluster.metrics()});
                self.server.say(client, &line, true, self.epoll);
                Ok(())
            }
            Request::Events => {
                let stats = self.stats();
                let line = json!({"ok": true, "event": "state", "name": self.name, "wanted": stats.wanted, "ready": stats.ready, "generation": stats.generation});
                self.server.say(client, &line, false, self.epoll);
                Ok(())
            }
            Request::Logs { lines, follow } => {
                self.server.say(client, &json!({"ok": true}), false, self.epoll);
                // First: what is printed from here on rings the bell.
                self.output.follow(true);
                self.readers.insert(client, self.output.last(*lines));
                self.feed();
                if !*follow {
                    self.readers.remove(&client);
                    self.server.end(client, self.epoll);
                }
                Ok(())
            }
            Request::Reload if self.phase == Phase::Starting => {
                self.reload_later();
                self.waits.push((client, Wait::Start));
                Ok(())
            }
            Request::Reload => self.reload().map(|generation| self.waits.push((client, Wait::Reload(generation)))),
            Request::Scale(n) => self.cluster.scale(*n).map(|()| self.waits.push((client, Wait::Scale(*n)))),
            Request::Stop { fast } => {
                self.waits.push((client, Wait::Stop));
                self.stop(*fast);
                Ok(())
            }
        };
        match done {
            Err(e) => self.server.fail(client, &e, "", self.epoll),
            Ok(()) => self.look(),
        }
    }

    /// Lines for those who read them.
    fn feed(&mut self) {
        for (client, next) in &mut self.readers {
            let (lines, after) = self.output.since(*next);
            *next = after;
            for line in &lines {
                self.server.say(*client, line, false, self.epoll);
            }
        }
        self.readers.retain(|client, _| self.server.has(*client));
        self.output.follow(!self.readers.is_empty());
    }

    fn addresses(&self) -> Vec<String> {
        self.cluster.addresses().iter().map(ToString::to_string).collect()
    }

    fn status_json(&self) -> Value {
        let mut status: Value = serde_json::from_str(&self.cluster.status().json()).expect("a status is JSON");
        status["ok"] = json!(true);
        status["command"] = json!(self.run.command.iter().map(|part| part.to_string_lossy()).collect::<Vec<_>>());
        status["metrics"] = json!(self.cluster.metrics_address().map(|at| at.to_string()));
        status
    }
}
