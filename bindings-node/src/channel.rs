//! Channels: handles, values in and out. `lib/channel.cjs` makes events and promises of what comes.

use crate::buffer::{self, Handle};
use crate::js::{Call, Env, JsResult, Raw};
use crate::pool::{bad, count, duration, shown};
use crate::ring::{Leave, leave_at_exit};
use crate::value::{self, Moving};
use offloop::channel::{Channel, Incoming, Listener, Message, Options};
use offloop::sys::watch::Watch;
use offloop::{Error, ErrorKind, Result, TransferBuffer, Value};
use std::cell::RefCell;
use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

/// An end of a channel in this environment.
pub(crate) struct ChannelEnd {
    /// Before `channel`: it watches an fd of it.
    watch: RefCell<Option<Watch>>,
    channel: Channel,
}

impl Leave for ChannelEnd {
    /// The other end is told that this one closed, and did not die.
    fn leave(&self) {
        self.watch.take();
        self.channel.close();
    }
}

impl Drop for ChannelEnd {
    fn drop(&mut self) {
        self.leave();
    }
}

/// A listener of this environment, until it is closed.
pub(crate) struct Accepting {
    watch: RefCell<Option<Watch>>,
    listener: RefCell<Option<Listener>>,
}

impl Leave for Accepting {
    /// Takes its path away.
    fn leave(&self) {
        self.watch.take();
        self.listener.take();
    }
}

fn wrong(want: &'static str) -> Error {
    Error::invalid("handle is of another kind").with("want", want)
}

fn end<'a>(call: &'a Call<'_>) -> JsResult<&'a ChannelEnd> {
    match buffer::handle(call, call.arg(0))? {
        Handle::Channel(end) => Ok(end),
        _ => Err(wrong("channel").into()),
    }
}

fn accepting<'a>(call: &'a Call<'_>) -> JsResult<&'a Accepting> {
    match buffer::handle(call, call.arg(0))? {
        Handle::Listener(listener) => Ok(listener),
        _ => Err(wrong("listener").into()),
    }
}

fn give(call: &Call<'_>, channel: Channel) -> JsResult<Raw> {
    let end = Rc::new(ChannelEnd { watch: RefCell::default(), channel });
    let weak = Rc::downgrade(&end);
    leave_at_exit(weak);
    buffer::external(call.env, call.state, Handle::Channel(end))
}

/// `capacity, maxMessage, maxQueued`, from an argument on.
fn options(call: &Call<'_>, at: usize) -> JsResult<Options> {
    let defaults = Options::default();
    let size = |i, name, default| {
        let given = call.arg(at + i);
        if call.env.is_nullish(given) { Ok(default) } else { count(call.env, given, name) }
    };
    Ok(Options {
        capacity: size(0, "capacity", defaults.capacity)?,
        max_message: size(1, "maxMessage", defaults.max_message)?,
        max_queued: size(2, "maxQueued", defaults.max_queued)?,
    })
}

fn path(call: &Call<'_>) -> JsResult<String> {
    call.env.text(call.arg(0)).ok_or_else(|| bad("path", shown(call.env, call.arg(0)), "text"))
}

/// `channelPair(…options)`: two handles.
pub(crate) fn pair(call: &Call<'_>) -> JsResult<Raw> {
    let (a, b) = Channel::pair(options(call, 0)?)?;
    let out = call.env.array(2)?;
    call.env.set_at(out, 0, give(call, a)?)?;
    call.env.set_at(out, 1, give(call, b)?)?;
    Ok(out)
}

/// `channelAttach(fd, …options)`: the fd belongs to the channel if this succeeds.
pub(crate) fn attach(call: &Call<'_>) -> JsResult<Raw> {
    let (fd, options) = (buffer::raw_fd(call.env, call.arg(0))?, options(call, 1)?);
    // SAFETY: not -1; it is given back untouched unless it is an end of a channel, which the caller hands over.
    match Channel::attach(unsafe { OwnedFd::from_raw_fd(fd) }, options) {
        Ok(channel) => give(call, channel),
        Err((e, fd)) => {
            let _ = fd.into_raw_fd();
            Err(e.into())
        }
    }
}

/// `channelConnect(path, …options)`: connected, and open when `channelTryOpen` says so.
pub(crate) fn connect(call: &Call<'_>) -> JsResult<Raw> {
    let channel = Channel::begin_connect(path(call)?, options(call, 1)?)?;
    give(call, channel)
}

/// `channelTryOpen(channel)`.
pub(crate) fn try_open(call: &Call<'_>) -> JsResult<Raw> {
    call.env.boolean(end(call)?.channel.try_open()?)
}

/// `channelSocket(channel)`: for a child to inherit.
pub(crate) fn socket(call: &Call<'_>) -> JsResult<Raw> {
    call.env.number(end(call)?.channel.socket()?.into())
}

/// Calls `send` with the value and fds of two arguments. Buffers inside move if it succeeds.
fn sending<R>(call: &Call<'_>, at: usize, send: impl FnOnce(&mut Value, &[BorrowedFd<'_>]) -> Result<R>) -> JsResult<R> {
    let env = call.env;
    let list = call.arg(at + 1);
    let count = if env.is_nullish(list) { 0 } else { env.len(list)? };
    let fds = (0..count).map(|i| buffer::raw_fd(env, env.at(list, i)?)).collect::<JsResult<Vec<_>>>()?;
    // SAFETY: none is -1; a number that is not open is refused by the first call on it.
    let fds: Vec<BorrowedFd<'_>> = fds.into_iter().map(|fd| unsafe { BorrowedFd::borrow_raw(fd) }).collect();
    let moving = Moving::default();
    let mut value = value::from_js_moving(call, call.arg(at), &moving)?;
    let moving = moving.into_inner();
    if moving.is_empty() {
        return Ok(send(&mut value, &fds)?);
    }
    let cells: Vec<_> = moving.iter().map(|owned| owned.buffer()).collect::<Option<_>>().ok_or_else(|| wrong("buffer"))?;
    // One that is there twice is detached the second time, which the codec refuses.
    exchange(&mut value, &cells, |place, own| *place = std::mem::take(own));
    match send(&mut value, &fds) {
        Ok(sent) => {
            moving.iter().for_each(|owned| owned.let_go(env));
            Ok(sent)
        }
        Err(e) => {
            exchange(&mut value, &cells, |place, own| {
                if !place.is_detached() {
                    *own = std::mem::take(place);
                }
            });
            Err(e.into())
        }
    }
}

/// Shows `f` each buffer of a value with that of its handle.
fn exchange(value: &mut Value, cells: &[&RefCell<TransferBuffer>], f: impl Fn(&mut TransferBuffer, &mut TransferBuffer)) {
    let mut cells = cells.iter();
    value.each_buffer_mut(&mut |place| f(place, &mut cells.next().expect("a handle for each buffer").borrow_mut()));
}

/// `channelPost(channel, value, fds)`: false when it is queued.
pub(crate) fn post(call: &Call<'_>) -> JsResult<Raw> {
    let channel = &end(call)?.channel;
    let sent = sending(call, 1, |value, fds| channel.post(value, fds))?;
    call.env.boolean(sent)
}

/// `channelRequest(channel, value, fds, timeout)`: the request's number.
pub(crate) fn request(call: &Call<'_>) -> JsResult<Raw> {
    let (channel, timeout) = (&end(call)?.channel, duration(call.env, call.arg(3), "timeout")?);
    let id = sending(call, 1, |value, fds| channel.post_request(value, fds, timeout))?;
    call.env.number(id as f64)
}

/// `channelReply(channel, value, fds, id, failed)`: false when it is queued.
pub(crate) fn reply(call: &Call<'_>) -> JsResult<Raw> {
    let (channel, failed) = (&end(call)?.channel, call.env.bool(call.arg(4)) == Some(true));
    let id = count(call.env, call.arg(3), "id")? as u64;
    let sent = sending(call, 1, |value, fds| channel.post_reply(id, failed, value, fds))?;
    call.env.boolean(sent)
}

fn event(call: &Call<'_>, kind: f64, id: u64, failed: bool, message: Message) -> JsResult<Raw> {
    let env = call.env;
    let out = env.array(5)?;
    let fds = env.array(message.fds.len())?;
    // Each is the caller's from here on.
    let value = value::to_js(env, call.state, message.value)?;
    for (i, fd) in message.fds.into_iter().enumerate() {
        env.set_at(fds, i as u32, env.number(fd.into_raw_fd().into())?)?;
    }
    let parts = [env.number(kind)?, value, fds, env.number(id as f64)?, env.boolean(failed)?];
    for (i, part) in parts.into_iter().enumerate() {
        env.set_at(out, i as u32, part)?;
    }
    Ok(out)
}

fn bare(env: Env, kind: f64) -> JsResult<Raw> {
    let out = env.array(1)?;
    env.set_at(out, 0, env.number(kind)?)?;
    Ok(out)
}

/// `channelNext(channel)`: null, or `[kind, value, fds, id, failed]` with kind 1 message, 2 request, 3 reply; 4 a reply that did not
/// come, whose value is the error; 5 drained.
pub(crate) fn next(call: &Call<'_>) -> JsResult<Raw> {
    match end(call)?.channel.try_recv()? {
        None => Ok(call.env.null()),
        Some(Incoming::Message(message)) => event(call, 1.0, 0, false, message),
        Some(Incoming::Request(request)) => event(call, 2.0, request.id, false, request.message),
        Some(Incoming::Reply { id, outcome: Ok(reply) }) => event(call, 3.0, id, reply.failed, reply.message),
        Some(Incoming::Reply { id, outcome: Err(e) }) => {
            let env = call.env;
            let out = env.array(4)?;
            env.set_at(out, 0, env.number(4.0)?)?;
            env.set_at(out, 1, call.state.error(env, &e)?)?;
            env.set_at(out, 2, env.array(0)?)?;
            env.set_at(out, 3, env.number(id as f64)?)?;
            Ok(out)
        }
        Some(Incoming::Drained) => bare(call.env, 5.0),
    }
}

fn watch(call: &Call<'_>, place: &RefCell<Option<Watch>>, fd: i32) -> JsResult<Raw> {
    let note = call.env.u32(call.arg(1))? as usize;
    let mut place = place.borrow_mut();
    if place.is_none() {
        let wake = Arc::clone(&call.state.wake);
        // SAFETY: the handle keeps the fd open for the call.
        *place = Some(Watch::new(unsafe { BorrowedFd::borrow_raw(fd) }, move || wake.notify(note))?);
    }
    if let Some(watch) = &*place {
        watch.arm()?;
    }
    Ok(call.env.undefined())
}

/// `channelArm(channel, note)`: the note tells once when it is worth looking again.
pub(crate) fn arm(call: &Call<'_>) -> JsResult<Raw> {
    let end = end(call)?;
    watch(call, &end.watch, end.channel.fd()?)
}

/// `channelAbandon(channel, id)`: nobody waits for that reply any more.
pub(crate) fn abandon(call: &Call<'_>) -> JsResult<Raw> {
    let id = count(call.env, call.arg(1), "id")? as u64;
    call.env.boolean(end(call)?.channel.abandon(id))
}

/// `channelClose(channel)`.
pub(crate) fn close(call: &Call<'_>) -> JsResult<Raw> {
    end(call)?.channel.close();
    Ok(call.env.undefined())
}

/// `channelStats(channel)`.
pub(crate) fn stats(call: &Call<'_>) -> JsResult<Raw> {
    let channel = &end(call)?.channel;
    let stats = channel.stats();
    let n = |n: u64| Value::Int(n as i64);
    let pairs = [
        ("sent", n(stats.sent)),
        ("received", n(stats.received)),
        ("pending", n(stats.pending)),
        ("lateReplies", n(stats.late_replies)),
        ("queued", n(stats.queued)),
        ("peerPid", channel.peer_pid().map_or(Value::Nil, |pid| Value::Int(pid.into()))),
    ];
    value::to_js(call.env, call.state, Value::map(pairs))
}

/// `listenerNew(path, …options)`: `[handle, path]`.
pub(crate) fn listen(call: &Call<'_>) -> JsResult<Raw> {
    let listener = Channel::listen(path(call)?, options(call, 1)?)?;
    let path = call.env.string(&listener.path().to_string_lossy())?;
    let accepting = Rc::new(Accepting { watch: RefCell::default(), listener: RefCell::new(Some(listener)) });
    let weak = Rc::downgrade(&accepting);
    leave_at_exit(weak);
    let out = call.env.array(2)?;
    call.env.set_at(out, 0, buffer::external(call.env, call.state, Handle::Listener(accepting))?)?;
    call.env.set_at(out, 1, path)?;
    Ok(out)
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed, "listener was closed")
}

/// `listenerNext(listener)`: a channel's handle, or null.
pub(crate) fn accept(call: &Call<'_>) -> JsResult<Raw> {
    let accepting = accepting(call)?;
    let accepted = accepting.listener.borrow().as_ref().ok_or_else(closed)?.try_accept()?;
    accepted.map_or(Ok(call.env.null()), |channel| give(call, channel))
}

/// `listenerArm(listener, note)`.
pub(crate) fn arm_listener(call: &Call<'_>) -> JsResult<Raw> {
    let accepting = accepting(call)?;
    let fd = accepting.listener.borrow().as_ref().ok_or_else(closed)?.fd();
    watch(call, &accepting.watch, fd)
}

/// `listenerClose(listener)`.
pub(crate) fn close_listener(call: &Call<'_>) -> JsResult<Raw> {
    accepting(call)?.leave();
    Ok(call.env.undefined())
}
