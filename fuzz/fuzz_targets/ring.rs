//! A ring whose memory anybody writes, before it is attached and between all calls, gives data or typed errors.
//!
//! Input: the kind, then steps: 0 write (place in 2 bytes, length in 1, bytes), 1 push, 2 pop, 3 read in place, 4 claim and give up,
//! 5 acknowledge, 6 give back, 7 look from outside; which handles are made is in the low bit.
#![no_main]

use libfuzzer_sys::fuzz_target;
use offloop::ring::{Ack, Consumer, ConsumerOptions, Kind, OnFull, Producer, ProducerOptions, RingBuffer};
use offloop::{Error, ErrorKind};
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;

const CAPACITY: usize = 4096;

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> Option<usize> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(usize::from(*first))
    }

    fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

fn is_told(e: &Error) {
    use ErrorKind::{Closed, Corrupt, InUse, Invalid, PeerDied, TooLarge, Unsupported, Version};
    assert!(matches!(e.kind(), Closed | Corrupt | InUse | Invalid | PeerDied | TooLarge | Unsupported | Version), "{e}");
}

fn told<T>(result: Result<T, Error>) -> Option<T> {
    result.inspect_err(is_told).ok()
}

fn step(what: usize, producer: &mut Option<Producer>, consumer: &mut Option<Consumer>, delivery: &mut u64) {
    match (what, producer, consumer) {
        (1, Some(producer), _) => drop(told(producer.try_push(&[7; 40]))),
        (2, _, Some(consumer)) => {
            if let Some(Some(record)) = told(consumer.try_pop()) {
                *delivery = record.delivery();
                assert!(record.to_vec().len() <= CAPACITY);
            }
        }
        (3, _, Some(consumer)) => {
            let _ = told(consumer.read_held(8, |record| assert!(record.to_vec().len() <= CAPACITY)));
        }
        (4, Some(producer), _) => drop(told(producer.try_claim(20))),
        (5, _, Some(consumer)) => drop(told(consumer.ack(*delivery))),
        (6, _, Some(consumer)) => drop(told(consumer.nack(*delivery))),
        _ => {}
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let Some(first) = input.byte() else { return };
    let kind = [Kind::Spsc, Kind::Mpsc, Kind::Broadcast, Kind::Mpmc][first & 3];
    let mut builder = RingBuffer::builder(kind).capacity(CAPACITY).max_participants(if kind == Kind::Spsc { 2 } else { 4 });
    if first & 4 != 0 && kind == Kind::Broadcast {
        builder = builder.on_full(OnFull::Overwrite);
    }
    let made = builder.create().expect("memory");
    let numbers = made.fds().expect("fds");
    let file = File::options().read(true).write(true).open(format!("/proc/self/fd/{}", numbers[0])).expect("own fd");
    let len = file.metadata().expect("own file").len();
    let (mut attached, mut producer, mut consumer, mut delivery) = (None, None, None, 0);
    while let Some(op) = input.byte() {
        match op & 7 {
            0 => {
                let place = u64::from(u16::from_le_bytes([0, 1].map(|_| input.byte().unwrap_or(0) as u8))) % len;
                let count = input.byte().unwrap_or(0).min((len - place) as usize);
                file.write_all_at(input.take(count), place).expect("inside the file");
            }
            7 => drop(made.stat()),
            what => {
                let ring = attached.get_or_insert_with(|| {
                    // SAFETY: `made` keeps them open.
                    let fds: Vec<_> = numbers.iter().map(|fd| unsafe { BorrowedFd::borrow_raw(*fd) }).collect();
                    told(RingBuffer::attach(&fds))
                });
                let Some(ring) = ring else { return };
                if op & 8 != 0 && producer.is_none() {
                    producer = told(ring.producer(ProducerOptions { on_full: None, batch: op & 16 != 0 }));
                }
                if op & 32 != 0 && consumer.is_none() {
                    let ack = if op & 64 != 0 && kind == Kind::Mpmc { Ack::Manual } else { Ack::Auto };
                    consumer = told(ring.consumer(ConsumerOptions { ack }));
                }
                step(what, &mut producer, &mut consumer, &mut delivery);
            }
        }
    }
});
