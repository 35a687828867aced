//! Event loops that block, and event loops that only have much to do: a cluster replaces the first in time, and leaves the others alone. Node.js and Python on asyncio.
//!
//! `cargo test -p offloop-tests --test hangs -- [node] [python]`. One line of JSON per row. `OFFLOOP_TORTURE=1` takes the figures of the long run, and then a detection that comes late fails;
//! `OFFLOOP_REQUIRE=node,python` makes a language that cannot run a failure instead of a reason.

#![allow(clippy::print_stdout, reason = "a test harness reports")]

use offloop::cluster::{Builder, Cluster, Command, Event};
use offloop::supervisor::{Cause, Event as Of};
use offloop_tests::driver::{Program, program};
use offloop_tests::row::Row;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

const WORKER: Program = Program { rust: "", c: "", scripts: "tests/hangs/worker" };
const LANGS: &[&str] = &["node", "python"];
const BEAT: Duration = Duration::from_millis(100);
const HANG: Duration = Duration::from_secs(1);
/// The beat that was due, and a tenth of a second.
const DETECTED: Duration = Duration::from_millis(1200);
const WATCHDOG: Duration = Duration::from_secs(60);

/// Of each language.
struct Figures {
    hangs: u64,
    late: bool,
    /// In seconds, for all languages at once.
    contended: u64,
}

const SMOKE: Figures = Figures { hangs: 3, late: false, contended: 60 };
const TORTURE: Figures = Figures { hangs: 50, late: true, contended: 600 };

fn main() -> std::process::ExitCode {
    let words: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let required = std::env::var("OFFLOOP_REQUIRE").unwrap_or_default();
    let figures = if std::env::var_os("OFFLOOP_TORTURE").is_some() { TORTURE } else { SMOKE };
    let (mut able, mut failures) = (Vec::new(), Vec::new());
    for lang in LANGS.iter().filter(|lang| words.is_empty() || words.iter().any(|word| word == *lang)) {
        match program(lang, &WORKER) {
            Ok(command) => able.push((*lang, command)),
            Err(why) if required.split(',').any(|name| name == *lang) => failures.push(format!("{lang}: cannot run: {why}")),
            Err(why) => println!("hangs {lang}: skipped: {why}"),
        }
    }
    failures.extend(able.iter().filter_map(|(lang, command)| Some(format!("{lang}: {}", detected(lang, command, &figures).err()?))));
    failures.extend(left_alone(&able, &figures).err());
    failures.iter().for_each(|why| println!("hangs {why}"));
    std::process::ExitCode::from(u8::from(!failures.is_empty()))
}

/// A cluster of `workers`, when they are ready, and what happens in it from its beginning on, with the time.
fn start(command: &std::process::Command, workers: usize, busy: bool) -> Result<(Cluster, Receiver<(Instant, Event)>), String> {
    let (tell, told) = channel();
    let mut supervision = Builder::default_supervision();
    (supervision.beat, supervision.hang_timeout, supervision.abort_grace) = (BEAT, HANG, Duration::ZERO);
    // Its next start waits for nothing, however often it hangs.
    (supervision.max_back_off, supervision.max_failures) = (supervision.back_off, Some(10_000));
    let args = std::iter::once(command.get_program()).chain(command.get_args()).map(ToOwned::to_owned).collect();
    let env = vec![("BUSY".into(), busy.then(|| "1".into()))];
    let hear = move |event: &Event| drop(tell.send((Instant::now(), event.clone())));
    let cluster = Cluster::builder().workers(workers).supervision(supervision).on_event(hear);
    let cluster = cluster.build(Command { args, env, ..Command::default() }).map_err(|e| e.to_string())?;
    cluster.wait_ready(Some(WATCHDOG)).map_err(|e| e.to_string())?;
    Ok((cluster, told))
}

fn stop(cluster: &Cluster) -> Result<(), String> {
    cluster.stop(Duration::ZERO).and_then(|()| cluster.wait_stopped(Some(WATCHDOG))).map_err(|e| e.to_string())
}

/// The only worker is blocked again and again: each time it is told of and replaced.
fn detected(lang: &str, command: &std::process::Command, figures: &Figures) -> Result<(), String> {
    let mut row = Row::begin(format!("hang detected {lang}"), figures.hangs, 0);
    let mut took = Vec::new();
    let result = detections(command, figures.hangs, &mut took);
    took.sort_unstable();
    row.trials = took.len() as u64;
    row.count("late", took.iter().filter(|time| **time > DETECTED).count() as u64);
    row.count("median_ms", took.get(took.len() / 2).map_or(0, |time| time.as_millis() as u64));
    row.count("most_ms", took.last().map_or(0, |time| time.as_millis() as u64));
    row.end(result.and_then(|()| match took.last() {
        Some(most) if figures.late && *most > DETECTED => {
            Err(format!("a blocked loop was detected after {most:?}, later than {DETECTED:?}"))
        }
        _ => Ok(()),
    }))
}

fn detections(command: &std::process::Command, hangs: u64, took: &mut Vec<Duration>) -> Result<(), String> {
    let (cluster, told) = start(command, 1, false)?;
    let mut pid = 0;
    let (mut blocked, mut suspected) = (Instant::now(), false);
    while (took.len() as u64) < hangs {
        let (at, event) = told.recv_timeout(WATCHDOG).map_err(|_| "nothing more was told".to_owned())?;
        match event {
            Event::Worker(Of::Spawned { pid: new, .. }) => pid = new,
            Event::Worker(Of::Ready { .. }) => {
                // A beat or two, so that it blocks at any time between two of them.
                std::thread::sleep(BEAT + BEAT * (took.len() % 10) as u32 / 10);
                (blocked, suspected) = (Instant::now(), false);
                // SAFETY: kill has no preconditions; the worker lives, since its end has not been told.
                unsafe { libc::kill(pid, libc::SIGUSR2) };
            }
            Event::Worker(Of::Suspect { cause, .. }) => {
                if cause != Cause::Blocked {
                    return Err(format!("told as {}", cause.name()));
                }
                suspected = true;
                took.push(at - blocked);
            }
            Event::Worker(Of::Exited { cause, ended, .. }) if !suspected || cause != Cause::Blocked => {
                return Err(format!("ended before it was suspected, or otherwise: {} {:?}", cause.name(), ended.exit));
            }
            _ => {}
        }
    }
    stop(&cluster)
}

/// Workers that are busy, in a machine that has twice as much to do beside them: none of them is suspected.
fn left_alone(able: &[(&str, std::process::Command)], figures: &Figures) -> Result<(), String> {
    let mut row = Row::begin("busy loops left alone, seconds", figures.contended, 0);
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let done = AtomicBool::new(false);
    let result = std::thread::scope(|scope| {
        for _ in 0..2 * cores {
            scope.spawn(|| {
                while !done.load(Relaxed) {
                    (0..100_000).for_each(|n: u32| {
                        black_box(n);
                    });
                }
            });
        }
        let result = contend(able, cores, figures, &mut row);
        done.store(true, Relaxed);
        result
    });
    row.end(result.map_err(|why| format!("under load: {why}")))
}

fn contend(able: &[(&str, std::process::Command)], workers: usize, figures: &Figures, row: &mut Row) -> Result<(), String> {
    let mut clusters = Vec::new();
    for (lang, command) in able {
        clusters.push((*lang, start(command, workers, true).map_err(|why| format!("{lang}: {why}"))?));
    }
    std::thread::sleep(Duration::from_secs(figures.contended));
    let mut wrong: Vec<String> = Vec::new();
    for (lang, (cluster, told)) in &clusters {
        let stats = cluster.stats().map_err(|e| e.to_string())?;
        wrong.extend(told.try_iter().filter_map(|(_, event)| match event {
            Event::Worker(event @ (Of::Suspect { .. } | Of::Exited { .. })) => Some(format!("{lang}: {event:?}")),
            _ => None,
        }));
        row.count(&format!("{lang}_suspects"), stats.suspected);
        stop(cluster)?;
    }
    row.trials = figures.contended;
    wrong.truncate(4);
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
}
