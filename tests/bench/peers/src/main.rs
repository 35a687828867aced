//! Crates that move bytes between two processes, as `core/examples/bench_ring.rs` moves them: both processes pinned, copied in from and out to
//! a private buffer unless the row says zero-copy. One round, as `R case who value`; `make bench` runs it in turns with the others.

use iceoryx2::port::publisher::Publisher;
use iceoryx2::port::subscriber::Subscriber;
use iceoryx2::prelude::{BackpressureStrategy, LogLevel, Node, NodeBuilder, ipc, set_log_level};
use iceoryx2::service::port_factory::publish_subscribe::PortFactory;
use ipc_channel::ipc::{IpcBytesReceiver, IpcBytesSender, IpcOneShotServer, IpcSender, bytes_channel};
use std::hint::{black_box, spin_loop};
use std::io::{Read, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Instant;

type Failure = Box<dyn std::error::Error>;
type Done<T = ()> = Result<T, Failure>;

const KIB: usize = 1024;
/// What may be on its way, where a peer can be told: the default capacity of a ring.
const CAPACITY: usize = 4 << 20;
const TRIPS: usize = 100_000;
const TRIPS_ASLEEP: usize = 5000;
/// A peer that hangs ends this program.
const WATCHDOG_SECONDS: u32 = 60;

fn pin(core: usize) {
    // SAFETY: a zeroed set is empty, and the call gets a valid pointer. On a machine with one core this does nothing.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set);
    }
}

/// This program again, as the other side. It writes a byte when it is ready, and one when it has everything.
struct Other {
    child: Child,
    reports: ChildStdout,
}

impl Other {
    fn start(mode: &str, name: &str, len: usize, count: usize) -> Done<Other> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["child", mode, name, &len.to_string(), &count.to_string()]).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let reports = child.stdout.take().ok_or("asked to be piped")?;
        Ok(Other { child, reports })
    }

    fn report(&mut self) -> Done {
        Ok(self.reports.read_exact(&mut [0])?)
    }

    fn end(mut self) -> Done {
        let status = self.child.wait()?;
        if status.success() { Ok(()) } else { Err(format!("the other side ended with {status}").into()) }
    }
}

fn report() -> Done {
    let mut out = std::io::stdout();
    out.write_all(&[0])?;
    Ok(out.flush()?)
}

/// Nanoseconds per record, from the first to the word that the last one has come.
fn timed(mut other: Other, count: usize, mut send: impl FnMut() -> Done) -> Done<f64> {
    let from = Instant::now();
    for _ in 0..count {
        send()?;
    }
    other.report()?;
    let ns = from.elapsed().as_nanos() as f64 / count as f64;
    other.end()?;
    Ok(ns)
}

/// The median of so many round trips, in nanoseconds, of which `at_once` are timed together.
fn trips(count: usize, at_once: usize, mut trip: impl FnMut() -> Done) -> Done<f64> {
    let mut times = Vec::with_capacity(count / at_once);
    for _ in 0..count / at_once {
        let from = Instant::now();
        for _ in 0..at_once {
            trip()?;
        }
        times.push(from.elapsed().as_nanos() as f64 / at_once as f64);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

// ---- iceoryx2: publish and subscribe, both sides look without end, and nothing is dropped ----

type Service = PortFactory<ipc::Service, [u8], ()>;
type To = Publisher<ipc::Service, [u8], ()>;
type From = Subscriber<ipc::Service, [u8], ()>;

fn service(node: &Node<ipc::Service>, name: &str, len: usize) -> Done<Service> {
    let builder = node.service_builder(&name.try_into()?).publish_subscribe::<[u8]>();
    let builder = builder.enable_safe_overflow(false).history_size(0).max_publishers(1).max_subscribers(1);
    Ok(builder.subscriber_max_buffer_size((CAPACITY / len).min(4096)).subscriber_max_borrowed_samples(2).open_or_create()?)
}

fn publisher(service: &Service, len: usize) -> Done<To> {
    let builder = service.publisher_builder().initial_max_slice_len(len).max_loaned_samples(1);
    Ok(builder.backpressure_strategy(BackpressureStrategy::RetryUntilDelivered).create()?)
}

fn publish(to: &To, record: &[u8]) -> Done {
    to.loan_slice_uninit(record.len())?.write_from_slice(record).send()?;
    Ok(())
}

fn receive<R>(from: &From, look: impl FnOnce(&[u8]) -> R) -> Done<R> {
    loop {
        if let Some(sample) = from.receive()? {
            return Ok(look(sample.payload()));
        }
        spin_loop();
    }
}

/// Writes one word per page, as someone does who fills a frame elsewhere.
fn publish_in_place(to: &To, len: usize, n: u64) -> Done {
    let mut sample = to.loan_slice_uninit(len)?;
    for page in sample.payload_mut().chunks_mut(4 * KIB) {
        page[0].write(n as u8);
    }
    // SAFETY: bytes of shared memory, which was zeroed when it was made; what they say does not matter.
    unsafe { sample.assume_init() }.send()?;
    Ok(())
}

fn first_of_pages(payload: &[u8]) -> u64 {
    payload.iter().step_by(4 * KIB).map(|b| u64::from(*b)).sum()
}

fn name_of(what: &str) -> String {
    format!("offloop-bench-{}-{what}", std::process::id())
}

fn iceoryx2(len: usize, count: usize, zero_copy: bool) -> Done<f64> {
    let node = NodeBuilder::new().create::<ipc::Service>()?;
    let name = name_of(&format!("{len}-{zero_copy}"));
    let service = service(&node, &name, len)?;
    let to = publisher(&service, len)?;
    let mut other = Other::start(if zero_copy { "iceoryx2-in-place" } else { "iceoryx2" }, &name, len, count)?;
    other.report()?;
    let record = vec![7u8; len];
    let mut n = 0;
    timed(other, count, || {
        n += 1;
        if zero_copy { publish_in_place(&to, len, n) } else { publish(&to, black_box(&record)) }
    })
}

fn iceoryx2_other(name: &str, len: usize, count: usize, zero_copy: bool) -> Done {
    let node = NodeBuilder::new().create::<ipc::Service>()?;
    let service = service(&node, name, len)?;
    let from = service.subscriber_builder().create()?;
    report()?;
    let mut out = vec![0u8; len];
    for _ in 0..count {
        if zero_copy {
            black_box(receive(&from, first_of_pages)?);
        } else {
            receive(&from, |payload| out.copy_from_slice(payload))?;
            black_box(&out);
        }
    }
    report()
}

fn iceoryx2_trip() -> Done<f64> {
    let node = NodeBuilder::new().create::<ipc::Service>()?;
    let name = name_of("trip");
    let (there, back) = (service(&node, &format!("{name}-there"), 64)?, service(&node, &format!("{name}-back"), 64)?);
    let (to, from) = (publisher(&there, 64)?, back.subscriber_builder().create()?);
    let mut other = Other::start("iceoryx2-echo", &name, 64, TRIPS)?;
    other.report()?;
    let mut out = [7u8; 64];
    let ns = trips(TRIPS, 10, || {
        publish(&to, &out)?;
        receive(&from, |payload| out.copy_from_slice(payload))
    })?;
    other.end()?;
    Ok(ns)
}

fn iceoryx2_echo(name: &str, count: usize) -> Done {
    let node = NodeBuilder::new().create::<ipc::Service>()?;
    let (there, back) = (service(&node, &format!("{name}-there"), 64)?, service(&node, &format!("{name}-back"), 64)?);
    let (to, from) = (publisher(&back, 64)?, there.subscriber_builder().create()?);
    report()?;
    let mut out = [0u8; 64];
    for _ in 0..count {
        receive(&from, |payload| out.copy_from_slice(payload))?;
        publish(&to, &out)?;
    }
    Ok(())
}

// ---- ipc-channel: bytes over a socket, both sides blocked while there is nothing ----

/// Where the other side can be written to, and where its answers come from.
type Ends = (IpcBytesSender, IpcBytesReceiver);

fn connect(mode: &str, len: usize, count: usize) -> Done<(Other, Ends)> {
    let (server, name) = IpcOneShotServer::<Ends>::new()?;
    let mut other = Other::start(mode, &name, len, count)?;
    let (_, ends) = server.accept()?;
    other.report()?;
    Ok((other, ends))
}

fn ipc_channel(len: usize, count: usize) -> Done<f64> {
    let (other, (to, _from)) = connect("ipc-channel", len, count)?;
    let record = vec![7u8; len];
    timed(other, count, || Ok(to.send(black_box(&record))?))
}

fn ipc_channel_trip() -> Done<f64> {
    let (other, (to, from)) = connect("ipc-channel-echo", 64, TRIPS_ASLEEP)?;
    let record = [7u8; 64];
    let ns = trips(TRIPS_ASLEEP, 1, || {
        to.send(&record)?;
        black_box(from.recv()?);
        Ok(())
    })?;
    other.end()?;
    Ok(ns)
}

fn ipc_channel_other(name: &str, len: usize, count: usize, echo: bool) -> Done {
    let ((there, from), (to, back)) = (bytes_channel()?, bytes_channel()?);
    IpcSender::<Ends>::connect(name.to_owned())?.send((there, back))?;
    report()?;
    let mut out = vec![0u8; len];
    for _ in 0..count {
        out.copy_from_slice(&from.recv()?);
        black_box(&out);
        if echo {
            to.send(&out)?;
        }
    }
    if echo { Ok(()) } else { report() }
}

fn other(mode: &str, name: &str, len: usize, count: usize) -> Done {
    pin(1);
    match mode {
        "iceoryx2" | "iceoryx2-in-place" => iceoryx2_other(name, len, count, mode == "iceoryx2-in-place"),
        "iceoryx2-echo" => iceoryx2_echo(name, count),
        "ipc-channel" | "ipc-channel-echo" => ipc_channel_other(name, len, count, mode == "ipc-channel-echo"),
        _ => Err(format!("no such mode: {mode}").into()),
    }
}

fn main() -> Done {
    set_log_level(LogLevel::Error);
    // SAFETY: a plain call; the signal's default ends the process.
    unsafe { libc::alarm(WATCHDOG_SECONDS) };
    let args: Vec<String> = std::env::args().collect();
    if let [_, child, mode, name, len, count] = args.as_slice()
        && child == "child"
    {
        return other(mode, name, len.parse()?, count.parse()?);
    }
    pin(0);
    // Neither publishes in batches, and ipc-channel copies whatever is sent.
    let row = |case: &str, who: &str, ns: f64| println!("R ring.{case} {who} {ns}");
    for (len, count, cases) in [(64, 600_000, &["64_batch", "64"][..]), (KIB, 400_000, &["1k_batch"]), (64 * KIB, 20_000, &["64k"])] {
        let ns = iceoryx2(len, count, false)?;
        cases.iter().for_each(|case| row(case, "iceoryx2", ns));
    }
    row("64k_zero_copy", "iceoryx2", iceoryx2(64 * KIB, 400_000, true)?);
    row("trip_hot", "iceoryx2", iceoryx2_trip()?);
    for (len, count, cases) in
        [(64, 100_000, &["64_batch", "64"][..]), (KIB, 100_000, &["1k_batch"]), (64 * KIB, 10_000, &["64k", "64k_zero_copy"])]
    {
        let ns = ipc_channel(len, count)?;
        cases.iter().for_each(|case| row(case, "ipc-channel", ns));
    }
    row("trip_asleep", "ipc-channel", ipc_channel_trip()?);
    Ok(())
}
