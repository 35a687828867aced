//! Two workers that are kept alive: `cargo run --release --example supervise`. One of them crashes now and then. Kill the others, or this
//! program (`kill -9`): what is left ends as well.

#![allow(clippy::print_stdout, reason = "an example reports")]

use offloop::Supervisor;
use offloop::supervisor::{Event, worker};
use offloop::sys::process::Spec;
use std::time::{Duration, Instant};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // The same program is supervisor and worker.
    match worker::attach()? {
        Some(worker) => work(&worker),
        None => supervise()?,
    }
    Ok(())
}

/// A worker: its loop shows that it turns, and ends when it is asked to.
fn work(worker: &worker::Worker) {
    worker.ready();
    let begun = Instant::now();
    loop {
        worker.beat();
        if worker.wait_drain(Some(Duration::from_millis(100))) {
            break;
        }
        if worker.id().slot == 0 && begun.elapsed() > Duration::from_secs(1) {
            panic!("the worker in slot 0 never lasts");
        }
    }
    worker.drained();
}

fn supervise() -> Result<(), Box<dyn std::error::Error>> {
    let seconds = std::env::args().nth(1).map_or(Ok(5), |n| n.parse())?;
    let program = std::env::current_exe()?;
    let supervisor = Supervisor::builder()
        .workers(2)
        .on_event(|event| match event {
            Event::Ready { worker, after } => println!("{worker} is ready after {after:?}"),
            Event::Exited { worker, cause, ended, .. } => println!("{worker} ended: {cause:?}, {:?}", ended.exit),
            Event::BackOff { slot, delay } => println!("slot {slot} rests for {delay:?}"),
            Event::Degraded { .. } => println!("degraded: one worker is tried every 30 s"),
            _ => {}
        })
        .build(move |_| Ok(Spec::new(program.clone()).into()))?;
    supervisor.wait_ready(Some(Duration::from_secs(10)))?;
    std::thread::sleep(Duration::from_secs(seconds));
    supervisor.stop(Duration::from_secs(1))?;
    supervisor.wait_stopped(None)?;
    println!("{:#?}", supervisor.stats()?);
    Ok(())
}
