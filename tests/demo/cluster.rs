//! A server on two workers under load, which is reloaded, and loses processes of its pool: what its clients see of that.

use crate::time;
use offloop_tests::root;
use std::net::TcpListener;
use std::process::Command;

/// Of each.
const TIMES: u64 = 2;

/// Runs it and prints how many requests failed.
pub(crate) fn show() -> Result<(), String> {
    let port = TcpListener::bind(("127.0.0.1", 0)).and_then(|l| l.local_addr()).map_err(|e| format!("a free port: {e}"))?.port();
    let tests = root().join("tests/demo");
    let mut command = Command::new("node");
    command.arg(root().join("bindings-node/bin/offloop.cjs")).args(["bench", "http", &format!("http://127.0.0.1:{port}/"), "--json"]);
    // Apart, so that each has its own time.
    command.args(["--every", "3", "--run", "kill -HUP {pid}", "--every", "2", "--run", "kill -USR2 {pid}", "--times", &TIMES.to_string()]);
    command.args(["--check-body", "2262", "--count-header", "x-worker", "--settle", "2", "--"]);
    command.args(["env", &format!("PORT={port}"), "node"]).arg(tests.join("cluster.mjs"));
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let report = text.lines().last().and_then(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let report = report.ok_or_else(|| format!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr)))?;
    let number = |name: &str| report[name].as_u64().ok_or_else(|| format!("no {name:?} in {text}"));
    let (requests, failed) = (number("requests")?, number("failed")?);
    let workers = report["answers"]["values"].as_array().map_or(0, Vec::len);
    let p99 = report["latency_ms"]["p99"].as_f64().unwrap_or_default();
    println!(
        "\nA server on two workers, with one pool for both, under load: reloaded {TIMES} times, and {TIMES} times `kill -9` of a process of the pool."
    );
    println!("{requests} requests to {workers} workers, p99 {}; failed requests: {failed}", time(p99));
    if failed > 0 { Err(format!("{failed} requests failed: {}", report["failures"])) } else { Ok(()) }
}
