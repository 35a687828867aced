//! Rust and C against `rayon::spawn`, in turns.

use crate::Results;
use offloop::pool::{CompletionQueue, Deliver, Event, SubmitOptions, Work};
use offloop::{ThreadPool, Value, ops};
use offloop_tests::spread::Spread;
use offloop_tests::target_dir;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

const TASKS: usize = 200_000;
const BATCH: usize = 256;
const WINDOW: usize = 32_768;
const ROUNDS: usize = 5;

pub(crate) fn run(results: &mut Results) -> Result<(), String> {
    let error = |e: offloop::Error| e.to_string();
    let pool = ThreadPool::builder().build().map_err(error)?;
    let c = target_dir().join("bench/pools");
    if !c.exists() {
        println!("  the C harness is not built: {}", c.display());
    }
    ours(&pool, true).map_err(error)?;
    rayon();
    for _ in 0..ROUNDS {
        results.add("rust.submit", "offloop", ours(&pool, false).map_err(error)?);
        results.add("rust.submit_many", "offloop", ours(&pool, true).map_err(error)?);
        if c.exists() {
            results.harness(Command::new(&c).env("ROUNDS", "1"))?;
        }
        let peer = rayon();
        for case in ["rust.submit", "rust.submit_many", "c.submit", "c.submit_many"] {
            results.add(case, "rayon::spawn", peer);
        }
    }
    pool.shutdown(None).map_err(error)?;
    results.add("rust.idle_thread", "offloop", idle_thread().map_err(error)?);
    Ok(())
}

/// Nanoseconds per task that does nothing, submitted on this thread and drained on it, as a host's loop does.
fn ours(pool: &ThreadPool, many: bool) -> offloop::Result<f64> {
    let queue = CompletionQueue::new()?;
    let nothing = || Work::call(|_| Ok(Value::Nil));
    let (mut sent, mut done) = (0, 0);
    let mut count = |event: Event| if let Event::Done { .. } = event {};
    let start = Instant::now();
    while sent < TASKS {
        let n = BATCH.min(TASKS - sent);
        let options = || SubmitOptions { deliver: Deliver::Queue(queue.clone(), 0), ..SubmitOptions::default() };
        if many {
            pool.post_many((0..n).map(|_| nothing()).collect(), &options()).map_err(|refused| refused.error)?;
        } else {
            for _ in 0..n {
                pool.post(nothing(), options()).map_err(|refused| refused.error)?;
            }
        }
        sent += n;
        done += queue.drain(BATCH, &mut count);
        while sent - done > WINDOW {
            let _ready = queue.wait(None);
            done += queue.drain(BATCH, &mut count);
        }
    }
    while done < TASKS {
        let _ready = queue.wait(None);
        done += queue.drain(BATCH, &mut count);
    }
    Ok(start.elapsed().as_nanos() as f64 / TASKS as f64)
}

/// The same through rayon: unbounded, without priorities, deadlines, cancellation or statistics.
fn rayon() -> f64 {
    let pool = rayon::ThreadPoolBuilder::new().build().expect("a rayon pool");
    let state = Arc::new((AtomicUsize::new(0), Mutex::new(()), Condvar::new()));
    let start = Instant::now();
    for _ in 0..TASKS {
        let state = state.clone();
        pool.spawn(move || {
            if state.0.fetch_add(1, Ordering::AcqRel) + 1 == TASKS {
                drop(state.1.lock());
                state.2.notify_all();
            }
        });
    }
    let guard = state.1.lock().expect("nobody panics under it");
    drop(state.2.wait_while(guard, |()| state.0.load(Ordering::Acquire) < TASKS).expect("nobody panics under it"));
    start.elapsed().as_nanos() as f64 / TASKS as f64
}

/// KiB of resident memory per idle worker of a pool of 64.
fn idle_thread() -> offloop::Result<f64> {
    const WORKERS: usize = 64;
    let before = resident_kib();
    let pool = ThreadPool::builder().max_workers(WORKERS).min_workers(WORKERS).build()?;
    let barrier = Arc::new(std::sync::Barrier::new(WORKERS + 1));
    let mut tasks = Vec::new();
    for _ in 0..WORKERS {
        let barrier = barrier.clone();
        let work = Work::call(move |_| {
            barrier.wait();
            Ok(Value::Nil)
        });
        tasks.push(pool.submit(work, SubmitOptions::default()).map_err(|refused| refused.error)?);
    }
    barrier.wait();
    for task in tasks {
        task.wait(None)?;
    }
    let per_worker = (resident_kib() - before) / WORKERS as f64;
    pool.shutdown(None)?;
    Ok(per_worker)
}

fn resident_kib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    line.and_then(|l| l.split_whitespace().next()?.parse().ok()).unwrap_or(f64::NAN)
}

/// Median in ms of a thumbnail of 200 px, JPEG at quality 80; the last one is written as PNG beside.
pub(crate) fn thumbnail(photo: &Path, output: &Path) -> Result<f64, String> {
    let data = std::fs::read(photo).map_err(|e| format!("{}: {e}", photo.display()))?;
    let run = |format: &'static str| {
        let mut options = vec![("width", Value::Int(200)), ("format", Value::str(format))];
        if format == "jpeg" {
            options.push(("quality", Value::Int(80)));
        }
        ops::run_inline("image.thumbnail", vec![data.clone().into()], &Value::map(options)).map_err(|e| e.to_string())
    };
    let mut times = Vec::new();
    for _ in 0..12 {
        let start = Instant::now();
        run("jpeg")?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let png = run("png")?.into_bytes().map_err(|e| e.to_string())?;
    std::fs::write(output, &*png).map_err(|e| format!("{}: {e}", output.display()))?;
    Ok(Spread::new(times.split_off(3)).at(0.5))
}
