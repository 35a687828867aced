//! `offloop top`: a cluster's workers as they are, looked at again and again.

use super::super::Stop;
use super::client::{self, Line};
use super::place;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::poll;
use crate::sys::signals::Signals;
use crate::sys::terminal::{self, Screen};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

/// How long a cluster may take for an answer, for which keys wait.
const ANSWER: Duration = Duration::from_secs(2);
/// Ctrl-C, where it is a key.
const INTERRUPT: u8 = 3;

pub(in crate::cli) fn command() -> Command {
    Command::new("top").about("Show a cluster's workers as they are, again each second; q quits").args([
        Arg::new("name").value_name("NAME").value_parser(place::name).help("The cluster, as `offloop ps` shows it [default: the only one]"),
        Arg::new("interval")
            .long("interval")
            .value_name("SECONDS")
            .default_value("1")
            .value_parser(super::super::ring::interval)
            .help("Seconds between two looks, 0.01 to 3600"),
        Arg::new("count")
            .short('n')
            .long("count")
            .value_name("LOOKS")
            .value_parser(value_parser!(u64).range(1..))
            .help("End after so many looks"),
        Arg::new("json").long("json").action(ArgAction::SetTrue).help("One JSON object a look, for which no terminal is needed"),
    ])
}

pub(in crate::cli) fn top(args: &ArgMatches, out: &mut dyn Write) -> std::result::Result<(), Stop> {
    let is_json = args.get_flag("json");
    if !is_json && !terminal::is_there() {
        return Err(Stop::Usage(Error::invalid(
            "input and output are no terminal: `offloop ps` shows the same once, `offloop top --json` again and again",
        )));
    }
    let name = match args.get_one::<String>("name") {
        Some(name) => name.clone(),
        None => only()?,
    };
    let interval = *args.get_one::<Duration>("interval").expect("it has a default");
    let count = args.get_one::<u64>("count").copied().unwrap_or(u64::MAX);
    let first = status(&name)?;
    let signals = Signals::take(&[libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGWINCH])?;
    let screen = if is_json { None } else { Some(Screen::take()?) };
    let mut view = View { screen, out };
    let ended = watch(&name, first, interval, count, &signals, &mut view);
    // First: what is said next is said where it stays.
    drop(view.screen);
    match ended? {
        End::Asked => Ok(()),
        End::Over if is_json => Ok(()),
        End::Over => Ok(writeln!(out, "{name}: the cluster has ended")?),
        End::Signal(signal) => Err(Stop::Ended(128u8.saturating_add(u8::try_from(signal).unwrap_or(0)))),
    }
}

/// Why nobody looks any more.
enum End {
    Asked,
    Over,
    Signal(i32),
}

/// The name of the one that runs.
fn only() -> Result<String> {
    let mut names = place::all()?;
    names.retain(|name| status(name).is_ok());
    match names.len() {
        1 => Ok(names.remove(0)),
        0 => Err(Error::new(ErrorKind::NotFound, "no cluster runs")),
        _ => Err(Error::invalid("there are several clusters: say which").with("names", names.join(" "))),
    }
}

fn status(name: &str) -> Result<Value> {
    Line::ask(name, &json!({"do": "status"}), Some(ANSWER)).map(|(_, status)| status)
}

struct View<'a> {
    screen: Option<Screen>,
    out: &'a mut dyn Write,
}

impl View<'_> {
    fn show(&mut self, now: &Value, rates: &Rates, trouble: &str) -> std::io::Result<()> {
        let Some(screen) = &self.screen else {
            writeln!(self.out, "{}", with_rates(now, rates))?;
            return self.out.flush();
        };
        let (columns, rows) = screen.size();
        let mut text = String::from("\x1b[H");
        let lines = table(now, rates, trouble, columns);
        for (i, line) in lines.iter().take(rows).enumerate() {
            let line: String = line.chars().filter(|c| !c.is_control()).take(columns).collect();
            // The last line has no end, or the first would leave the screen.
            let end = if i + 1 < rows.min(lines.len()) { "\r\n" } else { "" };
            let _ = write!(text, "{line}\x1b[K{end}");
        }
        text.push_str("\x1b[J");
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }
}

fn watch(
    name: &str,
    first: Value,
    interval: Duration,
    count: u64,
    signals: &Signals,
    view: &mut View<'_>,
) -> std::result::Result<End, Stop> {
    let mut rates = Rates::between(&Value::Null, &first);
    let mut now = first;
    let mut trouble = String::new();
    let mut looks = 0;
    loop {
        view.show(&now, &rates, &trouble)?;
        looks += 1;
        if looks >= count {
            return Ok(End::Asked);
        }
        let next = Instant::now() + interval;
        loop {
            let left = next.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let mut fds = vec![poll::readable(signals.as_fd().as_raw_fd())];
            fds.extend(view.screen.as_ref().map(|screen| poll::readable(screen.as_fd().as_raw_fd())));
            poll::wait_readable(&mut fds, Some(left));
            while let Some(signal) = signals.next() {
                match signal {
                    libc::SIGWINCH if view.screen.is_some() => view.show(&now, &rates, &trouble)?,
                    libc::SIGWINCH => {}
                    libc::SIGINT => return Ok(End::Asked),
                    other => return Ok(End::Signal(other)),
                }
            }
            if let (Some(screen), Some(true)) = (&view.screen, fds.get(1).map(poll::is_ready)) {
                match screen.keys() {
                    Some(keys) if keys.iter().any(|key| matches!(*key, b'q' | b'Q' | INTERRUPT)) => return Ok(End::Asked),
                    Some(_) => {}
                    None => return Ok(End::Signal(libc::SIGHUP)),
                }
            }
        }
        trouble.clear();
        match status(name) {
            Ok(then) => {
                rates = Rates::between(&now, &then);
                now = then;
            }
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::PeerDied) => return Ok(End::Over),
            Err(e) if e.kind() == ErrorKind::Timeout && view.screen.is_some() => trouble = e.to_string(),
            Err(e) => return Err(e.into()),
        }
    }
}

/// What one look alone does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Rate {
    /// Answered per second.
    requests: Option<f64>,
    /// Of one processor, in percent.
    cpu: Option<f64>,
}

/// What changed from one status to the next: of each worker, in the order of the second one, and of all.
#[derive(Debug, Default, PartialEq)]
struct Rates {
    workers: Vec<Rate>,
    all: Rate,
}

impl Rates {
    /// `Null` is a status that nobody has. A worker that was not there before has no rate, nor has a number that began anew.
    fn between(before: &Value, now: &Value) -> Rates {
        let ms = now["up_ms"].as_f64().zip(before["up_ms"].as_f64()).map(|(now, before)| now - before);
        let change = |now: &Value, before: &Value| {
            let (now, before) = now.as_f64().zip(before.as_f64())?;
            ms.filter(|ms| *ms > 0.0 && now >= before).map(|ms| (now - before) / ms)
        };
        let of = |worker: &Value| {
            let is_same = |other: &&Value| ["slot", "pid", "generation"].iter().all(|key| other[*key] == worker[*key]);
            let old = before["workers"].as_array().into_iter().flatten().find(is_same).unwrap_or(&Value::Null);
            Rate {
                requests: change(&worker["served"], &old["served"]).map(|per_ms| per_ms * 1e3),
                cpu: change(&worker["cpu_ms"], &old["cpu_ms"]).map(|share| share * 1e2),
            }
        };
        let workers: Vec<Rate> = now["workers"].as_array().into_iter().flatten().map(of).collect();
        let all = Rate {
            // Those that have ended meanwhile are in it.
            requests: change(&now["served"], &before["served"]).map(|per_ms| per_ms * 1e3),
            cpu: workers.iter().filter_map(|rate| rate.cpu).reduce(|a, b| a + b),
        };
        Rates { workers, all }
    }
}

/// The status, with `requests_per_s` and `cpu_percent` of each worker and of all.
fn with_rates(now: &Value, rates: &Rates) -> Value {
    let round = |n: Option<f64>| json!(n.map(|n| (n * 10.0).round() / 10.0));
    let put = |to: &mut Value, rate: &Rate| {
        to["requests_per_s"] = round(rate.requests);
        to["cpu_percent"] = round(rate.cpu);
    };
    let mut out = now.clone();
    out.as_object_mut().map(|out| out.remove("ok"));
    put(&mut out, &rates.all);
    for (worker, rate) in out["workers"].as_array_mut().into_iter().flatten().zip(&rates.workers) {
        put(worker, rate);
    }
    out
}

fn number(n: Option<f64>) -> String {
    n.map_or_else(|| "-".to_owned(), |n| if n < 10.0 && n > 0.0 { format!("{n:.1}") } else { format!("{n:.0}") })
}

fn delay(ms: Option<f64>) -> String {
    match ms {
        None => "-".to_owned(),
        Some(ms) if ms < 1000.0 => format!("{} ms", number(Some(ms))),
        Some(ms) => format!("{:.1} s", ms / 1000.0),
    }
}

const NAMES: [&str; 10] = ["slot", "pid", "state", "gen", "since", "requests/s", "loop delay", "CPU %", "memory", "restarts"];
const WIDTHS: [usize; 10] = [4, 9, 12, 5, 9, 10, 10, 5, 11, 8];
const SHORT: [&str; 10] = ["slot", "pid", "state", "gen", "since", "req/s", "delay", "CPU %", "memory", "restarts"];
const STATE: usize = 2;
/// What a narrow screen goes without: generation, time, pid, delay and CPU, in this order.
const DISPENSABLE: [usize; 5] = [3, 4, 1, 6, 7];

/// Rows below their names: as wide as is good to read, or else as they need to be.
fn aligned(rows: &[[String; 10]], columns: usize) -> Vec<String> {
    let line = |shown: &[usize], widths: &[usize; 10], gap: &str, cells: &dyn Fn(usize) -> String| {
        let cell = |at: &usize| {
            let (text, width) = (cells(*at), widths[*at]);
            if *at == STATE { format!("{text:<width$}") } else { format!("{text:>width$}") }
        };
        shown.iter().map(cell).collect::<Vec<_>>().join(gap)
    };
    let mut shown: Vec<usize> = (0..NAMES.len()).collect();
    let length = |shown: &[usize], widths: &[usize; 10], gap: usize| shown.iter().map(|at| widths[*at] + gap).sum::<usize>() - gap;
    let is_wide = length(&shown, &WIDTHS, 2) <= columns;
    let (names, mut widths, mut gap) = if is_wide { (&NAMES, WIDTHS, 2) } else { (&SHORT, SHORT.map(str::len), 2) };
    if !is_wide {
        for (at, width) in widths.iter_mut().enumerate() {
            *width = rows.iter().map(|row| row[at].chars().count()).chain([*width]).max().unwrap_or(0);
        }
        gap = if length(&shown, &widths, 2) <= columns { 2 } else { 1 };
        for other in DISPENSABLE {
            if length(&shown, &widths, gap) > columns {
                shown.retain(|at| *at != other);
            }
        }
    }
    let gap = " ".repeat(gap);
    let first = line(&shown, &widths, &gap, &|at| names[at].to_owned());
    std::iter::once(first).chain(rows.iter().map(|row| line(&shown, &widths, &gap, &|at| row[at].clone()))).collect()
}

/// The lines of a screen of so many columns.
fn table(now: &Value, rates: &Rates, trouble: &str, columns: usize) -> Vec<String> {
    let workers = || now["workers"].as_array().into_iter().flatten();
    let most = |key: &str| workers().filter_map(|w| w[key].as_f64()).reduce(f64::max);
    let sum = |key: &str| workers().filter_map(|w| w[key].as_f64()).reduce(|a, b| a + b);
    let all = |per_second: &str, late: &str, wait: &str| {
        let waiting = now["waiting"].as_u64().map_or(String::new(), |n| format!(", {n} {wait}"));
        format!(
            "{} {per_second}, {} in all, {late} {}, CPU {} %, memory {}, {} restarts{waiting}",
            number(rates.all.requests),
            now["served"],
            delay(most("loop_delay_ms")),
            number(rates.all.cpu),
            client::mebibytes(sum("memory")),
            sum("restarts").unwrap_or(0.0)
        )
    };
    let long = all("requests/s", "loop delay", "connections wait");
    let all = if long.len() <= columns { long } else { all(SHORT[5], SHORT[6], "wait") };
    let row = |(worker, rate): (&Value, &Rate)| {
        let whole = |key: &str| worker[key].as_u64().unwrap_or(0).to_string();
        [
            whole("slot"),
            whole("pid"),
            worker["state"].as_str().unwrap_or("?").to_owned(),
            whole("generation"),
            client::age(&worker["since_ms"]),
            number(rate.requests),
            delay(worker["loop_delay_ms"].as_f64()),
            number(rate.cpu),
            client::mebibytes(worker["memory"].as_f64()),
            whole("restarts"),
        ]
    };
    let rows: Vec<_> = workers().zip(&rates.workers).map(row).collect();
    let mut lines = vec![client::headline(now), all, trouble.to_owned()];
    lines.extend(aligned(&rows, columns));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(pid: u32, served: u64, cpu_ms: f64) -> Value {
        json!({"slot": 0, "pid": pid, "generation": 1, "state": "ready", "since_ms": 1500, "restarts": 2, "served": served,
               "loop_delay_ms": 2.5, "memory": 3 << 20, "cpu_ms": cpu_ms})
    }

    fn at(up_ms: f64, served: u64, workers: &[Value]) -> Value {
        json!({"ok": true, "name": "t", "state": "running", "up_ms": up_ms, "served": served, "ready": 1, "wanted": 1, "generation": 1,
               "pid": 7, "listen": [":80"], "waiting": 4, "workers": workers})
    }

    #[test]
    fn rates_are_what_changed_between_two_looks() {
        let before = at(1000.0, 100, &[worker(5, 60, 10.0), worker(6, 40, 0.0)]);
        let now = at(3000.0, 150, &[worker(5, 70, 1010.0), worker(8, 3, 5.0)]);
        let rates = Rates::between(&before, &now);
        let known = Rate { requests: Some(5.0), cpu: Some(50.0) };
        assert_eq!(rates.workers, [known, Rate::default()], "one that was not there has none");
        assert_eq!(rates.all, Rate { requests: Some(25.0), cpu: Some(50.0) }, "who has ended meanwhile counts");
        for (before, now) in [(&Value::Null, &now), (&now, &now), (&now, &before), (&json!({}), &json!({"workers": 7}))] {
            let rates = Rates::between(before, now);
            assert_eq!((rates.all, rates.workers.iter().any(|rate| *rate != Rate::default())), (Rate::default(), false));
        }
        // A process that was started anew under the same number would count backwards.
        let again = Rates::between(&at(1.0, 9, &[worker(5, 9, 9.0)]), &at(2.0, 9, &[worker(5, 3, 9.0)]));
        assert_eq!(again.workers, [Rate { requests: None, cpu: Some(0.0) }]);
    }

    #[test]
    fn a_look_is_a_table_and_a_line_of_json() {
        let now = at(3000.0, 150, &[worker(5, 70, 1010.0)]);
        let rates = Rates::between(&at(1000.0, 100, &[worker(5, 60, 10.0)]), &now);
        let lines = table(&now, &rates, "", 120);
        assert_eq!(
            lines,
            [
                "t: running, 1 of 1 workers ready at :80, generation 1, up 3.0 s, pid 7",
                "25 requests/s, 150 in all, loop delay 2.5 ms, CPU 50 %, memory 3.0 MiB, 2 restarts, 4 connections wait",
                "",
                "slot        pid  state           gen      since  requests/s  loop delay  CPU %       memory  restarts",
                "   0          5  ready             1      1.5 s         5.0      2.5 ms     50      3.0 MiB         2",
            ]
        );
        let narrow = table(&now, &rates, "", 80);
        assert_eq!(
            narrow[1..],
            [
                "25 req/s, 150 in all, delay 2.5 ms, CPU 50 %, memory 3.0 MiB, 2 restarts, 4 wait",
                "",
                "slot  pid  state  gen  since  req/s   delay  CPU %   memory  restarts",
                "   0    5  ready    1  1.5 s    5.0  2.5 ms     50  3.0 MiB         2",
            ]
        );
        // Many digits, and little room.
        let mut large = worker(4_194_303, 70, 1010.0);
        (large["slot"], large["state"], large["memory"]) = (json!(1023), json!("unresponsive"), json!(12_345u64 << 20));
        (large["loop_delay_ms"], large["restarts"]) = (json!(999.0), json!(12_345));
        let large = at(3000.0, 12_345_678, &[large]);
        for columns in [80, 60, 45] {
            let lines = table(&large, &Rates::between(&Value::Null, &large), "", columns);
            assert!(lines[3..].iter().all(|line| line.len() <= columns), "{lines:#?}");
            assert!(lines[3].contains(" memory restarts") && lines[4].ends_with("12345.0 MiB    12345"), "{lines:#?}");
        }
        let line = with_rates(&now, &rates);
        assert_eq!((&line["requests_per_s"], &line["workers"][0]["cpu_percent"]), (&json!(25.0), &json!(50.0)));
        assert_eq!((line.get("ok"), &line["workers"][0]["requests_per_s"]), (None, &json!(5.0)));
        assert_eq!(with_rates(&now, &Rates::between(&Value::Null, &now))["requests_per_s"], Value::Null);
        assert_eq!([delay(None), delay(Some(0.0)), delay(Some(1234.0)), number(Some(123.4))], ["-", "0 ms", "1.2 s", "123"]);
    }
}
