//! Channels: handles, values in and out. `lib/channel.cjs` makes events and promises of what comes.

use crate::buffer::{self, Handle};
use crate::js::{Call, Env, Fail, JsResult, Raw};
use crate::pool::{bad, count, duration, shown};
use crate::ring::{Leave, leave_at_exit};
use crate::value::{self, Moving};
use offloop::channel::{Channel, Found, Incoming, Listener, Message, Options};
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
    /// Until it has ended and was told.
    channel: RefCell<Option<Channel>>,
}

impl ChannelEnd {
    /// One that stays for the call, whatever JavaScript does meanwhile.
    fn channel(&self) -> Result<Channel> {
        self.channel.borrow().clone().ok_or_else(|| Error::new(ErrorKind::Closed, "channel was closed"))
    }
}

impl Leave for ChannelEnd {
    /// The other end is told that this one closed, and did not die.
    fn leave(&self) {
        self.watch.take();
        if let Some(channel) = self.channel.take() {
            // What is queued goes as far as there is room: nobody here waits for more.
            channel.close();
            channel.close_now();
        }
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

pub(crate) fn give(call: &Call<'_>, channel: Channel) -> JsResult<Raw> {
    let end = Rc::new(ChannelEnd { watch: RefCell::default(), channel: RefCell::new(Some(channel)) });
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
    call.env.boolean(end(call)?.channel()?.try_open()?)
}

/// `channelSocket(channel)`: for a child to inherit.
pub(crate) fn socket(call: &Call<'_>) -> JsResult<Raw> {
    call.env.number(end(call)?.channel()?.socket()?.into())
}

/// `channelDetach(channel)`: the same, for whoever attaches it.
pub(crate) fn detach(call: &Call<'_>) -> JsResult<Raw> {
    let fd = end(call)?.channel()?.detach()?;
    call.env.number(fd.into_raw_fd().into())
}

/// Calls `send` with the value and fds of two arguments, after the function of argument `check`, if there is one, which looks at the buffers
/// that were found. Buffers inside move if it succeeds.
fn sending<R>(call: &Call<'_>, at: usize, check: usize, send: impl FnOnce(&mut Value, &[BorrowedFd<'_>]) -> Result<R>) -> JsResult<R> {
    let env = call.env;
    let list = call.arg(at + 1);
    let count = if env.is_nullish(list) { 0 } else { env.len(list)? };
    let fds = (0..count).map(|i| buffer::raw_fd(env, env.at(list, i)?)).collect::<JsResult<Vec<_>>>()?;
    // SAFETY: none is -1; a number that is not open is refused by the first call on it.
    let fds: Vec<BorrowedFd<'_>> = fds.into_iter().map(|fd| unsafe { BorrowedFd::borrow_raw(fd) }).collect();
    let moving = Moving::default();
    let mut value = value::from_js_moving(call, call.arg(at), &moving)?;
    if !env.is_nullish(call.arg(check)) {
        env.call(call.arg(check), &[])?;
    }
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

/// `channelPost(channel, value, fds, check)`: false when it is queued.
pub(crate) fn post(call: &Call<'_>) -> JsResult<Raw> {
    let channel = end(call)?.channel()?;
    let sent = sending(call, 1, 3, |value, fds| channel.post(value, fds))?;
    call.env.boolean(sent)
}

/// `channelRequest(channel, value, fds, timeout, check)`: the request's number.
pub(crate) fn request(call: &Call<'_>) -> JsResult<Raw> {
    let (channel, timeout) = (end(call)?.channel()?, duration(call.env, call.arg(3), "timeout")?);
    let id = sending(call, 1, 4, |value, fds| channel.post_request(value, fds, timeout))?;
    call.env.number(id as f64)
}

/// `channelReply(channel, value, fds, id, failed, check)`: false when it is queued.
pub(crate) fn reply(call: &Call<'_>) -> JsResult<Raw> {
    let (channel, failed) = (end(call)?.channel()?, call.env.bool(call.arg(4)) == Some(true));
    let id = count(call.env, call.arg(3), "id")? as u64;
    let sent = sending(call, 1, 5, |value, fds| channel.post_reply(id, failed, value, fds))?;
    call.env.boolean(sent)
}

fn event(call: &Call<'_>, kind: f64, id: u64, failed: bool, message: Message) -> JsResult<Raw> {
    let env = call.env;
    let out = env.array(5)?;
    let fds = env.array(message.fds.len())?;
    let value = match value::to_js(env, call.state, message.value) {
        Ok(value) => value,
        // Its fds are closed, and nothing else is lost by it.
        Err(failed) => {
            let error = match failed {
                Fail::Error(e) => call.state.error(env, &e)?,
                Fail::Pending => env.take_exception().ok_or(Fail::Pending)?,
            };
            return failure(env, if kind == REPLY { NO_REPLY } else { UNREADABLE }, error, id);
        }
    };
    // Each is the caller's from here on.
    for (i, fd) in message.fds.into_iter().enumerate() {
        env.set_at(fds, i as u32, env.number(fd.into_raw_fd().into())?)?;
    }
    let parts = [env.number(kind)?, value, fds, env.number(id as f64)?, env.boolean(failed)?];
    for (i, part) in parts.into_iter().enumerate() {
        env.set_at(out, i as u32, part)?;
    }
    Ok(out)
}

fn failure(env: Env, kind: f64, error: Raw, id: u64) -> JsResult<Raw> {
    let out = env.array(4)?;
    for (i, part) in [env.number(kind)?, error, env.array(0)?, env.number(id as f64)?].into_iter().enumerate() {
        env.set_at(out, i as u32, part)?;
    }
    Ok(out)
}

fn bare(env: Env, kind: f64) -> JsResult<Raw> {
    let out = env.array(1)?;
    env.set_at(out, 0, env.number(kind)?)?;
    Ok(out)
}

// Kinds of events; the same numbers as in lib/channel.cjs.
const MESSAGE: f64 = 1.0;
const REQUEST: f64 = 2.0;
const REPLY: f64 = 3.0;
/// A reply that did not come, or has no JavaScript form: the value is the error.
const NO_REPLY: f64 = 4.0;
const DRAINED: f64 = 5.0;
/// A message without a JavaScript form, or a request with its id: the value is the error.
const UNREADABLE: f64 = 6.0;
/// Something was read that is for somebody else.
const MORE: f64 = 7.0;

fn incoming(call: &Call<'_>, incoming: Incoming) -> JsResult<Raw> {
    match incoming {
        Incoming::Message(message) => event(call, MESSAGE, 0, false, message),
        Incoming::Request(request) => event(call, REQUEST, request.id, false, request.message),
        Incoming::Reply { id, outcome: Ok(reply) } => event(call, REPLY, id, reply.failed, reply.message),
        Incoming::Reply { id, outcome: Err(e) } => failure(call.env, NO_REPLY, call.state.error(call.env, &e)?, id),
        Incoming::Drained => bare(call.env, DRAINED),
    }
}

/// `channelNext(channel)`: null, or `[kind, value, fds, id, failed]`.
pub(crate) fn next(call: &Call<'_>) -> JsResult<Raw> {
    end(call)?.channel()?.try_recv()?.map_or(Ok(call.env.null()), |found| incoming(call, found))
}

/// `channelOutcome(channel)`: as `channelNext`; messages and requests stay where they are.
pub(crate) fn outcome(call: &Call<'_>) -> JsResult<Raw> {
    match end(call)?.channel()?.try_outcome()? {
        Found::Incoming(found) => incoming(call, found),
        Found::More => bare(call.env, MORE),
        Found::Nothing => Ok(call.env.null()),
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
    watch(call, &end.watch, end.channel()?.fd()?)
}

/// `channelAbandon(channel, id)`: nobody waits for that reply any more.
pub(crate) fn abandon(call: &Call<'_>) -> JsResult<Raw> {
    let id = count(call.env, call.arg(1), "id")? as u64;
    call.env.boolean(end(call)?.channel()?.abandon(id))
}

/// `channelClose(channel)`: false while what is queued is sent first.
pub(crate) fn close(call: &Call<'_>) -> JsResult<Raw> {
    let channel = end(call)?.channel()?;
    channel.close();
    call.env.boolean(channel.ended().is_some())
}

/// `channelCloseNow(channel)`: what is queued is dropped.
pub(crate) fn close_now(call: &Call<'_>) -> JsResult<Raw> {
    end(call)?.channel()?.close_now();
    Ok(call.env.undefined())
}

/// `channelUnread(channel)`: how many messages wait for a listener.
pub(crate) fn unread(call: &Call<'_>) -> JsResult<Raw> {
    call.env.number(end(call)?.channel()?.unread() as f64)
}

/// `channelLeave(channel)`: closes it, and lets go of its fds and memory now.
pub(crate) fn leave(call: &Call<'_>) -> JsResult<Raw> {
    end(call)?.leave();
    Ok(call.env.undefined())
}

/// `channelStats(channel)`.
pub(crate) fn stats(call: &Call<'_>) -> JsResult<Raw> {
    let channel = end(call)?.channel()?;
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
