//! Clusters that are reloaded while `offloop bench http` asks them: not one request may fail.
//!
//! `cargo test -p offloop-tests --test reload -- [node] [python] [shared] [round-robin] [ip-hash]` selects. One line of JSON per row: trials are reloads, each begun when the one before has ended. `OFFLOOP_TORTURE=1`
//! takes the figures of the long run, and `OFFLOOP_REQUIRE=node,python` makes a host that cannot run a failure instead of a reason.

#![allow(clippy::print_stdout, reason = "a test harness reports")]

use offloop_tests::driver::{Program, program};
use offloop_tests::row::Row;
use offloop_tests::target_dir;
use serde_json::Value;
use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

const HOST: Program = Program { rust: "", c: "", scripts: "tests/reload/host" };
const LANGS: &[&str] = &["node", "python"];
const BALANCES: &[&str] = &["shared", "round-robin", "ip-hash"];

struct Figures {
    reloads: u64,
    /// Seconds from one reload to the next, where there is time left.
    every: &'static str,
    /// p99 during reloads may be so many times that of steady times, as the median of the rounds.
    slower: Option<f64>,
    /// At least.
    requests: u64,
}

/// Of each row, of which there are six: 20,000 requests in all, and a million in the long run; 100 reloads of each strategy then.
const SMOKE: Figures = Figures { reloads: 20, every: "0.2", slower: None, requests: 4_000 };
const TORTURE: Figures = Figures { reloads: 60, every: "2", slower: Some(3.0), requests: 175_000 };

/// A round of the load has so many reloads; rounds go on until there were enough of both.
const ROUND: u64 = 20;
/// Ends a hang, beside what a round takes.
const PATIENCE: Duration = Duration::from_secs(600);

fn main() -> std::process::ExitCode {
    let words: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let required = std::env::var("OFFLOOP_REQUIRE").unwrap_or_default();
    let figures = if std::env::var_os("OFFLOOP_TORTURE").is_some() { TORTURE } else { SMOKE };
    let mut failed = false;
    let wants = |all: &[&str], name: &str| {
        let mut named = words.iter().filter(|word| all.contains(&word.as_str())).peekable();
        named.peek().is_none() || named.any(|word| word == name)
    };
    for lang in LANGS.iter().filter(|lang| wants(LANGS, lang)) {
        let host = match program(lang, &HOST) {
            Ok(host) => host,
            Err(why) if required.split(',').any(|name| name == *lang) => {
                println!("reload {lang}: cannot run: {why}");
                failed = true;
                continue;
            }
            Err(why) => {
                println!("reload {lang}: skipped: {why}");
                continue;
            }
        };
        for balance in BALANCES.iter().filter(|balance| wants(BALANCES, balance)) {
            if let Err(why) = reload(lang, balance, &host, &figures) {
                println!("reload {lang} {balance}: {why}");
                failed = true;
            }
        }
    }
    std::process::ExitCode::from(u8::from(failed))
}

fn reload(lang: &str, balance: &str, host: &Command, figures: &Figures) -> Result<(), String> {
    let mut row = Row::begin(format!("reload {lang} {balance}"), figures.reloads, 0);
    let mut sum = Sum::default();
    let until = Instant::now() + PATIENCE * (1 + (figures.reloads / ROUND) as u32);
    let mut result = Ok(());
    while result.is_ok() && (row.trials < figures.reloads || sum.requests < figures.requests) {
        result = if Instant::now() < until { round(host, balance, figures, &mut sum) } else { Err("it takes too long".to_owned()) };
        row.trials = sum.reloads;
    }
    row.count("requests", sum.requests);
    row.count("failed", sum.failed);
    row.count("raced", sum.raced);
    sum.ratios.sort_unstable_by(f64::total_cmp);
    let ratio = sum.ratios.get(sum.ratios.len() / 2).copied().unwrap_or(0.0);
    row.count("p99_during_permille_of_steady", (ratio * 1e3) as u64);
    let result = result.and_then(|()| match figures.slower {
        Some(most) if ratio > most => Err(format!("p99 during reloads is {ratio:.2} times that of steady times, more than {most}")),
        _ => Ok(()),
    });
    row.end(result)
}

#[derive(Default)]
struct Sum {
    reloads: u64,
    requests: u64,
    failed: u64,
    raced: u64,
    /// p99 during reloads beside that of steady times, of each round.
    ratios: Vec<f64>,
}

/// One run of the load, over [`ROUND`] reloads.
fn round(host: &Command, balance: &str, figures: &Figures, sum: &mut Sum) -> Result<(), String> {
    // Nobody else takes a port that has just been given away, as a rule; where somebody does, the cluster says so.
    let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).map_err(|e| e.to_string())?.port();
    let done = target_dir().join(format!("reload-{}.fifo", std::process::id()));
    let _ = std::fs::remove_file(&done);
    let fifo = done.display();
    let made = Command::new("mkfifo").arg(&done).status().map_err(|e| format!("mkfifo: {e}"))?;
    if !made.success() {
        return Err(format!("mkfifo {fifo}: {made}"));
    }
    let run = format!("kill -HUP {{pid}} && read -r said < '{fifo}' && [ \"$said\" = ok ] || {{ echo \"$said\" >&2; exit 1; }}");
    let url = format!("http://127.0.0.1:{port}/");
    let rounds = ROUND.to_string();
    let mut args =
        vec!["offloop", "bench", "http", &url, "-c", "16", "--every", figures.every, "--run", &run, "--times", &rounds, "--json", "--"]
            .into_iter()
            .map(Into::into)
            .collect::<Vec<std::ffi::OsString>>();
    args.extend([
        "env".into(),
        format!("PORT={port}").into(),
        format!("DONE={fifo}").into(),
        format!("BALANCE={balance}").into(),
        host.get_program().to_owned(),
    ]);
    args.extend(host.get_args().map(ToOwned::to_owned));
    let (mut out, mut errors) = (Vec::new(), Vec::new());
    let status = offloop::cli::run(args, &mut out, &mut errors);
    let _ = std::fs::remove_file(&done);
    let text = String::from_utf8_lossy(&out);
    let said = || format!("exit {status}\n{text}\n{}", String::from_utf8_lossy(&errors));
    let report: Value = text.lines().last().and_then(|line| serde_json::from_str(line).ok()).ok_or_else(said)?;
    let number = |path: &str| report.pointer(path).and_then(Value::as_u64).ok_or_else(|| format!("report has no {path}: {report}"));
    sum.requests += number("/requests")?;
    sum.failed += number("/failed")?;
    sum.raced += number("/raced")?;
    sum.ratios.extend(report.pointer("/p99_ratio").and_then(Value::as_f64));
    let events = report.pointer("/events").and_then(Value::as_array).ok_or_else(said)?;
    let ended_well = events.iter().filter(|event| event["ok"] == true).count();
    sum.reloads += ended_well as u64;
    if status == 0 && number("/failed")? == 0 && ended_well == events.len() { Ok(()) } else { Err(said()) }
}
