//! The demo: the same work at the same offered load in Node.js, Python and C servers, once on the event loop and once offloaded.
//!
//! `demo [node] [python] [c] [--seconds N]`. It prints its progress and a table, writes a plot, and shows functions of the user's own in workers.
//! At its end a cluster is reloaded and loses processes under load. That no request failed of that is the one assertion here.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for people")]

mod cluster;
mod own;
mod plot;
mod server;

use offloop::{Value, ops};
use offloop_tests::load::{self, Route};
use offloop_tests::spread::Spread;
use offloop_tests::{root, target_dir};
use server::{Host, Server};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Share of one core that the heavy requests need: an inline loop is then nearly always busy, and two cores have room.
const LOAD: f64 = 0.9;
/// Cheap requests per second.
const HEALTH_RATE: f64 = 200.0;
const WARM_UP: Duration = Duration::from_secs(1);
const TAIL: Duration = Duration::from_secs(2);

/// What a run of one server gave.
pub(crate) struct Run {
    /// Lateness of a 1 ms timer on the server's loop, in the order of time.
    pub(crate) late: Vec<f64>,
    /// `/health`: when it was due (s), and its latency (ms); a request that was never answered counts with the time it had waited.
    pub(crate) health: Vec<(f64, f64)>,
    health_missed: usize,
    heavy_offered: usize,
    heavy_done: usize,
    heavy_failed: usize,
    heavy: Spread,
    wall: Duration,
    server_cpu: Duration,
    generator_cpu: Duration,
    sent_late: Duration,
}

/// Both runs of one host.
pub(crate) struct Pair {
    /// `Node.js`, with what serves.
    pub(crate) title: String,
    /// On the loop.
    pub(crate) inline: Run,
    /// On the pool.
    pub(crate) offloaded: Run,
}

fn main() -> std::process::ExitCode {
    match run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let seconds = args.iter().position(|a| a == "--seconds").and_then(|i| args.get(i + 1)?.parse().ok()).unwrap_or(6.0);
    let hosts: Vec<Host> = Host::ALL
        .into_iter()
        .filter(|h| args.iter().all(|a| !Host::ALL.iter().any(|x| x.word() == a)) || args.iter().any(|a| a == h.word()))
        .collect();
    let began = Instant::now();
    let out = target_dir().join("demo");
    let input = out.join("input");
    prepare(&input)?;
    let costs = calibrate(&input)?;
    let mean_ms = costs.iter().map(|(_, ms)| ms).sum::<f64>() / costs.len() as f64;
    let heavy_rate = LOAD * 1e3 / mean_ms;
    println!("Real input: two photographs, two CSV files, one JSON file. One request needs, on one core:");
    println!("  {}", costs.iter().map(|(path, ms)| format!("{} {ms:.1} ms", &path[1..])).collect::<Vec<_>>().join(" · "));
    println!(
        "Every server gets the same: {heavy_rate:.0} of these per second ({:.0} % of one core) and {HEALTH_RATE:.0} GET /health per second, for {seconds:.0} s.\n",
        LOAD * 100.0
    );
    let mut pairs = Vec::new();
    let total = hosts.len() * 2;
    for (i, host) in hosts.iter().copied().enumerate() {
        let measure = |mode: &str, at: usize| {
            let label = format!("[{at}/{total}] {} {mode}", host.title());
            one(host, mode, &input, &costs, heavy_rate, Duration::from_secs_f64(seconds), &label)
        };
        let inline = measure("inline", 2 * i + 1)?;
        let offloaded = measure("offload", 2 * i + 2)?;
        pairs.push(Pair { title: host.title().to_owned(), inline, offloaded });
    }
    table(&pairs);
    let file = out.join("offloop.svg");
    let about = format!(
        "{heavy_rate:.0} thumbnails, password hashes, gzips, CSV → Arrow and JSON queries per second, {:.0} % of one core",
        LOAD * 100.0
    );
    std::fs::write(&file, plot::draw(&pairs, &about, seconds)).map_err(|e| format!("{}: {e}", file.display()))?;
    println!("\nThe plot: {}", file.display());
    own::show(&hosts)?;
    if hosts.contains(&Host::Node) {
        cluster::show()?;
    }
    println!("It took {:.0} s.", began.elapsed().as_secs_f64());
    Ok(())
}

/// Puts the input of all servers in one directory: from the packages that `make demo` installed.
fn prepare(input: &Path) -> Result<(), String> {
    std::fs::create_dir_all(input).map_err(|e| format!("{}: {e}", input.display()))?;
    let data = root().join("tests/demo/node_modules/vega-datasets/data");
    let images = python_packages()?.join("sklearn/datasets/images");
    let files = [
        (images.join("china.jpg"), "china.jpg"),
        (images.join("flower.jpg"), "flower.jpg"),
        (data.join("zipcodes.csv"), "table.csv"),
        (data.join("birdstrikes.csv"), "text.csv"),
        (data.join("movies.json"), "movies.json"),
    ];
    for (from, name) in files {
        std::fs::copy(&from, input.join(name)).map_err(|e| format!("{}: {e}; `make demo` installs it", from.display()))?;
    }
    Ok(())
}

fn python_packages() -> Result<PathBuf, String> {
    let lib = root().join(".venv/lib");
    let found = std::fs::read_dir(&lib).map_err(|e| format!("{}: {e}; `make demo` makes it", lib.display()))?;
    found
        .flatten()
        .map(|e| e.path().join("site-packages"))
        .find(|p| p.exists())
        .ok_or_else(|| format!("{}: no site-packages", lib.display()))
}

/// What each heavy request costs here, on one core, inline: the median of five after one that warms up. The offered load follows from it.
fn calibrate(input: &Path) -> Result<Vec<(&'static str, f64)>, String> {
    let read = |name: &str| std::fs::read(input.join(name)).map_err(|e| format!("{name}: {e}"));
    let password = b"correct horse battery staple".to_vec();
    let jobs: [(&str, &str, Vec<u8>, Value); 5] = [
        ("/thumbnail", "image.thumbnail", read("china.jpg")?, Value::map([("width", Value::Int(200))])),
        ("/password", "password.hash", password, Value::map([("algorithm", Value::str("argon2id"))])),
        ("/gzip", "gzip", read("text.csv")?, Value::map([("level", Value::Int(6))])),
        ("/csv", "csv.to_arrow", read("table.csv")?, Value::Nil),
        ("/json", "json.query", read("movies.json")?, Value::map([("path", Value::str(r#"$[?@["IMDB Rating"] > 8.5].Title"#))])),
    ];
    let mut costs = Vec::new();
    for (path, op, data, params) in jobs {
        let mut times = Vec::new();
        for _ in 0..6 {
            let start = Instant::now();
            ops::run_inline(op, vec![data.clone().into()], &params).map_err(|e| format!("{op}: {e}"))?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        costs.push((path, Spread::new(times.split_off(1)).at(0.5)));
    }
    Ok(costs)
}

/// Starts a server, warms it up, measures, and ends it.
fn one(
    host: Host,
    mode: &str,
    input: &Path,
    costs: &[(&'static str, f64)],
    rate: f64,
    length: Duration,
    label: &str,
) -> Result<Run, String> {
    let progress = Progress::new(label);
    progress.show("starting");
    let mut server = Server::start(host, mode, input)?;
    let fail = |e: std::io::Error| format!("{label}: {e}");
    for (path, _) in costs {
        load::get(server.addr, path, Duration::from_secs(60)).map_err(fail)?;
    }
    let routes = |length: Duration, seed: u64| -> Vec<Route> {
        let health = Route { path: "/health".into(), arrivals: load::steady(HEALTH_RATE, length) };
        let each = rate / costs.len() as f64;
        let heavy = costs
            .iter()
            .enumerate()
            .map(|(i, (path, _))| Route { path: (*path).to_owned(), arrivals: load::poisson(each, length, seed + i as u64) });
        std::iter::once(health).chain(heavy).collect()
    };
    progress.show("warming up");
    load::run(server.addr, &routes(WARM_UP, 100), TAIL, &mut |_| {}).map_err(fail)?;
    // Twice: the first empties a long list, which itself takes time on the loop.
    for _ in 0..2 {
        load::get(server.addr, "/late", Duration::from_secs(60)).map_err(fail)?;
    }
    let cpu_before = server.cpu();
    let routes = routes(length, 1);
    let report = load::run(server.addr, &routes, TAIL, &mut |now| progress.bar(now, length)).map_err(fail)?;
    let server_cpu = server.cpu().saturating_sub(cpu_before);
    let text = load::get(server.addr, "/late", Duration::from_secs(60)).map_err(fail)?;
    let late: Vec<f64> = String::from_utf8_lossy(&text).lines().filter_map(|l| l.parse().ok()).collect();
    server.stop();
    let health = &report.routes[0];
    let ms = |d: Duration| d.as_secs_f64() * 1e3;
    let mut points: Vec<(f64, f64)> = health.samples.iter().map(|s| (s.at.as_secs_f64(), ms(s.latency))).collect();
    points.extend(health.unanswered.iter().map(|at| (at.as_secs_f64(), ms(report.wall.saturating_sub(*at)))));
    let heavy = &report.routes[1..];
    let run = Run {
        late,
        health: points,
        health_missed: health.unanswered.len() + health.failed,
        heavy_offered: routes[1..].iter().map(|r| r.arrivals.len()).sum(),
        heavy_done: heavy.iter().map(|r| r.samples.len()).sum(),
        heavy_failed: heavy.iter().map(|r| r.failed).sum(),
        heavy: Spread::new(heavy.iter().flat_map(|r| r.samples.iter().map(|s| ms(s.latency))).collect()),
        wall: report.wall,
        server_cpu,
        generator_cpu: report.cpu,
        sent_late: report.sent_late,
    };
    let (late, health) = (Spread::new(run.late.clone()), run.health_spread());
    progress.done(&format!("loop delay p99 {}, /health p99 {}", time(late.at(0.99)), time(health.at(0.99))));
    if late.is_empty() {
        return Err(format!("{label}: the server measured no loop delay"));
    }
    Ok(run)
}

impl Run {
    /// Latencies of `/health`.
    pub(crate) fn health_spread(&self) -> Spread {
        Spread::new(self.health.iter().map(|(_, ms)| *ms).collect())
    }
}

/// A line that is rewritten on a terminal, and printed once where there is none.
struct Progress<'a> {
    label: &'a str,
    live: bool,
}

impl<'a> Progress<'a> {
    fn new(label: &'a str) -> Progress<'a> {
        let progress = Progress { label, live: std::io::stdout().is_terminal() };
        if !progress.live {
            print!("{label:<28}");
            let _ = std::io::stdout().flush();
        }
        progress
    }

    fn show(&self, what: &str) {
        if self.live {
            print!("\r\x1b[2K{:<28}{what}", self.label);
            let _ = std::io::stdout().flush();
        }
    }

    fn bar(&self, now: Duration, length: Duration) {
        let share = (now.as_secs_f64() / length.as_secs_f64()).min(1.0);
        let full = (share * 30.0) as usize;
        self.show(&format!("{}{} {:.0} s", "█".repeat(full), "░".repeat(30 - full), now.as_secs_f64().min(length.as_secs_f64())));
    }

    fn done(&self, what: &str) {
        self.show("");
        println!("{}{what}", if self.live { format!("\r{:<28}", self.label) } else { String::new() });
    }
}

/// A time with three digits at most and a unit.
pub(crate) fn time(ms: f64) -> String {
    match ms {
        _ if ms.is_nan() => "–".into(),
        _ if ms < 0.1 => format!("{:.0} µs", ms * 1e3),
        _ if ms < 10.0 => format!("{ms:.1} ms"),
        _ if ms < 1_000.0 => format!("{ms:.0} ms"),
        _ if ms < 10_000.0 => format!("{:.1} s", ms / 1e3),
        _ => format!("{:.0} s", ms / 1e3),
    }
}

fn table(pairs: &[Pair]) {
    let rule = "─".repeat(122);
    println!("\n{:<20}│{:^31}│{:^31}│{:^21}│{:^13}", "", "event-loop delay", "GET /health latency", "heavy requests", "CPU");
    println!(
        "{:<20}│{:>9}{:>10}{:>10}  │{:>9}{:>10}{:>10}  │{:>8}{:>11}  │{:>6}{:>6}",
        "", "p50", "p99", "max", "p50", "p99", "max", "done/s", "p99", "server", "load"
    );
    println!("{rule}");
    for pair in pairs {
        for (word, run) in [("inline", &pair.inline), ("offloaded", &pair.offloaded)] {
            let (late, health) = (Spread::new(run.late.clone()), run.health_spread());
            let percent = |cpu: Duration| format!("{:.0}%", 100.0 * cpu.as_secs_f64() / run.wall.as_secs_f64());
            println!(
                "{:<9}{word:<11}│{:>9}{:>10}{:>10}  │{:>9}{:>10}{:>10}  │{:>8.1}{:>11}  │{:>6}{:>6}",
                if word == "inline" { pair.title.as_str() } else { "" },
                time(late.at(0.5)),
                time(late.at(0.99)),
                time(late.max()),
                time(health.at(0.5)),
                time(health.at(0.99)),
                time(health.max()),
                run.heavy_done as f64 / run.wall.as_secs_f64(),
                time(run.heavy.at(0.99)),
                percent(run.server_cpu),
                percent(run.generator_cpu),
            );
        }
        let factor = |of: fn(&Run) -> Spread| of(&pair.inline).at(0.99) / of(&pair.offloaded).at(0.99);
        println!(
            "{:<20}│{:>20}{:>9}  │{:>20}{:>9}  │{:>21}│",
            "",
            "p99 better by",
            format!("{:.0} ×", factor(|r| Spread::new(r.late.clone()))),
            "p99 better by",
            format!("{:.0} ×", factor(Run::health_spread)),
            ""
        );
        println!("{rule}");
    }
    println!("Loop delay: lateness of a 1 ms timer. Latency counts from the moment a request was due, not from when it could be sent.");
    for pair in pairs {
        for (word, run) in [("inline", &pair.inline), ("offloaded", &pair.offloaded)] {
            let mut notes = Vec::new();
            if run.heavy_done < run.heavy_offered {
                notes.push(format!(
                    "{} of {} heavy requests not done {} s after the last was due",
                    run.heavy_offered - run.heavy_done,
                    run.heavy_offered,
                    TAIL.as_secs()
                ));
            }
            if run.heavy_failed > 0 {
                notes.push(format!("{} heavy requests FAILED", run.heavy_failed));
            }
            if run.health_missed > 0 {
                notes.push(format!("{} of {} /health requests not answered", run.health_missed, run.health.len()));
            }
            if run.sent_late > Duration::from_millis(5) {
                notes.push(format!("the generator itself was up to {} late", time(run.sent_late.as_secs_f64() * 1e3)));
            }
            if !notes.is_empty() {
                println!("{} {word}: {}.", pair.title, notes.join("; "));
            }
        }
    }
}
