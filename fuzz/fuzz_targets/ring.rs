//! A ring whose memory anybody writes, before it is attached, between all calls and while they run, gives data or typed errors.
//!
//! Input: a byte that says how (bits 0–1 the kind, 2 overwriting, 3 a scribbler runs beside, 4 an image instead of steps), then either an image or
//! steps: 0 write (place in 2 bytes, length in 1, bytes), 1 push, 2 pop, 3 read in place, 4 claim, 5 acknowledge, 6 give back, 7 look from
//! outside. The high bits of a step choose which handles are made, renewed, or polled.
#![no_main]

use libfuzzer_sys::fuzz_target;
use offloop::ring::{Ack, Consumer, ConsumerOptions, Kind, OnFull, Producer, ProducerOptions, RecordRef, RingBuffer};
use offloop::sys::{eventfd::EventFd, mem};
use offloop::wire::ring::{FIXED_LEN, Header, checksum};
use offloop::{Error, ErrorKind};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const CAPACITY: usize = 4096;
/// The longest record of any ring made here.
const LONGEST: usize = CAPACITY / 2;
/// Where an image is put under a name.
const NAME: &str = "/dev/shm/offloop-fuzz";

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

    fn number(&mut self) -> usize {
        self.byte().unwrap_or(0) | self.byte().unwrap_or(0) << 8
    }
}

fn told<T>(result: Result<T, Error>) -> Option<T> {
    use ErrorKind::{Closed, Corrupt, InUse, Invalid, PeerDied, Timeout, TooLarge, Unsupported, Version};
    result
        .inspect_err(|e| {
            let typed = matches!(e.kind(), Closed | Corrupt | InUse | Invalid | PeerDied | Timeout | TooLarge | Unsupported | Version);
            assert!(typed, "{e}");
        })
        .ok()
}

/// Reads all of a record: the sanitizer sees whether it lies in memory.
fn look(record: RecordRef<'_>, max: usize) {
    assert!(record.len() <= max && record.to_vec().len() == record.len(), "{} of {max}", record.len());
}

/// The handles of one process.
#[derive(Default)]
struct Ends {
    producer: Option<Producer>,
    consumer: Option<Consumer>,
    delivery: u64,
}

impl Ends {
    /// A handle that dies here leaves what it saw to its successor.
    fn make(&mut self, ring: &RingBuffer, op: usize) {
        if op & 8 != 0 {
            self.producer = None;
            self.producer = told(ring.producer(ProducerOptions { on_full: None, batch: op & 16 != 0 }));
        }
        if op & 32 != 0 {
            self.consumer = None;
            let ack = if op & 64 != 0 && ring.kind() == Kind::Mpmc { Ack::Manual } else { Ack::Auto };
            self.consumer = told(ring.consumer(ConsumerOptions { ack }));
        }
        if op & 128 != 0 {
            self.producer.iter_mut().for_each(|p| drop(told(p.fd().map(|fd| fd.as_raw_fd()))));
            self.consumer.iter_mut().for_each(|c| drop(told(c.fd().map(|fd| fd.as_raw_fd()))));
        }
    }

    fn step(&mut self, what: usize, max: usize) {
        let Ends { producer, consumer, delivery } = self;
        match (what, producer, consumer) {
            (1, Some(producer), _) => {
                told(producer.try_push(&[7; 40]));
                told(producer.push(&[8; 48], Some(Duration::ZERO)));
                told(producer.flush());
            }
            (2, _, Some(consumer)) => {
                if let Some(Some(record)) = told(consumer.try_pop()) {
                    *delivery = record.delivery();
                    look(record.payload(), max);
                }
                if let Some(record) = told(consumer.pop(Some(Duration::ZERO))) {
                    look(record.payload(), max);
                }
            }
            (3, _, Some(consumer)) => {
                told(consumer.read_held(8, |record| look(record, max)));
                told(consumer.read(8, |record| look(record, max)));
                told(consumer.peek()).flatten().into_iter().for_each(|record| look(record, max));
                let _ = consumer.lost();
                for lane in 0..4 {
                    if let Some(place) = consumer.cursor(lane) {
                        told(consumer.set_cursor(lane, place));
                    }
                }
            }
            (4, Some(producer), _) => {
                if let Some(Some(mut claim)) = told(producer.try_claim(20)) {
                    assert!(claim.write_at(0, &[9; 20]));
                    if max & 8 != 0 { drop(told(claim.commit_len(12))) } else { claim.abort() }
                }
                if let Some(place) = producer.cursor() {
                    told(producer.set_cursor(place));
                }
            }
            (5, _, Some(consumer)) => drop(told(consumer.ack(*delivery))),
            (6, _, Some(consumer)) => drop(told(consumer.nack(*delivery))),
            _ => {}
        }
    }
}

fn borrowed<'a>(numbers: &[i32]) -> Vec<BorrowedFd<'a>> {
    // SAFETY: the caller keeps the ring that they belong to.
    numbers.iter().map(|fd| unsafe { BorrowedFd::borrow_raw(*fd) }).collect()
}

/// Writes words all over a ring's changing part until it is told to stop, where the input says and where a generator does.
fn scribble(ring: &RingBuffer, seed: &[u8], stop: &AtomicBool) {
    let (base, len) = ring.mapping();
    let words = (len - FIXED_LEN) / 8;
    let mut state = seed.iter().fold(0x9E37_79B9_7F4A_7C15u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3));
    while !stop.load(Ordering::Relaxed) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let value = match state >> 60 {
            0..4 => state,
            4..8 => state >> 8 & 0xFFF8,
            8..12 => 1 << 32 | state >> 8 & 0x1FF,
            _ => state >> 8 & 0xFF,
        };
        // The words of the seats, and everything.
        let word = if state & 1 == 0 { state as usize >> 16 & 0x3FF } else { state as usize >> 16 } % words;
        // SAFETY: inside the mapping, aligned; a peer may write there at any time, and the sanitizer watches what that does.
        unsafe { &*base.add(FIXED_LEN + word * 8).cast::<AtomicU64>() }.store(value, Ordering::Relaxed);
        if state >> 20 & 63 == 0 {
            std::thread::yield_now();
        }
    }
}

fn steps(mut input: Input<'_>, made: &RingBuffer) {
    let numbers = made.fds().expect("fds");
    let file = File::options().read(true).write(true).open(format!("/proc/self/fd/{}", numbers[0])).expect("own fd");
    let len = file.metadata().expect("own file").len();
    let max = made.max_record_len();
    let (mut attached, mut ends) = (None, Ends::default());
    while let Some(op) = input.byte() {
        match op & 7 {
            0 => {
                let place = input.number() as u64 % len;
                let count = input.byte().unwrap_or(0).min((len - place) as usize);
                file.write_all_at(input.take(count), place).expect("inside the file");
            }
            7 => drop(told(made.stat())),
            what => {
                let ring = attached.get_or_insert_with(|| told(RingBuffer::attach(&borrowed(&numbers))));
                let Some(ring) = ring else { return };
                ends.make(ring, op);
                ends.step(what, max);
            }
        }
    }
}

/// Attaches to a file of any size that begins with any header: a valid one that the input is laid over by exclusive or.
fn image(mut input: Input<'_>, kind: Kind, on_full: OnFull) {
    let how = input.byte().unwrap_or(0);
    let seats = if kind == Kind::Spsc { 2 } else { 3 };
    let header = Header::new(kind, CAPACITY, 64, seats, on_full).expect("options");
    let len = (header.total_len() as usize ^ input.number()).clamp(1, 1 << 20);
    let mut bytes = header.encode().to_vec();
    bytes.extend(std::iter::repeat_n(0, len.max(FIXED_LEN) - FIXED_LEN));
    bytes.iter_mut().zip(input.0).for_each(|(byte, other)| *byte ^= other);
    if how & 1 == 0 {
        // So that what lies behind the check sum is looked at, too.
        let sum = checksum(bytes.first_chunk().expect("longer than a header"));
        bytes[120..FIXED_LEN].copy_from_slice(&sum.to_le_bytes());
    }
    bytes.truncate(len);
    let (file, map) = mem::create_sealed(c"image", len).expect("memory");
    // SAFETY: `len` writable bytes of this function.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), map.as_mut_ptr(), len) };
    let bells: Vec<EventFd> = (0..how >> 4).map(|_| EventFd::new().expect("fd")).collect();
    let fds: Vec<_> = std::iter::once(file.as_fd()).chain(bells.iter().map(AsFd::as_fd)).collect();
    let by_fds = told(RingBuffer::attach(&fds));
    let by_name = if how & 2 != 0 {
        let name = format!("{NAME}-{}", std::process::id());
        std::fs::write(&name, &bytes).expect("/dev/shm has room");
        std::fs::set_permissions(&name, std::fs::Permissions::from_mode(0o600)).expect("own file");
        told(RingBuffer::inspect(Path::new(&name)));
        let ring = told(RingBuffer::attach_path(&name));
        std::fs::remove_file(&name).expect("own file");
        ring
    } else {
        None
    };
    for ring in by_fds.iter().chain(&by_name) {
        assert!(ring.capacity() + FIXED_LEN <= len && ring.max_record_len() <= ring.capacity() / 2);
        // The name is gone, and with it the place of the doorbells: only who was given fds sits down.
        if by_fds.is_some() {
            let mut ends = Ends::default();
            ends.make(ring, 8 | 32 | how & 64);
            (1..7).for_each(|what| ends.step(what, ring.max_record_len()));
        }
        told(ring.stat());
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let Some(how) = input.byte() else { return };
    let kind = [Kind::Spsc, Kind::Mpsc, Kind::Broadcast, Kind::Mpmc][how & 3];
    let on_full = if how & 4 != 0 && kind == Kind::Broadcast { OnFull::Overwrite } else { OnFull::Wait };
    if how & 16 != 0 {
        return image(input, kind, on_full);
    }
    let participants = if kind == Kind::Spsc { 2 } else { 4 };
    let builder = RingBuffer::builder(kind).capacity(CAPACITY).max_participants(participants).on_full(on_full);
    let made = builder.create().expect("memory");
    assert!(made.max_record_len() < LONGEST);
    if how & 8 == 0 {
        return steps(input, &made);
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| scribble(&made, bytes, &stop));
        steps(Input(input.0), &made);
        stop.store(true, Ordering::Relaxed);
    });
});
