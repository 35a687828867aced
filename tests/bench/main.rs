//! Benchmarks: ours and the peer in one run, in turns, as ratios of medians. `bench [rust] [c] [codec] [ring] [node] [python] [image]`; all by default.
//!
//! Figures stand here and nowhere else; no test asserts them. Harnesses print `R case who value`, one line per round.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for people")]

mod codec;
mod native;

use offloop_tests::spread::Spread;
use offloop_tests::{root, target_dir};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

/// Which way is better, and what is to be reached.
#[derive(Clone, Copy, Debug)]
enum Goal {
    /// Higher is better; at least so many times the peer.
    Times(f64),
    /// Higher is better; at least this value, whatever the peer has.
    AtLeast(f64),
    /// Lower is better; at most this multiple of the peer.
    Within(f64),
    /// Lower is better; at most this value, whatever the peer has.
    AtMost(f64),
    /// Lower is better; at most this value where a cache line takes [`NEAR`] there and back, and ahead of every peer elsewhere.
    AtMostNear(f64),
    /// Shown only; lower is better.
    Low,
}

/// Nanoseconds that a cache line takes between two cores that are near each other. Virtual cores are moved about, and all figures with them.
const NEAR: f64 = 110.0;

struct Case {
    id: &'static str,
    title: &'static str,
    unit: &'static str,
    goal: Goal,
}

const fn case(id: &'static str, title: &'static str, unit: &'static str, goal: Goal) -> Case {
    Case { id, title, unit, goal }
}

const CASES: &[Case] = &[
    case("rust.submit", "Rust: submit + complete, no-op", "ns/task", Goal::Within(2.0)),
    case("rust.submit_many", "Rust: the same, 256 at a time", "ns/task", Goal::Within(2.0)),
    case("rust.idle_thread", "memory of an idle thread", "KiB", Goal::AtMost(200.0)),
    case("c.submit", "C: submit + complete, no-op", "ns/task", Goal::Within(2.0)),
    case("c.submit_many", "C: the same, 256 at a time", "ns/task", Goal::Within(2.0)),
    case("codec.write", "codec: write a record of six fields", "ns", Goal::Within(1.0)),
    case("codec.read", "codec: read it", "ns", Goal::Within(1.0)),
    case("codec.array", "codec: read 16 MiB of floats", "µs", Goal::Within(0.1)),
    // Between two processes.
    case("ring.line", "a cache line there and back", "ns", Goal::Low),
    case("ring.64_batch", "ring: 64 B, batched", "ns/record", Goal::AtMostNear(40.0)),
    case("ring.64", "ring: 64 B, each published", "ns/record", Goal::Within(1.0)),
    case("ring.1k_batch", "ring: 1 KiB, batched", "ns/record", Goal::AtMostNear(30.0)),
    case("ring.64k", "ring: 64 KiB, copied in and out", "ns/record", Goal::Within(1.0)),
    case("ring.64k_zero_copy", "ring: 64 KiB, zero-copy", "ns/record", Goal::AtMostNear(300.0)),
    case("ring.mpmc_64_batch", "ring: mpmc, 64 B, batched", "ns/record", Goal::Within(1.1)),
    case("ring.trip_hot", "ring: round trip of 64 B", "ns", Goal::AtMostNear(250.0)),
    case("ring.trip_asleep", "  the other side asleep", "ns", Goal::AtMostNear(45_000.0)),
    case("node.noop", "Node: no-op, 1000 in flight", "/s", Goal::Times(4.0)),
    case("node.noop.loop_p99", "  loop delay p99 meanwhile", "ms", Goal::AtMost(2.0)),
    case("node.sha256_1k", "Node: sha256 of 1 KiB, 1000 in flight", "/s", Goal::Times(6.0)),
    case("node.sha256_1k.loop_p99", "  loop delay p99 meanwhile", "ms", Goal::AtMost(2.0)),
    case("node.sha256_1k_batch", "Node: 1000 × sha256 of 1 KiB, one call", "ms", Goal::Low),
    case("node.sha256_1m", "Node: sha256 of 1 MiB", "ms", Goal::Within(1.1)),
    // No goal: it says as much about how far the cores of the machine are really several.
    case("node.sha256_8m", "  eight at once", "ms", Goal::Low),
    case("node.gzip_1m", "Node: gzip -6 of 1 MiB", "ms", Goal::Within(1.1)),
    case("node.gzip_1m.bytes", "  size", "B", Goal::Within(1.03)),
    case("node.transfer_16m", "Node: 16 MiB to a worker and back", "ms", Goal::Low),
    case("node.worker_noop", "Node: WorkerPool, no-op, 1000 in flight", "/s", Goal::Times(10.0)),
    case("node.worker_noop_piscina", "  against piscina", "/s", Goal::Times(25.0)),
    case("node.worker_noop.loop_p99", "  loop delay p99 meanwhile", "ms", Goal::AtMost(2.0)),
    case("node.worker_number", "  a number there and back", "/s", Goal::Times(10.0)),
    case("node.worker_object", "  a small object, against piscina", "/s", Goal::Times(12.0)),
    case("node.worker_text", "  100 B of text, against piscina", "/s", Goal::Times(12.0)),
    case("node.worker_bytes", "  a buffer of 100 B, against piscina", "/s", Goal::Times(12.0)),
    case("node.worker_async", "  an async function, against piscina", "/s", Goal::Times(12.0)),
    case("node.worker_compatible", "  a small object by offloop/piscina, against piscina", "/s", Goal::Times(10.0)),
    case("node.worker_trip", "  one call after another", "µs", Goal::Within(1.0)),
    case("node.worker_first", "  a pool of two to its first result, against piscina", "ms", Goal::Within(1.0)),
    case("node.process_text", "Node: ProcessPool, 100 B of text, 1000 in flight", "/s", Goal::Times(3.0)),
    case("node.process_text.loop_p99", "  loop delay p99 meanwhile", "ms", Goal::AtMost(2.0)),
    case("node.process_trip", "  one call after another", "µs", Goal::Within(1.0)),
    case("node.process_mega", "  1 MiB there and back by copy, 4 in flight", "/s", Goal::Times(1.0)),
    case("node.process_mega_in", "  1 MiB there by copy", "/s", Goal::Times(1.0)),
    case("node.process_mega_buffer", "  the same, copied into a new TransferBuffer each", "/s", Goal::Times(1.0)),
    case("node.process_mega_moved", "  the same, in a buffer of the pool that comes back", "/s", Goal::Times(10.0)),
    case("node.process_first", "  a pool of two to its first result", "ms", Goal::Within(1.0)),
    case("node.cluster_keep", "Node: Cluster, HTTP on kept connections", "/s", Goal::Times(0.95)),
    case("node.cluster_new", "  a connection for each request", "/s", Goal::Times(0.95)),
    case("node.cluster_new_turns", "  the same, against round-robin", "/s", Goal::Times(1.3)),
    case("node.cluster_passed_new", "  passed in turn, a connection for each request", "/s", Goal::Times(1.3)),
    case("node.cluster_passed_keep", "  passed in turn, on kept connections", "/s", Goal::Times(1.0)),
    case("node.cluster_spread_round", "  round-robin, most connections of a worker by the fewest", "×", Goal::AtMost(1.1)),
    case("node.cluster_spread_least", "  least-connections, most by the fewest", "×", Goal::AtMost(1.1)),
    case("node.cluster_failed", "  failed requests in three reloads", "", Goal::AtMost(0.0)),
    case("node.cluster_p99", "  p99 during reloads, of that of steady times", "×", Goal::AtMost(3.0)),
    case("node.cluster_crash", "  the only worker killed, to the next answer", "ms", Goal::Low),
    case("node.cluster_crash_over", "  by how much that is more than a bare start", "ms", Goal::AtMost(20.0)),
    case("node.cluster_crash_spare", "  the same, with a spare that waits", "ms", Goal::AtMost(10.0)),
    case("node.cluster_told", "  a worker killed, to its `exit` event, p99", "ms", Goal::AtMost(10.0)),
    case("py.cluster_keep", "Python: ASGI, HTTP on kept connections", "/s", Goal::Times(1.0)),
    case("py.cluster_new", "  a connection for each request", "/s", Goal::Times(1.0)),
    case("run.memory", "`offloop run` beside 8 workers: memory (PSS)", "MB", Goal::AtMost(15.0)),
    case("run.idle", "  of a core, while nothing is asked", "%", Goal::AtMost(0.1)),
    case("node.ring_64", "Node: 64 B records to another process", "/s", Goal::AtLeast(1.5e6)),
    case("node.ring_100", "Node: 100 B records, one by one", "/s", Goal::Times(5.0)),
    case("node.ring_64k", "Node: 64 KiB records", "/s", Goal::Times(3.0)),
    case("node.mpsc_100", "Node: two producers, 100 B one by one", "/s", Goal::Times(5.0)),
    case("node.broadcast_100", "Node: two consumers of each record, 100 B", "/s", Goal::Times(5.0)),
    // The messages of IPC are not acknowledged.
    case("node.mpmc_100", "Node: tasks of 100 B, acknowledged", "/s", Goal::Times(3.0)),
    case("node.to_python_100", "Node to Python: 100 B, batched", "/s", Goal::Times(0.5)),
    case("node.from_python_100", "Python to Node: 100 B, batched", "/s", Goal::Times(0.5)),
    case("node.channel_100", "Node: channel, 100 B one way", "/s", Goal::Times(1.0)),
    case("node.channel_value", "  an object of eight fields", "/s", Goal::Times(1.0)),
    case("node.channel_trip", "  a request and its reply", "µs", Goal::Within(1.0)),
    case("node.channel_trip_1m", "  with a buffer of 1 MiB", "µs", Goal::Within(1.0)),
    case("py.await_noop", "Python: await no-op, 1000 in flight", "/s", Goal::Times(8.0)),
    case("py.await_noop.loop_p99", "  loop delay p99 meanwhile", "ms", Goal::AtMost(2.0)),
    case("py.await_noop_1", "Python: await no-op, one after another", "/s", Goal::Times(8.0)),
    case("py.await_sha256_1k", "Python: await sha256 of 1 KiB", "/s", Goal::Times(8.0)),
    case("py.await_sha256_1k.loop_p99", "  loop delay p99 meanwhile", "ms", Goal::AtMost(2.0)),
    case("py.submit_noop", "Python: submit + result, no-op", "/s", Goal::Times(3.0)),
    case("py.submit_sha256_1k", "Python: submit + result, sha256 of 1 KiB", "/s", Goal::Times(3.0)),
    case("py.submit_many_sha256_1k", "Python: 1000 × sha256 of 1 KiB", "/s", Goal::Times(3.0)),
    case("py.sha256_1m", "Python: sha256 of 1 MiB", "ms", Goal::Within(1.1)),
    case("py.gzip_1m", "Python: gzip -6 of 1 MiB", "ms", Goal::Within(1.1)),
    case("py.gzip_1m.bytes", "  size", "B", Goal::Within(1.03)),
    case("py.zstd_1m", "Python: zstd -3 of 1 MiB", "ms", Goal::Within(1.1)),
    case("py.zstd_1m.bytes", "  size", "B", Goal::Within(1.03)),
    case("py.thumbnail", "Python: 4000×3000 JPEG to 200 px", "ms", Goal::Within(1.0)),
    case("py.thumbnail.ssim", "  similarity to Pillow's (SSIM)", "", Goal::Times(0.98)),
    case("py.csv_8m", "Python: 8 MiB of CSV to Arrow", "ms", Goal::Low),
    case("py.csv_aggregate_8m", "Python: group and sum 8 MiB of CSV", "ms", Goal::Low),
    case("py.json_query_8m", "Python: JSONPath over 8 MiB", "ms", Goal::Low),
    case("py.transfer_16m", "Python: 16 MiB to a process and back", "ms", Goal::Low),
    case("py.reference_16m", "Python: the same, already in a buffer", "ms", Goal::Low),
    case("py.process_noop", "Python: no-op in a worker process", "/s", Goal::Times(20.0)),
    case("py.process_noop_executor", "  against the executor", "/s", Goal::Times(80.0)),
    case("py.process_trip", "Python: a worker process there and back", "µs", Goal::AtMost(50.0)),
    case("py.process_array_16m", "Python: 16 MiB array in and out", "GB/s", Goal::AtLeast(10.0)),
    case("py.process_array_changed_16m", "  that the function changes in place", "GB/s", Goal::Times(1.0)),
    case("py.process_reference_16m", "Python: 16 MiB array in, by reference", "ms", Goal::AtMost(0.2)),
    case("py.process_first", "Python: a pool of two to its first result", "ms", Goal::Within(1.0)),
    case("py.process_first_preload", "  preload numpy, the pool is new", "ms", Goal::Within(1.0)),
    case("py.process_first_warm", "  preload numpy, the zygote is there", "ms", Goal::AtMost(10.0)),
    case("py.idle_thread", "Python: memory of an idle thread", "KiB", Goal::AtMost(200.0)),
    case("py.ring_100", "Python: ring, 100 B one by one, two processes", "/s", Goal::Times(5.0)),
    case("py.ring_100_fifo", "  against faster-fifo", "/s", Goal::Times(3.0)),
    case("py.ring_100_batched", "  in batches of 256", "/s", Goal::AtLeast(1e6)),
    case("py.ring_64k", "Python: ring, 64 KiB", "GB/s", Goal::AtLeast(5.0)),
    case("py.channel_100", "Python: channel, 100 B one way", "/s", Goal::Times(1.0)),
    case("py.channel_trip", "  a request and its reply", "µs", Goal::Within(1.0)),
    case("py.channel_trip_1m", "  with a buffer of 1 MiB", "µs", Goal::Within(1.0)),
    case("image.thumbnail", "4000×3000 JPEG to 200 px", "ms", Goal::Within(1.0)),
    // 0.7 × the speed of sharp.
    case("image.thumbnail_sharp", "  against sharp", "ms", Goal::Within(1.43)),
    case("image.ssim", "  similarity to sharp's (SSIM)", "", Goal::Times(0.98)),
];

/// All rounds of all cases: `(case, who, value)`.
#[derive(Default)]
pub(crate) struct Results(Vec<(String, String, f64)>);

impl Results {
    pub(crate) fn add(&mut self, case: &str, who: &str, value: f64) {
        self.0.push((case.to_owned(), who.to_owned(), value));
    }

    fn median(&self, case: &str, who: &str) -> f64 {
        Spread::new(self.0.iter().filter(|(c, w, _)| c == case && w == who).map(|r| r.2).collect()).at(0.5)
    }

    fn peers(&self, case: &str) -> Vec<&str> {
        let mut out: Vec<&str> = Vec::new();
        for (c, who, _) in &self.0 {
            if c == case && who != "offloop" && !out.contains(&who.as_str()) {
                out.push(who);
            }
        }
        out
    }

    /// Runs a harness and keeps what it prints.
    pub(crate) fn harness(&mut self, command: &mut Command) -> Result<(), String> {
        let shown = format!("{command:?}");
        let mut child = command.stdout(Stdio::piped()).spawn().map_err(|e| format!("{shown}: {e}"))?;
        let stdout = child.stdout.take().expect("asked to be piped");
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let words: Vec<&str> = line.split(' ').collect();
            match words.as_slice() {
                ["R", case, who, value] => self.add(case, who, value.parse().map_err(|e| format!("{line}: {e}"))?),
                _ => println!("  {line}"),
            }
        }
        let status = child.wait().map_err(|e| format!("{shown}: {e}"))?;
        if status.success() { Ok(()) } else { Err(format!("{shown} ended with {status}")) }
    }
}

fn main() -> std::process::ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let wanted = |group: &str| args.is_empty() || args.iter().any(|a| a == group);
    type Group = (&'static str, fn(&mut Results) -> Result<(), String>);
    let groups: [Group; 7] = [
        ("rust", native::run),
        ("codec", codec::run),
        ("ring", ring),
        ("node", node),
        ("cluster", cluster),
        ("python", python),
        ("image", image),
    ];
    if let Some(unknown) = args.iter().find(|a| *a != "c" && !groups.iter().any(|(group, _)| a == group)) {
        println!("bench: there is no {unknown}; known are c {}", groups.map(|(group, _)| group).join(" "));
        return std::process::ExitCode::FAILURE;
    }
    machine();
    let mut results = Results::default();
    let mut failed = false;
    for (group, run) in groups {
        // C and Rust take turns against the same peer.
        if !(wanted(group) || (group == "rust" && wanted("c"))) {
            continue;
        }
        println!("running: {group}");
        if let Err(error) = run(&mut results) {
            println!("  {group} is not complete: {error}");
            failed = true;
        }
    }
    print(&results);
    machine_load("after");
    if failed { std::process::ExitCode::FAILURE } else { std::process::ExitCode::SUCCESS }
}

/// Ours with the kernel's, and other people's, in turns: each program makes one round.
fn ring(results: &mut Results) -> Result<(), String> {
    let release = target_dir().join("release");
    let peers = [release.join("offloop-bench-peers"), target_dir().join("bench/boost")];
    for _ in 0..5 {
        results.harness(Command::new(release.join("examples/bench_ring")).arg("rows"))?;
        for peer in peers.iter().filter(|p| p.exists()) {
            results.harness(&mut Command::new(peer))?;
        }
    }
    peers.iter().filter(|p| !p.exists()).for_each(|p| println!("  a peer is not built: {}", p.display()));
    Ok(())
}

fn node(results: &mut Results) -> Result<(), String> {
    results.harness(Command::new("node").arg(root().join("tests/bench/node.mjs")))?;
    results.harness(Command::new("node").arg(root().join("tests/bench/workers.mjs")))?;
    results.harness(Command::new("node").arg(root().join("tests/bench/processes.mjs")))?;
    results.harness(Command::new("node").arg(root().join("tests/bench/ring.mjs")))?;
    results.harness(Command::new("node").arg(root().join("tests/bench/channel.mjs")))
}

fn cluster(results: &mut Results) -> Result<(), String> {
    results.harness(Command::new("node").arg(root().join("tests/bench/clusters.mjs")))?;
    results.harness(Command::new("node").arg(root().join("tests/bench/supervisors.mjs")))
}

fn python_command(script: &str) -> Command {
    let mut command = Command::new(root().join(".venv/bin/python"));
    command.arg(root().join("tests/bench").join(script));
    command
}

fn python(results: &mut Results) -> Result<(), String> {
    results.harness(&mut python_command("bench.py"))?;
    results.harness(&mut python_command("rings.py"))?;
    results.harness(&mut python_command("channels.py"))
}

/// A photograph enlarged to what a camera delivers; ours, Pillow and sharp in turns, each by its own script.
fn image(results: &mut Results) -> Result<(), String> {
    let dir = target_dir().join("bench");
    std::fs::create_dir_all(&dir).map_err(|e| e.to_string())?;
    let photo = dir.join("photo.jpg");
    let output = |command: &mut Command| -> Result<String, String> {
        let out = command.output().map_err(|e| format!("{command:?}: {e}"))?;
        if !out.status.success() {
            return Err(format!("{command:?}: {}", String::from_utf8_lossy(&out.stderr)));
        }
        Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
    };
    output(python_command("image/make_photo.py").arg(&photo))?;
    let (ours, theirs) = (dir.join("ours.png"), dir.join("sharp.png"));
    let median = |line: &str| -> Result<f64, String> {
        let value: serde_json::Value = serde_json::from_str(line).map_err(|e| format!("{line}: {e}"))?;
        value["median_ms"].to_string().parse().map_err(|_| format!("{line}: no median_ms"))
    };
    for _ in 0..3 {
        let took = native::thumbnail(&photo, &ours)?;
        results.add("image.thumbnail", "offloop", took);
        results.add("image.thumbnail_sharp", "offloop", took);
        let line = output(python_command("image/thumb_pillow.py").arg(&photo).args(["200", "9"]))?;
        results.add("image.thumbnail", "pillow", median(&line)?);
        let mut sharp = Command::new("node");
        sharp.current_dir(root().join("tests/bench")).arg("image/thumb_sharp.mjs").arg(&photo).args(["200", "9"]).arg(&theirs);
        results.add("image.thumbnail_sharp", "sharp", median(&output(&mut sharp)?)?);
    }
    let ssim = output(python_command("image/ssim.py").arg(&ours).arg(&theirs))?;
    results.add("image.ssim", "offloop", ssim.parse().map_err(|_| format!("ssim.py says {ssim}"))?);
    results.add("image.ssim", "sharp", 1.0);
    Ok(())
}

fn print(results: &Results) {
    println!("\n{:<42}{:>16}   {:<22}{:>16}   {:>9}   goal", "medians", "offloop", "peer", "", "ratio");
    println!("{}", "─".repeat(132));
    for case in CASES {
        let ours = results.median(case.id, "offloop");
        if ours.is_nan() {
            continue;
        }
        let peers = results.peers(case.id);
        for (i, peer) in peers.iter().copied().chain(peers.is_empty().then_some("")).enumerate() {
            let theirs = results.median(case.id, peer);
            let (title, own) = if i == 0 { (case.title, number(ours, case.unit)) } else { ("", String::new()) };
            let ratio = ours / theirs;
            let shown = if theirs.is_nan() { String::new() } else { format!("{ratio:.2} ×") };
            println!(
                "{title:<42}{own:>16}   {peer:<22}{:>16}   {shown:>9}   {}",
                number(theirs, case.unit),
                verdict(case.goal, ours, ratio, theirs, results.median("ring.line", "offloop"))
            );
        }
    }
    println!("\nRatio: ours / theirs. Medians of rounds that took turns.");
}

fn verdict(goal: Goal, ours: f64, ratio: f64, theirs: f64, line: f64) -> String {
    let met = |good: bool| if good { "reached" } else { "NOT reached" };
    match goal {
        Goal::Times(_) | Goal::Within(_) if theirs.is_nan() => "no peer ran".into(),
        Goal::Times(want) => format!("≥ {want} ×: {}", met(ratio >= want)),
        Goal::Within(want) => format!("≤ {want} ×: {}", met(ratio <= want)),
        Goal::AtLeast(want) => format!("≥ {want}: {}", met(ours >= want)),
        Goal::AtMost(want) => format!("≤ {want}: {}", met(ours <= want)),
        Goal::AtMostNear(want) if line <= NEAR => format!("≤ {want}: {}", met(ours <= want)),
        Goal::AtMostNear(_) if theirs.is_nan() => "no peer ran".into(),
        Goal::AtMostNear(want) => format!("ahead (≤ {want} where cores are near): {}", met(ratio < 1.0)),
        Goal::Low => String::new(),
    }
}

fn number(value: f64, unit: &str) -> String {
    if value.is_nan() {
        return String::new();
    }
    let digits = if value >= 1000.0 { 0 } else { 2 };
    let text = format!("{value:.digits$}");
    // Groups of three read better: 1 234 567.
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut grouped = String::new();
    for (i, c) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i) % 3 == 0 {
            grouped.push(' ');
        }
        grouped.push(c);
    }
    format!("{grouped}{rest} {unit}").trim_end().to_owned()
}

/// What the figures were measured on.
fn machine() {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo").lines().find_map(|l| l.strip_prefix("model name")?.split_once(": ").map(|(_, v)| v.to_owned()));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    println!(
        "machine: {cores} × {}, Linux {}",
        cpu.unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
        read("/proc/sys/kernel/osrelease").trim()
    );
    machine_load("before");
}

fn machine_load(when: &str) {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!("load {when}: {}", load.split(' ').take(3).collect::<Vec<_>>().join(" "));
}
