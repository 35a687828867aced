//! Times one image op on one file: prints the median in ms as one JSON line and writes the last result.
//!
//! `cargo run --release -p offloop --example bench_image -- PHOTO [WIDTH] [ROUNDS] [OUTPUT.png] [OP]`
//!
//! Besides the time it prints the longest pause between two looks at the cancellation token.
#![allow(clippy::print_stdout, reason = "a benchmark reports on its standard output")]

use offloop::ops::{Control, OpCtx, Params, Splitter, find};
use offloop::{Bytes, Result, Value};
use std::sync::Mutex;
use std::time::{Duration, Instant};

struct Watch(Mutex<(Instant, Duration)>);

impl Control for Watch {
    fn check(&self) -> Result<()> {
        let mut state = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let now = Instant::now();
        state.1 = state.1.max(now - state.0);
        state.0 = now;
        Ok(())
    }
}

struct Alone;

impl Splitter for Alone {
    fn width(&self) -> usize {
        1
    }
    fn join(&self, _: usize, body: &(dyn Fn(&dyn Fn() -> bool) + Sync)) {
        body(&|| false);
    }
}

fn run(op: &str, data: &[u8], width: i64, format: &str) -> Result<(Bytes, Duration)> {
    let op = find(op)?;
    let mut options = vec![("format", Value::str(format.to_owned()))];
    if op.params.iter().any(|p| p.name == "width") {
        options.push(("width", Value::Int(width)));
    }
    let params = Params::check(op.name, op.params, &Value::map(options))?;
    let watch = Watch(Mutex::new((Instant::now(), Duration::ZERO)));
    let result = (op.run)(&mut OpCtx::new(vec![Bytes::from(data)], &params, &watch, &Alone))?.into_bytes()?;
    watch.check()?;
    let pause = watch.0.into_inner().map_or(Duration::ZERO, |s| s.1);
    Ok((result, pause))
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let arg = |i: usize, default: &'static str| args.get(i).map_or(default, String::as_str);
    let data = std::fs::read(arg(1, "photo.jpg"))?;
    let (width, rounds) = (arg(2, "200").parse()?, arg(3, "15").parse::<usize>()?.max(1));
    let (op, format) = (arg(5, "image.thumbnail"), arg(6, "jpeg"));
    for _ in 0..3.min(rounds) {
        run(op, &data, width, format)?;
    }
    let mut times = Vec::new();
    let mut pause = Duration::ZERO;
    for _ in 0..rounds {
        let start = Instant::now();
        pause = pause.max(run(op, &data, width, format)?.1);
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    if !arg(4, "").is_empty() {
        std::fs::write(arg(4, ""), &*run(op, &data, width, "png")?.0)?;
    }
    println!(
        "{{\"peer\": \"offloop\", \"op\": \"{op}\", \"rounds\": {rounds}, \"median_ms\": {:.2}, \"min_ms\": {:.2}, \"longest_pause_ms\": {:.2}}}",
        times[rounds / 2],
        times[0],
        pause.as_secs_f64() * 1e3
    );
    Ok(())
}
