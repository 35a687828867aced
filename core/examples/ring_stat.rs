//! Who is in a named ring, and what is queued: `cargo run --release --example ring_stat -- PATH`. The command `offloop ring stat` shows more.

#![allow(clippy::print_stdout, reason = "an example reports")]

use offloop::RingBuffer;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: ring_stat PATH")?;
    // Reads only: the ring does not notice, and nobody's place in it is taken.
    let stat = RingBuffer::inspect(&path)?;
    for p in stat.participants.iter().filter(|p| p.alive) {
        println!("process {} is its {}", p.pid, p.role.map_or("participant of a newer version", |role| role.as_str()));
    }
    let (queued, bytes) =
        stat.lanes.iter().fold((0, 0), |(n, bytes), lane| (n + u64::from(lane.records()), bytes + u64::from(lane.used())));
    println!("{queued} records are queued, {bytes} bytes");
    Ok(())
}
