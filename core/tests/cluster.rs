//! Clusters of real processes: this very program is the worker.
#![expect(clippy::unwrap_used, reason = "a test may")]

use offloop::channel::Incoming;
use offloop::cluster::{Address, Builder, Cluster, Command, Event, worker};
use offloop::supervisor::{self, WorkerId};
use offloop::{ErrorKind, TransferBuffer, Value};
use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Ends a hang; nothing is measured by it.
const WATCHDOG: Duration = Duration::from_secs(60);
const MODE: &str = "OFFLOOP_TEST_MODE";

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Processes and fds are counted: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// This program again, as a worker.
fn command(mode: &str) -> Command {
    let args = ["--exact", "worker_part", "--nocapture", "--test-threads=1"].map(OsString::from);
    let program = std::env::current_exe().unwrap().into_os_string();
    Command { args: std::iter::once(program).chain(args).collect(), env: vec![(MODE.into(), Some(mode.into()))], ..Command::default() }
}

fn shell(script: &str) -> Command {
    Command { args: ["/bin/sh", "-c", script].map(OsString::from).to_vec(), ..Command::default() }
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

/// Says `hello <slot> <generation>`, answers what it hears, and ends when it is told to. `deaf` in slot 0 hears nothing, `floods` says numbers as fast as it can.
fn talk(worker: &worker::Worker, how: &str) -> ! {
    let channel = worker.channel().unwrap();
    let id = worker.supervisor().id();
    let say = |text: String| channel.send(&mut Value::from(text), &[], None).unwrap();
    say(format!("hello {} {}", id.slot, id.generation));
    worker.supervisor().ready();
    worker.supervisor().beat();
    let mut said = 0;
    while !worker.supervisor().is_draining() {
        if how == "deaf" && id.slot == 0 {
            std::thread::sleep(ms(1));
            continue;
        }
        if how == "floods" {
            said += 1;
            let _ = channel.send(&mut Value::Int(said), &[], Some(ms(20)));
            continue;
        }
        match channel.recv(Some(ms(1))) {
            Ok(Incoming::Message(mut message)) => match &mut message.value {
                Value::Buffer(buffer) => {
                    let mut to = std::fs::File::from(message.fds.pop().expect("an fd came along"));
                    to.write_all(&buffer.to_vec().unwrap()).unwrap();
                }
                Value::Str(text) if text == "ask" => {
                    let reply = channel.request(&mut Value::Int(20), &[], None).unwrap();
                    say(format!("told {:?} {}", reply.message.value.as_int(), reply.failed));
                }
                Value::Str(text) if text == "go" => {
                    (1..=300).for_each(|n| channel.send(&mut Value::Int(n), &[], None).unwrap());
                    end(3);
                }
                other => say(format!("{} heard {}", id.slot, other.as_str().unwrap())),
            },
            Ok(Incoming::Request(request)) => {
                let n = request.message.value.as_int().unwrap();
                channel.reply(request.id, false, &mut Value::Int(n + 1), &[], None).unwrap();
            }
            Ok(_) => {}
            Err(e) => assert_eq!(e.kind(), ErrorKind::Timeout),
        }
    }
    worker.supervisor().drained();
    end(0)
}

/// Answers each connection with its slot, generation and `mode`, and closes it.
fn be_worker(mode: &str) -> ! {
    let worker = worker::attach().unwrap().expect("of a cluster");
    if mode == "broken" {
        worker.supervisor().fail("SyntaxError: unexpected end of input");
        end(1);
    }
    if let Some(how) = mode.strip_prefix("talks ") {
        talk(&worker, how);
    }
    let listener: OwnedFd = match mode.strip_prefix("asks ") {
        Some(address) => match worker.listen(address, 0, None) {
            Ok((fd, _)) => fd,
            Err(e) => {
                worker.supervisor().fail(&e.to_string());
                end(1)
            }
        },
        // SAFETY: inherited, and used here alone.
        None => unsafe { OwnedFd::from_raw_fd(worker.fds()[0]) },
    };
    let listener = TcpListener::from(listener);
    let id = worker.supervisor().id();
    worker.supervisor().ready();
    while !worker.supervisor().is_draining() {
        worker.supervisor().beat();
        match listener.accept() {
            Ok((mut connection, _)) => {
                let mut request = [0; 4];
                connection.set_nonblocking(false).unwrap();
                let _ = connection.read_exact(&mut request);
                let _ = connection.write_all(format!("{} {} {mode}", id.slot, id.generation).as_bytes());
            }
            Err(_) => std::thread::sleep(ms(1)),
        }
    }
    worker.supervisor().drained();
    end(0)
}

// ---- the host's part ----

struct Watched {
    cluster: Cluster,
    events: Receiver<Event>,
}

fn quick() -> Builder {
    let options = supervisor::Options {
        boot_timeout: WATCHDOG,
        beat: ms(50),
        hang_timeout: Duration::ZERO,
        drain_timeout: WATCHDOG,
        kill_grace: ms(300),
        ..supervisor::Options::default()
    };
    Cluster::builder().supervision(options)
}

fn local() -> Address {
    "127.0.0.1:0".parse().unwrap()
}

fn start(builder: Builder, command: Command) -> Watched {
    let (send, events) = channel();
    let hear = move |event: &Event| {
        let _ = send.send(event.clone());
    };
    let cluster = builder.on_event(hear).build(command).unwrap();
    Watched { cluster, events }
}

impl Watched {
    fn port(&self) -> SocketAddr {
        match &self.cluster.addresses()[0] {
            Address::Tcp(address) => *address,
            Address::Any(port) => ([127, 0, 0, 1], *port).into(),
            Address::Unix(_) => panic!("a unix socket"),
        }
    }

    fn stop(self) {
        self.cluster.stop(WATCHDOG).unwrap();
        self.cluster.wait_stopped(Some(WATCHDOG)).unwrap();
        assert!(self.cluster.addresses().is_empty());
        assert_eq!(self.cluster.stats().unwrap().live, 0);
    }
}

fn ask(at: SocketAddr) -> std::io::Result<String> {
    let mut connection = TcpStream::connect(at)?;
    connection.write_all(b"ping")?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    if answer.is_empty() { Err(std::io::ErrorKind::UnexpectedEof.into()) } else { Ok(answer) }
}

#[test]
fn workers_share_the_sockets_and_a_reload_loses_no_connection() {
    let _one = alone();
    let w = start(quick().workers(2).listen(local()), command("one"));
    w.cluster.wait_ready(Some(WATCHDOG)).unwrap();
    let at = w.port();
    let (over, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (over, asked) = (Arc::clone(&over), Arc::clone(&asked));
            std::thread::spawn(move || {
                let mut failed = Vec::new();
                while !over.load(Ordering::Relaxed) {
                    match ask(at) {
                        Ok(_) => drop(asked.fetch_add(1, Ordering::Relaxed)),
                        Err(e) => failed.push(e.to_string()),
                    }
                }
                failed
            })
        })
        .collect();
    for generation in 2..=6 {
        let before = asked.load(Ordering::Relaxed);
        while asked.load(Ordering::Relaxed) < before + 50 {
            std::thread::yield_now();
        }
        assert_eq!(w.cluster.reload(Some(command(&format!("load {generation}")))).unwrap(), generation);
        assert_eq!(w.cluster.reload(None).unwrap_err().kind(), ErrorKind::InUse);
        let report = w.cluster.wait_reload(generation, Some(WATCHDOG)).unwrap();
        assert_eq!((report.generation, report.replaced, report.forced), (generation, 2, 0));
    }
    over.store(true, Ordering::Relaxed);
    let failed: Vec<String> = clients.into_iter().flat_map(|c| c.join().unwrap()).collect();
    assert!(failed.is_empty(), "{failed:?}");
    assert!(ask(at).unwrap().ends_with(" 6 load 6"));
    // The same command again.
    let generation = w.cluster.reload(None).unwrap();
    w.cluster.wait_reload(generation, Some(WATCHDOG)).unwrap();
    assert!(ask(at).unwrap().ends_with(" 7 load 6"));
    w.stop();
    assert!(TcpStream::connect(at).is_err(), "nobody listens any more");
}

#[test]
fn a_reload_to_a_broken_version_fails_with_its_own_words_and_the_old_one_goes_on() {
    let _one = alone();
    let w = start(quick().workers(2).listen(local()), command("good"));
    w.cluster.wait_ready(Some(WATCHDOG)).unwrap();
    let generation = w.cluster.reload(Some(command("broken"))).unwrap();
    let e = w.cluster.wait_reload(generation, Some(WATCHDOG)).unwrap_err();
    assert!(e.kind() == ErrorKind::StartFailed && e.to_string().contains("SyntaxError: unexpected end of input"), "{e}");
    let e = w.cluster.reload(Some(shell("exit 0"))).and_then(|g| w.cluster.wait_reload(g, Some(WATCHDOG))).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::StartFailed);
    assert_eq!(w.cluster.wait_reload(generation, None).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(ask(w.port()).unwrap().ends_with(" 1 good"));
    // What comes next is what was good.
    let next = w.cluster.reload(None).unwrap();
    w.cluster.wait_reload(next, Some(WATCHDOG)).unwrap();
    assert!(ask(w.port()).unwrap().ends_with(&format!(" {next} good")));
    w.stop();
}

#[test]
fn a_killed_worker_is_replaced_and_the_others_go_on() {
    let _one = alone();
    let w = start(quick().workers(2).listen(local()), command("serves"));
    w.cluster.wait_ready(Some(WATCHDOG)).unwrap();
    for _ in 0..5 {
        let worker = w.cluster.slots().unwrap()[0].0;
        w.cluster.kill(worker).unwrap();
        let next = |e: &Event| matches!(e, Event::Worker(supervisor::Event::Ready { worker: new, .. }) if new.slot == worker.slot && new.incarnation > worker.incarnation);
        while !next(&w.events.recv_timeout(WATCHDOG).unwrap()) {
            // One that the killed worker had accepted is lost with it.
            let _ = ask(w.port());
        }
        ask(w.port()).unwrap();
    }
    w.cluster.scale(1).unwrap();
    w.cluster.wait_ready(Some(WATCHDOG)).unwrap();
    for bad in [0, 1025] {
        let e = w.cluster.scale(bad).unwrap_err();
        assert!(e.to_string().contains(&format!("option=workers, value={bad}, min=1, max=1024")), "{e}");
    }
    ask(w.port()).unwrap();
    w.stop();
}

#[test]
fn a_worker_asks_for_sockets_by_address() {
    let _one = alone();
    // Two workers, one socket: the second gets what the first has bound.
    let w = start(quick().workers(2), command("asks 127.0.0.1:0"));
    w.cluster.wait_ready(Some(WATCHDOG)).unwrap();
    let listening: Vec<Address> =
        w.events.try_iter().filter_map(|e| if let Event::Listening { address, .. } = e { Some(address) } else { None }).collect();
    assert_eq!(listening.len(), 2);
    assert_eq!(w.cluster.addresses(), [listening[0].clone()]);
    assert!(ask(w.port()).unwrap().contains("asks"));
    let taken = w.port();
    // The other cluster's worker is told why not.
    let other = start(quick().workers(1), command(&format!("asks {taken}")));
    let e = other.cluster.wait_ready(Some(WATCHDOG)).unwrap_err();
    assert!(e.to_string().contains("Address already in use") && e.to_string().contains(&taken.to_string()), "{e}");
    other.stop();
    for (bad, words) in [("nonsense", "not an address"), ("203.0.113.7:80", "assign requested address")] {
        let other = start(quick().workers(1), command(&format!("asks {bad}")));
        let e = other.cluster.wait_ready(Some(WATCHDOG)).unwrap_err();
        assert!(e.to_string().contains(words), "{e}");
        other.stop();
    }
    w.stop();
}

#[test]
fn any_program_finds_its_sockets_by_listen_fds() {
    let _one = alone();
    let dir = std::env::temp_dir().join(format!("offloop-cluster-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let (socket, said) = (dir.join("a.sock"), dir.join("said"));
    let script = format!(
        "echo $LISTEN_FDS $LISTEN_PID $$ {{fd}} {{fd1}} {{fd2}} $LISTEN_FDNAMES $OFFLOOP_SLOT $X $Y. > {0}.new; mv {0}.new {0}; sleep 60",
        said.display()
    );
    let mut command = shell(&script);
    // Those of the host's own are not the worker's.
    command.env = vec![("X".into(), Some("given".into())), ("Y".into(), None), ("LISTEN_PID".into(), Some("1".into()))];
    let unix = Address::Unix(socket.clone());
    let w = start(quick().workers(1).listen(local()).listen(unix), command);
    let until = std::time::Instant::now() + WATCHDOG;
    while !said.exists() {
        assert!(std::time::Instant::now() < until, "the worker says nothing");
        std::thread::sleep(ms(5));
    }
    let words = std::fs::read_to_string(&said).unwrap();
    let words: Vec<&str> = words.split_whitespace().collect();
    assert_eq!((words[0], words[1] == words[2]), ("2", true), "{words:?}");
    assert_eq!(words[3..6], ["3", "4", "{fd2}"]);
    let names: Vec<String> = w.cluster.addresses().iter().map(|a| a.to_string().replace(':', "-")).collect();
    assert_eq!(words[6..], [&*names.join(":"), "0", "given", "."]);
    // Bound before anybody accepts.
    drop(UnixStream::connect(&socket).unwrap());
    w.cluster.stop_now().unwrap();
    w.cluster.wait_stopped(Some(WATCHDOG)).unwrap();
    assert!(!socket.exists());
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn what_cannot_be_is_refused_before_anything_starts() {
    let _one = alone();
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = Address::Tcp(held.local_addr().unwrap());
    let e = quick().workers(1).listen(taken.clone()).build(command("serves")).unwrap_err();
    assert!(e.errno().is_some_and(|(errno, _)| errno == libc::EADDRINUSE) && e.to_string().contains(&taken.to_string()), "{e}");
    let e = quick().workers(0).build(command("serves")).unwrap_err();
    assert!(e.to_string().contains("option=workers, value=0"), "{e}");
    assert_eq!(quick().build(Command::default()).unwrap_err().kind(), ErrorKind::Invalid);
    let e = quick().workers(1).build(Command { args: vec!["/no/such/program".into()], ..Command::default() }).unwrap();
    let failed = e.wait_ready(Some(WATCHDOG)).unwrap_err();
    assert!(failed.to_string().contains("/no/such/program"), "{failed}");
    e.stop_now().unwrap();
    e.wait_stopped(Some(WATCHDOG)).unwrap();
}

#[test]
fn workers_that_are_started_one_by_one_have_their_own_commands_and_are_not_replaced() {
    let _one = alone();
    let w = start(quick().listen(local()).one_by_one(), Command::default());
    w.cluster.wait_ready(Some(WATCHDOG)).unwrap();
    let exit = |code: u32| shell(&format!("echo {code} >/dev/null; exit {code}"));
    let mut codes = Vec::new();
    let end = |codes: &mut Vec<_>| loop {
        match w.events.recv_timeout(WATCHDOG).unwrap() {
            Event::Worker(supervisor::Event::Exited { worker, ended, .. }) => return codes.push((worker, ended.exit.code)),
            Event::Worker(supervisor::Event::Spawned { .. }) => {}
            other => panic!("{other:?}"),
        }
    };
    // More than what makes another cluster degraded.
    for code in 0..20 {
        let (worker, pid) = w.cluster.fork(exit(code)).unwrap();
        assert!(pid > 0);
        end(&mut codes);
        assert_eq!(codes.last(), Some(&(worker, Some(code as i32))));
    }
    let e = w.cluster.fork(Command { args: vec!["/no/such/program".into()], ..Command::default() }).unwrap_err();
    assert!(e.to_string().contains("/no/such/program"), "{e}");
    assert!(matches!(w.events.recv_timeout(WATCHDOG).unwrap(), Event::Worker(supervisor::Event::SpawnFailed { .. })));
    assert_eq!(w.cluster.fork(Command::default()).unwrap_err().kind(), ErrorKind::Invalid);
    // They share the sockets, whatever they run.
    for mode in ["one", "two"] {
        w.cluster.fork(command(mode)).unwrap();
    }
    let (one, two) = (AtomicBool::new(false), AtomicBool::new(false));
    while !(one.load(Ordering::Relaxed) && two.load(Ordering::Relaxed)) {
        let answer = ask(w.port()).unwrap();
        if answer.ends_with("one") { &one } else { &two }.store(true, Ordering::Relaxed);
    }
    let stats = w.cluster.stats().unwrap();
    assert_eq!((stats.wanted, stats.live, stats.spawned, stats.degradations), (2, 2, 22, 0));
    let killed = w.cluster.worker_at(0).unwrap();
    w.cluster.kill(killed).unwrap();
    while !matches!(w.events.recv_timeout(WATCHDOG).unwrap(), Event::Worker(supervisor::Event::Exited { worker, .. }) if worker == killed) {
    }
    assert_eq!(w.cluster.stats().unwrap().live, 1);
    let other = start(quick().workers(1).listen(local()), command("serves"));
    assert_eq!(other.cluster.fork(exit(0)).unwrap_err().kind(), ErrorKind::Invalid);
    other.stop();
    w.stop();
}

// ---- messages ----

/// What a host hears, in its order.
#[derive(Debug)]
enum Heard {
    Event(Event),
    Said(WorkerId, String),
    Number(WorkerId, i64),
}

struct Talking {
    cluster: Cluster,
    heard: Receiver<Heard>,
}

/// Answers requests with the double of their number.
fn talking(workers: usize, how: &str) -> Talking {
    let (send, heard) = channel();
    let events = send.clone();
    let builder = quick().workers(workers).on_event(move |event| drop(events.send(Heard::Event(event.clone())))).on_message(
        move |id, channel, incoming| match incoming {
            Incoming::Message(message) => drop(send.send(match message.value {
                Value::Int(n) => Heard::Number(id, n),
                other => Heard::Said(id, other.as_str().unwrap().to_owned()),
            })),
            Incoming::Request(request) => {
                let n = request.message.value.as_int().unwrap();
                channel.reply(request.id, false, &mut Value::Int(n * 2), &[], Some(WATCHDOG)).unwrap();
            }
            other => panic!("{other:?}"),
        },
    );
    let cluster = builder.build(command(&format!("talks {how}"))).unwrap();
    cluster.wait_ready(Some(WATCHDOG)).unwrap();
    Talking { cluster, heard }
}

impl Talking {
    fn next(&self) -> Heard {
        self.heard.recv_timeout(WATCHDOG).unwrap()
    }

    /// The next `n` texts, sorted.
    fn said(&self, n: usize) -> Vec<String> {
        let texts =
            std::iter::repeat_with(|| self.next()).filter_map(|heard| if let Heard::Said(_, text) = heard { Some(text) } else { None });
        let mut texts: Vec<String> = texts.take(n).collect();
        texts.sort();
        texts
    }

    fn send(&self, slot: u32, text: &'static str) -> offloop::Result<()> {
        self.cluster.send(slot, &mut Value::from(text), &[], Some(WATCHDOG))
    }

    fn stop(self) {
        self.cluster.stop(WATCHDOG).unwrap();
        self.cluster.wait_stopped(Some(WATCHDOG)).unwrap();
        assert_eq!(self.send(0, "late").unwrap_err().to_string(), "not found: slot has no worker (slot=0)");
    }
}

#[test]
fn messages_and_requests_go_both_ways() {
    let _one = alone();
    let t = talking(2, "well");
    assert_eq!(t.said(2), ["hello 0 1", "hello 1 1"]);
    t.send(1, "you").unwrap();
    assert_eq!(t.said(1), ["1 heard you"]);
    assert!(t.cluster.broadcast(&mut Value::from("all"), &[]).unwrap().is_empty());
    assert_eq!(t.said(2), ["0 heard all", "1 heard all"]);
    let reply = t.cluster.request(0, &mut Value::Int(41), &[], Some(WATCHDOG)).unwrap();
    assert_eq!(reply.message.value.as_int(), Some(42));
    t.send(0, "ask").unwrap();
    assert_eq!(t.said(1), ["told Some(40) false"]);
    let e = t.send(7, "nobody").unwrap_err();
    assert_eq!((e.kind(), e.to_string().as_str()), (ErrorKind::NotFound, "not found: slot has no worker (slot=7)"));
    // What is said to a slot goes to the worker that is ready there.
    let generation = t.cluster.reload(None).unwrap();
    t.cluster.wait_reload(generation, Some(WATCHDOG)).unwrap();
    assert_eq!(t.said(2), ["hello 0 2", "hello 1 2"]);
    assert_eq!(t.cluster.worker_at(0).unwrap().generation, 2);
    t.send(0, "new one").unwrap();
    assert_eq!(t.said(1), ["0 heard new one"]);
    t.stop();
}

#[test]
fn buffers_and_fds_travel_to_a_worker() {
    let _one = alone();
    let t = talking(1, "well");
    let (mut from, to) = UnixStream::pair().unwrap();
    let mut value = Value::Buffer(TransferBuffer::from_slice(&vec![7; 100_000]).unwrap());
    let e = t.cluster.broadcast(&mut value, &[]).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Invalid, "it moves to one worker: {e}");
    t.cluster.send(0, &mut value, &[to.as_fd()], Some(WATCHDOG)).unwrap();
    drop(to);
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, vec![7; 100_000]);
    let Value::Buffer(buffer) = value else { panic!("was a buffer") };
    assert!(buffer.is_detached());
    t.stop();
}

#[test]
fn a_worker_that_hears_nothing_holds_up_nobody() {
    let _one = alone();
    let t = talking(2, "deaf");
    t.said(2);
    let mut sent = 0_usize;
    let full = loop {
        match t.cluster.send(0, &mut Value::from("into the void".to_owned()), &[], Some(Duration::ZERO)) {
            Ok(()) => sent += 1,
            Err(e) => break e,
        }
        assert!(sent < offloop::cluster::RING, "the ring has an end");
    };
    assert!(full.kind() == ErrorKind::Full && full.to_string().contains("slot=0"), "{full}");
    let waited = t.cluster.send(0, &mut Value::Nil, &[], Some(ms(20))).unwrap_err();
    assert!(waited.kind() == ErrorKind::Timeout && waited.to_string().contains("slot=0"), "{waited}");
    let missed = t.cluster.broadcast(&mut Value::from("who hears"), &[]).unwrap();
    assert_eq!(missed.iter().map(|(id, e)| (id.slot, e.kind())).collect::<Vec<_>>(), [(0, ErrorKind::Full)]);
    assert_eq!(t.said(1), ["1 heard who hears"]);
    t.stop();
}

#[test]
fn what_a_worker_says_comes_before_its_exit_and_nothing_after() {
    let _one = alone();
    let t = talking(1, "well");
    t.send(0, "go").unwrap();
    let mut numbers = Vec::new();
    loop {
        match t.next() {
            Heard::Number(_, n) => numbers.push(n),
            Heard::Event(Event::Worker(supervisor::Event::Exited { .. })) => break,
            _ => {}
        }
    }
    assert_eq!(numbers, (1..=300).collect::<Vec<_>>());
    t.stop();

    // Killed while they talk.
    let t = talking(2, "floods");
    let mut ended = Vec::new();
    while ended.len() < 20 {
        match t.next() {
            Heard::Said(id, _) => assert!(!ended.contains(&id), "{id:?} has ended"),
            Heard::Number(id, n) => {
                assert!(!ended.contains(&id), "{id:?} has ended");
                if n % 50 == 1 {
                    t.cluster.kill(id).unwrap();
                }
            }
            Heard::Event(Event::Worker(supervisor::Event::Exited { worker, .. })) => ended.push(worker),
            Heard::Event(_) => {}
        }
    }
    t.stop();
}

#[test]
fn who_receives_by_itself_has_the_channel() {
    let _one = alone();
    let w = start(quick().workers(1), command("talks well"));
    w.cluster.wait_ready(Some(WATCHDOG)).unwrap();
    let id = w.cluster.worker_at(0).unwrap();
    let own = w.cluster.channel(id).unwrap();
    let Incoming::Message(hello) = own.recv(Some(WATCHDOG)).unwrap() else { panic!("a message") };
    assert_eq!(hello.value.as_str(), Some("hello 0 1"));
    w.cluster.send(0, &mut Value::from("go"), &[], Some(WATCHDOG)).unwrap();
    let mut numbers = 0;
    let end = loop {
        match own.recv(Some(WATCHDOG)) {
            Ok(_) => numbers += 1,
            Err(e) => break e,
        }
    };
    assert_eq!((numbers, end.kind()), (300, ErrorKind::PeerDied));
    while !matches!(w.events.recv_timeout(WATCHDOG).unwrap(), Event::Worker(supervisor::Event::Exited { .. })) {}
    assert_eq!(w.cluster.channel(id).unwrap_err().kind(), ErrorKind::NotFound);
    w.stop();
}
