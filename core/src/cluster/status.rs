//! What a cluster shows of itself: its processes and numbers, as values, as JSON, and as Prometheus reads them.

use super::listen::Address;
use crate::metrics::{escape_label, head, json_string};
use crate::supervisor::{self, Cause, Load, Stats, WorkerId};
use crate::sync::lock;
use crate::sys::process;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Workers whose memory is looked at for one answer: the kernel walks their pages.
const MAX_LOOKED: usize = 64;

/// One worker's process.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct WorkerStatus {
    /// Which.
    pub id: WorkerId,
    /// Its process id.
    pub pid: i32,
    /// `starting`, `ready`, `spare`, `unresponsive`, `draining` or `ending`.
    pub state: &'static str,
    /// Time since its start, or since it was ready.
    pub since: Duration,
    /// Ends of processes of its slot that nobody had asked for.
    pub restarts: u64,
    /// What it does.
    pub load: Load,
    /// Bytes; pages that several processes have are divided among them. `None` where the system does not say, and in a cluster of more than 64 processes.
    pub memory: Option<u64>,
    /// Processor time. `None` where the system does not say.
    pub cpu: Option<Duration>,
}

/// A cluster at one moment.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Status {
    /// What it is called.
    pub name: String,
    /// `starting` until all workers were ready once, then `running`, `degraded` or `stopping`.
    pub state: &'static str,
    /// Time since it was made.
    pub up: Duration,
    /// Where it listens.
    pub listen: Vec<Address>,
    /// Connections that wait to be accepted; `None` where the system does not say: unix sockets, and sockets that workers have of their own.
    pub waiting: Option<u64>,
    /// Counts.
    pub stats: Stats,
    /// Every process that has not ended, in the order of slots.
    pub workers: Vec<WorkerStatus>,
}

struct Proc {
    pid: i32,
    state: &'static str,
    since: Instant,
}

#[derive(Default)]
struct Rows {
    procs: BTreeMap<WorkerId, Proc>,
    /// Ends that nobody asked for, by slot.
    restarts: HashMap<u32, u64>,
    /// All workers were ready once.
    began: bool,
}

/// Who lives, as the supervisor's events tell it.
pub(super) struct Register {
    made: Instant,
    rows: Mutex<Rows>,
}

impl Register {
    pub(super) fn new() -> Register {
        Register { made: Instant::now(), rows: Mutex::default() }
    }

    /// What has happened, and how the cluster stands then.
    pub(super) fn hear(&self, event: &supervisor::Event, stats: &Stats) {
        use supervisor::Event as E;
        let mut rows = lock(&self.rows);
        let rows = &mut *rows;
        let mut state = |worker: &WorkerId, state| {
            if let Some(proc) = rows.procs.get_mut(worker) {
                proc.state = state;
            }
        };
        match event {
            E::Spawned { worker, pid } => {
                rows.procs.insert(*worker, Proc { pid: *pid, state: "starting", since: Instant::now() });
            }
            E::Ready { worker, .. } => {
                state(worker, "ready");
                rows.procs.get_mut(worker).into_iter().for_each(|proc| proc.since = Instant::now());
                rows.began |= stats.wanted > 0 && stats.ready >= stats.wanted;
            }
            E::Spare { worker, .. } => {
                state(worker, "spare");
                rows.procs.get_mut(worker).into_iter().for_each(|proc| proc.since = Instant::now());
            }
            E::Activated { spare, worker } => {
                if let Some(proc) = rows.procs.remove(spare) {
                    rows.procs.insert(*worker, Proc { state: "ready", since: Instant::now(), ..proc });
                }
            }
            E::Resumed { worker } => state(worker, if worker.is_spare() { "spare" } else { "ready" }),
            E::Suspect { worker, .. } => state(worker, "unresponsive"),
            E::Draining { worker, .. } => state(worker, "draining"),
            E::Signalled { worker, .. } => state(worker, "ending"),
            E::Exited { worker, cause, .. } => {
                rows.procs.remove(worker);
                if !cause.is_asked() {
                    *rows.restarts.entry(worker.slot).or_default() += 1;
                }
            }
            E::SpawnFailed { worker, .. } => drop(rows.procs.remove(worker)),
            _ => {}
        }
    }

    pub(super) fn pid(&self, worker: WorkerId) -> Option<i32> {
        lock(&self.rows).procs.get(&worker).map(|proc| proc.pid)
    }

    pub(super) fn pids(&self) -> Vec<i32> {
        lock(&self.rows).procs.values().map(|proc| proc.pid).collect()
    }

    /// What it shows now. `stopping`: somebody has called `stop`.
    pub(super) fn status(&self, name: &str, stopping: bool, stats: Stats, loads: &[(WorkerId, Load)]) -> Status {
        let loads: HashMap<WorkerId, Load> = loads.iter().copied().collect();
        let (mut workers, began) = {
            let rows = lock(&self.rows);
            let row = |(id, proc): (&WorkerId, &Proc)| WorkerStatus {
                id: *id,
                pid: proc.pid,
                state: proc.state,
                since: proc.since.elapsed(),
                restarts: rows.restarts.get(&id.slot).copied().unwrap_or(0),
                load: loads.get(id).copied().unwrap_or_default(),
                memory: None,
                cpu: None,
            };
            (rows.procs.iter().map(row).collect::<Vec<_>>(), rows.began)
        };
        // Not under the lock, which the supervisor's thread waits for.
        let looked = workers.len() <= MAX_LOOKED;
        for worker in &mut workers {
            worker.memory = looked.then(|| process::proportional(worker.pid)).flatten();
            worker.cpu = process::cpu_time(worker.pid);
        }
        let state = match (stopping, began, stats.degraded) {
            (true, ..) => "stopping",
            (_, _, true) => "degraded",
            (_, true, _) => "running",
            _ => "starting",
        };
        Status { name: name.to_owned(), state, up: self.made.elapsed(), listen: Vec::new(), waiting: None, stats, workers }
    }
}

/// Ends by cause, under the names of events.
fn exits(stats: &Stats) -> [(&'static str, u64); 10] {
    let e = stats.exits;
    [
        (Cause::Crash, e.crash),
        (Cause::Boot, e.boot),
        (Cause::BootTimeout, e.boot_timeout),
        (Cause::Blocked, e.blocked),
        (Cause::Frozen, e.frozen),
        (Cause::Corrupt, e.corrupt),
        (Cause::Killed, e.killed),
        (Cause::Scale, e.scale),
        (Cause::Retire, e.retire),
        (Cause::Stop, e.stop),
    ]
    .map(|(cause, n)| (cause.name(), n))
}

/// Milliseconds, with three digits after the point.
fn ms(d: Duration) -> String {
    format!("{}", (d.as_secs_f64() * 1e6).round() / 1e3)
}

/// A list's items between commas.
fn joined<T>(items: impl IntoIterator<Item = T>, text: impl Fn(T) -> String) -> String {
    items.into_iter().map(text).collect::<Vec<_>>().join(",")
}

fn or_null<T>(value: Option<T>, text: impl Fn(T) -> String) -> String {
    value.map_or_else(|| "null".to_owned(), text)
}

impl Status {
    /// One JSON object: what `offloop ps --json` shows, and `/status` of the endpoint. Times in milliseconds, memory in bytes.
    #[must_use]
    pub fn json(&self) -> String {
        let s = &self.stats;
        let workers = joined(&self.workers, |w| {
            format!(
                "{{\"slot\":{},\"pid\":{},\"generation\":{},\"state\":\"{}\",\"since_ms\":{},\"restarts\":{},\"served\":{},\"loop_delay_ms\":{},\"memory\":{},\"cpu_ms\":{}}}",
                w.id.slot,
                w.pid,
                w.id.generation,
                w.state,
                ms(w.since),
                w.restarts,
                w.load.served,
                or_null(w.load.loop_delay, ms),
                or_null(w.memory, |n| n.to_string()),
                or_null(w.cpu, ms)
            )
        });
        format!(
            "{{\"name\":{},\"pid\":{},\"version\":\"{}\",\"state\":\"{}\",\"up_ms\":{},\"generation\":{},\"wanted\":{},\"ready\":{},\"live\":{},\"spares\":{},\"listen\":[{}],\"waiting\":{},\"served\":{},\"workers\":[{workers}],\"counts\":{{\"spawned\":{},\"activated\":{},\"spawn_failed\":{},\"exits\":{{{}}},\"oom\":{},\"forced\":{},\"unresponsive\":{},\"reloads\":{},\"reloads_failed\":{}}}}}",
            json_string(&self.name),
            std::process::id(),
            env!("CARGO_PKG_VERSION"),
            self.state,
            ms(self.up),
            s.generation,
            s.wanted,
            s.ready,
            s.live,
            s.spares,
            joined(&self.listen, |address| json_string(&address.to_string())),
            or_null(self.waiting, |n| n.to_string()),
            s.served,
            s.spawned,
            s.activated,
            s.spawn_failed,
            joined(exits(s), |(cause, n)| format!("\"{cause}\":{n}")),
            s.oom,
            s.forced,
            s.suspected,
            s.reloads,
            s.reloads_failed,
        )
    }

    /// The families `offloop_cluster_*`, in the text format 0.0.4.
    pub(super) fn prometheus(&self) -> String {
        let stats = &self.stats;
        let mut out = String::new();
        let cluster = format!("cluster=\"{}\"", escape_label(&self.name));
        let mut family = |name: &str, kind: &str, help: &str, rows: &[(String, f64)]| {
            if rows.is_empty() {
                return;
            }
            let name = format!("offloop_cluster_{name}");
            head(&mut out, &name, kind, help);
            for (labels, value) in rows {
                let comma = if labels.is_empty() { "" } else { "," };
                // To a string: it cannot fail.
                let _ = writeln!(out, "{name}{{{cluster}{comma}{labels}}} {value}");
            }
        };
        let one = |value: f64| [(String::new(), value)];
        let states = ["starting", "ready", "spare", "unresponsive", "draining", "ending"];
        let count = |state: &str| self.workers.iter().filter(|worker| worker.state == state).count() as f64;
        family("workers", "gauge", "Worker processes by state.", &states.map(|state| (format!("state=\"{state}\""), count(state))));
        family("workers_wanted", "gauge", "Workers wanted.", &one(stats.wanted as f64));
        family(
            "degraded",
            "gauge",
            "1: too many workers fail, and one is tried from time to time.",
            &one(f64::from(u8::from(stats.degraded))),
        );
        family("generation", "gauge", "The load or reload that runs, from 1 on.", &one(f64::from(stats.generation)));
        family("requests_total", "counter", "Requests that workers have answered, as far as they count them.", &one(stats.served as f64));
        let waiting = self.waiting.map(|n| one(n as f64));
        family("connections_waiting", "gauge", "TCP connections that wait to be accepted.", waiting.as_ref().map_or(&[], |one| &one[..]));
        family("spawned_total", "counter", "Worker processes started.", &one(stats.spawned as f64));
        family("activated_total", "counter", "Spares that took the place of a worker.", &one(stats.activated as f64));
        family("spawn_failed_total", "counter", "Starts that the system refused.", &one(stats.spawn_failed as f64));
        let ends = exits(stats).map(|(cause, n)| (format!("cause=\"{cause}\""), n as f64));
        family("worker_exits_total", "counter", "Ends of workers by cause.", &ends);
        family("worker_oom_total", "counter", "Workers that the kernel ended for want of memory.", &one(stats.oom as f64));
        family("worker_forced_total", "counter", "Workers that did not finish in time.", &one(stats.forced as f64));
        family("worker_unresponsive_total", "counter", "Times that a worker did not respond.", &one(stats.suspected as f64));
        family("reloads_total", "counter", "Reloads that succeeded.", &one(stats.reloads as f64));
        family("reloads_failed_total", "counter", "Reloads that failed.", &one(stats.reloads_failed as f64));
        let of = |look: &dyn Fn(&WorkerStatus) -> Option<f64>| -> Vec<(String, f64)> {
            let rows = self.workers.iter().filter_map(|w| Some((format!("slot=\"{}\",pid=\"{}\"", w.id.slot, w.pid), look(w)?)));
            rows.collect()
        };
        family(
            "worker_memory_bytes",
            "gauge",
            "Memory of a worker; pages that several have are divided among them.",
            &of(&|w| w.memory.map(|n| n as f64)),
        );
        family("worker_cpu_seconds_total", "counter", "Processor time of a worker.", &of(&|w| w.cpu.map(|t| t.as_secs_f64())));
        family(
            "worker_requests_total",
            "counter",
            "Requests that a worker has answered, as far as it counts them.",
            &of(&|w| Some(w.load.served as f64)),
        );
        family(
            "worker_loop_delay_seconds",
            "gauge",
            "How late a worker's event loop is, or was: half of it is left after each second.",
            &of(&|w| w.load.loop_delay.map(|late| late.as_secs_f64())),
        );
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process::Exit;
    use supervisor::{Ended, Event};

    const ID: WorkerId = WorkerId { slot: 1, generation: 2, incarnation: 3 };

    fn ended(cause: Cause) -> Event {
        let ended = Ended { exit: Exit { code: Some(1), signal: None, core_dumped: false }, oom: false };
        Event::Exited { worker: ID, cause, ended, forced: false, text: None, uptime: None }
    }

    #[test]
    fn workers_are_shown_as_events_tell_of_them() {
        let register = Register::new();
        let (none, one) = (Stats::default(), Stats { wanted: 1, ready: 1, served: 12, ..Stats::default() });
        let show = |stopping, stats| register.status("a \"b\"", stopping, stats, &[(ID, Load::default())]);
        let is = |event: Event, stats: Stats, want: &[&str]| {
            register.hear(&event, &stats);
            let status = show(false, stats);
            let got: Vec<&str> = std::iter::once(status.state).chain(status.workers.iter().map(|w| w.state)).collect();
            assert_eq!(got, want, "{event:?}");
        };
        is(Event::Spawned { worker: ID, pid: 1 << 30 }, none, &["starting", "starting"]);
        is(Event::Ready { worker: ID, after: Duration::ZERO }, one, &["running", "ready"]);
        is(Event::Suspect { worker: ID, cause: Cause::Blocked, stack: None }, none, &["running", "unresponsive"]);
        is(Event::Resumed { worker: ID }, Stats { degraded: true, ..one }, &["degraded", "ready"]);
        is(Event::Draining { worker: ID, cause: Cause::Retire }, one, &["running", "draining"]);
        is(Event::Signalled { worker: ID, signal: 15, cause: Cause::Retire }, one, &["running", "ending"]);
        assert_eq!(register.pids(), [1 << 30]);
        let text = show(true, one).json();
        for part in [
            r#"{"name":"a \"b\"","pid":"#,
            r#""state":"stopping""#,
            r#""listen":[],"waiting":null,"served":12,"workers":[{"slot":1,"pid":1073741824,"generation":2,"state":"ending","since_ms":"#,
            r#""restarts":0,"served":0,"loop_delay_ms":null,"memory":null,"cpu_ms":null}],"counts":{"spawned":0,"#,
            r#""exits":{"crash":0,"#,
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        is(ended(Cause::Retire), one, &["running"]);
        is(Event::Spawned { worker: ID, pid: 1 << 30 }, one, &["running", "starting"]);
        is(ended(Cause::Crash), one, &["running"]);
        register.hear(&Event::Spawned { worker: ID, pid: 1 << 30 }, &one);
        assert_eq!(show(false, one).workers[0].restarts, 1, "an end that was asked for is no restart");
    }

    #[test]
    fn a_family_without_a_number_is_left_out_and_labels_are_escaped() {
        let register = Register::new();
        register.hear(&Event::Spawned { worker: ID, pid: 1 << 30 }, &Stats::default());
        let load = Load { served: 7, loop_delay: Some(Duration::from_millis(250)) };
        let status = register.status("a\"b", false, Stats { served: 9, ..Stats::default() }, &[(ID, load)]);
        let text = Status { waiting: Some(3), ..status }.prometheus();
        for line in [
            "offloop_cluster_requests_total{cluster=\"a\\\"b\"} 9\n",
            "offloop_cluster_connections_waiting{cluster=\"a\\\"b\"} 3\n",
            "offloop_cluster_worker_requests_total{cluster=\"a\\\"b\",slot=\"1\",pid=\"1073741824\"} 7\n",
            "offloop_cluster_worker_loop_delay_seconds{cluster=\"a\\\"b\",slot=\"1\",pid=\"1073741824\"} 0.25\n",
            "offloop_cluster_workers{cluster=\"a\\\"b\",state=\"starting\"} 1\n",
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
        assert!(!text.contains("worker_memory_bytes") && !text.contains("NaN"), "{text}");
    }
}
