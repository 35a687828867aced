//! Channels between two processes: both ways at once, every way to die, what is inherited, fork.
//!
//! A peer is this test program again, running the ignored test `peer` with an end's socket and a script in the environment.
#![expect(clippy::unwrap_used, reason = "a test may")]

use offloop::channel::{Channel, Incoming, Message, Options};
use offloop::sys::poll;
use offloop::sys::process::{Child, Exit, Spec, spawn};
use offloop::{Error, ErrorKind, TransferBuffer, Value};
use random::Random;
use row::Row;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

#[path = "../../tests/src/random.rs"]
mod random;

#[path = "../../tests/src/row.rs"]
#[allow(dead_code, unreachable_pub, reason = "the loops of the other crate need more of it")]
mod row;

/// Where a peer finds its end.
const END: RawFd = 100;

fn torture() -> bool {
    std::env::var_os("OFFLOOP_TORTURE").is_some()
}

fn small() -> Options {
    Options { capacity: 8192, ..Options::default() }
}

fn start(args: &[&str], end: Option<BorrowedFd<'_>>, env: &[(&str, &str)]) -> Child {
    let null = File::options().write(true).open("/dev/null").unwrap();
    let mut spec = Spec::new(std::env::current_exe().unwrap());
    spec.args = args.iter().map(Into::into).collect();
    let mut vars: Vec<_> = std::env::vars_os().collect();
    vars.extend(env.iter().map(|(k, v)| (k.into(), v.into())));
    spec.env = Some(vars);
    spec.fds = vec![(null.as_fd(), 1)];
    spec.fds.extend(end.map(|fd| (fd, END)));
    spawn(&spec).unwrap()
}

/// A peer that has the other end of the channel that is returned.
fn peer_with(script: &str, env: &[(&str, &str)]) -> (Channel, Child) {
    let (own, other) = Channel::pair(small()).unwrap();
    // SAFETY: `other` keeps its socket open for the call.
    let end = unsafe { BorrowedFd::borrow_raw(other.socket().unwrap()) };
    let env: Vec<_> = env.iter().copied().chain([("OFFLOOP_TEST_PEER", script)]).collect();
    let child = start(&["peer", "--exact", "--ignored", "--nocapture"], Some(end), &env);
    // The child's from here on.
    drop(other);
    (own, child)
}

fn peer_of(script: &str) -> (Channel, Child) {
    peer_with(script, &[])
}

const OK: Exit = Exit { code: Some(0), signal: None, core_dumped: false };
const KILLED: Exit = Exit { code: None, signal: Some(libc::SIGKILL), core_dumped: false };

fn wait(child: &Child) -> Exit {
    child.wait(None).unwrap().unwrap()
}

/// Message number `n`: its number, bytes that follow from it, now and then a buffer and a file.
fn parcel(n: u64) -> (Value, Option<File>) {
    let bytes = vec![n as u8; (n.wrapping_mul(0x9E37_79B9) >> 7) as usize % 900];
    let mut items = vec![Value::Int(n as i64), Value::from(bytes)];
    if n % 7 == 3 {
        let mut buffer = if n.is_multiple_of(2) { TransferBuffer::alloc(50) } else { TransferBuffer::alloc_shared(5000) }.unwrap();
        buffer.write_at(40, &n.to_le_bytes()).unwrap();
        items.push(Value::Buffer(buffer));
    }
    if n % 11 == 5 {
        // More than the ring takes.
        items.push(Value::from(vec![n as u8; 6000]));
    }
    let file = (n % 5 == 1).then(|| {
        // SAFETY: a plain call with a NUL-terminated name; the fd is new.
        let mut file = File::from(unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"parcel".as_ptr(), libc::MFD_CLOEXEC)) });
        write!(file, "{n}").unwrap();
        file
    });
    (Value::Array(items), file)
}

fn send_parcel(channel: &Channel, n: u64) -> Result<(), Error> {
    let (mut value, file) = parcel(n);
    let fds: Vec<_> = file.iter().map(AsFd::as_fd).collect();
    channel.send(&mut value, &fds, None)
}

/// The number of a parcel that is whole.
fn number(message: Message) -> u64 {
    let Value::Array(items) = message.value else { panic!("a list") };
    let n = items[0].as_int().unwrap() as u64;
    let (want, file) = parcel(n);
    let Value::Array(want) = want else { unreachable!() };
    assert_eq!(items.len(), want.len(), "parcel {n}");
    for (got, want) in items.into_iter().zip(want).skip(1) {
        assert!(got.into_bytes().unwrap()[..] == want.into_bytes().unwrap()[..], "parcel {n} is torn");
    }
    assert_eq!(message.fds.len(), usize::from(file.is_some()), "parcel {n}");
    for fd in message.fds {
        let (mut file, mut text) = (File::from(fd), String::new());
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, n.to_string());
    }
    n
}

fn message(channel: &Channel) -> Message {
    match channel.recv(None).unwrap() {
        Incoming::Message(message) => message,
        other => panic!("{other:?}"),
    }
}

fn recv_parcel(channel: &Channel) -> Result<u64, Error> {
    match channel.recv(None)? {
        Incoming::Message(message) => Ok(number(message)),
        other => panic!("{other:?}"),
    }
}

/// What a peer does: the words of the script are its arguments.
#[test]
#[ignore = "the other process of the tests below"]
fn peer() {
    let Ok(script) = std::env::var("OFFLOOP_TEST_PEER") else { return };
    let words: Vec<&str> = script.split(':').collect();
    let arg = |i: usize| words[i].parse::<u64>().unwrap();
    let channel = match std::env::var_os("OFFLOOP_TEST_PATH") {
        // Has not opened its connection, and leaves a child behind that lives until the pipe's other end is closed.
        Some(path) if words[0] == "leave" => {
            let _connected = Channel::begin_connect(path, Options::default()).unwrap();
            #[allow(clippy::disallowed_methods, reason = "what a forked child keeps is tested")]
            // SAFETY: the child reads from a pipe and leaves.
            let pid = unsafe { libc::fork() };
            if pid == 0 {
                // SAFETY: the parent put the pipe here; the array has room for a byte.
                unsafe { libc::read(END, [0u8; 1].as_mut_ptr().cast(), 1) };
            }
            // SAFETY: both leave as if they were killed.
            unsafe { libc::_exit(0) };
        }
        Some(path) => Channel::connect(path, None, Options::default()).unwrap(),
        // SAFETY: the parent put its end here, and it is nobody else's.
        None => Channel::attach(unsafe { OwnedFd::from_raw_fd(END) }, Options::default()).unwrap(),
    };
    match words[0] {
        // Sends so many, and receives as many, at once.
        "both" => {
            let (out, count) = (channel.clone(), arg(1));
            let sender = std::thread::spawn(move || (0..count).for_each(|n| send_parcel(&out, n).unwrap()));
            (0..count).for_each(|n| assert_eq!(recv_parcel(&channel).unwrap(), n));
            sender.join().unwrap();
        }
        // Sends without end, until it is killed or the other end goes.
        "send" => {
            let mut n = 0;
            while send_parcel(&channel, n).is_ok() {
                n += 1;
            }
        }
        // Answers each request with the same value, until the channel ends with that word.
        "echo" => loop {
            match channel.recv(None) {
                Ok(Incoming::Request(mut request)) => {
                    let fds: Vec<_> = request.message.fds.iter().map(AsFd::as_fd).collect();
                    if channel.reply(request.id, false, &mut request.message.value, &fds, None).is_err() {
                        return;
                    }
                }
                Ok(Incoming::Message(message)) => {
                    number(message);
                }
                Ok(other) => panic!("{other:?}"),
                Err(e) => return assert_eq!(e.kind().row().name, words[1]),
            }
        },
        // Takes one message and says no more.
        "hold" => {
            recv_parcel(&channel).unwrap();
            channel.send(&mut Value::Nil, &[], None).unwrap();
            loop {
                std::thread::park();
            }
        }
        // As an event loop: takes one message, posts until there is no room, and waits until there is again.
        "post" => {
            // SAFETY: a plain call. A wake that is lost ends the peer.
            unsafe { libc::alarm(60) };
            let fd = channel.fd().unwrap();
            let readable = |wait| {
                let mut entry = [poll::readable(fd)];
                poll::wait_readable(&mut entry, wait);
                poll::is_ready(&entry[0])
            };
            while channel.try_recv().unwrap().is_none() {
                readable(None);
            }
            while readable(Some(Duration::ZERO)) {
                assert!(channel.try_recv().unwrap().is_none());
            }
            while channel.post(&mut Value::from(vec![0; 500]), &[]).unwrap() {}
            // Looks when it is told to, and not before.
            while readable(None) {
                match channel.try_recv().unwrap() {
                    Some(Incoming::Drained) => break,
                    Some(other) => panic!("{other:?}"),
                    None => {}
                }
            }
        }
        // Sends one parcel and ends in peace.
        "once" => send_parcel(&channel, arg(1)).unwrap(),
        // A forked child that outlives its parent.
        "fork" => {
            send_parcel(&channel, 0).unwrap();
            #[allow(clippy::disallowed_methods, reason = "what a forked child keeps is tested")]
            // SAFETY: the child makes calls of ours that refuse, and sleeps until the test ends it.
            let pid = unsafe { libc::fork() };
            if pid == 0 {
                let forked = |e: Option<Error>| e.is_some_and(|e| e.kind() == ErrorKind::Forked);
                let refused = forked(channel.send(&mut Value::Nil, &[], None).err())
                    && forked(channel.recv(None).err())
                    && forked(channel.try_recv().err())
                    && forked(channel.fd().err());
                channel.close();
                drop(channel);
                // SAFETY: the way out of a forked child.
                unsafe { libc::_exit(if refused { 42 } else { 1 }) };
            }
            let mut status = 0;
            // SAFETY: waits for its own child.
            assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
            assert_eq!(libc::WEXITSTATUS(status), 42);
            // The child's close did nothing here.
            send_parcel(&channel, 1).unwrap();
        }
        other => panic!("{other}"),
    }
}

#[test]
fn two_processes_exchange_parcels_both_ways_at_once() {
    const N: u64 = 3000;
    let (own, child) = peer_of(&format!("both:{N}"));
    let out = own.clone();
    let sender = std::thread::spawn(move || (0..N).for_each(|n| send_parcel(&out, n).unwrap()));
    (0..N).for_each(|n| assert_eq!(recv_parcel(&own).unwrap(), n));
    sender.join().unwrap();
    assert_eq!(own.recv(None).unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(wait(&child), OK);
}

#[test]
fn requests_cross_processes_and_close_is_seen() {
    let (own, child) = peer_of("echo:Closed");
    for n in 0..500 {
        let (mut value, file) = parcel(n);
        let fds: Vec<_> = file.iter().map(AsFd::as_fd).collect();
        let reply = own.request(&mut value, &fds, None).unwrap();
        assert!(!reply.failed);
        assert_eq!(number(reply.message), n);
    }
    assert_eq!(own.peer_pid(), Some(child.pid() as u32));
    own.close();
    assert_eq!(wait(&child), OK);
}

#[test]
fn channels_by_a_path_between_processes() {
    let path = std::env::temp_dir().join(format!("offloop-channel-test-{}", std::process::id()));
    let listener = Channel::listen(&path, small()).unwrap();
    let script = [("OFFLOOP_TEST_PEER", "both:500"), ("OFFLOOP_TEST_PATH", path.to_str().unwrap())];
    let children: Vec<_> = (0..3).map(|_| start(&["peer", "--exact", "--ignored", "--nocapture"], None, &script)).collect();
    let serving: Vec<_> = children
        .iter()
        .map(|_| {
            let own = listener.accept(None).unwrap();
            std::thread::spawn(move || {
                for n in 0..500 {
                    send_parcel(&own, n).unwrap();
                    assert_eq!(recv_parcel(&own).unwrap(), n);
                }
                own.recv(None).unwrap_err().kind()
            })
        })
        .collect();
    for thread in serving {
        assert_eq!(thread.join().unwrap(), ErrorKind::Closed);
    }
    for child in children {
        assert_eq!(wait(&child), OK);
    }
}

#[test]
fn a_forked_child_does_not_keep_a_connection_that_is_not_open_yet() {
    let path = std::env::temp_dir().join(format!("offloop-channel-leave-{}", std::process::id()));
    let listener = Channel::listen(&path, small()).unwrap();
    let (wait_here, end) = std::io::pipe().unwrap();
    let script = [("OFFLOOP_TEST_PEER", "leave"), ("OFFLOOP_TEST_PATH", path.to_str().unwrap())];
    let child = start(&["peer", "--exact", "--ignored", "--nocapture"], Some(wait_here.as_fd()), &script);
    let own = listener.accept(None).unwrap();
    assert_eq!(wait(&child), OK);
    // Its own child lives still.
    assert_eq!(own.recv(Some(Duration::from_secs(60))).unwrap_err().kind(), ErrorKind::PeerDied);
    drop(end);
}

/// Nothing that was published is lost, torn or repeated; then the end is told.
fn until_it_died(own: &Channel) {
    let mut next = own.stats().received;
    loop {
        match recv_parcel(own) {
            Ok(n) => assert_eq!(n, next),
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::PeerDied, "{e}");
                return;
            }
        }
        next += 1;
    }
}

#[test]
fn a_sender_that_is_killed_loses_nothing_that_was_published() {
    let mut random = Random(0x5EED_0011);
    let mut row = Row::begin("kill channel senders", if torture() { 1000 } else { 25 }, random.0);
    for _ in 0..row.figure {
        let (own, child) = peer_of("send");
        for n in 0..random.below(300) {
            assert_eq!(recv_parcel(&own).unwrap(), n);
        }
        child.kill(libc::SIGKILL).unwrap();
        assert_eq!(wait(&child), KILLED);
        // One that had not opened its end yet is as dead.
        until_it_died(&own);
        assert_eq!(own.send(&mut Value::Nil, &[], None).unwrap_err().kind(), ErrorKind::PeerDied);
        row.trials += 1;
    }
    row.holds();
}

#[test]
fn whoever_waits_for_a_receiver_that_is_killed_is_told() {
    let mut row = Row::begin("kill channel receivers", if torture() { 500 } else { 10 }, 0);
    for _ in 0..row.figure {
        let (own, child) = peer_of("hold");
        send_parcel(&own, 0).unwrap();
        assert!(matches!(own.recv(None).unwrap(), Incoming::Message(_)));
        let (asking, sending) = (own.clone(), own.clone());
        let asking = std::thread::spawn(move || asking.request(&mut Value::Nil, &[], None).unwrap_err().kind());
        let sending = std::thread::spawn(move || {
            loop {
                if let Err(e) = sending.send(&mut Value::from(vec![0; 700]), &[], None) {
                    return e.kind();
                }
            }
        });
        child.kill(libc::SIGKILL).unwrap();
        assert_eq!((asking.join().unwrap(), sending.join().unwrap()), (ErrorKind::PeerDied, ErrorKind::PeerDied));
        wait(&child);
        row.trials += 1;
    }
    row.holds();
}

fn until_stopped(child: &Child) {
    // The state comes after the name, which is in parentheses.
    while !std::fs::read_to_string(format!("/proc/{}/stat", child.pid())).unwrap().contains(") T ") {
        std::thread::yield_now();
    }
}

#[test]
fn a_request_is_not_answered_by_a_stopped_process_and_then_it_is() {
    let (own, child) = peer_of("echo:Closed");
    own.request(&mut parcel(0).0, &[], None).unwrap();
    child.kill(libc::SIGSTOP).unwrap();
    until_stopped(&child);
    let e = own.request(&mut parcel(0).0, &[], Some(Duration::from_millis(50))).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Timeout, "stopped is not dead");
    child.kill(libc::SIGCONT).unwrap();
    own.request(&mut parcel(0).0, &[], None).unwrap();
    assert_eq!(own.stats().late_replies, 1);
    drop(own);
    assert_eq!(wait(&child), OK);
}

#[test]
fn a_child_that_never_opens_its_end_is_dead_when_it_ends() {
    let (own, other) = Channel::pair(small()).unwrap();
    // SAFETY: `other` keeps its socket open for the call.
    let end = unsafe { BorrowedFd::borrow_raw(other.socket().unwrap()) };
    let child = start(&["no test has this name", "--exact"], Some(end), &[]);
    drop(other);
    send_parcel(&own, 0).unwrap();
    assert_eq!(own.recv(None).unwrap_err().kind(), ErrorKind::PeerDied);
    assert_eq!(wait(&child), OK);
}

#[test]
fn what_a_process_sent_before_it_ended_in_peace_is_received() {
    let (own, child) = peer_of("once:21");
    assert_eq!(wait(&child), OK);
    // It is gone, and had opened its end before.
    assert_eq!(recv_parcel(&own).unwrap(), 21);
    assert_eq!(own.recv(None).unwrap_err().kind(), ErrorKind::Closed);
}

#[test]
fn a_forked_child_is_refused_and_its_close_does_nothing() {
    let (own, child) = peer_of("fork");
    assert_eq!((recv_parcel(&own).unwrap(), recv_parcel(&own).unwrap()), (0, 1));
    assert_eq!(own.recv(None).unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(wait(&child), OK);
}

#[test]
#[ignore = "counts and exhausts the fds of its process: see `each_runs_alone`"]
fn fds_that_have_no_room_stay_until_there_is() {
    let (a, b) = Channel::pair(small()).unwrap();
    b.send(&mut Value::Nil, &[], None).unwrap();
    message(&a);
    let null = File::open("/dev/null").unwrap();
    let mut value = Value::Buffer(TransferBuffer::alloc_shared(100).unwrap());
    a.send(&mut value, &[null.as_fd(), null.as_fd()], None).unwrap();
    for room in 0..4 {
        let mut hold: Vec<File> = Vec::new();
        while let Ok(file) = File::open("/dev/null") {
            hold.push(file);
        }
        hold.truncate(hold.len() - room);
        let before = open_fds();
        let e = b.recv(None).unwrap_err();
        assert_eq!(e.errno().map(|(errno, _)| errno), Some(libc::EMFILE), "{room}: {e}");
        assert_eq!(open_fds(), before, "what came was closed");
        drop(hold);
    }
    let got = message(&b);
    assert_eq!(got.fds.len(), 2);
    assert!(matches!(got.value, Value::Buffer(buffer) if buffer.len() == 100));
}

/// Without an fd of its own.
fn open_fds() -> usize {
    // SAFETY: a plain query.
    (0..4096).filter(|fd| unsafe { libc::fcntl(*fd, libc::F_GETFD) } >= 0).count()
}

#[test]
#[ignore = "counts and exhausts the fds of its process: see `each_runs_alone`"]
fn a_hundred_channels_leave_no_fds() {
    let path = std::env::temp_dir().join(format!("offloop-channel-cycles-{}", std::process::id()));
    let null = File::open("/dev/null").unwrap();
    let cycle = |n: usize| {
        let (a, b) = if n.is_multiple_of(2) {
            Channel::pair(small()).unwrap()
        } else {
            let listener = Channel::listen(&path, Options::default()).unwrap();
            let a = Channel::begin_connect(&path, Options::default()).unwrap();
            (a, listener.accept(None).unwrap())
        };
        let _ = a.fd().unwrap();
        a.send(&mut Value::Buffer(TransferBuffer::alloc_shared(10).unwrap()), &[null.as_fd()], None).unwrap();
        // Every third message is never received.
        if !n.is_multiple_of(3) {
            message(&b);
        }
        let _ = a.try_recv();
        let _ = a.post_request(&mut Value::Nil, &[], Some(Duration::from_secs(1))).unwrap();
    };
    (0..4).for_each(cycle);
    let before = open_fds();
    (0..100).for_each(cycle);
    assert_eq!(open_fds(), before);
}

/// Two ends that know each other.
fn used_pair() -> (Channel, Channel) {
    let (a, b) = Channel::pair(small()).unwrap();
    for (from, to) in [(&a, &b), (&b, &a)] {
        from.send(&mut Value::Nil, &[], None).unwrap();
        message(to);
    }
    (a, b)
}

fn is_readable(fd: RawFd) -> bool {
    let mut entry = [poll::readable(fd)];
    poll::wait_readable(&mut entry, Some(Duration::ZERO));
    poll::is_ready(&entry[0])
}

/// Of what a loop polls.
const POLLED: usize = 2;

#[test]
#[ignore = "counts the fds of its process: see `each_runs_alone`"]
fn an_end_that_was_closed_has_no_fds() {
    drop(used_pair());
    let before = open_fds();
    let (a, b) = used_pair();
    let fd = b.fd().unwrap();
    assert!(b.try_recv().unwrap().is_none() && !is_readable(fd));
    b.post_request(&mut Value::Nil, &[], Some(Duration::from_secs(9))).unwrap();
    let mapped = || std::fs::read_to_string("/proc/self/maps").unwrap().matches("/memfd:").count();
    assert!(mapped() >= 4, "two rings of each end");
    a.close_now();
    b.close_now();
    assert_eq!(open_fds() - before, POLLED);
    assert_eq!(mapped(), 0);
    for channel in [&a, &b] {
        assert_eq!(channel.peer_pid(), Some(std::process::id()));
        assert_eq!(channel.ended().map(|e| e.kind()), Some(ErrorKind::Closed));
        assert!(channel.stats().sent >= 1 && channel.stats().received >= 1);
        assert!(channel.fd().is_ok_and(is_readable), "the loop hears of the end");
        assert_eq!(channel.send(&mut Value::Nil, &[], None).unwrap_err().kind(), ErrorKind::Closed);
        assert_eq!(channel.post(&mut Value::Nil, &[]).unwrap_err().kind(), ErrorKind::Closed);
        assert_eq!(channel.recv_message(None).unwrap_err().kind(), ErrorKind::Closed);
        channel.shutdown(None);
    }
    assert_eq!(b.fd().unwrap(), fd);
    assert!(matches!(b.try_recv().unwrap(), Some(Incoming::Reply { outcome: Err(_), .. })));
    assert_eq!(b.try_recv().unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(open_fds() - before, 2 * POLLED);
}

#[test]
#[ignore = "counts the fds of its process: see `each_runs_alone`"]
fn an_end_that_is_closed_under_threads_lets_go_when_they_return() {
    drop(used_pair());
    let before = open_fds();
    let (a, b) = used_pair();
    let receiver = a.clone();
    let receivers = [receiver.clone(), receiver].map(|a| std::thread::spawn(move || a.recv(None).map(|_| ())));
    let sender = std::thread::spawn({
        let a = a.clone();
        move || loop {
            a.send(&mut Value::from(vec![0; 500]), &[], None)?;
        }
    });
    // The sender has filled the ring, and has the turn.
    while a.post(&mut Value::from(vec![0; 500]), &[]).unwrap() {}
    b.send(&mut Value::Nil, &[], None).unwrap();
    a.close_now();
    let ended: Vec<Result<(), Error>> = receivers.into_iter().chain([sender]).map(|t| t.join().unwrap()).collect();
    assert!(ended.iter().filter_map(|e| e.as_ref().err()).all(|e| e.kind() == ErrorKind::Closed), "{ended:?}");
    assert!(ended[2].is_err() && a.stats().queued == 0);
    while b.recv(None).is_ok() {}
    assert_eq!(open_fds(), before);
}

#[test]
#[ignore = "counts the fds of its process: see `each_runs_alone`"]
fn an_end_lets_go_when_what_was_queued_is_sent_or_the_other_end_is_gone() {
    drop(used_pair());
    let before = open_fds();
    let (a, b) = used_pair();
    let null = File::open("/dev/null").unwrap();
    while a.post(&mut Value::from(vec![0; 500]), &[null.as_fd()]).unwrap() {}
    a.close();
    drop(null);
    assert!(open_fds() > before, "something is left to send");
    // What is left to receive is found before the end is.
    while b.try_recv().is_ok() {
        let _ = a.try_recv();
    }
    assert_eq!((a.ended().unwrap().kind(), b.ended().unwrap().kind()), (ErrorKind::Closed, ErrorKind::Closed));
    assert_eq!(open_fds(), before);

    let (a, b) = used_pair();
    while a.post(&mut Value::from(vec![0; 500]), &[]).unwrap() {}
    a.shutdown(Some(Duration::ZERO));
    while b.recv(None).is_ok() {}
    assert_eq!((open_fds(), a.stats().queued), (before, 0));
}

#[test]
#[ignore = "counts the fds of its process: see `each_runs_alone`"]
fn an_end_lets_go_while_a_forked_child_lives() {
    drop(used_pair());
    let before = open_fds();
    let (a, b) = used_pair();
    let (mut wait, end) = std::io::pipe().unwrap();
    #[allow(clippy::disallowed_methods, reason = "what a forked child keeps is tested")]
    // SAFETY: the child uses the two ends, which refuse, and leaves at once.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        drop(end);
        // Until the parent has counted.
        let _ = wait.read(&mut [0]);
        a.close_now();
        let refused = a.recv(None).is_err_and(|e| e.kind() == ErrorKind::Forked);
        drop((a, b));
        // SAFETY: a plain call.
        unsafe { libc::_exit(if refused { 0 } else { 1 }) };
    }
    drop(wait);
    a.close();
    assert_eq!(b.recv(None).unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(open_fds(), before + 1, "this end of the pipe");
    drop(end);
    let mut status = 0;
    // SAFETY: `status` is a valid out pointer.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert_eq!(status, 0);
}

#[test]
fn each_runs_alone() {
    let names = [
        "fds_that_have_no_room_stay_until_there_is",
        "a_hundred_channels_leave_no_fds",
        "an_end_that_was_closed_has_no_fds",
        "an_end_that_is_closed_under_threads_lets_go_when_they_return",
        "an_end_lets_go_when_what_was_queued_is_sent_or_the_other_end_is_gone",
        "an_end_lets_go_while_a_forked_child_lives",
    ];
    for name in names {
        let child = start(&[name, "--exact", "--ignored", "--nocapture"], None, &[]);
        assert_eq!(wait(&child), OK, "{name}");
    }
}

/// `kill -9` at each named point: of the channel, and of the rings below it.
#[cfg(feature = "failpoints")]
mod at_each_failpoint {
    use super::*;
    use offloop::sys::failpoint::{CHANNEL, NAMES};

    fn plan(name: &str, n: u64) -> [(&'static str, String); 1] {
        [("OFFLOOP_FAILPOINT", format!("{name}:{n}"))]
    }

    fn rounds() -> u64 {
        if torture() { 100 } else { 3 }
    }

    #[test]
    fn a_sender_leaves_what_was_published_and_its_death_is_told() {
        let names = NAMES.iter().chain(CHANNEL).filter(|n| {
            !n.starts_with("pop.")
                && !n.starts_with("head.")
                && !n.starts_with("seat.le")
                && !["channel.closing", "channel.fds_seen", "channel.no_room"].contains(n)
        });
        let mut row = Row::begin("kill at each point: channel senders", names.clone().count() as u64 * rounds(), 0x5EED_0012);
        for name in names {
            let mut random = Random(row.seed);
            for _ in 0..rounds() {
                let once = name.starts_with("seat.") || ["channel.opened", "channel.greeted"].contains(name);
                let env = plan(name, if once { 1 } else { 1 + random.below(20) });
                let (own, child) = peer_with("send", &[(env[0].0, &env[0].1)]);
                until_it_died(&own);
                assert_eq!(wait(&child), KILLED, "{name} was passed");
                row.trials += 1;
            }
        }
        row.holds();
    }

    #[test]
    fn a_receiver_that_dies_is_told_to_whoever_sends() {
        let names = ["pop.shown", "pop.released", "head.before", "head.after", "channel.fds_seen", "channel.greeted"];
        let mut row = Row::begin("kill at each point: channel receivers", names.len() as u64 * rounds(), 0x5EED_0013);
        for name in names {
            let mut random = Random(row.seed);
            for _ in 0..rounds() {
                let env = plan(name, if name == "channel.greeted" { 1 } else { 1 + random.below(20) });
                let (own, child) = peer_with("echo:PeerDied", &[(env[0].0, &env[0].1)]);
                let mut n = 0;
                let e = loop {
                    if let Err(e) = send_parcel(&own, n) {
                        break e;
                    }
                    n += 1;
                };
                assert_eq!(e.kind(), ErrorKind::PeerDied, "{name}: {e}");
                assert_eq!(wait(&child), KILLED, "{name} was passed");
                row.trials += 1;
            }
        }
        row.holds();
    }

    #[test]
    fn room_that_comes_while_a_message_is_queued_is_told() {
        let (own, child) = peer_with("post", &[("OFFLOOP_FAILPOINT", "channel.no_room:1:stop")]);
        own.send(&mut Value::Nil, &[], None).unwrap();
        until_stopped(&child);
        while own.try_recv().unwrap().is_some() {}
        child.kill(libc::SIGCONT).unwrap();
        // The one that found no room is sent when the peer's loop is told of the room.
        message(&own);
        assert_eq!(own.recv(None).unwrap_err().kind(), ErrorKind::Closed);
        assert_eq!(wait(&child), OK);
    }

    #[test]
    fn an_end_that_dies_while_it_closes_is_closed_or_dead() {
        for name in ["channel.closing", "seat.leaving", "seat.left"] {
            let env = plan(name, 1);
            let (own, child) = peer_with("once:21", &[(env[0].0, &env[0].1)]);
            assert_eq!(recv_parcel(&own).unwrap(), 21, "{name}");
            let kind = own.recv(None).unwrap_err().kind();
            assert!([ErrorKind::Closed, ErrorKind::PeerDied].contains(&kind), "{name}: {kind:?}");
            assert_eq!(wait(&child), KILLED, "{name} was passed");
        }
    }
}
