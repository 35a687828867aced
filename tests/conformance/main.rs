//! Runs every scenario through every language's driver, and in all ordered pairs where two processes meet.
//!
//! `cargo test -p offloop-tests --test conformance -- [part of a case's name]…`. `OFFLOOP_REQUIRE=rust,c,node,python` makes a driver that is
//! not built a failure; without it its cases are skipped, with the reason.

#![allow(clippy::print_stdout, reason = "a test harness reports")]

mod client;
mod pairs;
mod world;

use client::Client;
use offloop::ring::Kind;
use offloop_tests::driver::{Driver, FIRST_FD, LANGS, command, member};
use offloop_tests::scenario::{CLIENT, Expect, Matrix, Scenario, Step};
use offloop_tests::{files, root};
use std::collections::HashMap;
use std::time::{Duration, Instant};
use world::{Failure, World};

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
        for case in cases(scenario) {
            let of: String = [case.kind.map(Kind::as_str), case.pool].into_iter().flatten().map(|of| format!(" {of}")).collect();
            let langs: Vec<&str> = case.langs.iter().chain(&case.workers).copied().collect();
            let name = format!("{}{of} [{}]", scenario.name, langs.join("→"));
            if !filters.is_empty() && !filters.iter().any(|f| name.contains(f)) || langs.iter().any(|l| missing.contains_key(l)) {
                continue;
            }
            let start = Instant::now();
            match run(scenario, &case, passed + skipped + failed) {
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
    // Callers of pools and their workers, in every two languages.
    let (mut pairs, mut calls) = (0, 0);
    for (from, to) in LANGS.iter().flat_map(|from| LANGS.iter().map(move |to| (*from, *to))) {
        let name = format!("pair [{from}→{to}]");
        if !filters.is_empty() && !filters.iter().any(|f| name.contains(f)) || [from, to].iter().any(|l| missing.contains_key(*l)) {
            continue;
        }
        let start = Instant::now();
        match pairs::run(from, to, &std::env::temp_dir()) {
            Ok(made) => {
                println!("ok    {name} ({made} calls, {} ms)", start.elapsed().as_millis());
                (pairs, calls) = (pairs + 1, calls + made);
            }
            Err(why) => {
                println!("FAIL  {name}: {}", why.replace('\n', "\n      "));
                failed += 1;
            }
        }
    }
    println!("\npairs: {pairs} of {} callers × workers, {calls} calls", LANGS.len() * LANGS.len());
    println!(
        "conformance: {} scenarios, {passed} cases passed, {failed} failed, {skipped} skipped with the reasons above",
        scenarios.len()
    );
    if failed > 0 { std::process::ExitCode::FAILURE } else { std::process::ExitCode::SUCCESS }
}

/// One run of a scenario.
struct Case<'a> {
    /// The language of each actor.
    langs: Vec<&'static str>,
    /// The kind of the runner's ring.
    kind: Option<Kind>,
    /// The kind of pool that `@pool` is.
    pool: Option<&'a str>,
    /// The language of the workers, where it is not the actors' own.
    workers: Option<&'static str>,
}

fn cases(scenario: &Scenario) -> Vec<Case<'_>> {
    let own = || LANGS.iter().map(|lang| vec![*lang; scenario.actors.len()]);
    let langs: Vec<(Vec<&str>, Option<&str>)> = match scenario.matrix {
        Matrix::Each => own().map(|langs| (langs, None)).collect(),
        Matrix::Pairs => LANGS.iter().flat_map(|a| LANGS.iter().map(move |b| (vec![*a, *b], None))).collect(),
        Matrix::Workers => own().flat_map(|langs| LANGS.iter().map(move |of| (langs.clone(), Some(*of)))).collect(),
    };
    let kinds = scenario.ring.iter().flat_map(|ring| &ring.kinds).copied().map(Some);
    let kinds: Vec<Option<Kind>> = kinds.chain(scenario.ring.iter().all(|ring| ring.kinds.is_empty()).then_some(None)).collect();
    let pools = scenario.pools.iter().map(|pool| Some(pool.as_str())).chain(scenario.pools.is_empty().then_some(None));
    let both = pools.flat_map(|pool| kinds.iter().map(move |kind| (pool, *kind)));
    both.flat_map(|(pool, kind)| langs.iter().map(move |(langs, workers)| Case { langs: langs.clone(), kind, pool, workers: *workers }))
        .collect()
}

/// `number` is the case's own.
fn run(scenario: &Scenario, case: &Case<'_>, number: usize) -> Outcome {
    match run_steps(scenario, case, number) {
        Ok(outcome) => outcome,
        Err(Failure::Forbidden(why)) => Outcome::Skipped(why),
        Err(Failure::Failed(why)) => Outcome::Failed(why),
    }
}

fn run_steps(scenario: &Scenario, case: &Case<'_>, number: usize) -> Result<Outcome, Failure> {
    let deadline = Instant::now() + scenario.timeout;
    let mut world = World::new(scenario.ring.as_ref(), case.kind, number)?;
    let needs: Vec<&str> = scenario.requires.iter().map(String::as_str).chain(case.pool.map(pool_cap)).collect();
    let mut drivers: HashMap<&str, Driver> = HashMap::new();
    let mut client = Client::default();
    for (actor, lang) in scenario.actors.iter().zip(&case.langs) {
        let driver = Driver::start(lang, &world.fds(), &world.names_dir(), deadline).map_err(Failure::Failed)?;
        if let Some(cap) = needs.iter().find(|need| !driver.caps.iter().any(|cap| cap == *need)) {
            return Ok(Outcome::Skipped(format!("the {lang} face has no `{cap}`")));
        }
        drivers.insert(actor, driver);
    }
    let mut saved: HashMap<String, String> = world.names(FIRST_FD).into_iter().collect();
    saved.insert("path".to_owned(), world.path.to_string_lossy().into_owned());
    saved.insert("unix".to_owned(), format!("unix:{}", world.path.display()));
    saved.extend(case.pool.map(|pool| ("pool".to_owned(), pool.to_owned())));
    if let Some(lang) = case.workers {
        saved.insert("of".to_owned(), lang.to_owned());
        saved.insert("command".to_owned(), member(lang).map_err(Failure::Failed)?.join(","));
    }
    let mut started: HashMap<String, (String, u64)> = HashMap::new();
    for (i, step) in scenario.steps.iter().enumerate() {
        let at = |why: String| Failure::Failed(format!("step {}: {why}", i + 1));
        if let Step::Act { actor, act } = step {
            let pid = drivers.get(actor.as_str()).expect("the reader checked actors").pid();
            world.act(act, pid).map_err(|e| match e {
                Failure::Failed(why) => at(why),
                forbidden @ Failure::Forbidden(_) => forbidden,
            })?;
        } else {
            run_step(step, &mut drivers, &mut client, &mut saved, &mut started, deadline).map_err(at)?;
        }
    }
    for (actor, driver) in drivers {
        driver.finish(deadline).map_err(|why| Failure::Failed(format!("end of {actor}: {why}")))?;
    }
    Ok(Outcome::Passed)
}

/// What a driver says when it has such pools.
fn pool_cap(pool: &str) -> &'static str {
    if pool == "thread" { "workers" } else { "processes" }
}

fn run_step(
    step: &Step,
    drivers: &mut HashMap<&str, Driver>,
    client: &mut Client,
    saved: &mut HashMap<String, String>,
    started: &mut HashMap<String, (String, u64)>,
    deadline: Instant,
) -> Result<(), String> {
    let (line, reply, expect, says, save) = match step {
        Step::Call { actor, line, expect, says, save, until } => {
            let (line, expect) = (fill(line, saved)?, Expect(fill(&expect.0, saved)?));
            loop {
                let id = send(drivers, client, actor, &line, deadline)?;
                let reply = reply_of(drivers, client, actor, id, deadline)?;
                if !until || expect.fits(&reply) {
                    break (line, reply, expect, says.as_slice(), save);
                }
                if Instant::now() >= deadline {
                    return Err(format!("{line}: never {:?}, last {:?}", expect.0, readable(&reply)));
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Step::Start { actor, line, label } => {
            let id = send(drivers, client, actor, &fill(line, saved)?, deadline)?;
            started.insert(label.clone(), (actor.clone(), id));
            return Ok(());
        }
        Step::Await { label, expect, says, save } => {
            let (actor, id) = started.remove(label).ok_or_else(|| format!("nothing was started as {label}"))?;
            let reply = reply_of(drivers, client, &actor, id, deadline)?;
            (format!("await {label}"), reply, Expect(fill(&expect.0, saved)?), says.as_slice(), save)
        }
        Step::Act { .. } => return Err("an act is the runner's".into()),
        Step::Kill(actor) => {
            drivers.get_mut(actor.as_str()).ok_or_else(|| format!("no actor {actor}"))?.kill();
            return Ok(());
        }
    };
    if !expect.fits(&reply) {
        return Err(format!("{line}\nwant: {}\ngot:  {}", expect.0, readable(&reply)));
    }
    if let Some(missing) = says.iter().find(|text| !readable(&reply).contains(text.as_str())) {
        return Err(format!("{line}\nwant: a message with {missing:?}\ngot:  {}", readable(&reply)));
    }
    for (name, key) in save {
        let value = reply.split(' ').find_map(|t| t.strip_prefix(key.as_str())?.strip_prefix('='));
        saved.insert(name.clone(), value.ok_or_else(|| format!("{line}: reply {reply:?} has no {key}"))?.to_owned());
    }
    Ok(())
}

fn send(drivers: &mut HashMap<&str, Driver>, client: &mut Client, actor: &str, line: &str, deadline: Instant) -> Result<u64, String> {
    if actor == CLIENT {
        return Ok(client.send(line, deadline));
    }
    drivers.get_mut(actor).expect("the reader checked actors").send(line)
}

fn reply_of(drivers: &mut HashMap<&str, Driver>, client: &mut Client, actor: &str, id: u64, deadline: Instant) -> Result<String, String> {
    if actor == CLIENT {
        return client.reply(id, deadline);
    }
    drivers.get_mut(actor).expect("the reader checked actors").reply(id, deadline)
}

/// Puts saved values in place of `@name`, in lists too, and where something goes on behind a slash.
fn fill(line: &str, saved: &HashMap<String, String>) -> Result<String, String> {
    let part = |part: &str| match part.strip_prefix('@') {
        Some(rest) => {
            let (name, tail) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            let value = saved.get(name).ok_or_else(|| format!("{line}: nothing was saved as {name}"))?;
            Ok(format!("{value}{tail}"))
        }
        None => Ok(part.to_owned()),
    };
    let token = |token: &str| match token.split_once('=') {
        Some((key, value)) if value.contains('@') => {
            let parts: Result<Vec<String>, String> = value.split(',').map(part).collect();
            Ok(format!("{key}={}", parts?.join(",")))
        }
        _ => Ok(token.to_owned()),
    };
    line.split(' ').map(token).collect::<Result<Vec<_>, String>>().map(|tokens| tokens.join(" "))
}

/// What stands in hexadecimal because it may have spaces.
const TEXTS: &[&str] = &["message", "name", "text", "stack", "code", "cause"];

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// A reply with its texts spelled out.
fn readable(reply: &str) -> String {
    let unhex = |hex: &str| -> Option<String> {
        let bytes: Option<Vec<u8>> = hex.as_bytes().chunks(2).map(|c| u8::from_str_radix(std::str::from_utf8(c).ok()?, 16).ok()).collect();
        String::from_utf8(bytes?).ok()
    };
    reply
        .split(' ')
        .map(|t| match t.split_once('=') {
            Some((key, text)) if TEXTS.contains(&key) => unhex(text).map_or_else(|| t.to_owned(), |text| format!("{key}={text:?}")),
            _ => t.to_owned(),
        })
        .collect::<Vec<_>>()
        .join(" ")
}
