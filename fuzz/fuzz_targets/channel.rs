//! A record that the other end may have written, and fds with it, are a message or end the channel as damaged.
//!
//! Input: a byte whose low two bits say how many sealed files go along, each with what follows the head; the record.
#![no_main]

use libfuzzer_sys::fuzz_target;
use offloop::channel::{Channel, Options};
use offloop::ring::{Producer, ProducerOptions, RingBuffer};
use offloop::sys::{poll, socket};
use offloop::wire::channel::{GREETING_LEN, Greeting, HEAD_LEN, HERE, encode_fds};
use offloop::{ErrorKind, TransferBuffer};
use std::cell::RefCell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A channel whose other end is written by hand.
struct Pair {
    own: Channel,
    socket: OwnedFd,
    producer: Producer,
    with_fds: u32,
}

fn pair() -> Pair {
    let (own, other) = Channel::pair(Options { capacity: 64 << 10, max_message: 1 << 20, ..Options::default() }).expect("pair");
    // SAFETY: `other` keeps its socket open for the call.
    let socket = poll::duplicate(unsafe { BorrowedFd::borrow_raw(other.socket().expect("unused")) }).expect("fd");
    let mut bytes = [0; GREETING_LEN];
    let socket::Received::Datagram(_, fds) = socket::peek(socket.as_fd(), &mut bytes).expect("greeting") else { panic!("no greeting") };
    socket::skip(socket.as_fd());
    let ring: Vec<_> = fds[3..].iter().map(AsFd::as_fd).collect();
    let producer = RingBuffer::attach(&ring).expect("ring").producer(ProducerOptions::default()).expect("seat");
    let here = Greeting { min: 1, max: 1, flags: HERE, features: 0, instance: 1, pid: 1, side: 0 };
    socket::send(socket.as_fd(), &here.encode(), &[]).expect("socket");
    Pair { own, socket, producer, with_fds: 0 }
}

thread_local! {
    static PAIR: RefCell<Option<Pair>> = const { RefCell::new(None) };
}

fuzz_target!(|input: &[u8]| {
    let Some((how, record)) = input.split_first() else { return };
    PAIR.with_borrow_mut(|place| {
        let pair = place.get_or_insert_with(pair);
        if record.len() > pair.producer.max_record_len() {
            return;
        }
        let tail = record.get(HEAD_LEN..).unwrap_or_default();
        let sealed = |_| {
            let mut file = TransferBuffer::alloc_shared(tail.len().max(1)).expect("memory");
            file.write_at(0, tail).expect("as long");
            file
        };
        let files: Vec<_> = (0..how & 3).map(sealed).collect();
        // SAFETY: `files` keep their fds open for the call.
        let fds: Vec<_> = files.iter().map(|file| unsafe { BorrowedFd::borrow_raw(file.fd().expect("shared")) }).collect();
        if !fds.is_empty() {
            socket::send(pair.socket.as_fd(), &encode_fds(fds.len() as u16, pair.with_fds), &fds).expect("room");
            pair.with_fds = pair.with_fds.wrapping_add(1);
        }
        assert!(pair.producer.try_push(record).expect("open"), "every record before was taken");
        let before = pair.own.stats().received;
        while pair.own.stats().received == before {
            if let Err(e) = pair.own.try_recv() {
                assert!(matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::TooLarge), "{e}");
                *place = None;
                return;
            }
        }
        // Fds that no record asked for would make the next record wrong.
        if !fds.is_empty() {
            *place = None;
        }
    });
});
