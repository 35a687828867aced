//! A participant: this program again, with its part in its arguments.

use crate::ledger::{ACKED, AGAIN, DEALT, FRESH, Ledger, SIDE, UNSURE};
use offloop::ring::{Ack, Consumer, ConsumerOptions, Kind, ProducerOptions, RecordRef, RingBuffer};
use offloop::{Error, ErrorKind};
use offloop_tests::crc32::crc32;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The ledger's number; the ring's fds follow.
pub(crate) const FIRST: RawFd = 100;
/// The longest record.
const LONGEST: usize = 64;

/// What a participant is told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    pub(crate) kind: Kind,
    pub(crate) produces: bool,
    /// Which one of its side.
    pub(crate) number: usize,
    /// Records of each producer.
    pub(crate) records: u64,
    pub(crate) batch: bool,
    pub(crate) fds: usize,
}

impl Part {
    pub(crate) fn args(self) -> Vec<String> {
        let Part { kind, produces, number, records, batch, fds } = self;
        let numbers = [u64::from(produces), number as u64, records, u64::from(batch), fds as u64];
        ["worker", kind.as_str()].map(str::to_owned).into_iter().chain(numbers.map(|n| n.to_string())).collect()
    }

    /// The part in this program's arguments, if they have one.
    pub(crate) fn of_args() -> Option<Part> {
        let args: Vec<String> = std::env::args().skip(1).collect();
        let n = |i: usize| args.get(i)?.parse::<u64>().ok();
        if args.first()? != "worker" {
            return None;
        }
        let (kind, produces, batch) = (args.get(1)?.parse().ok()?, n(2)? == 1, n(5)? == 1);
        Some(Part { kind, produces, number: n(3)? as usize, records: n(4)?, batch, fds: n(6)? as usize })
    }
}

/// `crc u32 · producer u32 · number u64 · body`, whose length and bytes follow from the number.
fn make(producer: usize, number: u64, out: &mut [u8; LONGEST]) -> usize {
    let h = (number as u32 ^ (producer as u32) << 28).wrapping_mul(0x9E37_79B1);
    let len = 16 + (h >> 24) as usize % (LONGEST - 15);
    out[4..8].copy_from_slice(&(producer as u32).to_le_bytes());
    out[8..16].copy_from_slice(&number.to_le_bytes());
    out[16..len].fill(h as u8);
    let crc = crc32(&out[4..len]);
    out[..4].copy_from_slice(&crc.to_le_bytes());
    len
}

/// Producer and number of a record that is whole.
fn check(record: &[u8]) -> Result<(usize, u64), String> {
    let (Some(producer), Some(number)) = (record.get(4..8), record.get(8..16)) else {
        return Err(format!("a record of {} bytes", record.len()));
    };
    let producer = u32::from_le_bytes(producer.try_into().expect("4 bytes")) as usize;
    let number = u64::from_le_bytes(number.try_into().expect("8 bytes"));
    let mut want = [0; LONGEST];
    let len = make(producer, number, &mut want);
    if *record != want[..len] {
        return Err(format!("record {producer}:{number} is torn"));
    }
    Ok((producer, number))
}

/// Whether to go on: all participants of the other side may be dead for a moment.
fn goes_on(e: &Error) -> Result<bool, String> {
    match e.kind() {
        ErrorKind::Closed => Ok(false),
        ErrorKind::Timeout => Ok(true),
        ErrorKind::PeerDied => {
            std::thread::sleep(Duration::from_millis(1));
            Ok(true)
        }
        _ => Err(e.to_string()),
    }
}

pub(crate) fn work(part: Part) -> Result<(), String> {
    // SAFETY: the runner put its fds there, and they are nobody else's.
    let fd = |i: usize| unsafe { OwnedFd::from_raw_fd(FIRST + i as RawFd) };
    let ledger = Ledger::open(fd(0), part.records)?;
    let fds: Vec<OwnedFd> = (1..=part.fds).map(fd).collect();
    let ring = RingBuffer::attach(&fds.iter().map(AsFd::as_fd).collect::<Vec<_>>()).map_err(|e| e.to_string())?;
    drop(fds);
    if part.produces { produce(part, &ring, &ledger) } else { consume(part, &ring, &ledger) }
}

fn produce(part: Part, ring: &RingBuffer, ledger: &Ledger) -> Result<(), String> {
    let options = ProducerOptions { batch: part.batch, ..Default::default() };
    let mut p = ring.producer(options).map_err(|e| e.to_string())?;
    let pushed = ledger.pushed(part.number);
    let mut bytes = [0; LONGEST];
    for n in pushed.load(Ordering::Relaxed)..part.records {
        while n >= ledger.limit().load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_micros(50));
        }
        let len = make(part.number, n, &mut bytes);
        // Given up, which leaves nothing.
        if n % 64 == 7
            && let Err(e) = p.try_claim(len)
        {
            // Told again below, if it is the end.
            goes_on(&e)?;
        }
        loop {
            let done = if n % 3 == 0 {
                p.claim(len, None).and_then(|mut claim| {
                    assert!(claim.write_at(0, &bytes[..len]), "the claim has this length");
                    claim.commit()
                })
            } else {
                p.push(&bytes[..len], None)
            };
            match done {
                Ok(()) => break,
                Err(e) if goes_on(&e)? => {}
                Err(_) => return Err("the ring was closed under a producer".to_owned()),
            }
        }
        pushed.store(n + 1, Ordering::Relaxed);
    }
    p.flush().map_err(|e| e.to_string())?;
    // Nobody else's successor gets this seat.
    let producers = if part.kind == Kind::Broadcast { 1 } else { SIDE };
    while (0..producers).any(|i| ledger.pushed(i).load(Ordering::Relaxed) < part.records) {
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// What a consumer does with a record that is still in its hands.
struct Notes<'a> {
    part: Part,
    ledger: &'a Ledger,
    seen: u64,
}

impl Notes<'_> {
    fn is_manual(&self) -> bool {
        self.part.kind == Kind::Mpmc && self.part.number.is_multiple_of(2)
    }

    /// Gives producer and number.
    fn note(&mut self, record: RecordRef<'_>) -> Result<(usize, u64), String> {
        let mut bytes = [0; LONGEST];
        let len = record.copy_to(&mut bytes);
        let (producer, n) = check(&bytes[..len])?;
        let (again, ledger, me) = (record.is_redelivered(), self.ledger, self.part.number);
        let next = ledger.next(me, producer);
        let expected = next.load(Ordering::Relaxed);
        let was = |n: u64| ledger.record(producer, n).load(Ordering::Relaxed);
        if self.part.kind == Kind::Broadcast {
            // A successor begins wherever the ring is.
            let skips_unsure = n == expected + 1 && was(expected) & UNSURE != 0;
            if again || (expected != 0 && n != expected && !skips_unsure) {
                return Err(format!("record {producer}:{n} came where {expected} was expected (again: {again})"));
            }
        } else {
            let mark = if again { AGAIN } else { FRESH };
            let before = ledger.record(producer, n).fetch_or(mark, Ordering::Relaxed);
            if !again && before & (FRESH | AGAIN) != 0 {
                return Err(format!("record {producer}:{n} came again without the mark"));
            }
            if before & ACKED != 0 {
                return Err(format!("record {producer}:{n} came again although it was acknowledged"));
            }
            if !self.is_manual() {
                ledger.record(producer, n).fetch_or(DEALT, Ordering::Relaxed);
            }
            if !again && n < expected {
                return Err(format!("record {producer}:{n} came after {}", expected - 1));
            }
            if self.part.kind == Kind::Mpsc && n > 0 && was(n - 1) == 0 {
                return Err(format!("record {producer}:{n} came before the one before it"));
            }
            ledger.again(me).fetch_add(u64::from(again), Ordering::Relaxed);
        }
        if !again {
            next.store(n + 1, Ordering::Relaxed);
        }
        self.seen += 1;
        ledger.count(me).fetch_add(1, Ordering::Relaxed);
        Ok((producer, n))
    }

    /// Acknowledges what was noted. Who dies before that leaves it to another; who dies after it has done it.
    fn ack(&self, c: &Consumer, (delivery, (producer, n)): (u64, (usize, u64))) -> Result<(), String> {
        let record = self.ledger.record(producer, n);
        record.fetch_or(DEALT, Ordering::Relaxed);
        c.ack(delivery).map_err(|e| e.to_string())?;
        record.fetch_or(ACKED, Ordering::Relaxed);
        Ok(())
    }
}

fn consume(part: Part, ring: &RingBuffer, ledger: &Ledger) -> Result<(), String> {
    let mut notes = Notes { part, ledger, seen: 0 };
    let ack = if notes.is_manual() { Ack::Manual } else { Ack::Auto };
    let mut c = ring.consumer(ConsumerOptions { ack }).map_err(|e| e.to_string())?;
    let mut held = Vec::new();
    let timeout = (part.number >= 2).then_some(Duration::from_millis(1));
    loop {
        // Each in its own way: several without a wait between them, or one by one, with and without an end of the wait.
        let done = match part.number {
            1 => read(&mut c, &mut notes)?,
            _ => match c.pop(timeout) {
                Ok(r) => {
                    let noted = notes.note(r.payload())?;
                    if ack == Ack::Manual {
                        held.push((r.delivery(), noted));
                    }
                    Ok(())
                }
                Err(e) => Err(e),
            },
        };
        // The one with an end of its wait keeps some for a while, and acknowledges in the other order.
        if held.len() >= if timeout.is_some() { 8 } else { 1 } || done.is_err() {
            held.drain(..).rev().try_for_each(|had| notes.ack(&c, had))?;
        }
        if let Err(e) = done
            && !goes_on(&e)?
        {
            return Ok(());
        }
    }
}

fn read(c: &mut Consumer, notes: &mut Notes<'_>) -> Result<Result<(), Error>, String> {
    let mut noted = Ok(());
    let read = c.read(16, |r| noted = std::mem::replace(&mut noted, Ok(())).and_then(|()| notes.note(r).map(|_| ())));
    noted?;
    Ok(match read {
        Ok(0) => c.wait(None),
        Ok(_) => Ok(()),
        Err(e) => Err(e),
    })
}
