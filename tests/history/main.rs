//! Histories of rings between many processes, some of which are killed at random: four producers and four consumers of `mpmc`, four producers
//! and one consumer of `mpsc`, one producer and four consumers of a lossless `broadcast`.
//!
//! Each record has its producer, its number and a check sum. A consumer notes each record down in shared memory while it has it, and
//! looks: whole; not seen before, unless it is marked; not acknowledged before; behind what it has seen of that producer. At the end each
//! record that a producer is known to have pushed was seen, and dealt with by one who lived. One line of JSON per row (`offloop_tests::row`).
//!
//! `cargo test -p offloop-tests --test history -- [mpmc|mpsc|broadcast] [kill]…` selects. `OFFLOOP_TORTURE=1` takes the figures of the long run,
//! `OFFLOOP_SEED` another seed.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a test harness reports")]

mod ledger;
mod worker;

use ledger::{AGAIN, DEALT, FRESH, Ledger, SIDE, UNSURE};
use offloop::ring::{Kind, RingBuffer, Role};
use offloop_tests::inherit::inherit;
use offloop_tests::row::Row;
use std::os::fd::BorrowedFd;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use worker::{FIRST, Part};

/// How long there may be no progress: a watchdog, not an assertion.
const PATIENCE: Duration = Duration::from_secs(60);

/// Records of a row, and deaths of one with kills.
struct Figures {
    records: u64,
    kills: u64,
}

const SMOKE: Figures = Figures { records: 1_000_000, kills: 24 };
const TORTURE: Figures = Figures { records: 100_000_000, kills: 2000 };

/// xorshift64*, by seed.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 20) % n
    }
}

fn main() -> ExitCode {
    if let Some(part) = Part::of_args() {
        return match worker::work(part) {
            Ok(()) => ExitCode::SUCCESS,
            Err(why) => {
                eprintln!("history: {part:?}: {why}");
                ExitCode::FAILURE
            }
        };
    }
    let filters: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let figures = if std::env::var_os("OFFLOOP_TORTURE").is_some() { TORTURE } else { SMOKE };
    let seed: u64 = std::env::var("OFFLOOP_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(0x0FF1_00B5) | 1;
    let mut failed = 0;
    for (kind, producers, consumers) in [(Kind::Mpmc, SIDE, SIDE), (Kind::Mpsc, SIDE, 1), (Kind::Broadcast, 1, SIDE)] {
        for kills in [0, figures.kills] {
            let name = format!("history {}{}", kind.as_str(), if kills > 0 { " kill" } else { "" });
            if !filters.iter().all(|f| name.contains(f)) {
                continue;
            }
            let mut row = Row::begin(&name, figures.records, seed);
            let result = run(&mut row, kind, [producers, consumers], figures.records, kills, seed);
            if let Err(why) = row.end(result) {
                println!("FAIL  {name}: {why}");
                failed += 1;
            }
        }
    }
    if failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Processes that end with this.
struct Crew<'a> {
    ring: &'a RingBuffer,
    ledger: &'a Ledger,
    part: Part,
    producers: Vec<Child>,
    consumers: Vec<Child>,
}

impl Crew<'_> {
    fn start(&self, produces: bool, number: usize) -> Result<Child, String> {
        let fds = self.ring.fds().map_err(|e| e.to_string())?;
        // SAFETY: the ring keeps them open for the call.
        let mut passed: Vec<_> = fds.iter().map(|fd| unsafe { BorrowedFd::borrow_raw(*fd) }).collect();
        passed.insert(0, self.ledger.fd());
        let mut command = Command::new(std::env::current_exe().map_err(|e| e.to_string())?);
        command.args(Part { produces, number, ..self.part }.args()).stdin(Stdio::null());
        inherit(&mut command, &passed, FIRST).map_err(|e| e.to_string())?;
        command.spawn().map_err(|e| format!("worker: {e}"))
    }

    /// Waits until a process has its seat, or has ended.
    fn until_seated(&self, child: &mut Child, role: Role) -> Result<(), String> {
        let until = Instant::now() + PATIENCE;
        loop {
            let stat = self.ring.stat().map_err(|e| e.to_string())?;
            let sits = stat.participants.iter().any(|p| p.pid == child.id() && p.role == Some(role) && p.alive);
            if sits || child.try_wait().map_err(|e| e.to_string())?.is_some() {
                return Ok(());
            }
            if Instant::now() > until {
                return Err(format!("{role:?} does not get its seat: {stat:?}"));
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Every process lives, or has ended as it should; gives how many producers live.
    fn living_producers(&mut self) -> Result<usize, String> {
        let mut living = 0;
        for (child, produces) in self.producers.iter_mut().map(|p| (p, true)).chain(self.consumers.iter_mut().map(|c| (c, false))) {
            match child.try_wait().map_err(|e| e.to_string())? {
                None => living += usize::from(produces),
                Some(status) if produces && status.success() => {}
                Some(status) => return Err(format!("a {} ended with {status}", if produces { "producer" } else { "consumer" })),
            }
        }
        Ok(living)
    }

    /// Kills somebody and starts a successor; false if the one that was chosen had ended.
    fn kill(&mut self, random: &mut Random) -> Result<bool, String> {
        let victim = random.below((self.producers.len() + self.consumers.len()) as u64) as usize;
        let (produces, number) = if victim < self.producers.len() { (true, victim) } else { (false, victim - self.producers.len()) };
        let side = if produces { &mut self.producers } else { &mut self.consumers };
        let child = &mut side[number];
        if child.try_wait().map_err(|e| e.to_string())?.is_some() {
            return Ok(false);
        }
        child.kill().map_err(|e| e.to_string())?;
        if child.wait().map_err(|e| e.to_string())?.success() {
            return Ok(false); // it had come to its end
        }
        if produces {
            // It may have died between a push and its note of it.
            let pushed = self.ledger.pushed(number);
            let unsure = pushed.load(Ordering::Relaxed);
            if unsure < self.part.records {
                self.ledger.record(number, unsure).fetch_or(UNSURE, Ordering::Relaxed);
                pushed.store(unsure + 1, Ordering::Relaxed);
            }
        } else if self.part.kind == Kind::Broadcast {
            self.ledger.next(number, 0).store(0, Ordering::Relaxed);
        }
        let mut successor = self.start(produces, number)?;
        // In `mpsc` a successor takes its predecessor's lane, which keeps the order, only while no other lane is free. Elsewhere the next
        // blow may fall on one that is still on its way.
        if self.part.kind == Kind::Mpsc || random.below(4) != 0 {
            self.until_seated(&mut successor, if produces { Role::Producer } else { Role::Consumer })?;
        }
        (if produces { &mut self.producers } else { &mut self.consumers })[number] = successor;
        Ok(true)
    }
}

impl Drop for Crew<'_> {
    fn drop(&mut self) {
        for child in self.producers.iter_mut().chain(&mut self.consumers) {
            // It may have ended by itself; either way it is gone after this.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn run(row: &mut Row, kind: Kind, sides: [usize; 2], records: u64, kills: u64, seed: u64) -> Result<(), String> {
    let [producers, consumers] = sides;
    let mut ring = RingBuffer::builder(kind).capacity(64 << 10).max_participants(producers + consumers);
    if kind == Kind::Mpmc {
        ring = ring.slot_size(128);
    }
    let ring = ring.create().map_err(|e| e.to_string())?;
    // Numbers at which a producer died count for nothing.
    let per_producer = (records + kills).div_ceil(producers as u64);
    let ledger = Ledger::new(per_producer, producers)?;
    ledger.limit().store(limit(per_producer, 0, kills), Ordering::Relaxed);
    let fds = ring.fds().map_err(|e| e.to_string())?.len();
    // A killed producer's batch is its successor's, or its consumer's, to publish.
    let part = Part { kind, produces: false, number: 0, records: per_producer, batch: true, fds };
    let mut crew = Crew { ring: &ring, ledger: &ledger, part, producers: Vec::new(), consumers: Vec::new() };
    for number in 0..consumers {
        let mut consumer = crew.start(false, number)?;
        crew.until_seated(&mut consumer, Role::Consumer)?;
        crew.consumers.push(consumer);
    }
    // All sit before the first blow falls, and until the last has ended: a successor finds no lane free but its predecessor's.
    for number in 0..producers {
        let mut producer = crew.start(true, number)?;
        crew.until_seated(&mut producer, Role::Producer)?;
        crew.producers.push(producer);
    }
    let died = watch(&mut crew, kills, seed)?;
    ring.close();
    let until = Instant::now() + PATIENCE;
    for child in &mut crew.consumers {
        loop {
            match child.try_wait().map_err(|e| e.to_string())? {
                Some(status) if status.success() => break,
                Some(status) => return Err(format!("a consumer ended with {status}")),
                None if Instant::now() > until => return Err(format!("a consumer does not end: {:?}", ring.stat())),
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }
    row.count("deaths", died);
    row.count("again", (0..consumers).map(|c| ledger.again(c).load(Ordering::Relaxed)).sum());
    row.trials = judge(&ledger, part, producers, consumers, died > 0)?;
    if died < kills { Err(format!("{died} deaths are fewer than {kills}")) } else { Ok(()) }
}

/// How far each producer goes before the next death: a few deaths' share of the records, so that most meet it at work, and none comes too late.
fn limit(records: u64, died: u64, kills: u64) -> u64 {
    if died == kills { u64::MAX } else { ((died + 3) * records / kills).min(records - records / 10) }
}

/// Until every producer has ended: deaths, spread over the records, and what is told of the progress.
fn watch(crew: &mut Crew<'_>, kills: u64, seed: u64) -> Result<u64, String> {
    let mut random = Random(seed);
    let total = crew.part.records * crew.producers.len() as u64;
    let pushed = |crew: &Crew<'_>| (0..crew.producers.len()).map(|p| crew.ledger.pushed(p).load(Ordering::Relaxed)).sum::<u64>();
    let (mut died, mut next) = (0, 0);
    let (mut last, mut moved, mut told) = ((0, 0), Instant::now(), Instant::now());
    while crew.living_producers()? > 0 {
        let now = pushed(crew);
        if died < kills && now >= next && crew.kill(&mut random)? {
            died += 1;
            crew.ledger.limit().store(limit(crew.part.records, died, kills), Ordering::Relaxed);
            // The last fifth is for what the others made late.
            next = died * (total - total / 5) / kills + random.below(total / kills / 2 + 1);
        }
        let seen = crew.ledger.seen();
        if (now, seen) != last {
            (last, moved) = ((now, seen), Instant::now());
        }
        if moved.elapsed() > PATIENCE {
            return Err(format!("nothing moves: {now} of {total} pushed, {seen} seen: {:?}", crew.ring.stat()));
        }
        if told.elapsed() > Duration::from_secs(10) {
            told = Instant::now();
            eprintln!("history {}: {now} of {total} records, {died} of {kills} deaths", crew.part.kind.as_str());
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    Ok(died)
}

/// Each record that was pushed for certain was seen; gives how many that are.
fn judge(ledger: &Ledger, part: Part, producers: usize, consumers: usize, died: bool) -> Result<u64, String> {
    if part.kind == Kind::Broadcast {
        for c in 0..consumers {
            let next = ledger.next(c, 0).load(Ordering::Relaxed);
            // The last record may be one whose producer died over it; and a successor may have come after everything.
            let ended = next == part.records || (next + 1 == part.records && ledger.record(0, next).load(Ordering::Relaxed) & UNSURE != 0);
            let count = ledger.count(c).load(Ordering::Relaxed);
            if if died { !ended && next != 0 } else { !ended || count != part.records } {
                return Err(format!("consumer {c} saw {count} records and ended at {next} of {}", part.records));
            }
        }
    }
    let mut certain = 0;
    for p in 0..producers {
        for n in 0..part.records {
            let was = ledger.record(p, n).load(Ordering::Relaxed);
            if part.kind != Kind::Broadcast && was & (FRESH | AGAIN | UNSURE) == 0 {
                return Err(format!("record {p}:{n} is lost"));
            }
            if was & (FRESH | AGAIN) != 0 && was & DEALT == 0 {
                return Err(format!("record {p}:{n} was lost with the consumer that had it"));
            }
            certain += u64::from(was & UNSURE == 0);
        }
    }
    Ok(certain)
}
