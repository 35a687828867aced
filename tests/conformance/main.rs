//! Runs every scenario through every language's driver, and in all ordered pairs where two processes meet.
//!
//! `cargo test -p offloop-tests --test conformance -- [part of a case's name]…`. `OFFLOOP_REQUIRE=rust,c,node,python` makes a driver that is
//! not built a failure; without it its cases are skipped, with the reason.

#![allow(clippy::print_stdout, reason = "a test harness reports")]

use offloop::ring::{Kind, RingBuffer};
use offloop_tests::driver::{Driver, FIRST_FD, LANGS, command};
use offloop_tests::scenario::{Ring, Scenario, Step};
use offloop_tests::{files, root};
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// How a case ended.
enum Outcome {
    Passed,
    Skipped(String),
    Failed(String),
}

fn main() -> std::process::ExitCode {
    let filters: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let required = std::env::var("OFFLOOP_REQUIRE").unwrap_or_default();
    let base = root().join("tests/scenarios");
    let mut scenarios = Vec::new();
    let mut failed = 0;
    for path in files(&base).into_iter().filter(|p| p.extension().is_some_and(|e| e == "toml")) {
        match Scenario::read(&base, &path) {
            Ok(s) => scenarios.push(s),
            Err(e) => {
                println!("FAIL  {e}");
                failed += 1;
            }
        }
    }
    let missing: HashMap<&str, String> = LANGS.iter().filter_map(|lang| command(lang).err().map(|why| (*lang, why))).collect();
    for (lang, why) in &missing {
        if required.split(',').any(|r| r == *lang) {
            println!("FAIL  {lang}: {why}");
            failed += 1;
        } else {
            println!("skip  {lang}: all cases: {why}");
        }
    }
    let (mut passed, mut skipped) = (0, missing.len());
    for scenario in &scenarios {
        for langs in cases(scenario) {
            let name = format!("{} [{}]", scenario.name, langs.join("→"));
            if !filters.is_empty() && !filters.iter().any(|f| name.contains(f)) || langs.iter().any(|l| missing.contains_key(l)) {
                continue;
            }
            let start = Instant::now();
            match run(scenario, &langs, passed + skipped + failed) {
                Outcome::Passed => {
                    println!("ok    {name} ({} ms)", start.elapsed().as_millis());
                    passed += 1;
                }
                Outcome::Skipped(why) => {
                    println!("skip  {name}: {why}");
                    skipped += 1;
                }
                Outcome::Failed(why) => {
                    println!("FAIL  {name}: {}\n      {}", scenario.about, why.replace('\n', "\n      "));
                    failed += 1;
                }
            }
        }
    }
    println!(
        "\nconformance: {} scenarios, {passed} cases passed, {failed} failed, {skipped} skipped with the reasons above",
        scenarios.len()
    );
    if failed > 0 { std::process::ExitCode::FAILURE } else { std::process::ExitCode::SUCCESS }
}

/// The languages of each actor, case by case.
fn cases(scenario: &Scenario) -> Vec<Vec<&'static str>> {
    if scenario.pairs {
        return LANGS.iter().flat_map(|a| LANGS.iter().map(move |b| vec![*a, *b])).collect();
    }
    LANGS.iter().map(|l| vec![*l; scenario.actors.len()]).collect()
}

/// `case` is its number.
fn run(scenario: &Scenario, langs: &[&str], case: usize) -> Outcome {
    let deadline = Instant::now() + scenario.timeout;
    let mut drivers: HashMap<&str, Driver> = HashMap::new();
    let ring = match scenario.ring.as_ref().map(make_ring).transpose() {
        Ok(ring) => ring,
        Err(why) => return Outcome::Failed(why),
    };
    let numbers: Vec<RawFd> = ring.as_ref().and_then(|r| r.fds().ok()).unwrap_or_default();
    // SAFETY: `ring` keeps them open for the length of this function.
    let fds: Vec<BorrowedFd<'_>> = numbers.iter().map(|fd| unsafe { BorrowedFd::borrow_raw(*fd) }).collect();
    for (actor, lang) in scenario.actors.iter().zip(langs) {
        match Driver::start(lang, &fds, deadline) {
            Ok(driver) => {
                if let Some(cap) = scenario.requires.iter().find(|c| !driver.caps.contains(c)) {
                    return Outcome::Skipped(format!("the {lang} face has no `{cap}`"));
                }
                drivers.insert(actor, driver);
            }
            Err(why) => return Outcome::Failed(why),
        }
    }
    let inherited: Vec<String> = (FIRST_FD..).take(fds.len()).map(|n| n.to_string()).collect();
    let path = std::env::temp_dir().join(format!("offloop-conformance-{}-{}", std::process::id(), case));
    let mut saved: HashMap<String, String> =
        HashMap::from([("ring".to_owned(), inherited.join(",")), ("path".to_owned(), path.to_string_lossy().into_owned())]);
    let mut started: HashMap<String, (String, u64)> = HashMap::new();
    for (i, step) in scenario.steps.iter().enumerate() {
        if let Err(why) = run_step(step, &mut drivers, &mut saved, &mut started, deadline) {
            return Outcome::Failed(format!("step {}: {why}", i + 1));
        }
    }
    for (actor, driver) in drivers {
        if let Err(why) = driver.finish(deadline) {
            return Outcome::Failed(format!("end of {actor}: {why}"));
        }
    }
    Outcome::Passed
}

/// The ring that the actors of a scenario meet in.
fn make_ring(want: &Ring) -> Result<RingBuffer, String> {
    let kind: Kind = want.kind.as_deref().map_or(Ok(Kind::Spsc), str::parse).map_err(|e: offloop::Error| e.to_string())?;
    let ring = RingBuffer::builder(kind).capacity(want.capacity).create().map_err(|e| e.to_string())?;
    if let Some((at, bytes)) = &want.scribble {
        let memory = ring.fds().map_err(|e| e.to_string())?[0];
        let file = File::options().write(true).open(format!("/proc/self/fd/{memory}")).map_err(|e| e.to_string())?;
        file.write_all_at(bytes, *at).map_err(|e| e.to_string())?;
    }
    Ok(ring)
}

fn run_step(
    step: &Step,
    drivers: &mut HashMap<&str, Driver>,
    saved: &mut HashMap<String, String>,
    started: &mut HashMap<String, (String, u64)>,
    deadline: Instant,
) -> Result<(), String> {
    let (line, reply, expect, save) = match step {
        Step::Call { actor, line, expect, save, until } => {
            let line = fill(line, saved)?;
            let driver = drivers.get_mut(actor.as_str()).expect("the reader checked actors");
            let mut reply = driver.call(&line, deadline)?;
            while *until && !expect.fits(&reply) {
                if Instant::now() >= deadline {
                    return Err(format!("{line}: never {:?}, last {reply:?}", expect.0));
                }
                std::thread::sleep(Duration::from_millis(1));
                reply = driver.call(&line, deadline)?;
            }
            (line, reply, expect, save)
        }
        Step::Start { actor, line, label } => {
            let line = fill(line, saved)?;
            let id = drivers.get_mut(actor.as_str()).expect("the reader checked actors").send(&line)?;
            started.insert(label.clone(), (actor.clone(), id));
            return Ok(());
        }
        Step::Await { label, expect, save } => {
            let (actor, id) = started.remove(label).ok_or_else(|| format!("nothing was started as {label}"))?;
            let reply = drivers.get_mut(actor.as_str()).expect("the reader checked actors").reply(id, deadline)?;
            (format!("await {label}"), reply, expect, save)
        }
        Step::Kill(actor) => {
            drivers.get_mut(actor.as_str()).ok_or_else(|| format!("no actor {actor}"))?.kill();
            return Ok(());
        }
    };
    if !expect.fits(&reply) {
        return Err(format!("{line}\nwant: {}\ngot:  {}", expect.0, readable(&reply)));
    }
    for (name, key) in save {
        let value = reply.split(' ').find_map(|t| t.strip_prefix(key.as_str())?.strip_prefix('='));
        saved.insert(name.clone(), value.ok_or_else(|| format!("{line}: reply {reply:?} has no {key}"))?.to_owned());
    }
    Ok(())
}

/// Puts saved values in place of `@name`.
fn fill(line: &str, saved: &HashMap<String, String>) -> Result<String, String> {
    let mut out = Vec::new();
    for token in line.split(' ') {
        match token.split_once("=@") {
            Some((key, name)) => {
                let value = saved.get(name).ok_or_else(|| format!("{line}: nothing was saved as {name}"))?;
                out.push(format!("{key}={value}"));
            }
            None => out.push(token.to_owned()),
        }
    }
    Ok(out.join(" "))
}

/// A reply with its hexadecimal `message` spelled out.
fn readable(reply: &str) -> String {
    let unhex = |hex: &str| -> Option<String> {
        let bytes: Option<Vec<u8>> = hex.as_bytes().chunks(2).map(|c| u8::from_str_radix(std::str::from_utf8(c).ok()?, 16).ok()).collect();
        String::from_utf8(bytes?).ok()
    };
    reply
        .split(' ')
        .map(|t| t.strip_prefix("message=").and_then(unhex).map_or_else(|| t.to_owned(), |m| format!("message={m:?}")))
        .collect::<Vec<_>>()
        .join(" ")
}
