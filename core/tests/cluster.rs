//! Clusters of real processes: this very program is the worker.
#![expect(clippy::unwrap_used, reason = "a test may")]

mod clients;

use clients::{Clients, ask};
use offloop::channel::Incoming;
use offloop::cluster::{self, Address, Balance, Builder, Cluster, Command, Event, worker};
use offloop::pool::{SubmitOptions, Work};
use offloop::shared::Limit;
use offloop::supervisor::{self, WorkerId};
use offloop::{ErrorKind, ThreadPool, TransferBuffer, Value};
use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// Ends a hang; nothing is measured by it.
const WATCHDOG: Duration = Duration::from_secs(60);
const MODE: &str = "OFFLOOP_TEST_MODE";
/// Numbers of one that talks as a spare.
const SPARE_SAYS: i64 = 40;

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

/// Runs some tasks in a pool of its own, before it is ready.
fn work(tasks: usize) -> ThreadPool {
    let pool = ThreadPool::builder().max_workers(1).name("in-worker").build().unwrap();
    for _ in 0..tasks {
        pool.submit(Work::call(|_| Ok(Value::Nil)), SubmitOptions::default()).unwrap().wait(None).unwrap();
    }
    pool
}

/// Says `hello <slot> <generation>`, answers what it hears, and ends when it is told to. `deaf` in slot 0 hears nothing, `floods` says numbers as fast as it can.
fn talk(worker: &worker::Worker, how: &str) -> ! {
    let channel = worker.channel().unwrap();
    let id = worker.supervisor().id();
    let say = |text: String| channel.send(&mut Value::from(text), &[], None).unwrap();
    say(format!("hello {} {}", id.slot, id.generation));
    if how == "counts as a spare" && id.is_spare() {
        (1..=SPARE_SAYS).for_each(|n| channel.send(&mut Value::Int(n), &[], None).unwrap());
    }
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

const PASSES: Limit = Limit { rate: 1e-6, burst: 3, keys: 64 };

/// Counts that it starts, and, where one of three passes is left, that too.
fn count() {
    cluster::counter("starts").unwrap().add(1);
    if cluster::limiter("passes", PASSES).unwrap().take(b"key", 1).unwrap().allowed {
        cluster::counter("passed").unwrap().add(1);
    }
    let e = cluster::limiter("passes", Limit { burst: 4, ..PASSES }).unwrap_err();
    assert!(e.kind() == ErrorKind::Invalid && e.to_string().contains("burst 3") && e.to_string().contains("burst 4"), "{e}");
    assert_eq!(cluster::counter("").unwrap_err().kind(), ErrorKind::Invalid);
}

/// Answers each connection with its slot, generation and `mode`, and closes it.
///
/// Of the mode `pid` it says its process id in place of that. Of the mode `deaf N` slot N takes nothing, of `stuck N` its loop stands still as well.
fn be_worker(mode: &str) -> ! {
    let worker = worker::attach().unwrap().expect("of a cluster");
    if mode == "broken" {
        worker.supervisor().fail("SyntaxError: unexpected end of input");
        end(1);
    }
    if let Some(how) = mode.strip_prefix("talks ") {
        talk(&worker, how);
    }
    if mode == "counts" {
        count();
    }
    if let Some((_, address)) = mode.split_once(" and asks ") {
        drop(worker.listen(address, 0, None).unwrap());
        talk(&worker, "");
    }
    let from = match mode.strip_prefix("asks ") {
        Some(address) => worker.listen(address, 0, None),
        None => worker.seat(0),
    };
    let (from, _) = from.unwrap_or_else(|e| {
        worker.supervisor().fail(&e.to_string());
        end(1)
    });
    let _pool = (mode == "works").then(|| work(5));
    let id = worker.supervisor().id();
    let is = |what: &str| mode.strip_prefix(what).is_some_and(|slot| slot.parse() == Ok(id.slot));
    worker.supervisor().ready();
    worker.beat();
    let open = Arc::new(AtomicUsize::new(0));
    while !worker.supervisor().is_draining() {
        if is("deaf ") || is("stuck ") {
            if is("deaf ") {
                worker.beat();
            }
            std::thread::sleep(ms(1));
            continue;
        }
        worker.beat();
        let Some(connection) = worker.accept(from.as_fd(), Some(ms(1))).unwrap() else { continue };
        let mut connection = TcpStream::from(connection);
        let id = worker.supervisor().id();
        let (worker, mode, open) = (worker.clone(), mode.to_owned(), Arc::clone(&open));
        open.fetch_add(1, Ordering::SeqCst);
        std::thread::spawn(move || {
            let mut request = [0; 4];
            connection.set_nonblocking(false).unwrap();
            if mode == "greets" {
                connection.write_all(b"+").unwrap();
            }
            if connection.read_exact(&mut request).is_ok() {
                let said = if mode == "pid" { std::process::id().to_string() } else { mode };
                let _ = connection.write_all(format!("{} {} {said}", id.slot, id.generation).as_bytes());
            }
            worker.supervisor().served(1);
            worker.closed();
            drop(connection);
            open.fetch_sub(1, Ordering::SeqCst);
        });
    }
    while open.load(Ordering::SeqCst) > 0 {
        std::thread::sleep(ms(1));
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
            other => panic!("{other}"),
        }
    }

    /// Waits until so many workers have become ready, and the cluster has heard of it as well.
    fn ready(&self, workers: usize) {
        let is_ready = |e: &Event| matches!(e, Event::Worker(supervisor::Event::Ready { .. }));
        for _ in 0..workers {
            while !is_ready(&self.events.recv_timeout(WATCHDOG).unwrap()) {}
        }
    }

    fn stop(self) {
        self.cluster.stop(WATCHDOG).unwrap();
        self.cluster.wait_stopped(Some(WATCHDOG)).unwrap();
        assert!(self.cluster.addresses().is_empty());
        assert_eq!(self.cluster.stats().unwrap().live, 0);
    }
}

#[test]
fn workers_share_the_sockets_and_a_reload_loses_no_connection() {
    reloads_lose_no_connection(Balance::Shared);
}

#[test]
fn connections_are_passed_in_turn_and_a_reload_loses_none() {
    reloads_lose_no_connection(Balance::RoundRobin);
}

#[test]
fn connections_are_passed_to_who_has_the_fewest_and_a_reload_loses_none() {
    reloads_lose_no_connection(Balance::LeastConnections);
}

#[test]
fn connections_are_passed_by_address_and_a_reload_loses_none() {
    reloads_lose_no_connection(Balance::IpHash);
}

fn reloads_lose_no_connection(balance: Balance) {
    let _one = alone();
    let w = start(quick().workers(2).balance(balance).listen(local()), command("one"));
    w.cluster.wait_ready(Some(WATCHDOG)).unwrap();
    let at = w.port();
    let clients = Clients::start(4, at);
    for generation in 2..=6 {
        let before = clients.asked();
        while clients.asked() < before + 50 {
            std::thread::yield_now();
        }
        assert_eq!(w.cluster.reload(Some(command(&format!("load {generation}")))).unwrap(), generation);
        assert_eq!(w.cluster.reload(None).unwrap_err().kind(), ErrorKind::InUse);
        let report = w.cluster.wait_reload(generation, Some(WATCHDOG)).unwrap();
        assert_eq!((report.generation, report.replaced, report.forced), (generation, 2, 0));
    }
    let failed = clients.end();
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
fn a_reload_as_before_runs_what_the_reload_before_it_has_brought() {
    let _one = alone();
    let w = start(quick().workers(1).listen(local()), command("v0"));
    w.cluster.wait_ready(Some(WATCHDOG)).unwrap();
    let mut last = 1;
    for round in 1..=60 {
        let brought = w.cluster.reload(Some(command(&format!("v{round}")))).unwrap();
        let again = loop {
            match w.cluster.reload(None) {
                Ok(generation) => break generation,
                Err(e) => assert_eq!(e.kind(), ErrorKind::InUse, "{e}"),
            }
        };
        assert_eq!((brought, again), (last + 1, last + 2));
        last = again;
        w.cluster.wait_reload(again, Some(WATCHDOG)).unwrap();
        assert_eq!(ask(w.port()).unwrap(), format!("0 {again} v{round}"));
    }
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
fn what_workers_count_outlives_them() {
    let _one = alone();
    let w = start(quick().workers(2).listen(local()), command("counts"));
    w.ready(2);
    for _ in 0..3 {
        let (worker, _) = w.cluster.slots().unwrap()[0];
        w.cluster.kill(worker).unwrap();
        w.ready(1);
    }
    let ledger = w.cluster.ledger();
    assert_eq!(ledger.counters(), [("passed".to_owned(), 3), ("starts".to_owned(), 5)]);
    assert!(!ledger.limiter("passes", PASSES).unwrap().take(b"key", 1).unwrap().allowed);
    assert!(ledger.limiter("passes", PASSES).unwrap().take(b"other", 3).unwrap().allowed);
    w.stop();
    assert_eq!(cluster::counter("starts").unwrap().get(), 0, "the host's own is another one");
}

#[test]
fn an_address_is_given_once_and_ports_of_the_systems_choice_as_often_as_wanted() {
    let _one = alone();
    let w = start(quick().workers(1).listen(local()).listen(local()), command("serves"));
    w.ready(1);
    let at = w.cluster.addresses();
    assert!(at.len() == 2 && at[0] != at[1], "{at:?}");
    w.stop();
    let Address::Tcp(first) = at[0] else { panic!("{at:?}") };
    for twice in [[at[0].clone(), at[0].clone()], [Address::Any(first.port()), at[0].clone()]] {
        let [one, other] = twice;
        let e = quick().workers(1).listen(one).listen(other).build(command("serves")).map(drop).unwrap_err();
        assert!(e.kind() == ErrorKind::Invalid && e.to_string().contains("given twice"), "{e}");
    }
}

#[test]
fn a_socket_of_the_host_is_inherited_and_stays_its_own() {
    let _one = alone();
    let own = TcpListener::bind("127.0.0.1:0").unwrap();
    let (at, given) = (own.local_addr().unwrap(), Address::Fd(own.as_raw_fd()));
    // In its place among others: the worker's first socket.
    let w = start(quick().workers(2).listen(given.clone()).listen(local()), command("serves"));
    w.ready(2);
    assert_eq!(w.port(), at);
    ask(at).unwrap();
    w.cluster.reload(None).unwrap();
    w.cluster.wait_reload(2, Some(WATCHDOG)).unwrap();
    assert!(ask(at).unwrap().contains(" 2 "), "a reload has it, too");
    w.stop();
    // Its queue is there still.
    let waits = TcpStream::connect(at).unwrap();
    let w = start(quick().workers(1).listen(given.clone()), command("serves"));
    w.ready(1);
    drop((own, waits));
    ask(at).unwrap();
    w.stop();
    TcpStream::connect(at).unwrap_err();
    let (file, own) = (std::fs::File::open("/dev/null").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    let given = Address::Fd(own.as_raw_fd());
    for (listen, says) in [
        (vec![Address::Fd(file.as_raw_fd())], "is=not a socket"),
        (vec![Address::Fd(i32::MAX)], "fd is not open (listen=fd:2147483647)"),
        (vec![given.clone(), given], "given twice"),
    ] {
        let e = listen.into_iter().fold(quick().workers(1), Builder::listen).build(command("serves")).unwrap_err();
        assert!(e.kind() == ErrorKind::Invalid && e.to_string().contains(says) && e.to_string().contains("listen=fd:"), "{e}");
    }
}

/// A client that has sent its request, and waits.
struct Waiting(TcpStream);

impl Waiting {
    fn new(at: SocketAddr) -> Waiting {
        let mut connection = TcpStream::connect(at).unwrap();
        connection.write_all(b"ping").unwrap();
        Waiting(connection)
    }

    /// The slot that answers.
    fn slot(mut self) -> u32 {
        let mut answer = String::new();
        self.0.set_read_timeout(Some(WATCHDOG)).unwrap();
        self.0.read_to_string(&mut answer).unwrap();
        answer.split(' ').next().unwrap().parse().unwrap_or_else(|_| panic!("{answer:?}"))
    }
}

fn slot(at: SocketAddr) -> u32 {
    Waiting::new(at).slot()
}

#[test]
fn each_worker_gets_one_connection_in_turn() {
    let _one = alone();
    let w = start(quick().workers(3).balance(Balance::RoundRobin).listen(local()), command("serves"));
    w.ready(3);
    let mut counts = [0; 3];
    for _ in 0..30 {
        counts[slot(w.port()) as usize] += 1;
    }
    assert_eq!(counts, [10; 3]);
    w.stop();
}

#[test]
fn the_worker_with_the_fewest_open_connections_gets_the_next() {
    let _one = alone();
    let w = start(quick().workers(3).balance(Balance::LeastConnections).listen(local()), command("greets"));
    w.ready(3);
    let open = || {
        let mut connection = TcpStream::connect(w.port()).unwrap();
        // A worker has it.
        connection.read_exact(&mut [0]).unwrap();
        connection
    };
    let end = |mut connection: TcpStream| {
        connection.write_all(b"ping").unwrap();
        Waiting(connection).slot() as usize
    };
    let mut held: Vec<TcpStream> = (0..9).map(|_| open()).collect();
    let mut counts = [0; 3];
    // In turn at first, so these are all of one worker.
    let mut gone: Vec<usize> = Vec::new();
    for i in [6, 3, 0] {
        gone.push(end(held.remove(i)));
    }
    assert!(gone.iter().all(|slot| *slot == gone[0]), "{gone:?}");
    held.extend((0..3).map(|_| open()));
    for connection in held.split_off(6) {
        assert_eq!(end(connection), gone[0], "it had the fewest");
    }
    for connection in held {
        counts[end(connection)] += 1;
    }
    counts[gone[0]] += 3;
    assert_eq!(counts, [3; 3]);
    w.stop();
}

#[test]
fn an_address_keeps_its_worker_through_a_reload() {
    let _one = alone();
    let w = start(quick().workers(4).balance(Balance::IpHash).listen(local()), command("serves"));
    w.ready(4);
    // Any address of 127/8 is this machine's own.
    let from = |n: u8| {
        let socket = nix::sys::socket::socket(
            nix::sys::socket::AddressFamily::Inet,
            nix::sys::socket::SockType::Stream,
            nix::sys::socket::SockFlag::SOCK_CLOEXEC,
            None,
        )
        .unwrap();
        let SocketAddr::V4(to) = w.port() else { panic!("version 6") };
        nix::sys::socket::bind(socket.as_raw_fd(), &nix::sys::socket::SockaddrIn::new(127, 0, 0, n, 0)).unwrap();
        nix::sys::socket::connect(socket.as_raw_fd(), &nix::sys::socket::SockaddrIn::from(to)).unwrap();
        let mut connection = TcpStream::from(socket);
        connection.write_all(b"ping").unwrap();
        Waiting(connection).slot()
    };
    let homes: Vec<u32> = (1..=40).map(from).collect();
    assert!((0..4).all(|slot| homes.contains(&slot)), "{homes:?}");
    assert_eq!((1..=40).map(from).collect::<Vec<_>>(), homes);
    let generation = w.cluster.reload(None).unwrap();
    w.cluster.wait_reload(generation, Some(WATCHDOG)).unwrap();
    assert_eq!((1..=40).map(from).collect::<Vec<_>>(), homes);
    w.stop();
}

#[test]
fn a_connection_that_a_killed_worker_had_not_taken_is_answered_by_another() {
    let _one = alone();
    for balance in [Balance::RoundRobin, Balance::LeastConnections] {
        let w = start(quick().workers(2).balance(balance).listen(local()), command("deaf 0"));
        w.ready(2);
        for _ in 0..3 {
            // One of these lies with slot 0, which is then full.
            let both = [Waiting::new(w.port()), Waiting::new(w.port())];
            assert_eq!(slot(w.port()), 1, "{balance}");
            let worker = w.cluster.slots().unwrap()[0].0;
            w.cluster.kill(worker).unwrap();
            assert_eq!(both.map(Waiting::slot), [1, 1], "{balance}");
            let next = |e: &Event| matches!(e, Event::Worker(supervisor::Event::Ready { worker: new, .. }) if new.slot == 0 && new.incarnation > worker.incarnation);
            while !next(&w.events.recv_timeout(WATCHDOG).unwrap()) {}
        }
        w.stop();
    }
}

#[test]
fn a_connection_that_a_worker_has_not_taken_when_it_drains_is_answered_by_another() {
    let _one = alone();
    let w = start(quick().workers(2).balance(Balance::RoundRobin).listen(local()), command("deaf 1"));
    w.ready(2);
    let both = [Waiting::new(w.port()), Waiting::new(w.port())];
    assert_eq!(slot(w.port()), 0);
    w.cluster.scale(1).unwrap();
    assert_eq!(both.map(Waiting::slot), [0, 0]);
    w.stop();
}

#[test]
fn a_worker_whose_loop_stands_still_gets_nothing_and_what_lies_with_it_is_taken_back() {
    let _one = alone();
    let options = supervisor::Options {
        boot_timeout: WATCHDOG,
        beat: ms(50),
        hang_timeout: WATCHDOG,
        drain_timeout: WATCHDOG,
        kill_grace: ms(300),
        ..supervisor::Options::default()
    };
    for mode in ["stuck 0", "deaf 0"] {
        let builder = Cluster::builder().supervision(options.clone()).workers(2).balance(Balance::RoundRobin).listen(local());
        let w = start(builder, command(mode));
        w.ready(2);
        for _ in 0..20 {
            assert_eq!(slot(w.port()), 1, "{mode}");
        }
        w.stop();
    }
}

#[test]
fn a_host_without_fds_says_so_once_and_goes_on_when_it_has_some() {
    let _one = alone();
    let w = start(quick().workers(1).balance(Balance::RoundRobin).listen(local()), command("serves"));
    w.ready(1);
    let SocketAddr::V4(to) = w.port() else { panic!("version 6") };
    let mut before = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `before` is writable.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut before) }, 0);
    let limit = |rlim_cur| {
        let new = libc::rlimit { rlim_cur, ..before };
        // SAFETY: `new` is readable.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const new) }, 0);
    };
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, connect, socket};
    let sockets = [(); 3].map(|()| socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap());
    limit(256);
    let mut full = Vec::new();
    while let Ok(null) = std::fs::File::open("/dev/null") {
        full.push(null);
    }
    let waiting = sockets.map(|socket| {
        connect(socket.as_raw_fd(), &SockaddrIn::from(to)).unwrap();
        let mut connection = TcpStream::from(socket);
        connection.write_all(b"ping").unwrap();
        Waiting(connection)
    });
    let is_warning = |e: &Event| matches!(e, Event::Warning(e) if e.errno().is_some_and(|(errno, _)| errno == libc::EMFILE) && e.to_string().contains(&to.to_string()));
    while !is_warning(&w.events.recv_timeout(WATCHDOG).unwrap()) {}
    // It tries again from time to time, and says nothing more.
    std::thread::sleep(ms(350));
    assert!(!w.events.try_iter().any(|e| matches!(e, Event::Warning(_))));
    drop(full);
    limit(before.rlim_cur);
    assert_eq!(waiting.map(Waiting::slot), [0; 3]);
    w.stop();
}

#[test]
fn each_worker_has_a_socket_of_its_own_beside_the_others() {
    let _one = alone();
    let at = |text: &str| quick().workers(2).balance(Balance::Reuseport).listen(text.parse().unwrap());
    let w = start(at("127.0.0.1:0"), command("serves"));
    let moves = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_migrate_req").is_ok_and(|text| text.trim() == "1");
    if !moves {
        assert!(matches!(w.events.recv_timeout(WATCHDOG).unwrap(), Event::Warning(e) if e.to_string().contains("tcp_migrate_req")));
    }
    w.ready(2);
    let port = w.port();
    let sockets = |at: SocketAddr| {
        let text = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let end = format!(":{:04X} 00000000:0000 0A ", at.port());
        text.lines().filter(|line| line.contains(&end)).count()
    };
    assert_eq!((w.cluster.addresses().len(), sockets(port)), (1, 2));
    let mut seen = [false; 2];
    while seen != [true; 2] {
        seen[slot(port) as usize] = true;
    }
    // Another that does not share gets nothing of it.
    assert!(TcpListener::bind(port).is_err());
    w.cluster.scale(1).unwrap();
    let exited = |e: &Event| matches!(e, Event::Worker(supervisor::Event::Exited { .. }));
    while !exited(&w.events.recv_timeout(WATCHDOG).unwrap()) {}
    assert_eq!(sockets(port), 1, "nobody keeps that of one that has ended");
    assert_eq!(slot(port), 0);
    w.stop();
    assert_eq!(sockets(port), 0);
    // Asked for by workers.
    let w = start(quick().workers(2).balance(Balance::Reuseport), command("asks 127.0.0.1:0"));
    w.ready(2);
    assert_eq!((w.cluster.addresses().len(), sockets(w.port())), (1, 2));
    slot(w.port());
    w.stop();
}

#[test]
fn sockets_that_workers_ask_for_are_passed_too() {
    let _one = alone();
    let w = start(quick().workers(2).balance(Balance::RoundRobin), command("asks 127.0.0.1:0"));
    w.ready(2);
    let seen: Vec<u32> = (0..4).map(|_| slot(w.port())).collect();
    assert!(seen == [0, 1, 0, 1] || seen == [1, 0, 1, 0], "{seen:?}");
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
    let e = quick().workers(1).metrics(taken.clone()).build(command("serves")).unwrap_err();
    assert!(e.to_string().contains(&format!("listen={taken}, option=metrics")), "{e}");
    let e = quick().workers(0).build(command("serves")).unwrap_err();
    assert!(e.to_string().contains("option=workers, value=0"), "{e}");
    assert_eq!(quick().build(Command::default()).unwrap_err().kind(), ErrorKind::Invalid);
    let e = quick().workers(1).build(Command { args: vec!["/no/such/program".into()], ..Command::default() }).unwrap();
    let failed = e.wait_ready(Some(WATCHDOG)).unwrap_err();
    assert!(failed.to_string().contains("/no/such/program"), "{failed}");
    e.stop_now().unwrap();
    e.wait_stopped(Some(WATCHDOG)).unwrap();
}

/// The answer to bytes that are sent, to its end.
fn exchange(at: &Address, bytes: &[u8]) -> String {
    let Address::Tcp(at) = at else { panic!("{at}") };
    let mut connection = TcpStream::connect(at).unwrap();
    connection.set_read_timeout(Some(WATCHDOG)).unwrap();
    let _ = connection.write_all(bytes);
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    answer
}

fn get(at: &Address, path: &str) -> String {
    let answer = exchange(at, format!("GET {path} HTTP/1.1\r\nHost: {at}\r\n\r\n").as_bytes());
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains(&format!("Content-Length: {}\r\n", body.len())), "{head}");
    body.to_owned()
}

/// The value of a row of metrics.
fn row(text: &str, series: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}

#[test]
fn numbers_and_a_page_are_to_be_had_by_http() {
    let _one = alone();
    let w = start(quick().workers(2).listen(local()).name("web").metrics(local()), command("serves"));
    w.ready(2);
    let at = w.cluster.metrics_address().unwrap();
    assert!(!w.cluster.addresses().contains(&at) && !at.to_string().ends_with(":0"), "{at}");
    for _ in 0..3 {
        ask(w.port()).unwrap();
    }
    let until = std::time::Instant::now() + WATCHDOG;
    while row(&get(&at, "/metrics"), "offloop_cluster_requests_total{cluster=\"web\"}") != Some(3.0) {
        assert!(std::time::Instant::now() < until, "{}", get(&at, "/metrics"));
    }
    let text = get(&at, "/metrics");
    assert_eq!(row(&text, "offloop_cluster_workers{cluster=\"web\",state=\"ready\"}"), Some(2.0), "{text}");
    assert_eq!(row(&text, "offloop_cluster_connections_waiting{cluster=\"web\"}"), Some(0.0), "{text}");
    assert!(text.contains("offloop_cluster_worker_loop_delay_seconds{cluster=\"web\",slot=\"0\",pid=\""), "{text}");
    let status = get(&at, "/status");
    assert!(
        status.starts_with("{\"name\":\"web\",\"pid\":")
            && status.contains("\"ready\":2,")
            && status.contains("\"served\":3,\"workers\":[{\"slot\":0,"),
        "{status}"
    );
    let page = get(&at, "/");
    assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n") && !page.contains("{nonce}"), "{page}");

    let head = |request: &str| exchange(&at, format!("{request}\r\nHost: localhost\r\n\r\n").as_bytes());
    let (full, bare) = (head("GET / HTTP/1.1"), head("HEAD / HTTP/1.1"));
    let nonce = full.split_once("script-src 'nonce-").unwrap().1.split_once('\'').unwrap().0.to_owned();
    assert_eq!(full.matches(&format!("nonce=\"{nonce}\"")).count(), 2, "{full}");
    assert!(bare.ends_with("\r\n\r\n") && bare.contains(&format!("Content-Length: {}\r\n", page.len())), "{bare}");
    assert!(head("GET /metrics HTTP/1.1").contains("\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"));
    assert!(head("GET /status HTTP/1.0").contains("\r\nContent-Type: application/json\r\n"));
    for (request, answer) in [
        ("GET /other HTTP/1.1", "HTTP/1.1 404 "),
        ("POST /metrics HTTP/1.1\r\nContent-Length: 1", "HTTP/1.1 405 "),
        ("hello", "HTTP/1.1 400 "),
    ] {
        let got = head(request);
        assert!(got.starts_with(answer), "{request}: {got}");
    }
    for path in ["/", "/metrics", "/status"] {
        let other = exchange(&at, format!("GET {path} HTTP/1.1\r\nHost: evil.example.com:9464\r\n\r\n").as_bytes());
        assert!(other.starts_with("HTTP/1.1 421 ") && other.contains("localhost") && !other.contains("offloop_cluster"), "{other}");
    }
    assert!(head("PUT / HTTP/1.1").contains("\r\nAllow: GET, HEAD\r\n"));
    let long = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(9000));
    assert!(exchange(&at, long.as_bytes()).starts_with("HTTP/1.1 431 "));

    // Those that say nothing hold up nobody, and are few.
    let Address::Tcp(socket) = at else { panic!("{at}") };
    let silent: Vec<_> = (0..32).map(|_| TcpStream::connect(socket).unwrap()).collect();
    let mut late = TcpStream::connect(socket).unwrap();
    late.set_read_timeout(Some(WATCHDOG)).unwrap();
    let mut refused = String::new();
    let _ = late.read_to_string(&mut refused);
    assert!(refused.starts_with("HTTP/1.1 503 "), "one too many is told so, and closed: {refused}");
    drop(silent);
    let again = || {
        let mut connection = TcpStream::connect(socket).ok()?;
        connection.write_all(b"GET /status HTTP/1.1\r\n\r\n").ok()?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer).ok()?;
        answer.starts_with("HTTP/1.1 200 ").then_some(())
    };
    while again().is_none() {
        assert!(std::time::Instant::now() < until, "it answers when they are gone");
    }
    w.stop();
    assert!(TcpStream::connect(socket).is_err(), "nobody listens when it has stopped");
    TcpListener::bind(socket).unwrap();
}

#[test]
fn pools_of_workers_are_summed_and_count_on_when_their_worker_is_gone() {
    let _one = alone();
    let w = start(quick().workers(2).listen(local()).metrics(local()), command("works"));
    w.ready(2);
    let at = w.cluster.metrics_address().unwrap();
    let labels = "{pool=\"in-worker\",kind=\"thread\"}";
    let counts = |text: &str| {
        (row(text, &format!("offloop_tasks_completed_total{labels}")), row(text, &format!("offloop_task_run_seconds_count{labels}")))
    };
    assert_eq!(counts(&get(&at, "/metrics")), (Some(10.0), Some(10.0)));
    let generation = w.cluster.reload(None).unwrap();
    w.cluster.wait_reload(generation, Some(WATCHDOG)).unwrap();
    assert_eq!(counts(&w.cluster.metrics()), (Some(20.0), Some(20.0)), "{}", w.cluster.metrics());
    w.stop();
}

#[test]
fn connections_that_nobody_takes_are_counted() {
    let _one = alone();
    let w = start(quick().workers(1).listen(local()), command("deaf 0"));
    w.ready(1);
    assert_eq!((w.cluster.status().waiting, w.cluster.metrics_address()), (Some(0), None));
    let waits: Vec<_> = (0..3).map(|_| TcpStream::connect(w.port()).unwrap()).collect();
    let until = std::time::Instant::now() + WATCHDOG;
    while w.cluster.status().waiting != Some(3) {
        assert!(std::time::Instant::now() < until, "{:?}", w.cluster.status());
    }
    assert_eq!(w.cluster.status().state, "running");
    drop(waits);
    w.stop();
}

#[test]
fn a_signal_is_for_one_process_until_that_has_ended() {
    let _one = alone();
    let (send, outcomes) = channel();
    let own = Arc::new(OnceLock::<Cluster>::new());
    let of_event = Arc::clone(&own);
    let builder = quick().workers(1).spares(1).on_event(move |event| {
        if let Event::Worker(supervisor::Event::Exited { worker, ended, .. }) = event {
            // Whoever has its number by then has none of this.
            send.send((ended.exit.signal, of_event.wait().signal(*worker, libc::SIGKILL))).unwrap();
        }
    });
    let cluster = builder.build(command("talks on")).unwrap();
    own.set(cluster.clone()).unwrap();
    cluster.wait_ready(Some(WATCHDOG)).unwrap();
    while cluster.stats().unwrap().spares == 0 {
        std::thread::yield_now();
    }
    let (worker, spare) = (cluster.worker_at(0).unwrap(), cluster.worker_at(SPARE).unwrap());
    assert!(cluster.signal(worker, 0).unwrap() && cluster.signal(spare, 0).unwrap());
    let e = cluster.signal(worker, 1000).unwrap_err();
    assert!(e.kind() == ErrorKind::Os && e.to_string().contains("signal=1000"), "{e}");
    assert!(!cluster.signal(WorkerId { incarnation: 99, ..worker }, libc::SIGKILL).unwrap());
    assert!(cluster.signal(worker, libc::SIGUSR1).unwrap());
    let (by, after) = outcomes.recv_timeout(WATCHDOG).unwrap();
    assert_eq!((by, after.unwrap()), (Some(libc::SIGUSR1), false));
    // By its new name only.
    while cluster.stats().unwrap().activated == 0 || cluster.worker_at(0).is_err() {
        std::thread::yield_now();
    }
    let moved = cluster.worker_at(0).unwrap();
    assert!(!cluster.signal(spare, libc::SIGUSR2).unwrap() && cluster.signal(moved, libc::SIGUSR2).unwrap());
    assert_eq!(outcomes.recv_timeout(WATCHDOG).unwrap().0, Some(libc::SIGUSR2));
    cluster.stop_now().unwrap();
    cluster.wait_stopped(Some(WATCHDOG)).unwrap();
    assert!(!cluster.signal(moved, libc::SIGKILL).unwrap());
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
fn a_request_to_a_worker_that_dies_says_so() {
    let _one = alone();
    let t = talking(1, "deaf");
    for round in 0..20 {
        let worker = t.cluster.worker_at(0).unwrap();
        let channel = t.cluster.channel(worker).unwrap();
        let cluster = t.cluster.clone();
        let asking = std::thread::spawn(move || cluster.request(0, &mut Value::Int(1), &[], Some(WATCHDOG)).unwrap_err());
        while channel.stats().pending == 0 {
            std::thread::yield_now();
        }
        t.cluster.kill(worker).unwrap();
        let e = asking.join().unwrap();
        assert!(e.kind() == ErrorKind::PeerDied && e.to_string().contains("slot=0"), "{round}: {e}");
        while t.cluster.worker_at(0).is_ok_and(|next| next == worker) || t.cluster.wait_ready(Some(WATCHDOG)).is_err() {}
    }
    t.stop();
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
fn what_waits_for_the_cluster_is_refused_where_that_waits_for_the_host() {
    let _one = alone();
    let (send, outcomes) = channel();
    let own = Arc::new(OnceLock::<Cluster>::new());
    let try_all = {
        let own = Arc::clone(&own);
        move |of: &str| {
            let cluster = own.wait();
            let short = Some(ms(100));
            let waits = [cluster.wait_ready(short), cluster.wait_stopped(short), cluster.wait_reload(1, short).map(drop)];
            waits.into_iter().for_each(|outcome| drop(send.send((of.to_owned(), outcome.map_err(|e| e.kind())))));
        }
    };
    let (on_message, on_event) = (try_all.clone(), try_all);
    let builder = quick().workers(1).on_message(move |_, _, _| on_message("message")).on_event(move |event| match event {
        Event::Listening { .. } => on_event("listening"),
        Event::Worker(supervisor::Event::Ready { .. }) => on_event("ready"),
        _ => {}
    });
    let cluster = builder.build(command("greets and asks 127.0.0.1:0")).unwrap();
    own.set(cluster.clone()).unwrap();
    for _ in 0..9 {
        let (of, outcome) = outcomes.recv_timeout(WATCHDOG).unwrap();
        assert_eq!(outcome, Err(ErrorKind::Invalid), "{of}");
    }
    // Nobody waits for this thread.
    cluster.wait_ready(Some(WATCHDOG)).unwrap();
    cluster.stop(WATCHDOG).unwrap();
    cluster.wait_stopped(Some(WATCHDOG)).unwrap();
}

#[test]
fn a_worker_is_not_started_from_an_event() {
    let _one = alone();
    let (send, outcomes) = channel();
    let own = Arc::new(OnceLock::<Cluster>::new());
    let of_event = Arc::clone(&own);
    let builder = quick().one_by_one().on_event(move |event| {
        if matches!(event, Event::Worker(supervisor::Event::Exited { .. })) {
            drop(send.send(of_event.wait().fork(shell("exit 0"))));
        }
    });
    let cluster = builder.build(Command::default()).unwrap();
    own.set(cluster.clone()).unwrap();
    cluster.fork(shell("exit 0")).unwrap();
    assert_eq!(outcomes.recv_timeout(WATCHDOG).unwrap().unwrap_err().kind(), ErrorKind::Invalid);
    cluster.stop_now().unwrap();
    cluster.wait_stopped(Some(WATCHDOG)).unwrap();
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

// ---- spares ----

/// What a test of spares has seen: the process of each worker, and events that it has not looked at.
struct Spares {
    w: Watched,
    pids: std::collections::HashMap<WorkerId, i32>,
}

impl Spares {
    fn start(builder: Builder) -> Spares {
        let mut s = Spares { w: start(builder.listen(local()), command("pid")), pids: std::collections::HashMap::new() };
        s.w.cluster.wait_ready(Some(WATCHDOG)).unwrap();
        s.waits();
        s
    }

    /// The next event of which `pick` makes something.
    fn next<T>(&mut self, pick: impl Fn(&supervisor::Event) -> Option<T>) -> T {
        loop {
            let Event::Worker(event) = self.w.events.recv_timeout(WATCHDOG).unwrap() else { continue };
            match event {
                supervisor::Event::Spawned { worker, pid } => drop(self.pids.insert(worker, pid)),
                supervisor::Event::Activated { spare, worker } => {
                    let pid = self.pids.remove(&spare).unwrap();
                    self.pids.insert(worker, pid);
                }
                _ => {}
            }
            if let Some(found) = pick(&event) {
                return found;
            }
        }
    }

    /// The next spare that waits.
    fn waits(&mut self) -> WorkerId {
        self.next(|e| if let supervisor::Event::Spare { worker, .. } = e { Some(*worker) } else { None })
    }

    fn takes_over(&mut self) -> (WorkerId, WorkerId) {
        self.next(|e| if let supervisor::Event::Activated { spare, worker } = e { Some((*spare, *worker)) } else { None })
    }

    fn ready(&mut self) -> WorkerId {
        self.next(|e| if let supervisor::Event::Ready { worker, .. } = e { Some(*worker) } else { None })
    }

    fn pid(&self, slot: u32) -> i32 {
        let last = self.pids.iter().filter(|(id, _)| id.slot == slot).max_by_key(|(id, _)| id.incarnation);
        *last.unwrap().1
    }

    fn kill_9(&self, slot: u32) {
        // SAFETY: a child of this program, which has not been waited for by anybody but the supervisor.
        assert_eq!(unsafe { libc::kill(self.pid(slot), libc::SIGKILL) }, 0);
    }

    fn ended(&mut self, slot: u32) {
        self.next(|e| matches!(e, supervisor::Event::Exited { worker, .. } if worker.slot == slot).then_some(()));
    }

    /// Slot, generation, process.
    fn ask(&self) -> (u32, u32, i32) {
        let answer = ask(self.w.port()).unwrap();
        let mut words = answer.split(' ');
        let mut number = || words.next().unwrap().parse::<i32>().unwrap();
        (number() as u32, number() as u32, number())
    }

    fn stop(self) {
        let (cluster, pids) = (self.w.cluster.clone(), self.pids.clone());
        self.w.stop();
        assert_eq!(cluster.stats().unwrap().spares, 0);
        // SAFETY: a plain query.
        assert!(pids.values().all(|pid| unsafe { libc::kill(*pid, 0) } != 0), "a process is left");
    }
}

fn with_spare(workers: usize, balance: Balance) -> Spares {
    Spares::start(quick().workers(workers).spares(1).balance(balance))
}

const SPARE: u32 = supervisor::FIRST_SPARE;

#[test]
fn a_spare_answers_nothing_and_takes_the_place_of_the_only_worker_when_that_is_killed() {
    let _one = alone();
    for balance in [Balance::Shared, Balance::RoundRobin, Balance::LeastConnections, Balance::IpHash] {
        let mut s = with_spare(1, balance);
        for _ in 0..5 {
            let (worker, spare) = (s.pid(0), s.pid(SPARE));
            let stats = s.w.cluster.stats().unwrap();
            assert_eq!((stats.ready, stats.live, stats.wanted, stats.spares), (1, 1, 1, 1), "{balance}");
            for _ in 0..50 {
                assert_eq!(s.ask(), (0, 1, worker), "{balance}");
            }
            s.kill_9(0);
            let (was, is) = s.takes_over();
            assert_eq!((was.slot, is.slot), (SPARE, 0));
            assert_eq!(s.ask(), (0, 1, spare), "{balance}");
            assert_eq!(s.w.cluster.worker_at(0).unwrap(), is);
            s.waits();
        }
        assert_eq!(s.w.cluster.stats().unwrap().activated, 5);
        s.stop();
    }
}

#[test]
fn a_spare_that_is_killed_is_replaced_and_both_at_once_are() {
    let _one = alone();
    let mut s = with_spare(1, Balance::Shared);
    let worker = s.pid(0);
    s.kill_9(SPARE);
    s.ended(SPARE);
    s.waits();
    assert_eq!(s.ask(), (0, 1, worker));
    s.kill_9(SPARE);
    s.kill_9(0);
    let (ready, _) = (s.ready(), s.waits());
    assert_eq!(s.ask(), (0, 1, s.pids[&ready]));
    s.stop();
}

#[test]
fn a_reload_replaces_the_spare_and_one_that_fails_leaves_it() {
    let _one = alone();
    let mut s = with_spare(1, Balance::Shared);
    let generation = s.w.cluster.reload(None).unwrap();
    s.w.cluster.wait_reload(generation, Some(WATCHDOG)).unwrap();
    assert_eq!((s.waits().generation, generation), (2, 2));
    let failed = s.w.cluster.reload(Some(command("broken"))).unwrap();
    assert_eq!(s.w.cluster.wait_reload(failed, Some(WATCHDOG)).unwrap_err().kind(), ErrorKind::StartFailed);
    assert_eq!(s.w.cluster.stats().unwrap().spares, 1);
    let spare = s.pid(SPARE);
    s.kill_9(0);
    s.takes_over();
    assert_eq!(s.ask(), (0, 2, spare));
    s.waits();
    s.stop();
}

#[test]
fn a_new_place_is_taken_by_a_spare_and_a_message_finds_it_there() {
    let _one = alone();
    let mut s = with_spare(1, Balance::RoundRobin);
    let spare = s.pid(SPARE);
    let (worker, starts) = (s.w.cluster.worker_at(SPARE).unwrap(), s.pids.len());
    let channel = s.w.cluster.channel(worker).unwrap();
    s.w.cluster.scale(2).unwrap();
    let (was, is) = s.takes_over();
    assert_eq!((was, is.slot, s.pid(1), starts), (worker, 1, spare, 2));
    // The same channel by another name.
    s.w.cluster.send(1, &mut Value::from("a".to_owned()), &[], Some(WATCHDOG)).unwrap();
    assert_eq!(channel.stats().sent, 1);
    assert_eq!(s.w.cluster.channel(worker).unwrap_err().kind(), ErrorKind::NotFound);
    s.waits();
    let mut seen = [s.ask().2, s.ask().2];
    seen.sort_unstable();
    let mut want = [s.pid(0), spare];
    want.sort_unstable();
    assert_eq!(seen, want, "both have their turn");
    s.stop();
}

#[test]
fn what_a_spare_says_has_its_new_place_once_that_is_told() {
    let _one = alone();
    let (send, heard) = channel();
    let events = send.clone();
    let (go_on, may_go_on) = channel::<()>();
    let mut may_go_on = Some(may_go_on);
    let builder = quick().workers(1).spares(1).on_event(move |event| drop(events.send(Heard::Event(event.clone())))).on_message(
        move |id, _, incoming| {
            let Incoming::Message(message) = incoming else { panic!("{incoming:?}") };
            let Some(n) = message.value.as_int() else { return };
            send.send(Heard::Number(id, n)).unwrap();
            if let Some(gate) = may_go_on.take_if(|_| n == 1) {
                gate.recv_timeout(WATCHDOG).unwrap();
            }
            // The event has its time to come before the last of them.
            std::thread::sleep(ms(2));
        },
    );
    let cluster = builder.build(command("talks counts as a spare")).unwrap();
    let next = || heard.recv_timeout(WATCHDOG).unwrap();
    while !matches!(next(), Heard::Number(_, 1)) {}
    cluster.wait_ready(Some(WATCHDOG)).unwrap();
    while cluster.stats().unwrap().spares == 0 {
        std::thread::yield_now();
    }
    cluster.kill(cluster.worker_at(0).unwrap()).unwrap();
    while cluster.stats().unwrap().activated == 0 {
        std::thread::yield_now();
    }
    go_on.send(()).unwrap();
    let (mut place, mut after) = (None, 0);
    for last in 2..=SPARE_SAYS {
        let (id, n) = loop {
            match next() {
                Heard::Event(Event::Worker(supervisor::Event::Activated { worker, .. })) => place = Some(worker),
                // The next spare counts, too.
                Heard::Number(id, n) if n >= last => break (id, n),
                _ => {}
            }
        };
        assert_eq!(n, last);
        match place {
            Some(place) => assert_eq!(id, place, "{n}"),
            None => assert_eq!(id.slot, SPARE, "{n}"),
        }
        after += i32::from(place.is_some());
    }
    assert!(after > 0);
    cluster.stop_now().unwrap();
    cluster.wait_stopped(Some(WATCHDOG)).unwrap();
}

#[test]
fn a_program_that_knows_nothing_of_its_cluster_has_no_spare() {
    let _one = alone();
    let options = supervisor::Options { ready_after: Some(ms(50)), ..supervisor::Options::default() };
    let w = start(Cluster::builder().supervision(options).workers(1).spares(1), shell("exec sleep 1000"));
    let warning = |e: &Event| matches!(e, Event::Warning(e) if e.kind() == ErrorKind::Unsupported && e.to_string().contains("spares=1"));
    while !warning(&w.events.recv_timeout(WATCHDOG).unwrap()) {}
    assert_eq!(w.cluster.stats().unwrap().spawned, 1);
    w.cluster.stop_now().unwrap();
    w.cluster.wait_stopped(Some(WATCHDOG)).unwrap();
}

#[test]
fn spares_that_cannot_be_are_refused() {
    let text = |builder: Builder| builder.build(command("x")).unwrap_err().to_string();
    let both = text(quick().workers(1).spares(1).balance(Balance::Reuseport));
    assert!(both.contains("option=spares") && both.contains("balance=reuseport"), "{both}");
    let many = text(quick().workers(1000).spares(25));
    assert!(many.contains("option=spares, value=25, min=0, max=24"), "{many}");
    let one = text(quick().one_by_one().spares(1));
    assert!(one.contains("option=spares"), "{one}");
    let _one = alone();
    let mut s = with_spare(1, Balance::Shared);
    let e = s.w.cluster.scale(1024).unwrap_err().to_string();
    assert!(e.contains("option=workers, value=1024, min=1, max=1023"), "{e}");
    assert_eq!(s.ask().0, 0);
    s.kill_9(0);
    s.takes_over();
    s.stop();
}
