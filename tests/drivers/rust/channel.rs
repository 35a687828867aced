//! The verbs of channels.

use super::{Args, LOCK, Reply, later, missing, param, show};
use offloop::channel::{Channel, Incoming, Listener, Message, Options};
use offloop::{Error, TransferBuffer, Value};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

#[derive(Default)]
pub(crate) struct Channels {
    channels: Arc<Mutex<HashMap<String, Channel>>>,
    listeners: HashMap<String, Arc<Listener>>,
    pub(crate) requests: Requests,
}

/// Requests that wait for an answer, by the name that a scenario gives them.
pub(crate) type Requests = Arc<Mutex<HashMap<String, (Channel, u64)>>>;

/// A value as the fields of a reply.
pub(crate) fn fields(value: Value) -> Reply {
    let value = if let Value::Buffer(buffer) = value { Value::Bytes(buffer.to_vec()?.into()) } else { value };
    Ok(show(Ok(value)).trim_start_matches("ok ").to_owned())
}

/// The value of a message: text of the line, or a buffer, which moves.
fn value(args: &Args, buffers: &mut HashMap<String, TransferBuffer>) -> Result<Value, Error> {
    match args.get("buffer") {
        Some(name) => {
            // The scenario's handle stays, detached.
            let token = buffers.get_mut(name).ok_or_else(|| missing("buf", name))?.transfer()?;
            TransferBuffer::receive(token).map(Value::Buffer)
        }
        None => args.text("value").map(param),
    }
}

fn sizes(args: &Args) -> Options {
    let defaults = Options::default();
    Options { max_queued: args.number("max_queued").unwrap_or(defaults.max_queued), ..defaults }
}

impl Channels {
    fn channel(&self, args: &Args) -> Result<Channel, Error> {
        let name = args.text("channel")?;
        self.channels.lock().expect(LOCK).get(name).cloned().ok_or_else(|| missing("channel", name))
    }

    pub(crate) fn run(&mut self, id: &str, verb: &str, args: &Args, buffers: &mut HashMap<String, TransferBuffer>) -> Reply {
        let (channels, requests) = (Arc::clone(&self.channels), Arc::clone(&self.requests));
        let keep = move |name: &str, channel| drop(channels.lock().expect(LOCK).insert(name.to_owned(), channel));
        match verb {
            "channel.pair" => {
                let (a, b) = Channel::pair(Options::default())?;
                keep(args.text("channel")?, a);
                keep(args.text("other")?, b);
            }
            "channel.listen" => {
                let listener = Channel::listen(args.text("path")?, sizes(args))?;
                self.listeners.insert(args.text("listener")?.to_owned(), Arc::new(listener));
            }
            "channel.accept" => {
                let (name, channel) = (args.text("listener")?, args.text("channel")?.to_owned());
                let listener = self.listeners.get(name).cloned().ok_or_else(|| missing("listener", name))?;
                return later(id, move || listener.accept(None).map(|made| keep(&channel, made)).map(|()| String::new()));
            }
            "channel.connect" => {
                let (path, channel, sizes) = (args.text("path")?.to_owned(), args.text("channel")?.to_owned(), sizes(args));
                let connect = move || Channel::connect(path, None, sizes);
                return later(id, move || connect().map(|made| keep(&channel, made)).map(|()| String::new()));
            }
            "channel.send" => {
                let (channel, mut value) = (self.channel(args)?, value(args, buffers)?);
                return later(id, move || channel.send(&mut value, &[], None).map(|()| String::new()));
            }
            "channel.recv" => {
                let (channel, name) = (self.channel(args)?, args.get("as").unwrap_or_default().to_owned());
                return later(id, move || {
                    let (Message { value, .. }, asked) = match channel.recv(None)? {
                        Incoming::Message(message) => (message, None),
                        Incoming::Request(request) => (request.message, Some(request.id)),
                        other => return Err(Error::invalid("nobody asked for that").with("incoming", format!("{other:?}"))),
                    };
                    if let Some(number) = asked {
                        requests.lock().expect(LOCK).insert(name, (channel, number));
                    }
                    fields(value).map(|value| format!("{value} request={}", i32::from(asked.is_some())))
                });
            }
            "channel.request" => {
                let (channel, mut value, timeout) = (self.channel(args)?, value(args, buffers)?, args.ms("timeout"));
                return later(id, move || fields(channel.request(&mut value, &[], timeout)?.message.value));
            }
            "channel.reply" => {
                let name = args.text("request")?;
                let (channel, number) = requests.lock().expect(LOCK).remove(name).ok_or_else(|| missing("request", name))?;
                channel.reply(number, false, &mut value(args, buffers)?, &[], None)?;
            }
            "channel.close" => match args.ms("grace") {
                Some(grace) => self.channel(args)?.shutdown(Some(grace)),
                None => self.channel(args)?.close(),
            },
            _ => return Err(Error::invalid("unknown verb").with("verb", verb)),
        }
        Ok(String::new())
    }
}
