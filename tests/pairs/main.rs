//! Rings and channels between every two languages: a stream of records, messages both ways at once, and `SIGKILL` of either side (also of
//! an `mpsc` ring, and of the producer of a broadcast), and of the workers of a task queue (`README.md` beside this file).
//!
//! `cargo test -p offloop-tests --test pairs -- [stream|kill|lanes|readers|task|talk|death] [rust→c]…` selects. One line of JSON per row; a row
//! with fewer trials than its figure fails. `OFFLOOP_TORTURE=1` takes the figures of the long run, `OFFLOOP_SEED` another seed, and `OFFLOOP_REQUIRE=rust,c,node,python`
//! makes a worker that cannot run a failure instead of a reason.

#![allow(clippy::print_stdout, reason = "a test harness reports")]

mod child;

use child::{Progress, Worker};
use offloop::channel::{Channel, Options};
use offloop::ring::{Kind, RingBuffer};
use offloop_tests::driver::LANGS;
use offloop_tests::row::Row;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// Trials of one pair.
struct Figures {
    records: u64,
    kills: u64,
    messages: u64,
    deaths: u64,
}

const SMOKE: Figures = Figures { records: 20_000, kills: 19, messages: 2000, deaths: 2 };
/// Sixteen pairs: 1 M records each way, and more than 10,000 deaths over the four rows that kill.
const TORTURE: Figures = Figures { records: 1_000_000, kills: 160, messages: 100_000, deaths: 100 };

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
    let rows = [
        ("stream", figures.records),
        ("kill", figures.kills),
        ("lanes", figures.kills),
        ("readers", figures.kills),
        ("task", figures.kills),
        ("talk", figures.messages),
        ("death", figures.deaths),
    ];
    for (row, want) in rows {
        for (i, (producer, consumer)) in langs.iter().flat_map(|p| langs.iter().map(move |c| (*p, *c))).enumerate() {
            let name = format!("{row} {producer}→{consumer}");
            if !filters.is_empty() && !filters.iter().any(|f| name.contains(f)) {
                continue;
            }
            let seed = seed.wrapping_add(i as u64 * 0x9E37_79B9) | 1;
            let mut line = Row::begin(&name, want, seed);
            let run: fn(&str, &str, u64, u64) -> Result<Found, String> = match row {
                "stream" => stream,
                "kill" => |producer, consumer, rounds, seed| kill(Kind::Spsc, producer, consumer, rounds, seed),
                "lanes" => |producer, consumer, rounds, seed| kill(Kind::Mpsc, producer, consumer, rounds, seed),
                "readers" => |producer, consumer, rounds, seed| kill(Kind::Broadcast, producer, consumer, rounds, seed),
                "task" => task,
                "talk" => talk,
                _ => death,
            };
            let result = run(producer, consumer, want, seed).map(|found| {
                line.trials = found.trials;
                line.count("records", found.records);
                line.count("again", found.again);
                deaths += if ["kill", "lanes", "readers", "task", "death"].contains(&row) { found.trials } else { 0 };
            });
            if let Err(why) = line.end(result) {
                println!("FAIL  {name}: {why}");
                failed += 1;
            }
        }
    }
    println!("\npairs: {} of {} languages, {deaths} deaths, {failed} failures", langs.len(), LANGS.len());
    if failed > 0 { std::process::ExitCode::FAILURE } else { std::process::ExitCode::SUCCESS }
}

fn ring(kind: Kind, capacity: usize) -> Result<RingBuffer, String> {
    let participants = if kind == Kind::Spsc { 2 } else { 4 };
    RingBuffer::builder(kind).capacity(capacity).max_participants(participants).create().map_err(|e| e.to_string())
}

/// `count` records from one side to the other, each seen once and in order.
fn stream(producer: &str, consumer: &str, count: u64, seed: u64) -> Result<Found, String> {
    let ring = ring(Kind::Spsc, 256 << 10)?;
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

/// Both sides run without end while one or the other is killed and replaced. In a broadcast ring only the producer is: a reader's
/// successor begins anew.
fn kill(kind: Kind, producer: &str, consumer: &str, rounds: u64, seed: u64) -> Result<Found, String> {
    let (ring, progress, mut random) = (ring(kind, 16 << 10)?, Progress::new()?, Random(seed));
    let produce = |inc: u64| Worker::start(producer, &ring, Some(&progress), &format!("role=produce seed={seed} inc={inc} progress=1"));
    // Whose `pop` gives a copy may die with one record in its hands.
    let hands = u64::from(kind != Kind::Broadcast && ["node", "python"].contains(&consumer));
    let consume = |inc: u64, next: u64, took: u64| {
        Worker::start(consumer, &ring, Some(&progress), &format!("role=consume seed={seed} inc={inc} next={next} took={took} progress=1"))
    };
    let mut found = Found::default();
    // Records that each incarnation of the producer is known to have pushed, and that were seen of it.
    let (mut pushed, mut seen) = (Vec::new(), BTreeMap::new());
    // A reader of a broadcast ring gets what is pushed after its coming.
    let mut to = consume(0, 0, 0)?;
    to.ready(PATIENCE)?;
    let mut from = produce(0)?;
    while found.trials < rounds {
        // Now and then the blow falls while a successor is still on its way to its seat.
        if random.below(8) != 0 {
            from.ready(PATIENCE)?;
            to.ready(PATIENCE)?;
            progress.await_records(random.below(300), &mut [&mut from, &mut to], PATIENCE)?;
            std::thread::sleep(Duration::from_micros(random.below(300)));
        }
        if kind == Kind::Broadcast || random.below(2) == 0 {
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

/// Two workers with an end each of a small channel, so that both wait for room.
fn ends(a: &str, b: &str, seed: u64, count: u64) -> Result<(Worker, Worker), String> {
    let (end_a, end_b) = Channel::pair(Options { capacity: 16 << 10, ..Options::default() }).map_err(|e| e.to_string())?;
    let args = format!("role=talk seed={} count={count}", seed as u32);
    // The ends are the workers' once they are started: here they are dropped.
    Ok((Worker::start_talk(a, &end_a, &args)?, Worker::start_talk(b, &end_b, &args)?))
}

/// `count` messages each way at once, every sixteenth with a buffer that moves, and a request from each side.
fn talk(a: &str, b: &str, count: u64, seed: u64) -> Result<Found, String> {
    let (mut a, mut b) = ends(a, b, seed, count)?;
    let (came_a, came_b) = (a.done(PATIENCE)?, b.done(PATIENCE)?);
    if came_a != count || came_b != count {
        return Err(format!("{count} messages were sent each way, {came_a} and {came_b} came"));
    }
    Ok(Found { trials: count, records: came_a + came_b, again: 0 })
}

/// Either side is killed while both send and receive; the other one is told, and no message that it saw was wrong.
fn death(a: &str, b: &str, rounds: u64, seed: u64) -> Result<Found, String> {
    let (mut found, mut random) = (Found::default(), Random(seed));
    while found.trials < rounds {
        let (mut a, mut b) = ends(a, b, seed, 0)?;
        // Now and then the blow falls while one has not opened its end yet.
        if random.below(4) != 0 {
            a.ready(PATIENCE)?;
            b.ready(PATIENCE)?;
        }
        std::thread::sleep(Duration::from_micros(random.below(20_000)));
        let (victim, other) = if random.below(2) == 0 { (&mut a, &mut b) } else { (&mut b, &mut a) };
        victim.kill()?;
        found.records += other.saw_death(PATIENCE)?;
        found.trials += 1;
    }
    Ok(found)
}

/// What became of one task.
#[derive(Clone, Copy, Default)]
struct Task {
    fresh: u32,
    came: u32,
    begun: u32,
    acked: u32,
}

/// Adds what an ended worker said about its tasks; gives how many came again.
fn note(worker: &mut Worker, tasks: &mut HashMap<(u64, u64), Task>) -> Result<u64, String> {
    let mut again = 0;
    for line in worker.all()? {
        let words: Vec<&str> = line.split(' ').collect();
        let numbers: Vec<u64> = words[1..].iter().filter_map(|n| n.parse().ok()).collect();
        match (words[0], &numbers[..]) {
            ("got", [inc, n, marked]) => {
                let task = tasks.entry((*inc, *n)).or_default();
                task.came += 1;
                task.fresh += u32::from(*marked == 0);
                again += marked;
                if task.fresh > 1 {
                    return Err(format!("task {inc}:{n} came again without the mark"));
                }
            }
            ("acks", [inc, n]) => tasks.entry((*inc, *n)).or_default().begun += 1,
            ("ack", [inc, n]) => {
                let task = tasks.entry((*inc, *n)).or_default();
                task.acked += 1;
                if task.acked > 1 {
                    return Err(format!("task {inc}:{n} was acknowledged twice"));
                }
            }
            _ => {}
        }
    }
    Ok(again)
}

/// A task queue whose producer, or one of two workers, is killed and replaced: every task is acknowledged once, or came again marked.
fn task(producer: &str, worker: &str, rounds: u64, seed: u64) -> Result<Found, String> {
    let ring =
        RingBuffer::builder(Kind::Mpmc).capacity(64 << 10).slot_size(2048).max_participants(8).create().map_err(|e| e.to_string())?;
    let (progress, mut random) = (Progress::new()?, Random(seed));
    let produce = |inc: u64| Worker::start(producer, &ring, Some(&progress), &format!("role=produce seed={seed} inc={inc} progress=1"));
    let work = || Worker::start(worker, &ring, None, &format!("role=work seed={seed}"));
    let (mut found, mut tasks, mut pushed, mut killed) = (Found::default(), HashMap::new(), Vec::new(), 0);
    let (mut from, mut workers) = (produce(0)?, [work()?, work()?]);
    while found.trials < rounds {
        if random.below(8) != 0 {
            from.ready(PATIENCE)?;
            let [a, b] = &mut workers;
            a.ready(PATIENCE)?;
            let more = progress.pushed()? + random.below(300);
            progress.await_pushed(more, &mut [&mut from, a, b], PATIENCE)?;
            std::thread::sleep(Duration::from_micros(random.below(300)));
        }
        if random.below(3) == 0 {
            from.kill()?;
            pushed.push(progress.pushed()?);
            progress.reset_pushed()?;
            from = produce(pushed.len() as u64)?;
        } else {
            let dies = &mut workers[random.below(2) as usize];
            dies.kill()?;
            found.again += note(dies, &mut tasks)?;
            *dies = work()?;
            killed += 1;
        }
        found.trials += 1;
    }
    workers.iter_mut().try_for_each(|w| w.ready(PATIENCE))?;
    from.kill()?;
    pushed.push(progress.pushed()?);
    ring.close();
    for w in &mut workers {
        w.done(PATIENCE)?;
        found.again += note(w, &mut tasks)?;
    }
    for (inc, known) in pushed.iter().enumerate() {
        if let Some(lost) = (0..*known).find(|n| !tasks.contains_key(&(inc as u64, *n))) {
            return Err(format!("task {inc}:{lost} of {known} is lost"));
        }
    }
    if let Some(((inc, n), task)) = tasks.iter().find(|(_, t)| t.begun == 0) {
        return Err(format!("task {inc}:{n} came {} times, and was lost with the worker that had it", task.came));
    }
    // A worker may die between an acknowledgement and its note of it.
    let unsure = tasks.values().filter(|t| t.acked == 0).count();
    if unsure > killed {
        return Err(format!("{unsure} tasks were acknowledged by nobody, and {killed} workers died"));
    }
    let stat = ring.stat().map_err(|e| e.to_string())?;
    if stat.returned != 0 || stat.lanes[0].records() != 0 || stat.participants.iter().any(|p| p.in_flight != 0) {
        return Err(format!("the ring is not empty: {stat:?}"));
    }
    found.records = tasks.len() as u64;
    Ok(found)
}
