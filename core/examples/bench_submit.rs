//! Submit and complete, from one thread that is not a worker: offloop as shipped against `rayon::spawn`.
//!
//! `cargo run --release -p offloop --example bench_submit [rounds]` prints nanoseconds per task, execution included, and
//! the ratio of medians. 1,000 tasks in flight; both sides deliver completions to the submitting thread.

#![allow(clippy::print_stdout, reason = "a benchmark prints")]

use offloop::pool::{Deliver, SubmitOptions, Work};
use offloop::{CompletionQueue, ThreadPool, Value};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

const TASKS: usize = 300_000;
const IN_FLIGHT: usize = 1_000;

fn ours(pool: &ThreadPool, batch: usize) -> f64 {
    let queue = CompletionQueue::new().expect("queue");
    let from = Instant::now();
    let (mut sent, mut done) = (0, 0);
    while done < TASKS {
        while sent < TASKS && sent - done < IN_FLIGHT {
            let options = SubmitOptions { deliver: Deliver::Queue(queue.clone(), sent as u64), ..Default::default() };
            let work = || Work::call(|_| Ok(Value::Nil));
            if batch == 1 {
                pool.post(work(), options).expect("room");
                sent += 1;
            } else {
                pool.post_many((0..batch).map(|_| work()).collect(), &options).expect("room");
                sent += batch;
            }
        }
        let n = queue.drain(256, &mut |_| ());
        if n == 0 {
            let _ = queue.wait(None);
        }
        done += n;
    }
    from.elapsed().as_nanos() as f64 / TASKS as f64
}

fn rayon(pool: &rayon::ThreadPool) -> f64 {
    let from = Instant::now();
    let done = Arc::new(AtomicUsize::new(0));
    let mut sent = 0;
    while done.load(Ordering::Acquire) < TASKS {
        while sent < TASKS && sent - done.load(Ordering::Acquire) < IN_FLIGHT {
            let done = done.clone();
            pool.spawn(move || {
                done.fetch_add(1, Ordering::AcqRel);
            });
            sent += 1;
        }
        std::thread::yield_now();
    }
    from.elapsed().as_nanos() as f64 / TASKS as f64
}

fn main() {
    let rounds: usize = std::env::args().nth(1).and_then(|a| a.parse().ok()).unwrap_or(9);
    let pool = ThreadPool::builder().max_workers(2).build().expect("pool");
    let peer = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("pool");
    let (mut a, mut b, mut c) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        a.push(ours(&pool, 1));
        b.push(ours(&pool, 100));
        c.push(rayon(&peer));
    }
    let median = |v: &mut Vec<f64>| {
        v.sort_by(f64::total_cmp);
        v[v.len() / 2]
    };
    let (a, b, c) = (median(&mut a), median(&mut b), median(&mut c));
    println!(
        "submit+complete ns/task: offloop {a:.0}, offloop batches of 100 {b:.0}, rayon::spawn {c:.0}; ratio {:.2}, batched {:.2}",
        a / c,
        b / c
    );
}
