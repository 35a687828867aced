//! The role `talk` of the Rust worker: an end of a channel.

use crate::record::Records;
use crate::say;
use offloop::channel::{Channel, Incoming, Message, Options};
use offloop::{Error, ErrorKind, TransferBuffer, Value};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// `Ok(None)`: the other end is gone, or has ended.
fn unless_gone<T>(result: Result<T, Error>, gone: ErrorKind) -> Result<Option<T>, String> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.kind() == gone => Ok(None),
        Err(e) => Err(e.to_string()),
    }
}

/// Sends all, then asks how many came. `None`: the other end died.
fn send_all(channel: &Channel, records: &Records, count: u64) -> Result<Option<()>, String> {
    let (mut bytes, mut n) = (Vec::new(), 0);
    while count == 0 || n < count {
        records.make(0, n, &mut bytes);
        let payload = if n % 16 == 5 {
            Value::Buffer(
                TransferBuffer::from_slice(&bytes)
                    .and_then(|b| if n % 32 == 5 { b.to_shared() } else { Ok(b) })
                    .map_err(|e| e.to_string())?,
            )
        } else {
            Value::from(bytes.clone())
        };
        let mut value = Value::Array(vec![Value::Int(n as i64), payload]);
        if unless_gone(channel.send(&mut value, &[], None), ErrorKind::PeerDied)?.is_none() {
            return Ok(None);
        }
        n += 1;
    }
    let Some(reply) = unless_gone(channel.request(&mut Value::Nil, &[], None), ErrorKind::PeerDied)? else { return Ok(None) };
    match reply.message.value.as_int() {
        Some(came) if came as u64 == count => Ok(Some(())),
        came => Err(format!("{count} messages were sent, {came:?} came")),
    }
}

fn check(records: &Records, message: Message, next: u64) -> Result<(), String> {
    let Value::Array(mut items) = message.value else { return Err("a message is no list".to_owned()) };
    let (payload, n) = (items.pop(), items.first().and_then(Value::as_int));
    let bytes = payload.ok_or("a message has no payload")?.into_bytes().map_err(|e| e.to_string())?;
    if n != Some(next as i64) || records.check(&bytes)? != (0, next) {
        return Err(format!("message {n:?}, expected {next}"));
    }
    Ok(())
}

pub(crate) fn talk(fds: Vec<OwnedFd>, seed: u32, count: u64) -> Result<(), String> {
    let end = fds.into_iter().next().ok_or("no fd")?;
    let channel = Channel::attach(end, Options::default()).map_err(|(e, _)| e.to_string())?;
    let records = Arc::new(Records::new(seed));
    say("ready");
    let sending = std::thread::spawn({
        let (channel, records) = (channel.clone(), Arc::clone(&records));
        move || send_all(&channel, &records, count)
    });
    let mut next = 0;
    loop {
        match unless_gone(channel.recv(None), ErrorKind::PeerDied)? {
            Some(Incoming::Message(message)) => {
                check(&records, message, next)?;
                next += 1;
            }
            Some(Incoming::Request(request)) => {
                if unless_gone(channel.reply(request.id, false, &mut Value::Int(next as i64), &[], None), ErrorKind::PeerDied)?.is_none() {
                    say(&format!("died {next}"));
                    return Ok(());
                }
                break;
            }
            Some(other) => return Err(format!("{other:?}")),
            None => {
                say(&format!("died {next}"));
                return Ok(());
            }
        }
    }
    match sending.join().map_err(|_| "the sender panicked")?? {
        Some(()) => say(&format!("done {next}")),
        None => say(&format!("died {next}")),
    }
    Ok(())
}
