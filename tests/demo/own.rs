//! Functions of the user's own: each host calls one inline and in workers, and Node.js calls one of Python.

use crate::server::Host;
use crate::time;
use offloop_tests::{root, target_dir};
use std::path::Path;
use std::process::Command;

/// Calls at once.
const CALLS: u32 = 8;

/// What one way took.
struct Way {
    name: String,
    ms: f64,
    late_ms: f64,
    result: String,
}

impl Host {
    fn own(self) -> Command {
        let script = |program: &Path, name: &str| {
            let mut command = Command::new(program);
            command.arg(root().join("tests/demo").join(name));
            command
        };
        let mut command = match self {
            Host::Node => script(Path::new("node"), "own.mjs"),
            Host::Python => script(&root().join(".venv/bin/python"), "own.py"),
            Host::C => Command::new(target_dir().join("demo/own-c")),
        };
        // Primes below so many take each host about 0.1 s: the interpreters are slower.
        let n = if self == Host::Python { 50_000 } else { 500_000 };
        command.env("VIRTUAL_ENV", root().join(".venv")).args([CALLS.to_string(), n.to_string()]);
        command
    }
}

fn ways(host: Host) -> Result<Vec<Way>, String> {
    let mut command = host.own();
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if !output.status.success() {
        return Err(format!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr)));
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let way = |line: &str| {
        let part = |key: &str| line.split(' ').find_map(|part| part.strip_prefix(key)?.strip_prefix('=')).map(str::to_owned);
        let number = |key: &str| part(key)?.parse().ok();
        Some(Way { name: part("way")?, ms: number("ms")?, late_ms: number("late_ms")?, result: part("result")? })
    };
    text.lines().map(|line| way(line).ok_or_else(|| format!("{command:?} says {line:?}"))).collect()
}

/// Runs them and prints what they took.
pub(crate) fn show(hosts: &[Host]) -> Result<(), String> {
    println!("\nFunctions of your own: {CALLS} calls at once, the result of the last, and the longest time that the loop was late by.");
    println!("{:<20}{:<18}{:>12}{:>14}{:>12}", "", "", format!("{CALLS} calls"), "loop late by", "result");
    for host in hosts {
        for (i, way) in ways(*host)?.iter().enumerate() {
            let title = if i == 0 { host.title() } else { "" };
            println!("{title:<20}{:<18}{:>12}{:>14}{:>12}", way.name, time(way.ms), time(way.late_ms), way.result);
        }
    }
    Ok(())
}
