//! Rings between every two languages: a stream of records each way, and `SIGKILL` of either side (`README.md` beside this file).
//!
//! `cargo test -p offloop-tests --test pairs -- [stream|kill] [rust→c]…` selects. One line of JSON per row; a row with fewer trials than
//! its figure fails. `OFFLOOP_TORTURE=1` takes the figures of the long run, `OFFLOOP_SEED` another seed, and `OFFLOOP_REQUIRE=rust,c,node,python`
//! makes a worker that cannot run a failure instead of a reason.

#![allow(clippy::print_stdout, reason = "a test harness reports")]

mod child;

use child::{Progress, Worker};
use offloop::ring::{Kind, RingBuffer};
use offloop_tests::driver::LANGS;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Trials of one pair.
struct Figures {
    records: u64,
    kills: u64,
}

const SMOKE: Figures = Figures { records: 20_000, kills: 19 };
/// Sixteen pairs: 1 M records each way, and more than 10,000 deaths altogether.
const TORTURE: Figures = Figures { records: 1_000_000, kills: 630 };

/// How long a side may make no progress: a watchdog, not an assertion.
const PATIENCE: Duration = Duration::from_secs(60);

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

/// What a row found.
#[derive(Default)]
struct Found {
    trials: u64,
    records: u64,
    again: u64,
}

fn main() -> std::process::ExitCode {
    let filters: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let required = std::env::var("OFFLOOP_REQUIRE").unwrap_or_default();
    let figures = if std::env::var_os("OFFLOOP_TORTURE").is_some() { TORTURE } else { SMOKE };
    let seed: u64 = std::env::var("OFFLOOP_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(0x0FF1_00B5);
    let mut failed = 0;
    let mut langs = Vec::new();
    for lang in LANGS {
        match Worker::hello(lang) {
            Ok(()) => langs.push(*lang),
            Err(why) if required.split(',').any(|r| r == *lang) => {
                println!("FAIL  {lang}: {why}");
                failed += 1;
            }
            Err(why) => println!("skip  {lang}: all pairs: {why}"),
        }
    }
    let mut deaths = 0;
    for (row, want) in [("stream", figures.records), ("kill", figures.kills)] {
        for (i, (producer, consumer)) in langs.iter().flat_map(|p| langs.iter().map(move |c| (*p, *c))).enumerate() {
            let name = format!("{row} {producer}→{consumer}");
            if !filters.is_empty() && !filters.iter().any(|f| name.contains(f)) {
                continue;
            }
            let (from, seed) = (Instant::now(), seed.wrapping_add(i as u64 * 0x9E37_79B9) | 1);
            let result = if row == "stream" { stream(producer, consumer, want, seed) } else { kill(producer, consumer, want, seed) };
            let (found, why) = match result {
                Ok(found) if found.trials < want => (found, Some("fewer trials than the figure".to_owned())),
                Ok(found) => (found, None),
                Err(why) => (Found::default(), Some(why)),
            };
            println!(
                r#"{{"row":"{row}","producer":"{producer}","consumer":"{consumer}","trials":{},"want":{want},"failures":{},"records":{},"again":{},"seed":{seed},"ms":{}}}"#,
                found.trials,
                u8::from(why.is_some()),
                found.records,
                found.again,
                from.elapsed().as_millis()
            );
            if let Some(why) = why {
                println!("FAIL  {name}: {why}");
                failed += 1;
            }
            deaths += if row == "kill" { found.trials } else { 0 };
        }
    }
    println!("\npairs: {} of {} languages, {deaths} deaths, {failed} failures", langs.len(), LANGS.len());
    if failed > 0 { std::process::ExitCode::FAILURE } else { std::process::ExitCode::SUCCESS }
}

fn ring(capacity: usize) -> Result<RingBuffer, String> {
    RingBuffer::builder(Kind::Spsc).capacity(capacity).create().map_err(|e| e.to_string())
}

/// `count` records from one side to the other, each seen once and in order.
fn stream(producer: &str, consumer: &str, count: u64, seed: u64) -> Result<Found, String> {
    let ring = ring(256 << 10)?;
    let mut to = Worker::start(consumer, &ring, None, &format!("role=consume seed={seed}"))?;
    let mut from = Worker::start(producer, &ring, None, &format!("role=produce seed={seed} count={count} batch=1"))?;
    let pushed = from.done(PATIENCE * 5)?;
    ring.close();
    let seen = to.done(PATIENCE * 5)?;
    let again = to.collect(&mut BTreeMap::new())?;
    if pushed != count || seen != count || again != 0 {
        return Err(format!("{count} records were asked for, {pushed} pushed, {seen} seen and {again} seen again"));
    }
    Ok(Found { trials: seen, records: seen, again })
}

/// Both sides run without end while one or the other is killed and replaced.
fn kill(producer: &str, consumer: &str, rounds: u64, seed: u64) -> Result<Found, String> {
    let (ring, progress, mut random) = (ring(16 << 10)?, Progress::new()?, Random(seed));
    let produce = |inc: u64| Worker::start(producer, &ring, Some(&progress), &format!("role=produce seed={seed} inc={inc} progress=1"));
    // Whose `pop` gives a copy may die with one record in its hands.
    let hands = u64::from(["node", "python"].contains(&consumer));
    let consume = |inc: u64, next: u64, took: u64| {
        Worker::start(consumer, &ring, Some(&progress), &format!("role=consume seed={seed} inc={inc} next={next} took={took} progress=1"))
    };
    let mut found = Found::default();
    // Records that each incarnation of the producer is known to have pushed, and that were seen of it.
    let (mut pushed, mut seen) = (Vec::new(), BTreeMap::new());
    let (mut from, mut to) = (produce(0)?, consume(0, 0, 0)?);
    while found.trials < rounds {
        // Now and then the blow falls while a successor is still on its way to its seat.
        if random.below(8) != 0 {
            from.ready(PATIENCE)?;
            to.ready(PATIENCE)?;
            progress.await_records(random.below(300), &mut [&mut from, &mut to], PATIENCE)?;
            std::thread::sleep(Duration::from_micros(random.below(300)));
        }
        if random.below(2) == 0 {
            from.kill()?;
            pushed.push(progress.pushed()?);
            progress.reset_pushed()?;
            from = produce(pushed.len() as u64)?;
        } else {
            to.kill()?;
            found.again += to.collect(&mut seen)?;
            let (inc, next) = progress.seen()?;
            to = consume(inc, next, hands)?;
        }
        found.trials += 1;
    }
    to.ready(PATIENCE)?;
    from.kill()?;
    pushed.push(progress.pushed()?);
    ring.close();
    to.done(PATIENCE)?;
    found.again += to.collect(&mut seen)?;
    for (inc, known) in pushed.iter().enumerate() {
        let got = seen.get(&(inc as u64)).copied().unwrap_or(0);
        // The producer may have died between a push and its note of it.
        if got + hands < *known || got > known + 1 {
            return Err(format!("incarnation {inc} pushed {known} records, {got} were seen"));
        }
        found.records += got;
    }
    Ok(found)
}
