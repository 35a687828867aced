//! The Rust worker of the pairs: `README.md` through the public API of the crate.

#![allow(clippy::print_stdout, reason = "a worker speaks on standard output")]

mod record;
mod talk;

use offloop::ring::{Ack, Consumer, ConsumerOptions, Producer, ProducerOptions, RingBuffer};
use offloop::{Error, ErrorKind};
use record::Records;
use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::process::ExitCode;
use std::time::Duration;

const PROGRESS: RawFd = 100;

struct Args(HashMap<String, String>);

impl Args {
    fn number(&self, key: &str) -> u64 {
        self.0.get(key).and_then(|v| v.parse().ok()).unwrap_or(0)
    }
}

pub(crate) fn say(line: &str) {
    println!("{line}");
    // A runner that is gone needs no answer.
    let _ = std::io::stdout().flush();
}

/// Waits until a successor may have come when `result` says that the peer died, and then gives `None`.
fn patient<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.kind() == ErrorKind::PeerDied => {
            std::thread::sleep(Duration::from_millis(1));
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

fn push(producer: &mut Producer, number: u64, bytes: &[u8]) -> Result<(), Error> {
    loop {
        let pushed = if number.is_multiple_of(3) {
            producer.claim(bytes.len(), None).and_then(|mut claim| {
                assert!(claim.write_at(0, bytes), "a claim is as long as asked for");
                claim.commit()
            })
        } else {
            producer.push(bytes, None)
        };
        if patient(pushed)?.is_some() {
            return Ok(());
        }
    }
}

fn produce(ring: &RingBuffer, args: &Args, progress: Option<&File>) -> Result<(), String> {
    let text = |e: Error| e.to_string();
    let options = ProducerOptions { batch: args.number("batch") == 1, ..ProducerOptions::default() };
    let mut producer = ring.producer(options).map_err(text)?;
    say("ready");
    let (records, mut bytes) = (Records::new(args.number("seed") as u32), Vec::new());
    let count = args.number("count");
    let mut number = 0;
    while count == 0 || number < count {
        records.make(args.number("inc") as u32, number, &mut bytes);
        push(&mut producer, number, &bytes).map_err(text)?;
        number += 1;
        if let Some(file) = progress {
            file.write_all_at(&number.to_le_bytes(), 0).map_err(|e| e.to_string())?;
        }
    }
    producer.flush().map_err(text)?;
    say(&format!("done {number}"));
    Ok(())
}

/// What a consumer expects next.
struct Expected {
    incarnation: u32,
    next: u64,
    /// Where the marked records have got to, until the first new record.
    again: Option<(u32, u64)>,
    fresh: bool,
    records: u64,
}

impl Expected {
    fn see(&mut self, incarnation: u32, number: u64, marked: bool) -> Result<(), String> {
        if (incarnation, number) < (self.incarnation, self.next) {
            let follows = match self.again {
                None => true,
                Some((i, n)) => (i == incarnation && n + 1 == number) || (i < incarnation && number == 0),
            };
            if !marked || self.fresh || !follows {
                let state = format!("marked={marked} fresh={} again={:?}", self.fresh, self.again);
                return Err(format!("record {incarnation}:{number} again, expected {}:{} ({state})", self.incarnation, self.next));
            }
            self.again = Some((incarnation, number));
            say("again");
            return Ok(());
        }
        // What came again must lead up to what is new.
        if let Some((i, n)) = self.again.take()
            && i == self.incarnation
            && n + 1 != self.next
        {
            return Err(format!("records between {i}:{n} and {}:{} did not come again", self.incarnation, self.next));
        }
        if incarnation > self.incarnation && number == 0 {
            say(&format!("inc {} {}", self.incarnation, self.next));
            self.incarnation = incarnation;
        } else if (incarnation, number) != (self.incarnation, self.next) {
            return Err(format!("record {incarnation}:{number}, expected {}:{}", self.incarnation, self.next));
        }
        self.next = number + 1;
        self.fresh |= !marked;
        self.records += 1;
        Ok(())
    }
}

fn consume(ring: &RingBuffer, args: &Args, progress: Option<&File>) -> Result<(), String> {
    let mut consumer: Consumer = ring.consumer(ConsumerOptions::default()).map_err(|e| e.to_string())?;
    say("ready");
    let records = Records::new(args.number("seed") as u32);
    let mut expected =
        Expected { incarnation: args.number("inc") as u32, next: args.number("next"), again: None, fresh: false, records: 0 };
    loop {
        // The record is let go of at the end of the round, when it was noted down.
        let record = match patient(consumer.pop(None)) {
            Ok(Some(record)) => record,
            Ok(None) => continue,
            Err(e) if e.kind() == ErrorKind::Closed => break,
            Err(e) => return Err(e.to_string()),
        };
        let (incarnation, number) = records.check(&record.to_vec())?;
        expected.see(incarnation, number, record.is_redelivered())?;
        if let Some(file) = progress {
            let mut words = [0; 16];
            words[..8].copy_from_slice(&u64::from(expected.incarnation).to_le_bytes());
            words[8..].copy_from_slice(&expected.next.to_le_bytes());
            file.write_all_at(&words, 16).map_err(|e| e.to_string())?;
        }
    }
    say(&format!("inc {} {}", expected.incarnation, expected.next));
    say(&format!("done {}", expected.records));
    Ok(())
}

/// Tasks, until the ring is closed: what came, and what was acknowledged.
fn work(ring: &RingBuffer, args: &Args) -> Result<(), String> {
    let text = |e: Error| e.to_string();
    let mut consumer = ring.consumer(ConsumerOptions { ack: Ack::Manual }).map_err(text)?;
    say("ready");
    let (records, mut done) = (Records::new(args.number("seed") as u32), 0);
    loop {
        let (record, marked, delivery) = match consumer.pop(None) {
            Ok(r) => (r.to_vec(), r.is_redelivered(), r.delivery()),
            Err(e) if e.kind() == ErrorKind::Closed => break,
            Err(e) => return Err(text(e)),
        };
        let (incarnation, number) = records.check(&record)?;
        say(&format!("got {incarnation} {number} {}", u8::from(marked)));
        say(&format!("acks {incarnation} {number}"));
        consumer.ack(delivery).map_err(text)?;
        say(&format!("ack {incarnation} {number}"));
        done += 1;
    }
    say(&format!("done {done}"));
    Ok(())
}

fn run(args: &Args) -> Result<(), String> {
    // SAFETY: the runner put a file here, and it is nobody else's.
    let progress = (args.number("progress") == 1).then(|| File::from(unsafe { OwnedFd::from_raw_fd(PROGRESS) }));
    let fds: Vec<OwnedFd> = (1..=args.number("fds") as RawFd)
        // SAFETY: the runner put the ring's fds here, and they are nobody else's.
        .map(|i| unsafe { OwnedFd::from_raw_fd(PROGRESS + i) })
        .collect();
    if args.0.get("role").is_some_and(|role| role == "talk") {
        return talk::talk(fds, args.number("seed") as u32, args.number("count"));
    }
    let ring = RingBuffer::attach(&fds.iter().map(AsFd::as_fd).collect::<Vec<_>>()).map_err(|e| e.to_string())?;
    drop(fds);
    match args.0.get("role").map(String::as_str) {
        Some("produce") => produce(&ring, args, progress.as_ref()),
        Some("work") => work(&ring, args),
        Some("consume") => consume(&ring, args, progress.as_ref()),
        other => Err(format!("no role {other:?}")),
    }
}

fn main() -> ExitCode {
    let args = Args(std::env::args().filter_map(|a| a.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()))).collect());
    if args.0.get("role").is_some_and(|r| r == "hello") {
        say("rings");
        return ExitCode::SUCCESS;
    }
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            say(&format!("fail {why}"));
            ExitCode::FAILURE
        }
    }
}
