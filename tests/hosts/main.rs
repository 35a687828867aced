//! Programs with a pool of worker processes, one per face: under a storm of kills, and under a mixed load.
//!
//! `storm`: workers are killed while all have work, and no outcome is wrong or lost (the program sees to that); afterwards the program has the
//! fds, threads and memory that it had after a small storm. `load`: calls of every size, errors, cancels and replaced workers; what the
//! program and its workers use at the end is what they used when they had settled.
//!
//! `cargo test -p offloop-tests --test hosts -- [storm|load] [node]…` selects. One line of JSON per row; a row with fewer trials than its
//! figure fails. `OFFLOOP_TORTURE=1` takes the figures of the long run, `OFFLOOP_SEED` another seed, and `OFFLOOP_REQUIRE=c,node,python` makes a host that cannot run a
//! failure instead of a reason.

#![allow(clippy::print_stdout, reason = "a test harness reports")]

use offloop_tests::driver::{Program, program};
use offloop_tests::row::Row;
use std::cell::Cell;
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

const PROGRAM: Program = Program { rust: "", c: "conformance/host-c", scripts: "tests/hosts/host" };

/// A face.
struct Face {
    lang: &'static str,
    /// What it has a part in. A mixed load is for those whose memory is collected.
    parts: &'static [&'static str],
    /// How much more memory there may be at the end of a short load, in thousandths: in half a minute the heap of Node.js is not as large as it gets.
    growth: u64,
}

const FACES: &[Face] = &[
    Face { lang: "c", parts: &["storm"], growth: 0 },
    Face { lang: "node", parts: &["storm", "load"], growth: 500 },
    Face { lang: "python", parts: &["storm", "load"], growth: 20 },
];

struct Figures {
    /// Kills per host.
    kills: u64,
    /// Seconds of load per host.
    seconds: u64,
    /// How often it is looked at meanwhile.
    marks: usize,
    /// Whether every host has the limit of a long load.
    long: bool,
}

/// Three hosts: more than 100 kills.
const SMOKE: Figures = Figures { kills: 40, seconds: 30, marks: 12, long: false };
/// More than 5,000.
const TORTURE: Figures = Figures { kills: 1670, seconds: 600, marks: 60, long: true };
/// How much more memory there may be at the end of a long load than when it had settled, in thousandths.
const GROWTH: u64 = 20;

/// Kills before the measured ones: what a first pool of a process makes for all, and what its interpreter keeps, is there then.
const WARM: u64 = 20;
/// How much more of it a host may have after a storm: an interpreter's heap is as large as its garbage was. That of V8 grows by 20 MiB in some
/// 500 kills and then no more, however little of it is used (25 to 45 MiB, of which 5 to 12 were).
const SLACK: u64 = 16 << 20;
const SLACK_OF_V8: u64 = 36 << 20;
/// How long a host may say nothing, beside the time that its work takes: a watchdog, not an assertion.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a process has, and those that it started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    processes: usize,
    fds: usize,
    threads: usize,
    /// Bytes of memory, what is shared counted in parts.
    pss: u64,
}

impl Held {
    fn of(pid: u32) -> Result<Held, String> {
        let entries =
            |what: &str| std::fs::read_dir(format!("/proc/{pid}/{what}")).map(Iterator::count).map_err(|e| format!("{what}: {e}"));
        let tree = tree(pid);
        Ok(Held { processes: tree.len(), fds: entries("fd")?, threads: entries("task")?, pss: tree.iter().map(|pid| pss(*pid)).sum() })
    }

    /// What can be counted.
    fn things(&self) -> [usize; 3] {
        [self.processes, self.fds, self.threads]
    }
}

fn tree(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.map(|task| std::fs::read_to_string(task.path().join("children")).unwrap_or_default());
    let children: Vec<u32> = lists.flat_map(|list| list.split_whitespace().filter_map(|n| n.parse().ok()).collect::<Vec<u32>>()).collect();
    std::iter::once(pid).chain(children.into_iter().flat_map(tree)).collect()
}

/// Without files, whose share depends on who else maps them. 0 for one that has ended.
fn pss(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let kib =
        |line: &str| line.strip_prefix("Pss_Anon:").or(line.strip_prefix("Pss_Shmem:"))?.split_whitespace().next()?.parse::<u64>().ok();
    text.lines().filter_map(kib).sum::<u64>() << 10
}

/// A running host.
struct Host {
    child: Child,
    /// Open until it is to end.
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Host {
    fn start(lang: &str, args: &str) -> Result<Host, String> {
        let mut command = program(lang, &PROGRAM)?;
        let mut child = command
            .args(args.split(' '))
            // Freed memory goes back at once, so that what is measured is what is kept.
            .envs([("MALLOC_MMAP_THRESHOLD_", "65536"), ("MALLOC_TRIM_THRESHOLD_", "65536"), ("MALLOC_ARENA_MAX", "2")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| format!("{lang} host does not start: {e}"))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().expect("stdout was asked to be piped");
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Host { child, stdin, lines })
    }

    fn line(&self, begins: &str, patience: Duration) -> Result<String, String> {
        match self.lines.recv_timeout(patience) {
            Ok(line) => line.strip_prefix(begins).map(|rest| rest.trim().to_owned()).ok_or(line),
            Err(RecvTimeoutError::Timeout) => Err(format!("nothing for {} s; it hangs", patience.as_secs())),
            Err(RecvTimeoutError::Disconnected) => Err("it ended without a word".to_owned()),
        }
    }

    /// Looks at the host when it says so, and lets it go on. `until` what is seen is as it should be: a thread may be on its way out.
    fn mark(&mut self, name: &str, patience: Duration, until: impl Fn(&Held) -> bool) -> Result<Held, String> {
        self.line(&format!("mark {name}"), patience)?;
        let end = Instant::now() + Duration::from_secs(10);
        let mut held = Held::of(self.child.id())?;
        while !until(&held) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(100));
            held = Held::of(self.child.id())?;
        }
        let mut stdin = self.stdin.as_ref().ok_or("its input is closed")?;
        writeln!(stdin, "on").map_err(|e| e.to_string())?;
        Ok(held)
    }

    /// The numbers of its last line.
    fn done(mut self) -> Result<HashMap<String, u64>, String> {
        let line = self.line("done", PATIENCE)?;
        self.stdin = None;
        let status = self.child.wait().map_err(|e| e.to_string())?;
        if !status.success() {
            return Err(format!("{status} after {line}"));
        }
        Ok(line.split(' ').filter_map(|part| part.split_once('=')).filter_map(|(key, n)| Some((key.to_owned(), n.parse().ok()?))).collect())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Of one that has ended there is nothing to end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn storm(lang: &str, row: &mut Row) -> Result<(), String> {
    let mut host = Host::start(lang, &format!("role=storm warm={WARM} kills={} seed={}", row.figure, row.seed as u32))?;
    let patience = PATIENCE + Duration::from_secs(2 * row.figure);
    // A thread of the first pool may still be on its way out, with its fds: until two looks are alike.
    let last = Cell::new(None);
    let before = host.mark("before", patience, |held| held.processes == 1 && last.replace(Some(held.things())) == Some(held.things()))?;
    let slack = if lang == "node" { SLACK_OF_V8 } else { SLACK };
    let is_back = |held: &Held| held.things() == before.things() && held.pss <= before.pss + before.pss / 10 + slack;
    let after = host.mark("after", patience, is_back)?;
    let found = host.done()?;
    for key in ["tasks", "done", "lost", "poison", "retried"] {
        row.count(key, found.get(key).copied().unwrap_or(0));
    }
    row.trials = found.get("kills").copied().unwrap_or(0);
    row.count("fds", after.fds as u64);
    row.count("threads", after.threads as u64);
    row.count("pss_before", before.pss);
    row.count("pss_after", after.pss);
    if !is_back(&after) {
        return Err(format!("before the storm {before:?}, after it {after:?}"));
    }
    Ok(())
}

fn load(face: &Face, figures: &Figures, row: &mut Row) -> Result<(), String> {
    let Figures { seconds, marks, long, .. } = *figures;
    let mut host = Host::start(face.lang, &format!("role=load seconds={seconds} marks={marks} seed={}", row.seed as u32))?;
    let mut seen = Vec::new();
    for n in 0..marks {
        seen.push(host.mark(&format!("load{n}"), PATIENCE + Duration::from_secs(seconds), |held| held.processes == 3)?.pss);
    }
    let found = host.done()?;
    for key in ["calls", "rounds", "recycled"] {
        row.count(key, found.get(key).copied().unwrap_or(0));
    }
    row.trials = seen.len() as u64;
    // What was there at the least: a value that was dropped may be kept until the next collection finds it.
    let least = |part: &[u64]| part.iter().copied().min().unwrap_or(0);
    let (settled, end) = (least(&seen[marks / 4..marks / 2]), least(&seen[marks * 3 / 4..]));
    row.count("pss_settled", settled);
    row.count("pss_end", end);
    if end > settled + settled * if long { GROWTH } else { face.growth } / 1000 {
        let all: Vec<u64> = seen.iter().map(|pss| pss >> 10).collect();
        return Err(format!("{settled} bytes when it had settled, {end} at the end; in KiB {all:?}"));
    }
    Ok(())
}

fn main() -> std::process::ExitCode {
    let filters: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let required = std::env::var("OFFLOOP_REQUIRE").unwrap_or_default();
    let figures = if std::env::var_os("OFFLOOP_TORTURE").is_some() { TORTURE } else { SMOKE };
    let seed: u64 = std::env::var("OFFLOOP_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(0x0FF1_00B5);
    let (mut failed, mut kills) = (0, 0);
    for (i, face) in FACES.iter().enumerate() {
        let Face { lang, parts, .. } = face;
        if let Err(why) = program(lang, &PROGRAM) {
            let is_failure = required.split(',').any(|r| r == *lang);
            println!("{}  {lang}: {why}", if is_failure { "FAIL" } else { "skip" });
            failed += i32::from(is_failure);
            continue;
        }
        for part in *parts {
            let name = format!("{part} {lang}");
            if !filters.is_empty() && !filters.iter().all(|f| name.contains(f)) {
                continue;
            }
            let figure = if *part == "storm" { figures.kills } else { figures.marks as u64 };
            let mut row = Row::begin(&name, figure, seed.wrapping_add(i as u64));
            let result = if *part == "storm" { storm(lang, &mut row) } else { load(face, &figures, &mut row) };
            kills += if *part == "storm" { row.trials } else { 0 };
            if let Err(why) = row.end(result) {
                println!("FAIL  {name}: {why}");
                failed += 1;
            }
        }
    }
    println!("\nhosts: {kills} workers killed, {failed} failures");
    if failed > 0 { std::process::ExitCode::FAILURE } else { std::process::ExitCode::SUCCESS }
}
