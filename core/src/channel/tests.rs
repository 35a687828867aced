use super::*;
use crate::TransferBuffer;
use crate::ring::Producer;
use crate::wire::channel::{FDS_LEN, GREETING_LEN, Greeting, HERE, Head, RINGS, SPILLED, encode_fds};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, IntoRawFd};
use std::thread;

const SOON: Option<Duration> = Some(Duration::from_millis(20));

fn pair() -> (Channel, Channel) {
    Channel::pair(Options::default()).expect("pair")
}

fn small() -> Options {
    Options { capacity: 4096, ..Options::default() }
}

fn message(channel: &Channel) -> Message {
    match channel.recv(None).expect("message") {
        Incoming::Message(message) => message,
        other => panic!("{other:?}"),
    }
}

fn int(channel: &Channel) -> i64 {
    message(channel).value.as_int().expect("int")
}

fn send(channel: &Channel, n: i64) {
    channel.send(&mut Value::Int(n), &[], None).expect("send");
}

fn recv_error(channel: &Channel) -> Error {
    channel.recv(None).expect_err("the end")
}

#[test]
fn two_threads_exchange_values_both_ways_in_order() {
    const N: i64 = 20_000;
    let (a, b) = Channel::pair(small()).expect("pair");
    let run = |out: Channel, inn: Channel| {
        let sender = thread::spawn(move || {
            (0..N).for_each(|n| {
                out.send(&mut Value::Array(vec![n.into(), Value::from(vec![7; (n % 300) as usize])]), &[], None).expect("send")
            })
        });
        let receiver = thread::spawn(move || {
            for n in 0..N {
                let Value::Array(items) = message(&inn).value else { panic!("list") };
                assert_eq!(items[0].as_int(), Some(n));
            }
        });
        (sender, receiver)
    };
    let (s1, r1) = run(a.clone(), b.clone());
    let (s2, r2) = run(b.clone(), a.clone());
    for t in [s1, r1, s2, r2] {
        t.join().expect("thread");
    }
    assert_eq!(a.stats(), Stats { sent: N as u64, received: N as u64, ..Stats::default() });
}

#[test]
fn buffers_move_and_keep_their_bytes() {
    let (a, b) = pair();
    let mut shared = TransferBuffer::alloc_shared(100_000).expect("alloc");
    shared.write_at(99_999, b"!").expect("write");
    let long = TransferBuffer::from_slice(&vec![3; INLINE_MAX + 1]).expect("alloc");
    let list = [shared, long, TransferBuffer::from_slice(b"short").expect("alloc"), TransferBuffer::alloc_shared(0).expect("alloc")];
    let mut value = Value::Array(list.into_iter().map(Value::Buffer).collect());
    a.send(&mut value, &[], None).expect("send");
    let Value::Array(left) = value else { panic!("list") };
    assert!(left.iter().all(|v| !matches!(v, Value::Buffer(b) if !b.is_detached())), "{left:?}");
    let Value::Array(items) = message(&b).value else { panic!("list") };
    let bytes: Vec<_> = items.into_iter().map(|v| if let Value::Buffer(b) = v { b } else { panic!("{v:?}") }).collect();
    assert_eq!((bytes[0].len(), bytes[0].to_vec().expect("bytes")[99_999]), (100_000, b'!'));
    assert!(bytes[1].to_vec().expect("bytes").iter().all(|byte| *byte == 3) && bytes[1].len() == INLINE_MAX + 1);
    assert_eq!(bytes[2].to_vec().expect("bytes"), b"short");
    assert_eq!(bytes[3].len(), 0);
    assert!(bytes[0].fd().is_some() && bytes[1].fd().is_some() && bytes[2].fd().is_none());
}

#[test]
fn a_send_that_fails_leaves_the_value_whole() {
    let (a, b) = Channel::pair(small()).expect("pair");
    let mut filler = 0;
    while a.try_send(&mut Value::from(vec![0; 1000]), &[]).expect("send") || a.try_send(&mut "x".into(), &[]).expect("send") {
        filler += 1;
    }
    let mut value = Value::Buffer(TransferBuffer::from_slice(b"mine").expect("alloc"));
    assert!(!a.try_send(&mut value, &[]).expect("full"));
    assert_eq!(a.send(&mut value, &[], SOON).expect_err("full").kind(), ErrorKind::Timeout);
    let Value::Buffer(buffer) = &value else { panic!("kept") };
    assert_eq!(buffer.to_vec().expect("bytes"), b"mine");
    for _ in 0..filler {
        message(&b);
    }
    a.send(&mut value, &[], None).expect("room again");
    assert!(matches!(message(&b).value, Value::Buffer(_)));
}

#[test]
fn a_message_longer_than_the_ring_is_spilled() {
    let (a, b) = Channel::pair(small()).expect("pair");
    let bytes: Vec<u8> = (0..1_000_000u32).map(|n| n as u8).collect();
    let mut value = Value::Array(vec![Value::from(bytes.clone()), Value::Buffer(TransferBuffer::from_slice(b"in it").expect("alloc"))]);
    a.send(&mut value, &[], None).expect("send");
    send(&a, 1);
    let Value::Array(items) = message(&b).value else { panic!("list") };
    assert!(matches!(&items[0], Value::Bytes(got) if got[..] == bytes[..]));
    assert!(matches!(&items[1], Value::Buffer(got) if got.to_vec().expect("bytes") == b"in it"));
    assert_eq!(int(&b), 1);
}

#[test]
fn a_call_that_must_not_wait_gets_what_is_there() {
    let (a, b) = pair();
    assert_eq!(b.recv(Some(Duration::ZERO)).expect_err("nothing").kind(), ErrorKind::Timeout);
    send(&a, 1);
    // The first look finds the greeting.
    while b.try_recv().expect("recv").is_none() {}
    send(&a, 2);
    assert!(matches!(b.recv(Some(Duration::ZERO)).expect("there"), Incoming::Message(m) if m.value.as_int() == Some(2)));
}

#[test]
fn fds_go_along_and_stay_the_senders() {
    let (a, b) = pair();
    let (mut read, mut write) = std::io::pipe().expect("pipe");
    a.send(&mut "take".into(), &[write.as_fd()], None).expect("send");
    let got = message(&b);
    assert_eq!((got.value.as_str(), got.fds.len()), (Some("take"), 1));
    write.write_all(b"1").expect("write");
    File::from(got.fds.into_iter().next().expect("one")).write_all(b"2").expect("write");
    drop(write);
    let mut text = String::new();
    read.read_to_string(&mut text).expect("read");
    assert_eq!(text, "12");
}

#[test]
fn too_many_fds_and_too_long_messages_are_refused_with_their_limits() {
    let (a, b) = Channel::pair(Options { max_message: 1000, ..Options::default() }).expect("pair");
    let null = File::open("/dev/null").expect("open");
    let fds = vec![null.as_fd(); MAX_FDS + 1];
    let many = a.send(&mut Value::Nil, &fds, None).expect_err("too many");
    assert_eq!(many.to_string(), "too large: message has too many fds and buffers (fds=254, max_fds=253)");
    let long = a.send(&mut Value::from(vec![0; 1000]), &[], None).expect_err("too long");
    assert_eq!(long.kind(), ErrorKind::TooLarge);
    assert!(long.to_string().contains("1000"), "{long}");
    a.send(&mut Value::Nil, &fds[..MAX_FDS], None).expect("as many as there may be");
    assert_eq!(message(&b).fds.len(), MAX_FDS);
}

#[test]
fn requests_get_their_own_replies() {
    let (a, b) = pair();
    let server = thread::spawn(move || {
        let mut waiting = Vec::new();
        for _ in 0..4 {
            let Incoming::Request(request) = b.recv(None).expect("request") else { panic!("asked") };
            waiting.push((request.id, request.message.value.as_int().expect("int")));
        }
        // In another order than they came.
        for (id, n) in waiting.into_iter().rev() {
            b.reply(id, n == 3, &mut Value::Int(n * 10), &[], None).expect("reply");
        }
        b
    });
    let clients: Vec<_> = (0..4)
        .map(|n| {
            let a = a.clone();
            thread::spawn(move || {
                let reply = a.request(&mut Value::Int(n), &[], None).expect("reply");
                assert_eq!((reply.message.value.as_int(), reply.failed), (Some(n * 10), n == 3));
            })
        })
        .collect();
    clients.into_iter().for_each(|t| t.join().expect("client"));
    server.join().expect("server");
}

#[test]
fn messages_that_come_while_a_request_waits_are_kept() {
    let (a, b) = pair();
    let server = thread::spawn(move || {
        let Incoming::Request(request) = b.recv(None).expect("request") else { panic!("asked") };
        send(&b, 1);
        send(&b, 2);
        b.reply(request.id, false, &mut Value::Nil, &[], None).expect("reply");
        b
    });
    a.request(&mut Value::Nil, &[], None).expect("reply");
    assert_eq!((int(&a), int(&a)), (1, 2));
    server.join().expect("server");
}

#[test]
fn a_late_reply_is_dropped_and_counted() {
    let (a, b) = pair();
    assert_eq!(a.request(&mut Value::Nil, &[], SOON).expect_err("nobody answers").kind(), ErrorKind::Timeout);
    let Incoming::Request(request) = b.recv(None).expect("request") else { panic!("asked") };
    b.reply(request.id, false, &mut Value::Nil, &[], None).expect("reply");
    send(&b, 5);
    assert_eq!(int(&a), 5);
    assert_eq!((a.stats().late_replies, a.stats().pending), (1, 0));
}

#[test]
fn a_waiting_request_reads_no_more_ahead_than_the_inbox_holds() {
    let (a, b) = pair();
    for n in 0..MAX_INBOX as i64 + 10 {
        send(&b, n);
    }
    // Nobody else receives: it would wait for itself.
    for _ in 0..2 {
        assert_eq!(a.request(&mut Value::Nil, &[], None).expect_err("behind messages").kind(), ErrorKind::Full);
        assert_eq!((a.stats().received, a.stats().pending), (MAX_INBOX as u64, 0));
    }
    for n in 0..MAX_INBOX as i64 + 10 {
        assert_eq!(int(&a), n);
    }
}

#[test]
fn a_waiting_request_reads_no_more_fds_ahead_than_the_inbox_holds() {
    let (a, b) = pair();
    let file = std::fs::File::open("/dev/null").expect("it is there");
    let fds = [file.as_fd(); MAX_INBOX_FDS / 2 + 1];
    for _ in 0..5 {
        b.send(&mut Value::Nil, &fds, None).expect("sent");
    }
    for _ in 0..2 {
        let refused = a.request(&mut Value::Nil, &[], None).expect_err("behind messages");
        assert_eq!((refused.kind(), a.stats().received), (ErrorKind::Full, 2));
        assert!(refused.to_string().contains("fds=66, max_fds=64"), "{refused}");
    }
    for _ in 0..5 {
        assert!(matches!(a.recv(None), Ok(Incoming::Message(message)) if message.fds.len() == fds.len()));
    }
}

const MIB: usize = 1 << 20;

/// A number and 300 kB: in the message, which is spilled, in a buffer that moves, or in one that the sender shares.
fn long(n: i64, how: usize) -> Value {
    let bytes = vec![how as u8; 300_000];
    let payload = match how {
        0 => Value::from(bytes),
        _ => Value::Buffer(TransferBuffer::from_slice(&bytes).expect("memory")),
    };
    let payload = match payload {
        Value::Buffer(buffer) if how == 2 => Value::Buffer(buffer.to_shared().expect("memory")),
        payload => payload,
    };
    Value::Array(vec![Value::Int(n), payload])
}

fn number(message: &Message) -> Option<i64> {
    let Value::Array(items) = &message.value else { panic!("list") };
    items[0].as_int()
}

#[test]
fn the_bytes_of_messages_that_wait_have_a_bound_wherever_they_lie() {
    for how in 0..3 {
        let (a, b) = Channel::pair(Options { max_queued: MIB, ..Options::default() }).expect("pair");
        for n in 0..10 {
            b.send(&mut long(n, how), &[], None).expect("send");
        }
        let e = a.request(&mut Value::Nil, &[], None).expect_err("behind messages");
        assert_eq!((e.kind(), a.unread()), (ErrorKind::Full, 4), "{how}: {e}");
        assert!(e.to_string().contains("max_queued=1048576"), "{e}");
        // A loop reads no further either.
        assert!(matches!(a.try_outcome(), Ok(Found::Nothing)));
        for n in 0..10 {
            assert_eq!(number(&message(&a)), Some(n));
        }
        a.close();
    }
}

#[test]
fn a_reply_is_not_held_back_with_the_messages() {
    let (a, b) = Channel::pair(Options { max_queued: 1000, ..Options::default() }).expect("pair");
    let server = thread::spawn(move || {
        for _ in 0..2 {
            let Incoming::Request(request) = b.recv(None).expect("request") else { panic!("asked") };
            if request.id == 1 {
                b.send(&mut long(1, 0), &[], None).expect("send");
            }
            b.reply(request.id, false, &mut long(2, 1), &[], None).expect("reply");
        }
        b
    });
    a.request(&mut Value::Nil, &[], None).expect("behind one message, which is always read");
    assert_eq!(a.unread(), 1);
    // As for a loop.
    let id = a.post_request(&mut Value::Nil, &[], None).expect("post");
    assert_eq!(id, 2);
    let _ = a.fd().expect("fd");
    loop {
        match a.try_outcome().expect("outcome") {
            Found::Incoming(Incoming::Reply { id: 2, outcome: Ok(_) }) => break,
            Found::Nothing => until_readable(&a),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((a.unread(), number(&message(&a))), (1, Some(1)));
    server.join().expect("server");
}

#[test]
fn a_request_waits_behind_messages_that_another_thread_receives() {
    let (a, b) = Channel::pair(Options { max_queued: MIB, ..Options::default() }).expect("pair");
    b.send(&mut long(0, 0), &[], None).expect("send");
    let (go, gone) = std::sync::mpsc::channel::<()>();
    let (ready, begun) = std::sync::mpsc::channel();
    let receiver = thread::spawn({
        let a = a.clone();
        move || {
            assert_eq!(number(&message(&a)), Some(0));
            ready.send(()).expect("main");
            gone.recv().expect("main");
            (1..=8).for_each(|n| assert_eq!(number(&message(&a)), Some(n)));
        }
    });
    begun.recv().expect("receiver");
    let server = thread::spawn(move || {
        let Incoming::Request(request) = b.recv(None).expect("request") else { panic!("asked") };
        (1..=8).for_each(|n| b.send(&mut long(n, 0), &[], None).expect("send"));
        b.reply(request.id, false, &mut Value::Nil, &[], None).expect("reply");
        b
    });
    let asking = thread::spawn({
        let a = a.clone();
        move || a.request(&mut Value::Nil, &[], None).map(|reply| reply.failed)
    });
    // Held back, and waiting for the receiver.
    while lock(&a.inner.inbox).followers == 0 {
        thread::yield_now();
    }
    assert_eq!(a.unread(), 4);
    go.send(()).expect("receiver");
    assert_eq!(asking.join().expect("thread"), Ok(false));
    receiver.join().expect("receiver");
    server.join().expect("server");
}

#[test]
fn a_loop_reads_on_when_the_bytes_that_wait_have_been_received() {
    let (a, b) = Channel::pair(Options { max_queued: MIB, ..Options::default() }).expect("pair");
    let _ = a.fd().expect("fd");
    (0..10).for_each(|n| b.send(&mut long(n, 2), &[], None).expect("send"));
    let look = || while !matches!(a.try_outcome(), Ok(Found::Nothing)) {};
    let mut taken = 0;
    while taken < 10 {
        look();
        assert_eq!((a.unread(), readable(&a)), ((10 - taken).min(4), false));
        assert!(matches!(a.try_message(), Ok(Some(Incoming::Message(m))) if number(&m) == Some(taken as i64)));
        taken += 1;
        // There is room where there was none: the next one is looked for.
        assert_eq!(readable(&a), taken <= 7);
    }
}

#[test]
fn close_is_seen_after_the_last_message_by_both_sides() {
    let (a, b) = pair();
    send(&a, 1);
    send(&a, 2);
    a.close();
    assert_eq!((int(&b), int(&b)), (1, 2));
    let e = recv_error(&b);
    assert_eq!(e.to_string(), "closed: other end closed the channel");
    assert_eq!(b.send(&mut Value::Nil, &[], None).expect_err("ended").kind(), ErrorKind::Closed);
    assert_eq!(recv_error(&a).to_string(), "closed: channel was closed");
    assert_eq!(a.send(&mut Value::Nil, &[], None).expect_err("ended").kind(), ErrorKind::Closed);
}

#[test]
fn what_a_reader_has_in_hand_when_its_end_closes_is_dropped() {
    let (a, b) = pair();
    send(&b, 1);
    assert_eq!(int(&a), 1);
    let (read, write) = std::io::pipe().expect("pipe");
    b.send(&mut Value::Nil, &[write.as_fd()], None).expect("send");
    drop(write);
    // A thread that reads for all is this far when another one closes the end.
    lock(&a.inner.inbox).pumping = true;
    let found = a.inner.take(&mut lock(&a.inner.rx));
    assert!(matches!(found, Ok(receiving::Look::Came(..))), "{found:?}");
    a.close();
    let mut inbox = lock(&a.inner.inbox);
    inbox.pumping = false;
    a.inner.deliver(&mut inbox, found).expect("no error of that thread");
    drop(inbox);
    assert_eq!((recv_error(&a).kind(), a.unread()), (ErrorKind::Closed, 0));
    let mut fds = [poll::readable(read.as_raw_fd())];
    poll::wait_readable(&mut fds, None);
    assert_eq!(fds[0].revents & libc::POLLHUP, libc::POLLHUP, "no writer is left");
}

#[test]
fn close_wakes_whoever_waits_on_either_side() {
    let (a, b) = Channel::pair(small()).expect("pair");
    send(&a, 0);
    assert_eq!(int(&b), 0);
    let start = |wait: Box<dyn Fn() -> Result<()> + Send>| {
        thread::spawn(move || {
            loop {
                if let Err(e) = wait() {
                    return e.kind();
                }
            }
        })
    };
    let (receiver, other, sender) = (a.clone(), b.clone(), b.clone());
    let waiting = [
        // Nobody reads what `b` sends, nobody sends to `b`.
        start(Box::new(move || other.recv(None).map(|_| ()))),
        start(Box::new(move || sender.send(&mut Value::from(vec![0; 500]), &[], None))),
    ];
    while b.try_send(&mut Value::Nil, &[]).expect("send") {}
    receiver.close();
    for thread in waiting {
        assert_eq!(thread.join().expect("thread"), ErrorKind::Closed);
    }
}

#[test]
fn a_request_that_is_never_answered_ends_with_the_channel() {
    let (a, b) = pair();
    let asking = {
        let a = a.clone();
        thread::spawn(move || a.request(&mut Value::Nil, &[], None).expect_err("ended"))
    };
    assert!(matches!(b.recv(None).expect("request"), Incoming::Request(_)));
    drop(b);
    assert_eq!(asking.join().expect("thread").to_string(), "closed: other end closed the channel");
    assert_eq!(a.stats().pending, 0);
}

fn readable(channel: &Channel) -> bool {
    let mut fds = [poll::readable(channel.fd().expect("fd"))];
    poll::wait_readable(&mut fds, Some(Duration::ZERO));
    poll::is_ready(&fds[0])
}

/// Waits for the fd, as an event loop does.
fn until_readable(channel: &Channel) {
    poll::wait_readable(&mut [poll::readable(channel.fd().expect("fd"))], None);
}

/// As an event loop: polls, and takes all there is.
fn next(channel: &Channel) -> Result<Incoming> {
    loop {
        if let Some(incoming) = channel.try_recv()? {
            return Ok(incoming);
        }
        until_readable(channel);
    }
}

#[test]
fn the_fd_is_readable_while_there_is_something() {
    let (a, b) = pair();
    assert!(b.try_recv().expect("nothing").is_none());
    let _ = b.fd().expect("fd");
    assert!(b.try_recv().expect("nothing").is_none());
    assert!(a.try_recv().expect("nothing").is_none());
    while readable(&b) {
        assert!(b.try_recv().expect("the greeting").is_none());
    }
    send(&a, 1);
    send(&a, 2);
    assert!(readable(&b));
    assert!(matches!(b.try_recv().expect("one"), Some(Incoming::Message(_))));
    assert!(readable(&b), "level-triggered");
    assert!(matches!(b.try_recv().expect("two"), Some(Incoming::Message(_))));
    assert!(b.try_recv().expect("none").is_none());
    assert!(!readable(&b));
    a.close();
    until_readable(&b);
    assert_eq!(next(&b).expect_err("closed").kind(), ErrorKind::Closed);
}

#[test]
fn a_loop_gets_replies_and_timeouts_among_what_arrives() {
    let (a, b) = pair();
    let _ = a.fd().expect("fd");
    let never = a.post_request(&mut Value::Int(1), &[], SOON).expect("post");
    let answered = a.post_request(&mut Value::Int(2), &[], Some(Duration::from_secs(60))).expect("post");
    for _ in 0..2 {
        let Incoming::Request(request) = b.recv(None).expect("request") else { panic!("asked") };
        if request.message.value.as_int() == Some(2) {
            b.reply(request.id, false, &mut "yes".into(), &[], None).expect("reply");
        }
    }
    let mut outcomes = Vec::new();
    while outcomes.len() < 2 {
        let Incoming::Reply { id, outcome } = next(&a).expect("outcome") else { panic!("a reply") };
        outcomes.push((id, outcome.map(|r| r.message.value.as_str().map(str::to_owned)).map_err(|e| e.kind())));
    }
    assert_eq!(outcomes, [(answered, Ok(Some("yes".to_owned()))), (never, Err(ErrorKind::Timeout))]);
    let lost = a.post_request(&mut Value::Nil, &[], None).expect("post");
    drop(b);
    assert!(matches!(next(&a).expect("outcome"), Incoming::Reply { id, outcome: Err(e) } if id == lost && e.kind() == ErrorKind::Closed));
    assert_eq!(next(&a).expect_err("ended").kind(), ErrorKind::Closed);
}

#[test]
fn what_a_loop_posts_without_room_is_queued_in_order_and_told_when_it_is_sent() {
    let (a, b) = Channel::pair(Options { max_queued: 20_000, ..small() }).expect("pair");
    let _ = a.fd().expect("fd");
    let mut posted = 0;
    let full = loop {
        match a.post(&mut Value::Array(vec![Value::Int(posted), Value::from(vec![0; 500])]), &[]) {
            Ok(_) => posted += 1,
            Err(e) => break e,
        }
    };
    assert_eq!(full.kind(), ErrorKind::Full);
    assert!(full.to_string().contains("max_queued=20000"), "{full}");
    assert!(a.stats().queued > 10_000);
    let reader = thread::spawn(move || {
        for n in 0..posted {
            let Value::Array(items) = message(&b).value else { panic!("list") };
            assert_eq!(items[0].as_int(), Some(n));
        }
        b
    });
    assert!(matches!(next(&a).expect("event"), Incoming::Drained));
    assert_eq!(a.stats().queued, 0);
    reader.join().expect("reader");
}

#[test]
fn what_a_loop_posts_is_counted_with_what_is_spilled_and_what_moves() {
    for how in 0..3 {
        let (a, b) = Channel::pair(Options { max_queued: MIB, ..small() }).expect("pair");
        let _ = a.fd().expect("fd");
        while a.post(&mut Value::from(vec![0; 500]), &[]).expect("post") {}
        let before = a.stats().queued;
        for n in 1..=3 {
            assert!(!a.post(&mut long(n, how), &[]).expect("queued"));
            let grown = (a.stats().queued - before) / n as u64;
            assert!((300_000..300_100).contains(&grown), "{how}: {grown}");
        }
        let mut fourth = long(4, how);
        assert_eq!(a.post(&mut fourth, &[]).expect_err("too much").kind(), ErrorKind::Full);
        // Nothing of it was given up.
        while b.try_recv().expect("message").is_some() || a.stats().queued > 0 {
            let _ = a.try_recv().expect("drained");
        }
        a.send(&mut fourth, &[], None).expect("send");
        assert_eq!(number(&message(&b)), Some(4));
    }
}

#[test]
fn a_message_longer_than_the_queue_is_queued_alone() {
    let (a, b) = Channel::pair(Options { max_queued: 1000, ..small() }).expect("pair");
    let _ = a.fd().expect("fd");
    while a.try_send(&mut Value::from(vec![0; 500]), &[]).expect("send") || a.try_send(&mut "x".into(), &[]).expect("send") {}
    assert!(!a.post(&mut long(1, 0), &[]).expect("queued"));
    assert_eq!(a.post(&mut Value::Nil, &[]).expect_err("behind it").kind(), ErrorKind::Full);
    let reader = thread::spawn(move || {
        while !matches!(message(&b).value, Value::Array(_)) {}
        b
    });
    assert!(matches!(next(&a).expect("event"), Incoming::Drained));
    assert_eq!(a.stats().queued, 0);
    reader.join().expect("reader");
}

/// Fills the channel with numbered messages, makes a thread wait to send the next one, and queues three behind it. Gives the thread's number.
fn queue_behind_a_sender(a: &Channel) -> (i64, thread::JoinHandle<Result<()>>) {
    let numbered = |n| Value::Array(vec![Value::Int(n), Value::from(vec![0; 500])]);
    let mut count = 0;
    while a.try_send(&mut numbered(count), &[]).expect("sent") {
        count += 1;
    }
    let sender = thread::spawn({
        let a = a.clone();
        move || a.send(&mut numbered(count), &[], None)
    });
    while a.inner.tx.try_enter().is_some() {
        thread::yield_now();
    }
    for n in 1..=3 {
        assert!(!a.post(&mut numbered(count + n), &[]).expect("queued"));
    }
    (count, sender)
}

#[test]
fn a_try_that_finds_the_turn_taken_is_told_when_it_is_given_back() {
    let (a, _b) = pair();
    let _ = a.fd().expect("fd");
    settle(&a);
    let turn = a.inner.try_enter().expect("free");
    assert!(!a.try_send(&mut Value::Nil, &[]).expect("open"));
    settle(&a);
    drop(turn);
    assert!(readable(&a) && matches!(next(&a).expect("event"), Incoming::Drained));
    settle(&a);
    assert!(a.try_send(&mut Value::Nil, &[]).expect("room"));
}

#[test]
fn a_loop_that_finds_the_turn_taken_looks_again_when_it_is_given_back() {
    let (a, _b) = pair();
    settle(&a);
    let turn = a.inner.try_enter().expect("free");
    // As after a thread's send: there is room already, which no fd of a ring tells.
    a.inner.wants_room.store(true, Ordering::Relaxed);
    a.inner.ring();
    settle(&a);
    drop(turn);
    assert!(readable(&a) && matches!(next(&a).expect("event"), Incoming::Drained));
    settle(&a);
}

#[test]
fn a_turn_that_is_given_back_after_the_end_keeps_nothing() {
    let (a, b) = pair();
    let (read, write) = std::io::pipe().expect("pipe");
    settle(&a);
    let turn = a.inner.try_enter().expect("free");
    assert!(!a.post(&mut Value::from(vec![0; 1000]), &[write.as_fd()]).expect("queued"));
    drop(write);
    a.close_now();
    assert!(a.stats().queued > 0, "whoever has the turn may be sending it");
    drop(turn);
    assert_eq!(a.stats().queued, 0);
    let mut fds = [poll::readable(read.as_raw_fd())];
    poll::wait_readable(&mut fds, None);
    assert_eq!(fds[0].revents & libc::POLLHUP, libc::POLLHUP, "no writer is left");
    assert_eq!(recv_error(&b).kind(), ErrorKind::Closed);
}

/// Until that thread sleeps, or is done.
fn until_asleep<T>(thread: &thread::JoinHandle<T>, tid: libc::pid_t) {
    let sleeps = || std::fs::read_to_string(format!("/proc/self/task/{tid}/stat")).is_ok_and(|stat| stat.contains(") S "));
    while !thread.is_finished() && !sleeps() {
        thread::yield_now();
    }
}

#[test]
fn a_call_that_finds_another_thread_opening_waits_for_that() {
    type Call = fn(&Channel) -> Result<bool>;
    let calls: [(&str, Call); 5] = [
        ("post", |a| a.post(&mut Value::Nil, &[])),
        ("post_request", |a| a.post_request(&mut Value::Nil, &[], None).map(|_| true)),
        ("post_reply", |a| a.post_reply(1, false, &mut Value::Nil, &[])),
        ("try_send", |a| a.try_send(&mut Value::Nil, &[])),
        ("try_open", Channel::try_open),
    ];
    for (name, call) in calls {
        let (a, _b) = pair();
        let turn = a.inner.opening.try_enter().expect("free");
        let (tell, told) = std::sync::mpsc::channel();
        let caller = thread::spawn({
            let a = a.clone();
            move || {
                // SAFETY: a plain call.
                tell.send(unsafe { libc::gettid() }).expect("the test listens");
                call(&a)
            }
        });
        until_asleep(&caller, told.recv().expect("told"));
        drop(turn);
        assert_eq!(caller.join().expect("caller"), Ok(true), "{name}");
    }
}

#[test]
fn a_try_before_the_other_end_offers_its_rings_is_told_when_it_has() {
    for waited in [false, true] {
        let path = listener_path("offer");
        let listener = Channel::listen(&path, Options::default()).expect("listen");
        let a = Channel::begin_connect(&path, Options::default()).expect("connect");
        settle(&a);
        let waiter = waited.then(|| {
            thread::spawn({
                let a = a.clone();
                move || a.wait_open(None)
            })
        });
        while waited && a.inner.opening.try_enter().is_some() {
            thread::yield_now();
        }
        // At once: a thread that waits for the other end holds up no loop.
        assert!(!a.try_open().expect("not yet"));
        assert!(!a.try_send(&mut Value::Nil, &[]).expect("not yet"));
        assert_eq!(a.post(&mut Value::Nil, &[]).expect_err("not yet").kind(), ErrorKind::Full);
        settle(&a);
        let b = listener.accept(None).expect("accept");
        assert!(matches!(next(&a).expect("event"), Incoming::Drained));
        assert!(a.try_send(&mut Value::Int(1), &[]).expect("room"));
        assert_eq!(int(&b), 1);
        settle(&a);
        waiter.into_iter().for_each(|waiter| waiter.join().expect("waiter").expect("open"));
    }
}

#[test]
fn a_forked_child_is_told_so_by_every_call_whatever_lock_is_held() {
    let (a, _b) = pair();
    a.try_open().expect("open");
    let (shut, _other) = pair();
    // As by a thread of the parent, which is not there in the child.
    let inners = [&a.inner, &shut.inner];
    let turns = inners.map(|inner| (inner.opening.try_enter(), inner.tx.try_enter()));
    let locks = inners.map(|i| (lock(&i.door), lock(&i.line), lock(&i.behind), lock(&i.rx), lock(&i.inbox), lock(&i.ready)));
    #[allow(clippy::disallowed_methods, reason = "what a forked child sees is tested")]
    // SAFETY: the child makes calls that take no lock, and leaves.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: a plain call. A child that hangs is killed.
        unsafe { libc::alarm(10) };
        let wrong = [&a, &shut].into_iter().find_map(not_refused);
        // SAFETY: the way out of a forked child.
        unsafe { libc::_exit(wrong.map_or(0, |at| at as i32 + 1)) };
    }
    let mut status = 0;
    // SAFETY: waits for its own child; `status` is a valid out pointer.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert!(libc::WIFEXITED(status), "the child hung: {status}");
    assert_eq!(libc::WEXITSTATUS(status), 0, "number of the call that is wrong");
    drop((locks, turns));
    assert_eq!((a.ended(), shut.ended()), (None, None));
    a.send(&mut Value::Nil, &[], None).expect("the child's calls did nothing here");
}

/// The first call that a forked child is not refused.
fn not_refused(channel: &Channel) -> Option<usize> {
    fn forked<T>(refused: Result<T>) -> bool {
        refused.is_err_and(|e| e.kind() == ErrorKind::Forked)
    }
    let value = &mut Value::Nil;
    let told = [
        forked(channel.try_open()),
        forked(channel.wait_open(None)),
        forked(channel.socket()),
        forked(channel.detach()),
        forked(channel.send(value, &[], None)),
        forked(channel.try_send(value, &[])),
        forked(channel.post(value, &[])),
        forked(channel.request(value, &[], None)),
        forked(channel.begin_request(value, &[], None)),
        forked(channel.end_request(1, None)),
        forked(channel.post_request(value, &[], None)),
        forked(channel.reply(1, false, value, &[], None)),
        forked(channel.post_reply(1, false, value, &[])),
        forked(channel.recv(None)),
        forked(channel.try_recv()),
        forked(channel.recv_message(None)),
        forked(channel.try_message()),
        forked(channel.try_outcome()),
        forked(channel.fd()),
        forked(channel.wait_closed(None)),
        channel.ended().is_some_and(|e| e.kind() == ErrorKind::Forked),
        channel.stats() == Stats::default(),
        channel.unread() == 0,
        channel.peer_pid().is_none(),
        !channel.abandon(1),
    ];
    channel.close();
    channel.shutdown(None);
    channel.close_now();
    told.iter().position(|told| !told)
}

#[test]
fn what_a_loop_posts_while_a_thread_waits_for_room_goes_behind_it() {
    let (a, b) = Channel::pair(small()).expect("pair");
    let _ = a.fd().expect("fd");
    let (count, sender) = queue_behind_a_sender(&a);
    let reader = thread::spawn(move || {
        for n in 0..=count + 3 {
            let Value::Array(items) = message(&b).value else { panic!("list") };
            assert_eq!(items[0].as_int(), Some(n));
        }
        b
    });
    assert!(matches!(next(&a).expect("event"), Incoming::Drained));
    sender.join().expect("sender").expect("sent");
    reader.join().expect("reader");
    assert_eq!(a.stats().queued, 0);
}

#[test]
fn room_that_is_filled_before_it_is_told_is_told_when_there_is_again() {
    for blocking in [false, true] {
        let (a, b) = Channel::pair(small()).expect("pair");
        settle(&a);
        let mut sent = 0;
        while a.try_send(&mut Value::from(vec![0; 500]), &[]).expect("send") {
            sent += 1;
        }
        (0..sent).for_each(|_| drop(message(&b)));
        send(&b, 1);
        // One look finds both, the message first.
        assert!(matches!(next(&a).expect("event"), Incoming::Message(_)));
        let mut posted = 1;
        while a.post(&mut Value::from(vec![0; 500]), &[]).expect("post") {
            posted += 1;
        }
        if blocking {
            assert_eq!(a.recv(SOON).expect_err("no room yet").kind(), ErrorKind::Timeout);
        } else {
            assert!(a.try_recv().expect("no room yet").is_none());
            settle(&a);
        }
        (0..posted - 1).for_each(|_| drop(message(&b)));
        assert!(matches!(next(&a).expect("event"), Incoming::Drained));
        assert_eq!(a.stats().queued, 0);
        drop(message(&b));
        settle(&a);
    }
}

#[test]
fn messages_that_nobody_takes_hold_the_other_end_back_until_it_has_gone() {
    let (a, b) = pair();
    let id = a.post_request(&mut Value::Nil, &[], None).expect("asked");
    assert!(matches!(b.recv(None), Ok(Incoming::Request(_))));
    let sent = MAX_INBOX as i64 + 10;
    for n in 0..sent {
        send(&b, n);
    }
    b.reply(id, false, &mut Value::Nil, &[], None).expect("replied");
    let look = || loop {
        match a.try_outcome() {
            Ok(Found::More) => {}
            found => break found,
        }
    };
    assert!(matches!(look(), Ok(Found::Nothing)));
    assert_eq!(a.unread(), MAX_INBOX);
    // The fd of an end that reads no further is readable until the next look, and then when the other end goes.
    assert!(readable(&a));
    assert!(matches!(look(), Ok(Found::Nothing)));
    assert!(!readable(&a));
    assert!(matches!(a.try_message(), Ok(Some(Incoming::Message(_)))));
    assert!(readable(&a));
    assert!(matches!(look(), Ok(Found::Nothing)));
    assert_eq!(a.unread(), MAX_INBOX);
    assert!(!readable(&a));
    b.close();
    until_readable(&a);
    assert!(matches!(look(), Ok(Found::Incoming(Incoming::Reply { outcome: Ok(_), .. }))));
    assert_eq!(look().expect_err("ended").kind(), ErrorKind::Closed);
    for n in 1..sent {
        assert_eq!(int(&a), n);
    }
    assert_eq!(recv_error(&a).kind(), ErrorKind::Closed);
}

#[test]
fn close_sends_what_was_posted_first() {
    let (a, b) = Channel::pair(small()).expect("pair");
    let _ = a.fd().expect("fd");
    let mut posted = 0;
    while a.post(&mut Value::from(vec![0; 500]), &[]).expect("post") {
        posted += 1;
    }
    for _ in 0..10 {
        a.post(&mut Value::from(vec![0; 500]), &[]).expect("post");
    }
    a.close();
    assert_eq!(a.post(&mut Value::Nil, &[]).expect_err("closed").kind(), ErrorKind::Closed);
    let reader = thread::spawn(move || {
        let mut n = 0;
        loop {
            match b.recv(None) {
                Ok(_) => n += 1,
                Err(e) => return (n, e.kind()),
            }
        }
    });
    assert_eq!(next(&a).expect_err("done").kind(), ErrorKind::Closed);
    // The one that found no room was queued as well.
    assert_eq!(reader.join().expect("reader"), (posted + 11, ErrorKind::Closed));
}

/// An end with more queued than there is room for, the other end, and how many were posted.
fn queued() -> (Channel, Channel, usize) {
    let (a, b) = Channel::pair(small()).expect("pair");
    let mut posted = 11;
    while a.post(&mut Value::from(vec![0; 500]), &[]).expect("post") {
        posted += 1;
    }
    for _ in 0..10 {
        a.post(&mut Value::from(vec![0; 500]), &[]).expect("post");
    }
    (a, b, posted)
}

#[test]
fn shutdown_waits_until_what_was_queued_is_sent() {
    let (a, b, posted) = queued();
    let closing = thread::spawn(move || {
        a.shutdown(None);
        (a.stats().queued, recv_error(&a).kind())
    });
    (0..posted).for_each(|_| drop(message(&b)));
    assert_eq!(recv_error(&b).kind(), ErrorKind::Closed);
    assert_eq!(closing.join().expect("closing"), (0, ErrorKind::Closed));
}

#[test]
fn shutdown_drops_what_is_not_sent_within_its_grace() {
    for grace in [Some(Duration::ZERO), SOON] {
        let (a, b, posted) = queued();
        a.shutdown(grace);
        assert_eq!((a.ended().map(|e| e.kind()), a.stats().queued), (Some(ErrorKind::Closed), 0));
        let got = std::iter::from_fn(|| b.recv(None).ok()).count();
        assert!(got < posted, "{got} of {posted}");
        assert_eq!(recv_error(&b).kind(), ErrorKind::Closed);
    }
}

#[test]
fn a_close_is_waited_for_in_slices_and_ends_with_the_other_end() {
    let (a, b, _) = queued();
    a.wait_closed(SOON).expect("nothing was closed");
    a.send(&mut Value::Nil, &[], SOON).expect_err("no room");
    a.close();
    assert_eq!(a.wait_closed(SOON).expect_err("nobody reads").kind(), ErrorKind::Timeout);
    assert_eq!(a.ended(), None);
    assert_eq!(a.send(&mut Value::Nil, &[], None).expect_err("closed").kind(), ErrorKind::Closed);
    let closing = thread::spawn({
        let a = a.clone();
        move || a.wait_closed(None)
    });
    while a.inner.tx.try_enter().is_some() {
        thread::yield_now();
    }
    b.close();
    closing.join().expect("thread").expect("nobody is there to send it to");
    assert!(a.ended().is_some());
    a.shutdown(None);
}

#[test]
fn a_close_sends_what_was_queued_behind_a_thread_that_waits_for_room() {
    for waits in [false, true] {
        let (a, b) = Channel::pair(small()).expect("pair");
        settle(&a);
        let (count, sender) = queue_behind_a_sender(&a);
        a.close();
        assert_eq!(a.ended(), None);
        assert_eq!(a.send(&mut Value::Nil, &[], None).expect_err("closed").kind(), ErrorKind::Closed);
        let reader = thread::spawn(move || {
            let got: Vec<_> = std::iter::from_fn(|| b.recv(None).ok()).collect();
            (got.len(), recv_error(&b).kind())
        });
        if waits {
            a.shutdown(None);
        } else {
            assert_eq!(next(&a).expect_err("done").kind(), ErrorKind::Closed);
        }
        sender.join().expect("sender").expect("it was first");
        assert_eq!(reader.join().expect("reader"), (count as usize + 4, ErrorKind::Closed));
        assert_eq!(a.stats().queued, 0);
    }
}

#[test]
fn shutdown_of_an_end_with_nothing_queued_ends_it_at_once() {
    let (a, b) = pair();
    send(&a, 1);
    a.shutdown(None);
    assert_eq!((int(&b), recv_error(&b).kind()), (1, ErrorKind::Closed));
}

#[test]
fn a_failed_try_is_told_when_there_is_room_again_and_then_no_more() {
    let (a, b) = Channel::pair(small()).expect("pair");
    send(&b, 0);
    let _ = a.fd().expect("fd");
    assert_eq!(next(&a).map(|i| matches!(i, Incoming::Message(_))), Ok(true));
    while a.try_send(&mut Value::from(vec![0; 500]), &[]).expect("send") {}
    assert!(a.try_recv().expect("no room yet").is_none());
    while readable(&a) {
        assert!(a.try_recv().expect("no room yet").is_none());
    }
    while b.try_recv().expect("drain").is_some() {}
    assert!(matches!(next(&a).expect("event"), Incoming::Drained));
    while readable(&a) {
        assert!(a.try_recv().expect("nothing").is_none());
    }
}

/// Until there is nothing for a loop to do.
fn settle(channel: &Channel) {
    let _ = channel.fd().expect("fd");
    while readable(channel) {
        assert!(channel.try_recv().expect("nothing").is_none());
    }
}

#[test]
fn room_is_told_to_a_loop_whose_wakes_a_blocked_thread_takes() {
    let (a, b) = Channel::pair(small()).expect("pair");
    send(&b, 0);
    assert_eq!(int(&a), 0);
    settle(&a);
    for _ in 0..100 {
        // The last one is as long as the others: a shorter one could find room.
        while a.try_send(&mut Value::from(vec![0; 500]), &[]).expect("send") {}
        settle(&a);
        let blocked = {
            let a = a.clone();
            thread::spawn(move || a.send(&mut Value::from(vec![1; 500]), &[], None).expect("send"))
        };
        while a.inner.tx.try_enter().is_some() {
            thread::yield_now();
        }
        while !matches!(&message(&b).value, Value::Bytes(bytes) if bytes[0] == 1) {}
        blocked.join().expect("sender");
        assert!(matches!(next(&a).expect("event"), Incoming::Drained));
        settle(&a);
    }
}

#[test]
fn a_loop_hears_of_what_comes_after_a_thread_has_waited_for_its_reply() {
    let (a, b) = pair();
    send(&b, 0);
    assert_eq!(int(&a), 0);
    for n in 1..100 {
        settle(&a);
        let asking = {
            let a = a.clone();
            thread::spawn(move || a.request(&mut Value::Nil, &[], None).expect("reply"))
        };
        let Incoming::Request(request) = b.recv(None).expect("request") else { panic!("asked") };
        b.reply(request.id, false, &mut Value::Nil, &[], None).expect("reply");
        asking.join().expect("thread");
        settle(&a);
        send(&b, n);
        assert!(readable(&a), "nobody tells the loop");
        assert!(matches!(next(&a).expect("message"), Incoming::Message(message) if message.value.as_int() == Some(n)));
    }
}

#[test]
fn what_rings_during_a_look_is_found_by_the_next() {
    let (a, _b) = pair();
    settle(&a);
    let receiving = lock(&a.inner.rx);
    let looking = {
        let a = a.clone();
        thread::spawn(move || a.try_recv().expect("nothing").is_none())
    };
    while !lock(&a.inner.inbox).pumping {
        thread::yield_now();
    }
    a.inner.ring();
    drop(receiving);
    assert!(looking.join().expect("thread"));
    assert!(readable(&a));
}

#[test]
fn a_loop_waits_for_room_in_the_ring_or_for_fds_and_not_for_what_has_room() {
    let (a, b) = Channel::pair(Options { capacity: 32 << 10, ..Options::default() }).expect("pair");
    send(&b, 0);
    assert_eq!(int(&a), 0);
    settle(&a);
    let socket_is_full = || a.inner.tx.try_enter().expect("nobody sends").socket_full;
    let null = File::open("/dev/null").expect("open");
    // No room for fds, and some in the ring.
    let mut sent = 0;
    while a.post(&mut Value::Nil, &[null.as_fd()]).expect("post") {
        sent += 1;
    }
    assert!(socket_is_full());
    settle(&a);
    // Behind it, more than the ring takes.
    const BEHIND: u64 = 100;
    for _ in 0..BEHIND {
        assert!(!a.post(&mut Value::from(vec![0; 500]), &[]).expect("post"));
    }
    settle(&a);
    (0..sent).for_each(|_| drop(message(&b)));
    assert!(readable(&a));
    settle(&a);
    assert!(a.stats().queued > 0 && !socket_is_full());
    while b.stats().received < sent + 1 + BEHIND {
        let _ = a.try_recv().expect("room");
        while b.try_recv().expect("message").is_some() {}
    }
}

fn raw_end() -> (Channel, OwnedFd, [crate::RingBuffer; 2]) {
    raw_end_of(Options::default())
}

fn raw_end_of(options: Options) -> (Channel, OwnedFd, [crate::RingBuffer; 2]) {
    // The other end of `a`, by hand.
    let (a, b) = Channel::pair(options).expect("pair");
    let socket = poll::duplicate(unsafe_borrow(b.socket().expect("unused"))).expect("dup");
    let mut bytes = [0; GREETING_LEN];
    let socket::Received::Datagram(_, fds) = socket::peek(socket.as_fd(), &mut bytes).expect("peek") else { panic!("greeting") };
    let rings = [0, 3].map(|at| {
        let fds: Vec<_> = fds[at..at + 3].iter().map(AsFd::as_fd).collect();
        crate::RingBuffer::attach(&fds).expect("attach")
    });
    socket::skip(socket.as_fd());
    let here = Greeting { min: 1, max: 1, flags: HERE, features: 0, instance: 1, pid: 1, side: 0 };
    socket::send(socket.as_fd(), &here.encode(), &[]).expect("send");
    (a, socket, rings)
}

fn unsafe_borrow<'a>(fd: RawFd) -> BorrowedFd<'a> {
    // SAFETY: the tests keep the owner while they use it.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

fn push(rings: &[crate::RingBuffer; 2], record: &[u8]) -> Producer {
    let mut producer = rings[1].producer(crate::ring::ProducerOptions::default()).expect("producer");
    producer.push(record, None).expect("push");
    producer
}

fn head(flags: u8, fds: u16, buffers: u32, body_len: u64) -> Vec<u8> {
    Head { kind: Kind::Message, flags, fds, buffers, id: 0, body_len }.encode().to_vec()
}

#[test]
fn records_that_cannot_be_end_the_channel_as_corrupt() {
    let entry = |n: u64| n.to_le_bytes().to_vec();
    // With a body that names a buffer, and padding behind it.
    let with_buffer = || [head(0, 0, 1, 4), vec![0xd5, 3, 0, 0, 0, 0, 0, 0]].concat();
    let bad: Vec<(&str, Vec<u8>)> = vec![
        ("short", b"abc".to_vec()),
        ("kind", vec![9; 24]),
        ("body longer than the record", [head(0, 0, 0, 2), vec![0xc0]].concat()),
        ("body shorter than the record", [head(0, 0, 0, 1), vec![0xc0, 0xc0]].concat()),
        ("no value", [head(0, 0, 0, 1), vec![0xc1]].concat()),
        ("huge body", [head(0, 0, 0, u64::MAX), vec![0xc0]].concat()),
        ("table cut", with_buffer()),
        ("huge table", [head(0, 0, u32::MAX, 1), vec![0xc0; 64]].concat()),
        ("more buffers than names", [head(0, 0, 2, 4), vec![0xd5, 3, 0, 0, 0, 0, 0, 0], entry(1), entry(1)].concat()),
        ("buffer cut", [with_buffer(), entry(100 << 1 | 1)].concat()),
        ("huge buffer", [with_buffer(), entry(u64::MAX)].concat()),
        ("more than its buffers", [with_buffer(), entry(1), vec![1; 8]].concat()),
        ("buffer without fd", [with_buffer(), entry(8 << 1)].concat()),
        ("spilled without fd", [head(SPILLED, 0, 0, 1), entry(1)].concat()),
        ("fds that are not there", [head(0, 2, 0, 1), vec![0xc0]].concat()),
        ("long bytes beside", [head(0, 0, 1, 4), vec![0xd5, 3, 1, 0, 0, 0, 0, 0], entry(3 << 1 | 1), vec![1; 8]].concat()),
    ];
    for (what, record) in bad {
        let (a, socket, rings) = raw_end();
        let _producer = push(&rings, &record);
        let e = a.recv(None).expect_err(what);
        assert_eq!(e.kind(), ErrorKind::Corrupt, "{what}: {e}");
        assert_eq!(a.ended().map(|e| e.kind()), Some(ErrorKind::Corrupt), "{what}");
        assert!(rings[1].is_closed() && socket::is_hung_up(socket.as_fd()), "{what}: the other end is told");
    }
}

#[test]
fn a_record_that_is_too_long_ends_the_channel_with_the_limit() {
    let (a, socket, rings) = raw_end();
    let spilled = TransferBuffer::alloc_shared(8).expect("alloc");
    let fd = unsafe_borrow(spilled.fd().expect("shared"));
    socket::send(socket.as_fd(), &encode_fds(1, 0), &[fd]).expect("send");
    let _producer = push(&rings, &[head(SPILLED, 1, 0, 1), (1u64 << 40).to_le_bytes().to_vec()].concat());
    assert_eq!(recv_error(&a).kind(), ErrorKind::TooLarge);
}

#[test]
fn fds_that_came_with_damage_are_closed() {
    let (read, write) = std::io::pipe().expect("pipe");
    for (bytes, record) in [
        (encode_fds(1, 0).to_vec(), [head(0, 1, 0, 1), vec![0xc1]].concat()),
        (encode_fds(1, 7).to_vec(), [head(0, 1, 0, 1), vec![0xc0]].concat()),
        (encode_fds(2, 0).to_vec(), [head(0, 2, 0, 1), vec![0xc0]].concat()),
        (vec![0; FDS_LEN + 1], [head(0, 1, 0, 1), vec![0xc0]].concat()),
        (encode_fds(1, 0).to_vec(), [head(SPILLED, 1, 0, 1), 8u64.to_le_bytes().to_vec()].concat()),
        (encode_fds(1, 0).to_vec(), [head(0, 1, 1, 4), vec![0xd5, 3, 0, 0, 0, 0, 0, 0], (8u64 << 1).to_le_bytes().to_vec()].concat()),
    ] {
        let (a, socket, rings) = raw_end();
        socket::send(socket.as_fd(), &bytes, &[write.as_fd()]).expect("send");
        let _producer = push(&rings, &record);
        let e = recv_error(&a);
        assert_eq!(e.kind(), ErrorKind::Corrupt, "{e}");
    }
    drop(write);
    let mut fds = [poll::readable(read.as_raw_fd())];
    poll::wait_readable(&mut fds, None);
    assert_eq!(fds[0].revents & libc::POLLHUP, libc::POLLHUP, "no writer is left");
}

#[test]
fn garbage_on_the_socket_is_no_greeting() {
    let (a, b) = socket::pair().expect("pair");
    socket::send(a.as_fd(), b"GET / HTTP/1.1", &[]).expect("send");
    let (e, b) = Channel::attach(b, Options::default()).expect_err("garbage");
    assert_eq!(e.kind(), ErrorKind::Corrupt);
    socket::skip(b.as_fd());
    let (e, b) = Channel::attach(b, Options::default()).expect_err("nothing");
    assert_eq!(e.kind(), ErrorKind::Invalid);
    let null = File::open("/dev/null").expect("open");
    let newer = Greeting { min: 2, max: 9, flags: RINGS, features: 0, instance: 1, pid: 1, side: 0 };
    socket::send(a.as_fd(), &newer.encode(), &[null.as_fd(); 6]).expect("send");
    let (e, b) = Channel::attach(b, Options::default()).expect_err("newer");
    assert_eq!(e.kind(), ErrorKind::Version);
    socket::skip(b.as_fd());
    let no_rings = Greeting { min: 1, max: 1, ..newer };
    socket::send(a.as_fd(), &no_rings.encode(), &[null.as_fd(); 6]).expect("send");
    let (e, b) = Channel::attach(b, Options::default()).expect_err("no rings");
    assert_eq!(e.kind(), ErrorKind::Corrupt, "{e}");
    drop(a);
    socket::skip(b.as_fd());
    let (e, _) = Channel::attach(b, Options::default()).expect_err("gone");
    assert_eq!(e.kind(), ErrorKind::PeerDied);
    let (e, _) = Channel::attach(null.into(), Options::default()).expect_err("no socket");
    assert_eq!(e.kind(), ErrorKind::Invalid);
}

#[test]
fn garbage_instead_of_the_second_greeting_ends_the_channel() {
    for (bytes, kind) in [
        (b"garbage".to_vec(), ErrorKind::Corrupt),
        (Greeting { min: 4, max: 5, flags: HERE, features: 0, instance: 1, pid: 1, side: 0 }.encode().to_vec(), ErrorKind::Version),
    ] {
        let (a, b) = pair();
        socket::send(unsafe_borrow(b.socket().expect("unused")), &bytes, &[]).expect("send");
        assert_eq!(recv_error(&a).kind(), kind);
    }
}

#[test]
fn an_end_that_is_gone_before_it_was_opened_is_dead() {
    let (a, b) = pair();
    send(&a, 1);
    drop(b);
    assert_eq!(recv_error(&a).kind(), ErrorKind::PeerDied);
}

#[test]
fn an_end_that_is_detached_is_anothers_and_a_number_has_one_owner() {
    let (a, b) = pair();
    let _ = b.fd().expect("fd");
    // As a face does that gets a number.
    let attach = |fd: RawFd| {
        // SAFETY: it is given back on error.
        Channel::attach(unsafe { OwnedFd::from_raw_fd(fd) }, Options::default()).map_err(|(e, fd)| {
            let _ = fd.into_raw_fd();
            e
        })
    };
    let number = b.socket().expect("unused");
    assert_eq!(attach(number).expect_err("`b` has it").kind(), ErrorKind::InUse);
    let fd = b.detach().expect("unused");
    assert_eq!(fd.as_raw_fd(), number);
    assert_eq!(recv_error(&b).kind(), ErrorKind::Closed);
    assert!(readable(&b) && b.detach().is_err());
    b.close();
    drop(b);
    let c = attach(fd.into_raw_fd()).expect("nobody's");
    let e = attach(number).expect_err("`c` has it");
    assert_eq!(e.to_string(), format!("in use: fd belongs to another end of a channel in this process (fd={number})"));
    send(&a, 1);
    assert_eq!(int(&c), 1);
    assert_eq!(c.detach().expect_err("used").kind(), ErrorKind::InUse);
}

#[test]
fn memory_that_can_never_be_there_ends_the_channel() {
    let info = std::fs::read_to_string("/proc/meminfo").expect("proc");
    let kib = |name| info.lines().find_map(|l| l.strip_prefix(name)).and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
    let most = (kib("MemTotal:").expect("total") + kib("SwapTotal:").expect("swap")) << 10;
    let sparse = |len: u64| {
        // SAFETY: the name is NUL-terminated; the kernel gives a new fd, which nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"sparse".as_ptr(), libc::MFD_ALLOW_SEALING | libc::MFD_CLOEXEC)) };
        // SAFETY: plain calls on an fd of this test.
        unsafe {
            assert_eq!(libc::ftruncate(fd.as_raw_fd(), len as i64), 0);
            assert_eq!(libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_SHRINK | libc::F_SEAL_GROW), 0);
        }
        fd
    };
    // Alone; together; behind the record. None is longer than an address space could be.
    for (lens, flags) in [(vec![most + 4096], 0), (vec![most / 4 * 3; 2], 0), (vec![1 << 60], 0), (vec![most + 4096], SPILLED)] {
        let (a, socket, rings) = raw_end_of(Options { max_message: usize::MAX, ..Options::default() });
        let fds: Vec<OwnedFd> = lens.iter().map(|len| sparse(*len)).collect();
        let count = fds.len() as u16;
        socket::send(socket.as_fd(), &encode_fds(count, 0), &fds.iter().map(AsFd::as_fd).collect::<Vec<_>>()).expect("send");
        let record = if flags == SPILLED {
            [head(SPILLED, 1, 0, 1), lens[0].to_le_bytes().to_vec()].concat()
        } else {
            let names = [vec![0x90 | count as u8], [0xd5, 3, 0, 0].repeat(fds.len())].concat();
            let pad = vec![0; names.len().next_multiple_of(8) - names.len()];
            let table: Vec<u8> = lens.iter().flat_map(|len| (len << 1).to_le_bytes()).collect();
            [head(0, count, count.into(), names.len() as u64), names, pad, table].concat()
        };
        let _producer = push(&rings, &record);
        let e = recv_error(&a);
        assert_eq!(e.kind(), ErrorKind::TooLarge, "{lens:?}: {e}");
        assert!(e.to_string().contains("max="), "{e}");
        assert_eq!(a.ended().map(|e| e.kind()), Some(ErrorKind::TooLarge));
    }
}

#[test]
fn a_used_end_gives_no_socket_away() {
    let (a, _b) = pair();
    assert!(a.socket().is_ok());
    send(&a, 1);
    assert_eq!(a.socket().expect_err("used").kind(), ErrorKind::InUse);
}

fn listener_path(name: &str) -> std::path::PathBuf {
    std::env::temp_dir().join(format!("offloop-channel-{}-{name}", std::process::id()))
}

#[test]
fn channels_by_a_path() {
    let path = listener_path("listen");
    let listener = Channel::listen(&path, Options::default()).expect("listen");
    use std::os::unix::fs::MetadataExt;
    assert_eq!(std::fs::metadata(&path).expect("socket").mode() & 0o777, 0o600);
    assert_eq!(Channel::listen(&path, Options::default()).expect_err("taken").kind(), ErrorKind::Exists);
    let client = {
        let path = path.clone();
        thread::spawn(move || {
            let channel = Channel::connect(&path, None, Options::default()).expect("connect");
            send(&channel, 7);
            assert_eq!(int(&channel), 8);
            recv_error(&channel).kind()
        })
    };
    let channel = listener.accept(None).expect("accept");
    // From the first moment, whether the other end has said anything or not.
    send(&channel, 8);
    assert_eq!(int(&channel), 7);
    assert_eq!(channel.peer_pid(), Some(std::process::id()));
    channel.close();
    assert_eq!(client.join().expect("client"), ErrorKind::Closed);
    assert!(listener.try_accept().expect("nobody").is_none());
    drop(listener);
    assert!(!path.exists() && !path.with_file_name(format!(".{}.lock", path.file_name().expect("name").display())).exists());
    assert_eq!(Channel::connect(&path, None, Options::default()).expect_err("gone").kind(), ErrorKind::NotFound);
}

#[test]
fn a_connection_that_is_not_accepted_times_out_and_one_that_is_turned_away_is_told() {
    let path = listener_path("slow");
    let listener = Channel::listen(&path, Options::default()).expect("listen");
    assert_eq!(Channel::connect(&path, SOON, Options::default()).expect_err("slow").kind(), ErrorKind::Timeout);
    let waiting = Channel::begin_connect(&path, Options::default()).expect("connect");
    assert!(!waiting.try_open().expect("not yet"));
    drop(listener);
    assert_eq!(waiting.recv(None).expect_err("listener is gone").kind(), ErrorKind::PeerDied);
}

#[test]
fn a_stale_socket_is_replaced_and_another_file_is_not() {
    let path = listener_path("stale");
    // What a process leaves that died: the socket's name, and a lock file without a lock.
    drop(std::os::unix::net::UnixListener::bind(&path).expect("bind"));
    assert!(path.exists());
    drop(Channel::listen(&path, Options::default()).expect("replaced"));
    std::fs::write(&path, "a file").expect("write");
    assert_eq!(Channel::listen(&path, Options::default()).expect_err("a file").kind(), ErrorKind::Exists);
    assert_eq!(std::fs::read(&path).expect("still there"), b"a file");
    std::fs::remove_file(&path).expect("rm");
    let long = std::env::temp_dir().join("x".repeat(120));
    let e = Channel::listen(long, Options::default()).expect_err("too long");
    assert_eq!(e.kind(), ErrorKind::TooLarge);
    assert!(e.to_string().contains("max=107"), "{e}");
}

#[test]
fn a_listener_takes_away_nothing_but_its_own_socket() {
    let path = listener_path("foreign");
    let listener = Channel::listen(&path, Options::default()).expect("listen");
    std::fs::remove_file(&path).expect("its socket");
    std::fs::write(&path, b"somebody else's").expect("write");
    drop(listener);
    assert_eq!(std::fs::read(&path).expect("it is there"), b"somebody else's");
    std::fs::remove_file(&path).expect("rm");
}
