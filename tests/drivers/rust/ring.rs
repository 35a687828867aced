//! The verbs of rings.

use super::{Args, Reply, hex, later, missing, unhex};
use offloop::Error;
use offloop::ring::{Ack, Acks, Consumer, ConsumerOptions, Kind, Producer, ProducerOptions, Record, RingBuffer};
use std::collections::HashMap;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::{Arc, Mutex};

#[derive(Default)]
pub(crate) struct Rings {
    rings: HashMap<String, RingBuffer>,
    producers: HashMap<String, Arc<Mutex<Producer>>>,
    consumers: HashMap<String, Arc<Mutex<Consumer>>>,
    /// Deliveries by the name that a scenario gives them.
    deliveries: Arc<Mutex<HashMap<String, (Acks, u64)>>>,
}

fn record(args: &Args) -> Result<Vec<u8>, Error> {
    match args.number("len") {
        Some(len) => Ok(vec![0; len]),
        None => args.text("data").map(unhex),
    }
}

/// A record as a reply. One that is in flight is kept under its name.
fn taken(record: &Record<'_>, acks: Option<Acks>, name: Option<&str>, deliveries: &Mutex<HashMap<String, (Acks, u64)>>) -> String {
    let data = format!("data={}", hex(&record.to_vec()));
    let Some(acks) = acks else { return data };
    let kept = (acks, record.delivery());
    deliveries.lock().expect("no panic under the lock").insert(name.unwrap_or_default().to_owned(), kept);
    format!("{data} redelivered={}", i32::from(record.is_redelivered()))
}

impl Rings {
    fn producer(&self, args: &Args) -> Result<Arc<Mutex<Producer>>, Error> {
        let name = args.text("producer")?;
        self.producers.get(name).cloned().ok_or_else(|| missing("producer", name))
    }

    fn consumer(&self, args: &Args) -> Result<Arc<Mutex<Consumer>>, Error> {
        let name = args.text("consumer")?;
        self.consumers.get(name).cloned().ok_or_else(|| missing("consumer", name))
    }

    pub(crate) fn run(&mut self, id: &str, verb: &str, args: &Args) -> Reply {
        let lock = "no panic under the lock";
        match verb {
            "ring.create" => {
                let mut builder = RingBuffer::builder(args.get("kind").map_or(Ok(Kind::Spsc), str::parse)?);
                if let Some(n) = args.number("capacity") {
                    builder = builder.capacity(n);
                }
                if let Some(n) = args.number("slot_size") {
                    builder = builder.slot_size(n);
                }
                if let Some(n) = args.number("max_participants") {
                    builder = builder.max_participants(n);
                }
                if let Some(path) = args.get("path") {
                    builder = builder.path(path);
                }
                if let Some(policy) = args.get("on_full") {
                    builder = builder.on_full(policy.parse()?);
                }
                self.rings.insert(args.text("ring")?.to_owned(), builder.create()?);
            }
            "ring.attach" if args.get("path").is_some() => {
                self.rings.insert(args.text("ring")?.to_owned(), RingBuffer::attach_path(args.text("path")?)?);
            }
            "ring.inspect" => {
                let stat = RingBuffer::inspect(args.text("path")?)?;
                return Ok(format!("kind={} capacity={} participants={}", stat.kind.as_str(), stat.capacity, stat.participants.len()));
            }
            "ring.attach" => {
                let numbers = args.text("fds")?.split(',').filter_map(|n| n.parse::<RawFd>().ok());
                // SAFETY: the runner put them there, and they stay open.
                let fds: Vec<_> = numbers.map(|fd| unsafe { BorrowedFd::borrow_raw(fd) }).collect();
                self.rings.insert(args.text("ring")?.to_owned(), RingBuffer::attach(&fds)?);
            }
            "ring.push" => {
                let (producer, bytes, timeout) = (self.producer(args)?, record(args)?, args.ms("timeout"));
                return later(id, move || producer.lock().expect(lock).push(&bytes, timeout).map(|()| String::new()));
            }
            "ring.try_push" => {
                let pushed = self.producer(args)?.lock().expect(lock).try_push(&record(args)?)?;
                return Ok(format!("pushed={}", i32::from(pushed)));
            }
            "ring.claim" => {
                let (producer, bytes) = (self.producer(args)?, record(args)?);
                let mut producer = producer.lock().expect(lock);
                let Some(mut claim) = producer.try_claim(bytes.len())? else { return Ok("pushed=0".into()) };
                assert!(claim.write_at(0, &bytes), "a claim is as long as asked for");
                claim.commit()?;
                return Ok("pushed=1".into());
            }
            "ring.flush" => self.producer(args)?.lock().expect(lock).flush()?,
            "ring.pop" => {
                let (consumer, timeout) = (self.consumer(args)?, args.ms("timeout"));
                let (name, deliveries) = (args.get("as").map(str::to_owned), Arc::clone(&self.deliveries));
                return later(id, move || {
                    let mut consumer = consumer.lock().expect(lock);
                    let acks = consumer.acks().ok();
                    consumer.pop(timeout).map(|r| taken(&r, acks, name.as_deref(), &deliveries))
                });
            }
            "ring.try_pop" => {
                let consumer = self.consumer(args)?;
                let mut consumer = consumer.lock().expect(lock);
                let acks = consumer.acks().ok();
                let record = consumer.try_pop()?;
                return Ok(record.map_or("empty=1".into(), |r| taken(&r, acks, args.get("as"), &self.deliveries)));
            }
            "ring.ack" | "ring.nack" => {
                let name = args.text("delivery")?;
                let deliveries = self.deliveries.lock().expect(lock);
                let (acks, delivery) = deliveries.get(name).ok_or_else(|| missing("delivery", name))?;
                if verb == "ring.ack" { acks.ack(*delivery)? } else { acks.nack(*delivery)? }
            }
            "ring.leave" => drop(self.consumers.remove(args.text("consumer")?)),
            "ring.read" => {
                let mut records = Vec::new();
                let max = args.number("max").unwrap_or(1);
                self.consumer(args)?.lock().expect(lock).read(max, |r| records.push(hex(&r.to_vec())))?;
                return Ok(format!("data={}", records.join(",")));
            }
            _ => {
                let name = args.text("ring")?;
                let ring = self.rings.get(name).ok_or_else(|| missing("ring", name))?;
                match verb {
                    "ring.close" => ring.close(),
                    "ring.producer" => {
                        let options = ProducerOptions { batch: args.get("batch") == Some("1"), ..ProducerOptions::default() };
                        let producer = Arc::new(Mutex::new(ring.producer(options)?));
                        self.producers.insert(args.text("producer")?.to_owned(), producer);
                    }
                    "ring.consumer" => {
                        let ack = args.get("ack").map_or(Ok(Ack::Auto), str::parse)?;
                        let consumer = Arc::new(Mutex::new(ring.consumer(ConsumerOptions { ack })?));
                        self.consumers.insert(args.text("consumer")?.to_owned(), consumer);
                    }
                    _ => return Err(Error::invalid("unknown verb").with("verb", verb)),
                }
            }
        }
        Ok(String::new())
    }
}
