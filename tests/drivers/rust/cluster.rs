//! The verbs of clusters. `member` is the worker.

use crate::channel::{Requests, fields};
use crate::{Args, LOCK, Reply, later, missing, param};
use offloop::channel::{Channel, Incoming};
use offloop::cluster::{Builder, Cluster, Command, Event, Stream};
use offloop::shared::Limit;
use offloop::supervisor::{Event as Of, WorkerId};
use offloop::{Error, ErrorKind, Value};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// What has come, by kind, and nobody has asked for.
struct Line<T> {
    items: Mutex<HashMap<&'static str, VecDeque<T>>>,
    changed: Condvar,
}

impl<T> Line<T> {
    fn new() -> Arc<Line<T>> {
        Arc::new(Line { items: Mutex::default(), changed: Condvar::new() })
    }

    fn put(&self, kind: &'static str, item: T) {
        self.items.lock().expect(LOCK).entry(kind).or_default().push_back(item);
        self.changed.notify_all();
    }

    fn take(&self, kind: &str) -> T {
        let mut items = self.items.lock().expect(LOCK);
        loop {
            if let Some(item) = items.get_mut(kind).and_then(VecDeque::pop_front) {
                return item;
            }
            items = self.changed.wait(items).expect(LOCK);
        }
    }
}

type Said = (WorkerId, Channel, Incoming);

struct Held {
    /// Until it is started.
    made: Option<(Builder, Command)>,
    cluster: Option<Cluster>,
    events: Arc<Line<String>>,
    said: Arc<Line<Said>>,
}

impl Held {
    fn cluster(&self) -> Result<&Cluster, Error> {
        self.cluster.as_ref().ok_or_else(|| Error::new(ErrorKind::Closed, "the cluster was not started"))
    }
}

#[derive(Default)]
pub(crate) struct Clusters(HashMap<String, Held>);

/// The limit of every limiter: of three tokens none comes back.
pub(crate) const LIMIT: Limit = Limit { rate: 1e-6, burst: 3, keys: 64 };

/// What each worker runs: this program, or that of another language, and what it is to do.
fn command(args: &Args) -> Result<Command, Error> {
    let os = |e: std::io::Error| Error::os("current_exe", e.raw_os_error().unwrap_or(0));
    let mut parts = match args.get("command") {
        Some(parts) => parts.split(',').map(Into::into).collect(),
        None => vec![std::env::current_exe().map_err(os)?.into(), crate::member::MEMBER.into()],
    };
    let said = [args.get("mode").unwrap_or("serves"), args.get("version").unwrap_or("one"), args.get("at").unwrap_or("")];
    parts.extend(said.map(Into::into));
    Ok(Command { args: parts, ..Command::default() })
}

fn builder(args: &Args) -> Result<Builder, Error> {
    let mut supervision = Builder::default_supervision();
    let times = [
        ("ready_timeout", &mut supervision.boot_timeout),
        ("min_ready", &mut supervision.min_ready),
        ("drain_timeout", &mut supervision.drain_timeout),
        ("kill_grace", &mut supervision.kill_grace),
        ("beat", &mut supervision.beat),
        ("hang_timeout", &mut supervision.hang_timeout),
    ];
    for (key, time) in times {
        *time = args.ms(key).unwrap_or(*time);
    }
    supervision.max_age = args.ms("max_age");
    supervision.max_requests = args.number("max_requests").map(|n| n as u64);
    let mut builder = Cluster::builder().supervision(supervision).spares(args.number("spares").unwrap_or(0));
    if let Some(workers) = args.number("workers") {
        builder = builder.workers(workers);
    }
    if let Some(balance) = args.get("balance") {
        builder = builder.balance(balance.parse()?);
    }
    for address in args.get("listen").into_iter().flat_map(|listen| listen.split(',')) {
        builder = builder.listen(address.parse()?);
    }
    builder.check()?;
    Ok(builder)
}

/// Tells events as the scenarios name them.
fn teller(events: Arc<Line<String>>) -> impl FnMut(&Event) + Send + 'static {
    let mut pids: HashMap<WorkerId, i32> = HashMap::new();
    move |event| {
        if let Event::Worker(Of::Spawned { worker, pid }) = event {
            pids.insert(*worker, *pid);
        }
        if let Event::Worker(Of::Activated { spare, worker }) = event {
            let pid = pids.remove(spare);
            pids.extend(pid.map(|pid| (*worker, pid)));
        }
        let of = |id: &WorkerId| format!("slot={} generation={} pid={}", id.slot, id.generation, pids.get(id).copied().unwrap_or(0));
        let hex = |text: &str| crate::hex(text.as_bytes());
        let (kind, told) = match event {
            Event::Listening { worker, address } => ("listening", format!("{} address={address}", of(worker))),
            Event::Warning(error) => ("warning", format!("message={}", hex(&error.to_string()))),
            Event::Worker(event) => match event {
                Of::Ready { worker, .. } | Of::Activated { worker, .. } => ("ready", of(worker)),
                Of::Spare { worker, .. } => ("spare", of(worker)),
                Of::Suspect { worker, cause, .. } => ("unresponsive", format!("{} cause={}", of(worker), cause.name())),
                Of::Draining { worker, cause } => ("draining", format!("{} cause={}", of(worker), cause.name())),
                Of::Expired { worker, why } => ("expired", format!("{} reason={}", of(worker), why.name())),
                Of::Exited { worker, cause, ended, forced, text, .. } => {
                    let shown = |n: Option<i32>| n.map_or_else(|| "none".to_owned(), |n| n.to_string());
                    let how = format!("exit_code={} signal={}", shown(ended.exit.code), shown(ended.exit.signal));
                    let text = hex(text.as_deref().unwrap_or_default());
                    ("exit", format!("{} cause={} {how} forced={} text={text}", of(worker), cause.name(), u8::from(*forced)))
                }
                Of::Reloaded(report) => ("reload", format!("generation={}", report.generation)),
                Of::ReloadFailed { generation, error, .. } => {
                    ("reload_failed", format!("generation={generation} message={}", hex(&error.to_string())))
                }
                Of::Degraded { .. } => ("degraded", String::new()),
                Of::Recovered => ("recovered", String::new()),
                Of::Stopped => ("stopped", String::new()),
                _ => return,
            },
            _ => return,
        };
        events.put(kind, told);
    }
}

impl Clusters {
    fn held(&mut self, args: &Args) -> Result<&mut Held, Error> {
        let name = args.text("cluster")?;
        self.0.get_mut(name).ok_or_else(|| missing("cluster", name))
    }

    pub(crate) fn run(&mut self, id: &str, verb: &str, args: &Args, requests: &Requests) -> Reply {
        if verb == "cluster.new" {
            let (events, said) = (Line::new(), Line::new());
            let (hear, letters) = (teller(Arc::clone(&events)), Arc::clone(&said));
            let lines = Arc::clone(&events);
            let builder = builder(args)?
                .on_event(hear)
                .on_line(move |line| {
                    let (id, stream) = (line.worker, if line.stream == Stream::Out { "stdout" } else { "stderr" });
                    let of = format!("slot={} generation={} pid={}", id.slot, id.generation, line.pid);
                    lines.put("log", format!("{of} stream={stream} text={}", crate::hex(line.bytes)));
                })
                .on_message(move |id, channel, incoming| letters.put("message", (id, channel.clone(), incoming)));
            let held = Held { made: Some((builder, command(args)?)), cluster: None, events, said };
            self.0.insert(args.text("cluster")?.to_owned(), held);
            return Ok(String::new());
        }
        let held = self.held(args)?;
        match verb {
            "cluster.start" => {
                if let Some((builder, command)) = held.made.take() {
                    held.cluster = Some(builder.build(command)?);
                }
                let (cluster, timeout) = (held.cluster()?.clone(), args.ms("timeout"));
                return later(id, move || cluster.wait_ready(timeout).map(|()| String::new()));
            }
            "cluster.event" => {
                let (events, kind) = (Arc::clone(&held.events), args.text("of")?.to_owned());
                return later(id, move || Ok(events.take(&kind)));
            }
            "cluster.recv" => {
                let (said, requests, name) = (Arc::clone(&held.said), Arc::clone(requests), args.get("as").unwrap_or_default().to_owned());
                return later(id, move || {
                    let (from, channel, incoming) = said.take("message");
                    let (message, asked) = match incoming {
                        Incoming::Message(message) => (message, None),
                        Incoming::Request(request) => (request.message, Some(request.id)),
                        other => return Err(Error::invalid("nobody asked for that").with("incoming", format!("{other:?}"))),
                    };
                    if let Some(number) = asked {
                        requests.lock().expect(LOCK).insert(name, (channel, number));
                    }
                    Ok(format!("slot={} {} request={}", from.slot, fields(message.value)?, u8::from(asked.is_some())))
                });
            }
            _ => {}
        }
        let cluster = held.cluster()?.clone();
        let slot = || args.number("slot").map(|slot| slot as u32).ok_or_else(|| missing("slot", "none"));
        match verb {
            "cluster.reload" => {
                let command = args.get("version").map(|_| command(args)).transpose()?;
                later(id, move || {
                    let generation = cluster.reload(command)?;
                    let report = cluster.wait_reload(generation, None)?;
                    Ok(format!("generation={} replaced={} forced={}", report.generation, report.replaced, report.forced))
                })
            }
            "cluster.scale" => {
                let workers = args.number("workers").unwrap_or(0);
                later(id, move || {
                    cluster.scale(workers)?;
                    cluster.wait_ready(None)?;
                    while cluster.stats()?.live > workers {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    Ok(String::new())
                })
            }
            "cluster.stop" => {
                let grace = args.ms("grace");
                later(id, move || {
                    match grace {
                        Some(Duration::ZERO) => cluster.stop_now()?,
                        other => cluster.stop(other.unwrap_or(Duration::from_secs(30)))?,
                    }
                    cluster.wait_stopped(None).map(|()| String::new())
                })
            }
            "cluster.kill" => cluster.kill(cluster.worker_at(slot()?)?).map(|()| String::new()),
            "cluster.addresses" => {
                let all: Vec<String> = cluster.addresses().iter().map(ToString::to_string).collect();
                Ok(format!("addresses={}", all.join(",")))
            }
            "cluster.stats" => {
                let s = cluster.stats()?;
                let counts =
                    format!("generation={} wanted={} live={} ready={} spares={}", s.generation, s.wanted, s.live, s.ready, s.spares);
                let since =
                    format!("spawned={} crashed={} forced={} expired={}", s.spawned, s.exits.unasked(), s.forced, s.expired.total());
                let reloads = format!("reloads={} reloads_failed={} served={}", s.reloads, s.reloads_failed, s.served);
                Ok(format!("{counts} degraded={} {since} {reloads}", u8::from(s.degraded)))
            }
            "cluster.send" => {
                let (slot, mut value) = (slot()?, param(args.text("value")?));
                later(id, move || cluster.send(slot, &mut value, &[], None).map(|()| String::new()))
            }
            "cluster.broadcast" => {
                let missed = cluster.broadcast(&mut param(args.text("value")?), &[])?;
                Ok(format!("missed={}", missed.len()))
            }
            "cluster.request" => {
                let (slot, mut value, timeout) = (slot()?, param(args.text("value")?), args.ms("timeout"));
                later(id, move || {
                    let reply = cluster.request(slot, &mut value, &[], timeout)?;
                    match reply.message.value {
                        Value::Error(error) if reply.failed => {
                            Err(Error::new(error.kind().unwrap_or(ErrorKind::TaskFailed), error.message.clone()))
                        }
                        value => fields(value),
                    }
                })
            }
            "cluster.count" => {
                let counter = cluster.ledger().counter(args.text("counter")?)?;
                Ok(format!("int={}", counter.add(args.number("add").unwrap_or(0) as i64)))
            }
            "cluster.take" => {
                let burst = args.number("burst").map_or(LIMIT.burst, |burst| burst as u32);
                let taken = cluster.ledger().limiter(args.text("limiter")?, Limit { burst, ..LIMIT })?.take(b"", 1)?;
                Ok(format!("allowed={}", u8::from(taken.allowed)))
            }
            _ => Err(Error::invalid("unknown verb").with("verb", verb)),
        }
    }
}
