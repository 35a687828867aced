//! `offloop ring stat` and `offloop ring tail`: what a live ring looks like from outside.

use super::Stop;
use crate::error::ErrorKind;
use crate::ring::{Participant, RingBuffer, RingStat};
use crate::value::Value;
use clap::ArgMatches;
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

fn path(args: &ArgMatches) -> &Path {
    args.get_one::<PathBuf>("path").expect("clap requires it")
}

/// The interval of `tail`, in seconds.
pub(super) fn interval(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text} is no number of seconds"))?;
    if (0.01..=3600.0).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err(format!("interval {text} is outside 0.01 to 3600 seconds"))
    }
}

pub(super) fn stat(args: &ArgMatches, out: &mut dyn Write) -> Result<(), Stop> {
    let stat = RingBuffer::inspect(path(args))?;
    if args.get_flag("json") {
        writeln!(out, "{}", json_of(&stat.to_value()))?;
        return Ok(());
    }
    let state = match (stat.poisoned, stat.closed) {
        (true, _) => "damaged",
        (_, true) => "closed",
        _ => "open",
    };
    writeln!(
        out,
        "{}: {} ring, {} a lane, {} when full, {state}",
        path(args).display(),
        stat.kind.as_str(),
        bytes(stat.capacity as u64),
        stat.on_full.as_str()
    )?;
    let age = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .saturating_sub(Duration::from_nanos(stat.created_unix_ns));
    writeln!(out, "made {} s ago by process {}, at most {} participants", grouped(age.as_secs()), stat.creator_pid, stat.max_participants)?;
    writeln!(out, "\n  seat  role         process  state")?;
    for p in &stat.participants {
        writeln!(out, "{:>6}  {:<8}  {:>10}  {}", p.seat, p.role.map_or("?", |r| r.as_str()), p.pid, state_of(p))?;
    }
    writeln!(out, "\n  lane         queued           bytes   full          pushed          popped")?;
    for (i, lane) in stat.lanes.iter().enumerate() {
        let full = f64::from(lane.used()) * 100.0 / stat.capacity as f64;
        writeln!(
            out,
            "{i:>6}  {:>13}  {:>14}  {full:>3.0} %  {:>14}  {:>14}",
            grouped(lane.records().into()),
            grouped(lane.used().into()),
            grouped(lane.pushed.into()),
            grouped(lane.popped.into())
        )?;
    }
    Ok(())
}

fn state_of(p: &Participant) -> &'static str {
    match (p.alive, p.asleep) {
        (false, _) => "dead",
        (true, true) => "asleep",
        (true, false) => "awake",
    }
}

/// What changed between two looks, and what is queued at the later one.
#[derive(Debug, PartialEq)]
struct Step {
    pushed_per_s: f64,
    popped_per_s: f64,
    bytes_per_s: f64,
    queued: u64,
    queued_bytes: u64,
    alive: usize,
}

impl Step {
    fn between(from: &RingStat, to: &RingStat, took: Duration) -> Step {
        // A ring of the same name that was made anew has no past.
        let same = from.created_unix_ns == to.created_unix_ns && from.creator_pid == to.creator_pid;
        let mut sums = [0u64; 3];
        if same {
            for (a, b) in from.lanes.iter().zip(&to.lanes) {
                let changes = [b.pushed.wrapping_sub(a.pushed), b.popped.wrapping_sub(a.popped), b.tail.wrapping_sub(a.tail)];
                sums.iter_mut().zip(changes).for_each(|(sum, change)| *sum += u64::from(change));
            }
        }
        let rate = |n: u64| n as f64 / took.as_secs_f64();
        Step {
            pushed_per_s: rate(sums[0]),
            popped_per_s: rate(sums[1]),
            bytes_per_s: rate(sums[2]),
            queued: to.lanes.iter().map(|l| u64::from(l.records())).sum(),
            queued_bytes: to.lanes.iter().map(|l| u64::from(l.used())).sum(),
            alive: to.participants.iter().filter(|p| p.alive).count(),
        }
    }
}

pub(super) fn tail(args: &ArgMatches, out: &mut dyn Write) -> Result<(), Stop> {
    let interval: Duration = *args.get_one("interval").expect("it has a default");
    let count = args.get_one::<u64>("count").copied().unwrap_or(u64::MAX);
    let as_json = args.get_flag("json");
    let (mut before, mut looked) = (RingBuffer::inspect(path(args))?, Instant::now());
    if !as_json {
        writeln!(out, "    pushed/s     popped/s          MB/s        queued           bytes   full  alive")?;
        out.flush()?;
    }
    for _ in 0..count {
        std::thread::sleep(interval);
        let stat = match RingBuffer::inspect(path(args)) {
            Ok(stat) => stat,
            // Its end, not a failure.
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        let now = Instant::now();
        let step = Step::between(&before, &stat, now - looked);
        if as_json {
            let line = json!({
                "pushed_per_s": step.pushed_per_s, "popped_per_s": step.popped_per_s, "bytes_per_s": step.bytes_per_s,
                "queued": step.queued, "queued_bytes": step.queued_bytes, "alive": step.alive, "closed": stat.closed,
            });
            writeln!(out, "{line}")?;
        } else {
            let full = step.queued_bytes as f64 * 100.0 / (stat.capacity * stat.lanes.len()) as f64;
            writeln!(
                out,
                "{:>12}  {:>11}  {:>12.1}  {:>12}  {:>14}  {full:>3.0} %  {:>5}",
                grouped(step.pushed_per_s as u64),
                grouped(step.popped_per_s as u64),
                step.bytes_per_s / 1e6,
                grouped(step.queued),
                grouped(step.queued_bytes),
                step.alive
            )?;
        }
        out.flush()?;
        (before, looked) = (stat, now);
    }
    Ok(())
}

/// The few kinds of value that a `RingStat` consists of.
fn json_of(value: &Value) -> serde_json::Value {
    match value {
        Value::Bool(b) => json!(b),
        Value::Int(n) => json!(n),
        Value::Str(s) => json!(s),
        Value::Array(items) => items.iter().map(json_of).collect(),
        Value::Map(pairs) => {
            let pair = |(k, v): &(Value, Value)| if let Value::Str(k) = k { Some((k.to_string(), json_of(v))) } else { None };
            serde_json::Value::Object(pairs.iter().filter_map(pair).collect())
        }
        _ => serde_json::Value::Null,
    }
}

/// 1234567 as `1,234,567`.
pub(super) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A power of two in the unit that keeps it short.
fn bytes(n: u64) -> String {
    match n {
        n if n >= 1 << 20 => format!("{} MiB", n >> 20),
        n if n >= 1 << 10 => format!("{} KiB", n >> 10),
        n => format!("{n} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::offloop;
    use super::*;
    use crate::ring::{ConsumerOptions, Kind, LaneStat, ProducerOptions};

    fn named(name: &str, kind: Kind) -> (RingBuffer, String) {
        let path = std::env::temp_dir().join(format!("offloop-cli-{name}-{}", std::process::id()));
        let ring = RingBuffer::builder(kind)
            .capacity(1 << 16)
            .max_participants(if kind == Kind::Spsc { 2 } else { 4 })
            .path(&path)
            .create()
            .expect("ring");
        (ring, path.to_str().expect("text").to_owned())
    }

    #[test]
    fn stat_shows_who_is_there_and_what_is_queued() {
        let (ring, path) = named("stat", Kind::Mpsc);
        let mut first = ring.producer(ProducerOptions::default()).expect("producer");
        let mut consumer = ring.consumer(ConsumerOptions::default()).expect("consumer");
        for _ in 0..1500 {
            assert!(first.try_push(b"12345678").expect("push"));
        }
        drop(consumer.try_pop().expect("pop"));
        let (status, out, err) = offloop(&["ring", "stat", &path]);
        assert_eq!((status, err.as_str()), (0, ""));
        let words: Vec<Vec<&str>> = out.lines().map(|l| l.split_whitespace().collect()).collect();
        assert!(out.starts_with(&format!("{path}: mpsc ring, 64 KiB a lane, wait when full, open\n")), "{out}");
        let me = std::process::id().to_string();
        assert!(words.contains(&vec!["0", "consumer", &me, "awake"]) && words.contains(&vec!["1", "producer", &me, "awake"]), "{out}");
        assert!(words.iter().any(|l| l.len() == 7 && l[0] == "0" && l[5] == "1,500"), "{out}");

        ring.close();
        let (status, out, _) = offloop(&["ring", "stat", &path, "--json"]);
        let json: serde_json::Value = serde_json::from_str(&out).expect("JSON");
        assert_eq!((status, &json["kind"], &json["closed"], &json["lanes"][0]["pushed"]), (0, &json!("mpsc"), &json!(true), &json!(1500)));
        assert_eq!(json["participants"][1]["role"], json!("producer"));
        ring.remove().expect("its name");
    }

    #[test]
    fn tail_counts_what_came_and_went_and_ends_with_the_ring() {
        let (ring, path) = named("tail", Kind::Spsc);
        let mut producer = ring.producer(ProducerOptions::default()).expect("producer");
        let pusher = std::thread::spawn(move || {
            while producer.try_push(b"x").is_ok() {
                std::thread::yield_now();
            }
        });
        let mut consumer = ring.consumer(ConsumerOptions::default()).expect("consumer");
        let popper = std::thread::spawn(move || while consumer.pop(None).is_ok() {});
        let (status, out, err) = offloop(&["ring", "tail", &path, "--json", "--interval", "0.05", "--count", "3"]);
        assert_eq!((status, err.as_str(), out.lines().count()), (0, "", 3), "{out}");
        let rates: Vec<f64> = out
            .lines()
            .map(|l| serde_json::from_str::<serde_json::Value>(l).expect("JSON")["pushed_per_s"].as_f64().expect("number"))
            .collect();
        assert!(rates.iter().all(|r| *r > 0.0), "{rates:?}");
        let table = offloop(&["ring", "tail", &path, "--interval", "0.01", "-n", "1"]).1;
        assert!(table.lines().count() == 2 && table.contains("pushed/s"), "{table}");

        let remover = std::thread::spawn(move || {
            ring.remove().expect("its name");
            ring.close();
        });
        let (status, _, err) = offloop(&["ring", "tail", &path, "--interval", "0.01"]);
        // The ring may be gone before the first look, which is a failure, or after it, which is the end.
        assert!(status == 0 && err.is_empty() || status == 1 && err.contains("not found"), "{status} {err}");
        remover.join().expect("remover");
        pusher.join().expect("pusher");
        popper.join().expect("popper");
        let (status, out, err) = offloop(&["ring", "stat", &path]);
        assert!(status == 1 && out.is_empty() && err.starts_with("offloop: not found: ") && err.contains(&path), "{err}");
    }

    #[test]
    fn rates_survive_wrapping_counts_and_a_ring_made_anew() {
        let (ring, _) = named("wrap", Kind::Spsc);
        let mut from = ring.stat().expect("stat");
        ring.remove().expect("its name");
        from.lanes[0] = LaneStat { tail: u32::MAX - 7, pushed: u32::MAX, head: u32::MAX - 15, popped: u32::MAX - 1 };
        let mut to = from.clone();
        to.lanes[0] = LaneStat { tail: 24, pushed: 3, head: 8, popped: 1 };
        let step = Step::between(&from, &to, Duration::from_secs(2));
        let want = Step { pushed_per_s: 2.0, popped_per_s: 1.5, bytes_per_s: 16.0, queued: 2, queued_bytes: 16, alive: 0 };
        assert_eq!(step, want);
        to.created_unix_ns += 1;
        assert_eq!(Step::between(&from, &to, Duration::from_secs(2)).pushed_per_s, 0.0);
    }

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([512, 4096, 4 << 20].map(bytes), ["512 B", "4 KiB", "4 MiB"]);
    }
}
