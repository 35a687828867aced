//! What a load came to, as a text and as JSON.

use super::event::{Ended, PATIENCE, Run, Server, how};
use super::load::{Outcome, Plan};
use super::tally::{Answers, Class, Example, Failure, Recent};
use super::target::Behaviour;
use crate::cli::ring::grouped;
use crate::error::Result;
use crate::metrics::Histogram;
use crate::sys::process::Exit;
use serde_json::{Map, Value, json};
use std::io::{self, Write};
use std::time::{Duration, Instant};

/// Rows of answers in the text; JSON has all.
const ROWS: usize = 20;
/// Runs of commands that are shown for themselves in the text: those with failures, up to so many.
const RUNS: usize = 10;

pub(super) const LINE_HEAD: &str = "       s    requests/s     p99 ms     max ms    failed   raced";

/// One line for an interval.
pub(super) fn line(from: u64, to: u64, recent: &Recent, as_json: bool) -> String {
    let latency = recent.latency.histogram();
    let rate = recent.requests as f64 * 1e9 / (to - from).max(1) as f64;
    if as_json {
        let line = json!({
            "at_s": seconds(to), "requests": recent.requests, "requests_per_s": rounded(rate), "p99_ms": ms(latency.p99_ns),
            "max_ms": ms(latency.max_ns), "failed": recent.failed, "raced": recent.raced,
        });
        return line.to_string();
    }
    format!(
        "{:>8.1}  {:>12}  {:>9.2}  {:>9.2}  {:>8}  {:>6}",
        to as f64 / 1e9,
        grouped(rate as u64),
        latency.p99_ns as f64 / 1e6,
        latency.max_ns as f64 / 1e6,
        grouped(recent.failed),
        grouped(recent.raced)
    )
}

/// Nanoseconds as milliseconds, to the microsecond.
fn ms(ns: u64) -> f64 {
    (ns as f64 / 1e3).round() / 1e3
}

fn seconds(ns: u64) -> f64 {
    (ns as f64 / 1e6).round() / 1e3
}

fn rounded(x: f64) -> f64 {
    (x * 1e3).round() / 1e3
}

/// How the server that was started ended.
#[derive(Debug)]
pub(super) struct ServerEnd {
    pid: i32,
    accepted_after: Duration,
    /// When, if by itself; else how long it took.
    by_itself: Option<u64>,
    took: Duration,
    killed: bool,
    exit: Exit,
}

impl ServerEnd {
    /// Ends it, unless it has ended.
    pub(super) fn of(server: &Server, accepted_after: Duration, outcome: &Outcome) -> Result<ServerEnd> {
        let pid = server.child.pid();
        if let Some((at, exit)) = outcome.server_ended {
            return Ok(ServerEnd { pid, accepted_after, by_itself: Some(at), took: Duration::ZERO, killed: false, exit });
        }
        let began = Instant::now();
        let (killed, exit) = server.stop(PATIENCE)?;
        Ok(ServerEnd { pid, accepted_after, by_itself: None, took: began.elapsed(), killed, exit })
    }

    fn json(&self) -> Value {
        json!({
            "pid": self.pid, "accepted_after_ms": ms(self.accepted_after.as_nanos() as u64), "ended_by_itself_at_s": self.by_itself.map(seconds),
            "stopped_after_ms": self.by_itself.is_none().then(|| ms(self.took.as_nanos() as u64)), "killed": self.killed, "ended": how(self.exit),
        })
    }

    fn text(&self) -> String {
        let end = match (self.by_itself, self.killed) {
            (Some(at), _) => format!("it ended by itself at {:.1} s, {}", at as f64 / 1e9, how(self.exit)),
            (None, true) => format!("it did not end within {:.0} s of SIGTERM and was killed", PATIENCE.as_secs_f64()),
            (None, false) => format!("it ended {:.0} ms after SIGTERM, {}", self.took.as_secs_f64() * 1e3, how(self.exit)),
        };
        format!("server {}: accepted after {:.0} ms; {end}", self.pid, self.accepted_after.as_secs_f64() * 1e3)
    }
}

pub(super) struct Report<'a> {
    pub(super) plan: &'a Plan,
    pub(super) outcome: &'a Outcome,
    pub(super) server: Option<&'a ServerEnd>,
    /// The field by which answers were counted.
    pub(super) field: Option<&'a str>,
}

fn latency_json(h: &Histogram) -> Value {
    json!({ "count": h.count, "mean": ms(h.mean_ns as u64), "p50": ms(h.p50_ns), "p90": ms(h.p90_ns), "p99": ms(h.p99_ns), "max": ms(h.max_ns) })
}

/// p99 of requests that met an event, as a multiple of the others'; `None` without one of either.
fn ratio(class: &Class) -> Option<f64> {
    let (steady, during) = (class.steady.histogram(), class.during.histogram());
    (steady.count > 0 && during.count > 0).then(|| during.p99_ns as f64 / steady.p99_ns.max(1) as f64)
}

fn class_json(class: &Class) -> Value {
    let failures: Map<String, Value> = Failure::ALL.iter().map(|f| (f.name().to_owned(), json!(class.failures[*f as usize]))).collect();
    json!({
        "requests": class.requests, "failed": class.failed(), "raced": class.raced, "failures": failures, "latency_ms": latency_json(&class.latency()),
        "steady_ms": latency_json(&class.steady.histogram()), "during_ms": latency_json(&class.during.histogram()),
        "p99_ratio": ratio(class).map(rounded),
    })
}

impl Report<'_> {
    /// The commands' runs of one event.
    fn runs(&self, event: usize) -> impl Iterator<Item = &Run> {
        self.outcome.runs.iter().filter(move |run| run.event == event)
    }

    fn command(&self, run: usize) -> &str {
        let event = self.outcome.runs.get(run).map_or(0, |run| run.event);
        self.plan.events.get(event).map_or("", |event| &event.command)
    }

    /// By the number of requests, most first.
    fn answers(&self) -> Vec<(String, Answers)> {
        let answers = self.outcome.tally.answers.iter();
        let mut rows: Vec<_> = answers.map(|(value, n)| (String::from_utf8_lossy(value).into_owned(), *n)).collect();
        rows.sort_by(|a, b| b.1.requests.cmp(&a.1.requests).then_with(|| a.0.cmp(&b.0)));
        rows
    }

    fn clients(&self) -> impl Iterator<Item = (Behaviour, usize)> {
        Behaviour::ALL.into_iter().zip(self.plan.shares).filter(|(_, n)| *n > 0)
    }

    pub(super) fn json(&self) -> Value {
        let tally = &self.outcome.tally;
        let all = tally.all();
        let mut report = json!({
            "url": self.plan.url.text, "connections": self.plan.shares.iter().sum::<usize>(), "took_s": seconds(self.outcome.took),
            "requests_per_s": rounded(all.requests as f64 * 1e9 / self.outcome.took.max(1) as f64),
        });
        let Value::Object(members) = &mut report else { return report };
        if let Value::Object(class) = class_json(&all) {
            members.extend(class);
        }
        members.extend([
            ("connections_opened".to_owned(), json!(tally.connections)),
            ("closed_idle".to_owned(), json!(tally.closed_idle)),
            ("received_bytes".to_owned(), json!(tally.received)),
        ]);
        let clients: Map<String, Value> = self
            .clients()
            .map(|(behaviour, n)| {
                let mut class = class_json(&tally.classes[behaviour as usize]);
                if let Value::Object(members) = &mut class {
                    members.insert("connections".to_owned(), json!(n));
                }
                (behaviour.name().to_owned(), class)
            })
            .collect();
        members.insert("clients".to_owned(), Value::Object(clients));
        if !self.plan.events.is_empty() {
            members.insert("events".to_owned(), (0..self.outcome.runs.len()).map(|at| self.run_json(at)).collect());
            members.insert("events_skipped".to_owned(), json!(self.outcome.skipped));
        }
        if let Some(field) = self.field {
            let finite = |x: Option<f64>| x.filter(|x| x.is_finite()).map(rounded);
            let rows: Vec<Value> = self
                .answers()
                .iter()
                .map(|(value, n)| json!({ "value": value, "requests": n.requests, "connections": n.connections }))
                .collect();
            let answers = json!({
                "field": field, "values": rows, "others": tally.other_answers,
                "requests_max_min": finite(tally.balance(|a| a.requests)), "connections_max_min": finite(tally.balance(|a| a.connections)),
            });
            members.insert("answers".to_owned(), answers);
        }
        if let Some(server) = self.server {
            members.insert("server".to_owned(), server.json());
        }
        members.insert("examples".to_owned(), tally.examples.iter().map(|e| self.example_json(e)).collect());
        report
    }

    fn run_json(&self, at: usize) -> Value {
        let run = &self.outcome.runs[at];
        let (ended, took) = match &run.ended {
            Some((end, ended)) => (ended_text(ended), Some(ms(end - run.at))),
            None => ("never".to_owned(), None),
        };
        json!({
            "command": self.command(at), "at_s": seconds(run.at), "took_ms": took, "ended": ended,
            "ok": run.ended.as_ref().is_some_and(|(_, e)| e.went_well()), "requests": run.requests, "failed": run.failed, "raced": run.raced,
            "max_ms": ms(run.max),
        })
    }

    fn example_json(&self, e: &Example) -> Value {
        json!({
            "kind": e.failure.name(), "raced": e.raced, "client": e.behaviour.name(), "at_s": seconds(e.at), "took_ms": ms(e.took),
            "requests_before": e.reused, "idle_ms": ms(e.idle), "event": e.event, "detail": e.detail,
        })
    }

    pub(super) fn text(&self, out: &mut dyn Write) -> io::Result<()> {
        let (outcome, tally) = (self.outcome, &self.outcome.tally);
        let all = tally.all();
        let clients: Vec<String> = self.clients().map(|(behaviour, n)| format!("{n} {}", behaviour.name())).collect();
        writeln!(
            out,
            "{}: {:.1} s, {} connections ({}), {} requests/s\n",
            self.plan.url.text,
            outcome.took as f64 / 1e9,
            self.plan.shares.iter().sum::<usize>(),
            clients.join(", "),
            grouped((all.requests as f64 * 1e9 / outcome.took.max(1) as f64) as u64)
        )?;
        writeln!(out, "               requests     failed   raced     p50 ms     p90 ms     p99 ms     max ms")?;
        let rows = self.clients().map(|(behaviour, _)| (behaviour.name(), &tally.classes[behaviour as usize]));
        for (name, class) in [("all", &all)].into_iter().chain(rows) {
            let counts = format!("{:>12}  {:>9}  {:>6}", grouped(class.requests), grouped(class.failed()), grouped(class.raced));
            writeln!(out, "{name:<10} {counts}  {}", times(&class.latency()))?;
        }
        if !self.plan.events.is_empty() {
            let blank = " ".repeat(32);
            for (name, totals) in [("steady", &all.steady), ("during", &all.during)] {
                writeln!(out, "{name:<10} {blank} {}", times(&totals.histogram()))?;
            }
            if let Some(ratio) = ratio(&all) {
                writeln!(out, "\np99 during the commands is {ratio:.2} × that of steady times")?;
            }
        }
        if all.failed() > 0 {
            let kinds = Failure::ALL.iter().map(|f| (f.name(), all.failures[*f as usize])).filter(|(_, n)| *n > 0);
            let kinds: Vec<String> = kinds.map(|(name, n)| format!("{} {name}", grouped(n))).collect();
            let share = all.failed() as f64 * 100.0 / all.requests.max(1) as f64;
            writeln!(out, "\nfailed ({share:.4} %): {}", kinds.join(", "))?;
        }
        writeln!(
            out,
            "\n{} connections were opened; {} were closed by the server while they carried nothing",
            grouped(tally.connections),
            grouped(tally.closed_idle)
        )?;
        self.events_text(out)?;
        self.answers_text(out)?;
        if !tally.examples.is_empty() {
            writeln!(out, "\nfirst failures, of each kind:")?;
            for e in &tally.examples {
                let raced = if e.raced { " (raced)" } else { "" };
                let before = if e.reused > 0 {
                    format!(", request {} of its connection, idle {} ms", e.reused + 1, ms(e.idle))
                } else {
                    String::new()
                };
                let during = e.event.map_or(String::new(), |run| format!(", during `{}`", self.command(run)));
                writeln!(
                    out,
                    "{:>9.3} s  {:<9}  {}{raced}: {} after {} ms{before}{during}",
                    e.at as f64 / 1e9,
                    e.behaviour.name(),
                    e.failure.name(),
                    e.detail,
                    ms(e.took)
                )?;
            }
        }
        if let Some(server) = self.server {
            writeln!(out, "\n{}", server.text())?;
        }
        Ok(())
    }

    fn events_text(&self, out: &mut dyn Write) -> io::Result<()> {
        if self.plan.events.is_empty() {
            return Ok(());
        }
        writeln!(out, "\n  runs  not exit 0  took ms p50    max    requests     failed   raced     max ms   command")?;
        for (at, event) in self.plan.events.iter().enumerate() {
            let mut took: Vec<u64> = self.runs(at).filter_map(|run| run.ended.as_ref().map(|(end, _)| end - run.at)).collect();
            took.sort_unstable();
            let wrong = self.runs(at).filter(|run| !run.ended.as_ref().is_some_and(|(_, e)| e.went_well())).count();
            let sum = |of: fn(&Run) -> u64| self.runs(at).map(of).sum::<u64>();
            writeln!(
                out,
                "{:>6}  {wrong:>10}  {:>11.1}  {:>5.0}  {:>10}  {:>9}  {:>6}  {:>9.2}   {}",
                self.runs(at).count(),
                took.get(took.len() / 2).map_or(0.0, |ns| *ns as f64 / 1e6),
                took.last().map_or(0.0, |ns| *ns as f64 / 1e6),
                grouped(sum(|run| run.requests)),
                grouped(sum(|run| run.failed)),
                grouped(sum(|run| run.raced)),
                self.runs(at).map(|run| run.max).max().unwrap_or(0) as f64 / 1e6,
                event.command
            )?;
        }
        if self.outcome.skipped > 0 {
            writeln!(out, "{} times a command was due and ran still", grouped(self.outcome.skipped))?;
        }
        for run in self.outcome.runs.iter().filter(|run| !run.ended.as_ref().is_some_and(|(_, e)| e.went_well())).take(RUNS) {
            let ended = run.ended.as_ref().map_or("never".to_owned(), |(_, ended)| ended_text(ended));
            writeln!(out, "{:>9.3} s  `{}`: {ended}", run.at as f64 / 1e9, self.plan.events[run.event].command)?;
        }
        Ok(())
    }

    fn answers_text(&self, out: &mut dyn Write) -> io::Result<()> {
        let Some(field) = self.field else { return Ok(()) };
        let tally = &self.outcome.tally;
        let rows = self.answers();
        write!(out, "\nanswers by {field}: {} values", grouped(rows.len() as u64))?;
        if let (Some(requests), Some(connections)) = (tally.balance(|a| a.requests), tally.balance(|a| a.connections)) {
            write!(out, ", max/min {requests:.2} by requests, {connections:.2} by connections")?;
        }
        writeln!(out, "\n    requests  connections  value")?;
        for (value, n) in rows.iter().take(ROWS) {
            // Another's bytes: what a terminal would act upon is shown as what it is.
            writeln!(out, "{:>12}  {:>11}  {}", grouped(n.requests), grouped(n.connections), value.escape_debug())?;
        }
        if rows.len() > ROWS {
            writeln!(out, "… and {} more", grouped((rows.len() - ROWS) as u64))?;
        }
        if tally.other_answers > 0 {
            writeln!(out, "{} answers of further values are not told apart", grouped(tally.other_answers))?;
        }
        Ok(())
    }
}

fn ended_text(ended: &Ended) -> String {
    match ended {
        Ended::Exit(exit) => how(*exit),
        Ended::NotStarted(told) => format!("not started: {told}"),
        Ended::Killed => "killed 10 s after the end of the load".to_owned(),
    }
}

/// Four columns of a table.
fn times(h: &Histogram) -> String {
    let columns = [h.p50_ns, h.p90_ns, h.p99_ns, h.max_ns]
        .map(|ns| if h.count == 0 { format!("{:>9}", "-") } else { format!("{:>9.2}", ns as f64 / 1e6) });
    columns.join("  ")
}
