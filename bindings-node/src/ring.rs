//! Ring buffers: handles, and the slow side of what JavaScript does itself.
//!
//! `lib/lane.cjs` and its neighbours write and read lanes over the mapping, without a call per record. Where they stand is in
//! a handle's *own words*, which both sides see: a call that needs the core (nothing there, no room, bytes that cannot be)
//! begins where JavaScript stands, and JavaScript goes on where the call ended. Whoever drops the handle (the collector, the
//! end of a thread or of the process) finds there what was committed and not yet published.
//!
//! In `mpmc` the core alone stands in the ring, and passes records on through a *stage* that both sides see: `lib/slots.cjs`.
//! Without external memory every record is a call.

use crate::buffer::{self, Handle};
use crate::js::{Call, Env, Fail, JsResult, Raw};
use crate::pool::{bad, count, shown};
use crate::value;
use offloop::ring::{Ack, Consumer, ConsumerOptions, Cursor, HeldRing, Kind, OnFull, Producer, ProducerOptions, RecordRef, RingBuffer};
use offloop::sys::watch::Watch;
use offloop::value::Date;
use offloop::wire::ring as layout;
use offloop::{Bytes, Error, ErrorKind, Result, Value};
use std::cell::{Cell, RefCell};
use std::os::fd::{BorrowedFd, RawFd};
use std::ptr::NonNull;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// Words of a [`Cursor`].
const OWN_WORDS: usize = 6;

/// A [`Cursor`] per lane, in the order of its fields. Only the environment's thread touches it.
type OwnWords = [AtomicU32];

/// Memory through which the records of one call pass: the number of those that JavaScript has begun to look at, then each
/// with a header, at a multiple of 8.
type Stage = [AtomicU64];
/// The word of that number.
const STAGE_SEEN: usize = 0;
/// Bytes before the first record.
const STAGE_BEGIN: usize = 8;
/// Bytes before each payload: its length, whether it may have been seen before (32 bits each), its delivery.
const STAGE_HEADER: usize = 16;

/// What both kinds of handles can.
pub(crate) trait Side {
    /// `None` behind the last lane, and where JavaScript could not go on.
    fn cursor(&self, lane: usize) -> Option<Cursor>;
    fn set_cursor(&mut self, lane: usize, to: Cursor) -> Result<()>;
    /// Wakes who sleeps at the other end of a lane.
    fn wake_peer(&mut self, lane: usize);
    fn fd(&mut self) -> Result<BorrowedFd<'_>>;
    /// The last `unseen` records of a read were seen by nobody.
    fn end_read(&mut self, unseen: usize) -> Result<()>;
}

impl Side for Producer {
    fn cursor(&self, lane: usize) -> Option<Cursor> {
        if lane == 0 { Producer::cursor(self) } else { None }
    }
    fn set_cursor(&mut self, _: usize, to: Cursor) -> Result<()> {
        Producer::set_cursor(self, to)
    }
    fn wake_peer(&mut self, _: usize) {
        Producer::wake(self);
    }
    fn fd(&mut self) -> Result<BorrowedFd<'_>> {
        Producer::fd(self)
    }
    fn end_read(&mut self, _: usize) -> Result<()> {
        Ok(())
    }
}

impl Side for Consumer {
    fn cursor(&self, lane: usize) -> Option<Cursor> {
        Consumer::cursor(self, lane)
    }
    fn set_cursor(&mut self, lane: usize, to: Cursor) -> Result<()> {
        Consumer::set_cursor(self, lane, to)
    }
    fn wake_peer(&mut self, lane: usize) {
        Consumer::wake(self, lane);
    }
    fn fd(&mut self) -> Result<BorrowedFd<'_>> {
        Consumer::fd(self)
    }
    fn end_read(&mut self, unseen: usize) -> Result<()> {
        Consumer::end_read(self, unseen)
    }
}

/// A producer or a consumer of this environment.
pub(crate) struct End<T: Side> {
    /// Before `side`: it watches an fd of it.
    watch: RefCell<Option<Watch>>,
    side: RefCell<Option<T>>,
    own: Arc<OwnWords>,
    /// JavaScript follows the protocol itself, so `own` says where this handle stands.
    mapped: Cell<bool>,
    /// The room of an open claim.
    room: Cell<Option<(NonNull<u8>, usize)>>,
    stage: RefCell<Option<Arc<Stage>>>,
    /// Records of the stage that are JavaScript's to look at.
    reading: Cell<usize>,
}

impl<T: Side + 'static> End<T> {
    fn new(side: T) -> Rc<End<T>> {
        let lanes = (0..).take_while(|lane| side.cursor(*lane).is_some()).count();
        let end = Rc::new(End {
            watch: RefCell::default(),
            side: RefCell::new(Some(side)),
            own: (0..lanes * OWN_WORDS).map(|_| AtomicU32::new(0)).collect(),
            mapped: Cell::new(false),
            room: Cell::new(None),
            stage: RefCell::default(),
            reading: Cell::new(0),
        });
        let weak: Weak<End<T>> = Rc::downgrade(&end);
        leave_at_exit(weak);
        end
    }
}

impl<T: Side> End<T> {
    /// Begins where JavaScript stands.
    fn pull(&self, side: &mut T) -> Result<()> {
        if !self.mapped.get() {
            return Ok(());
        }
        for (lane, words) in self.own.chunks_exact(OWN_WORDS).enumerate() {
            let [at, count, published, peer, again, high] = std::array::from_fn(|i| words[i].load(Ordering::Relaxed));
            side.set_cursor(lane, Cursor { at, count, published, peer, again, high })?;
        }
        Ok(())
    }

    /// JavaScript goes on where the handle stands.
    fn tell(&self, side: &T) {
        for (lane, words) in self.own.chunks_exact(OWN_WORDS).enumerate() {
            let Some(Cursor { at, count, published, peer, again, high }) = side.cursor(lane) else { return };
            for (word, value) in words.iter().zip([at, count, published, peer, again, high]) {
                word.store(value, Ordering::Relaxed);
            }
        }
    }

    fn with<R>(&self, f: impl FnOnce(&mut T) -> Result<R>) -> Result<R> {
        let mut side = self.side.borrow_mut();
        let side = side.as_mut().ok_or_else(|| Error::new(ErrorKind::Closed, "handle of the ring was closed"))?;
        self.pull(side)?;
        let out = f(side);
        self.tell(side);
        out
    }

    /// Calls `note` of the environment once, when it is worth looking again.
    fn arm(&self, call: &Call<'_>, note: usize) -> Result<()> {
        if let Some(watch) = &*self.watch.borrow() {
            return watch.arm();
        }
        let wake = Arc::clone(&call.state.wake);
        let mut side = self.side.borrow_mut();
        let side = side.as_mut().ok_or_else(|| Error::new(ErrorKind::Closed, "handle of the ring was closed"))?;
        let watch = Watch::new(side.fd()?, move || wake.notify(note))?;
        watch.arm()?;
        *self.watch.borrow_mut() = Some(watch);
        Ok(())
    }
}

/// A ring of this environment, and its clone behind the memory that JavaScript sees.
pub(crate) struct RingHandle {
    held: HeldRing,
    lent: RefCell<Option<Lent>>,
}

/// Kept by the `ArrayBuffer` too, which outlives its own detaching.
type Lent = Rc<Cell<Option<RingBuffer>>>;

fn new_ring(call: &Call<'_>, ring: RingBuffer) -> JsResult<Raw> {
    buffer::external(call.env, call.state, Handle::Ring(RingHandle { held: HeldRing::new(ring), lent: RefCell::default() }))
}

/// Ends of any type, to be left when their thread ends.
pub(crate) trait Leave {
    fn leave(&self);
}

impl<T: Side> Leave for End<T> {
    /// Publishes what is committed or let go of, and frees the seat.
    fn leave(&self) {
        self.watch.take();
        self.room.take();
        let Some(mut side) = self.side.take() else { return };
        // A cursor that the core refuses has nothing to publish; the ring is damaged then, and the others find out.
        let _ = self.pull(&mut side);
        // Whoever ended in the middle of a read has not seen the rest of it.
        let reading = self.reading.take();
        if let Some(stage) = &*self.stage.borrow()
            && reading > 0
        {
            let seen = usize::try_from(stage[STAGE_SEEN].load(Ordering::Relaxed)).unwrap_or(usize::MAX);
            let _ = side.end_read(reading.saturating_sub(seen));
        }
    }
}

impl<T: Side> Drop for End<T> {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Ends of this thread. `process.exit()` runs no finalizers, but the C library runs the destructors of this thread.
struct Ends(Vec<Weak<dyn Leave>>);

impl Drop for Ends {
    fn drop(&mut self) {
        for end in self.0.drain(..).filter_map(|end| end.upgrade()) {
            end.leave();
        }
    }
}

/// Leaves `end` when this thread ends, if it still lives then.
pub(crate) fn leave_at_exit(end: Weak<dyn Leave>) {
    ENDS.with_borrow_mut(|ends| {
        ends.0.retain(|end| end.strong_count() > 0);
        ends.0.push(end);
    });
}

thread_local! {
    static ENDS: RefCell<Ends> = const { RefCell::new(Ends(Vec::new())) };
}

fn wrong(want: &'static str) -> Fail {
    Error::invalid("handle is of another kind").with("want", want).into()
}

fn ring<'a>(call: &'a Call<'_>) -> JsResult<&'a RingHandle> {
    match buffer::handle(call, call.arg(0))? {
        Handle::Ring(ring) => Ok(ring),
        _ => Err(wrong("ring")),
    }
}

fn producer<'a>(call: &'a Call<'_>) -> JsResult<&'a End<Producer>> {
    match buffer::handle(call, call.arg(0))? {
        Handle::Producer(end) => Ok(end),
        _ => Err(wrong("producer")),
    }
}

fn consumer<'a>(call: &'a Call<'_>) -> JsResult<&'a End<Consumer>> {
    match buffer::handle(call, call.arg(0))? {
        Handle::Consumer(end) => Ok(end),
        _ => Err(wrong("consumer")),
    }
}

/// What is the same for both kinds of handles.
macro_rules! either {
    ($call:expr, $end:ident => $body:expr) => {
        match buffer::handle($call, $call.arg(0))? {
            Handle::Producer($end) => $body,
            Handle::Consumer($end) => $body,
            _ => return Err(wrong("producer or consumer")),
        }
    };
}

fn word<T: std::str::FromStr<Err = Error>>(env: Env, value: Raw, name: &'static str) -> JsResult<T> {
    match env.text(value) {
        Some(text) => Ok(text.chars().take(80).collect::<String>().parse()?),
        None => Err(bad(name, shown(env, value), "text")),
    }
}

fn on_full(env: Env, value: Raw) -> JsResult<OnFull> {
    if env.is_nullish(value) { Ok(OnFull::default()) } else { word(env, value, "onFull") }
}

fn path(call: &Call<'_>, at: usize) -> JsResult<String> {
    call.env.text(call.arg(at)).ok_or_else(|| bad("path", shown(call.env, call.arg(at)), "text"))
}

/// `ringOpen(path)`.
pub(crate) fn open(call: &Call<'_>) -> JsResult<Raw> {
    new_ring(call, RingBuffer::attach_path(path(call, 0)?)?)
}

/// `ringRemove(ring)`: takes its name away.
pub(crate) fn remove(call: &Call<'_>) -> JsResult<Raw> {
    ring(call)?.held.with(RingBuffer::remove)?;
    Ok(call.env.undefined())
}

/// `ringInspect(path)`.
pub(crate) fn inspect(call: &Call<'_>) -> JsResult<Raw> {
    let stat = RingBuffer::inspect(path(call, 0)?)?;
    let n = |n: u32| Value::Int(n.into());
    let participants = stat.participants.iter().map(|p| {
        Value::map([
            ("seat", Value::Int(p.seat as i64)),
            ("role", p.role.map_or(Value::Nil, |role| Value::str(role.as_str()))),
            ("pid", n(p.pid)),
            ("alive", Value::Bool(p.alive)),
            ("asleep", Value::Bool(p.asleep)),
            ("inFlight", n(p.in_flight)),
        ])
    });
    let lanes = stat.lanes.iter().map(|lane| {
        Value::map([
            ("tail", n(lane.tail)),
            ("pushed", n(lane.pushed)),
            ("head", n(lane.head)),
            ("popped", n(lane.popped)),
            ("used", n(lane.used())),
            ("records", n(lane.records())),
        ])
    });
    let pairs = [
        ("kind", Value::str(stat.kind.as_str())),
        ("capacity", Value::Int(stat.capacity as i64)),
        ("slotSize", Value::Int(stat.slot_size as i64)),
        ("maxParticipants", Value::Int(stat.max_participants as i64)),
        ("onFull", Value::str(stat.on_full.as_str())),
        ("creatorPid", n(stat.creator_pid)),
        ("created", Date::from_millis(stat.created_unix_ns as f64 / 1e6).map_or(Value::Nil, Value::Date)),
        ("closed", Value::Bool(stat.closed)),
        ("poisoned", Value::Bool(stat.poisoned)),
        ("returned", n(stat.returned)),
        ("participants", Value::Array(participants.collect())),
        ("lanes", Value::Array(lanes.collect())),
    ];
    value::to_js(call.env, call.state, Value::map(pairs))
}

/// `ringCreate(kind, capacity, onFull, maxParticipants, slotSize, path)`.
pub(crate) fn create(call: &Call<'_>) -> JsResult<Raw> {
    let env = call.env;
    let mut builder = RingBuffer::builder(word::<Kind>(env, call.arg(0), "kind")?).on_full(on_full(env, call.arg(2))?);
    if !env.is_nullish(call.arg(1)) {
        builder = builder.capacity(count(env, call.arg(1), "capacity")?);
    }
    if !env.is_nullish(call.arg(3)) {
        builder = builder.max_participants(count(env, call.arg(3), "maxParticipants")?);
    }
    if !env.is_nullish(call.arg(4)) {
        builder = builder.slot_size(count(env, call.arg(4), "slotSize")?);
    }
    if !env.is_nullish(call.arg(5)) {
        builder = builder.path(path(call, 5)?);
    }
    new_ring(call, builder.create()?)
}

/// `ringAttach(fds)`.
pub(crate) fn attach(call: &Call<'_>) -> JsResult<Raw> {
    let env = call.env;
    let fds = (0..env.len(call.arg(0))?).map(|i| buffer::raw_fd(env, env.at(call.arg(0), i)?)).collect::<JsResult<Vec<RawFd>>>()?;
    // SAFETY: none is -1; the core checks what they are and duplicates them.
    let fds: Vec<BorrowedFd<'_>> = fds.into_iter().map(|fd| unsafe { BorrowedFd::borrow_raw(fd) }).collect();
    new_ring(call, RingBuffer::attach(&fds)?)
}

/// `ringFds(ring)`.
pub(crate) fn fds(call: &Call<'_>) -> JsResult<Raw> {
    let fds = ring(call)?.held.with(RingBuffer::fds)?.into_iter().map(|fd| Value::Int(fd.into()));
    value::to_js(call.env, call.state, Value::Array(fds.collect()))
}

/// `ringInfo(ring)`.
pub(crate) fn info(call: &Call<'_>) -> JsResult<Raw> {
    let pairs = ring(call)?.held.with(|ring| Ok(facts(ring)))?;
    value::to_js(call.env, call.state, Value::map(pairs))
}

fn facts(ring: &RingBuffer) -> [(&'static str, Value); 8] {
    let seats = ring.max_participants();
    [
        ("kind", Value::str(ring.kind().as_str())),
        ("capacity", Value::Int(ring.capacity() as i64)),
        ("slotSize", Value::Int(ring.slot_size() as i64)),
        ("maxRecordLength", Value::Int(ring.max_record_len() as i64)),
        ("seats", Value::Int(seats as i64)),
        ("dataAt", Value::Int(layout::data_at(ring.kind(), seats) as i64)),
        ("onFull", Value::str(ring.on_full().as_str())),
        ("path", ring.path().map_or(Value::Nil, |path| Value::from(path.to_string_lossy().into_owned()))),
    ]
}

/// `ringIsClosed(ring)`.
pub(crate) fn is_closed(call: &Call<'_>) -> JsResult<Raw> {
    call.env.boolean(ring(call)?.held.is_closed())
}

/// `ringClose(ring)`: for everybody.
pub(crate) fn close(call: &Call<'_>) -> JsResult<Raw> {
    ring(call)?.held.close();
    Ok(call.env.undefined())
}

/// `ringSettle(ring, memory, whateverWaits)`: lets go of a ring that was closed here, if nobody can want it any more; true when it is gone.
/// `memory`, if it was opened, is detached then, and so is every view of it.
pub(crate) fn settle(call: &Call<'_>) -> JsResult<Raw> {
    let (env, ring) = (call.env, ring(call)?);
    let lent = ring.lent.borrow().clone();
    let whatever_waits = env.bool(call.arg(2)) == Some(true);
    let gone = ring.held.settle(lent.iter().count(), whatever_waits, || match &lent {
        None => true,
        Some(lent) => {
            // What was transferred away is looked at by somebody else, until the collector says that it is not.
            let detached = buffer::detach_now(env, call.arg(1));
            if detached {
                lent.take();
            }
            detached
        }
    });
    env.boolean(gone)
}

/// `ringMemory(ring)`: the mapping as an `ArrayBuffer`; null where the runtime refuses it, or there are no lanes.
pub(crate) fn memory(call: &Call<'_>) -> JsResult<Raw> {
    let handle = ring(call)?;
    let ring = handle.held.with(|ring| Ok(ring.clone()))?;
    if ring.kind() == Kind::Mpmc {
        return Ok(call.env.null());
    }
    let (at, len) = ring.mapping();
    let lent = Rc::new(Cell::new(Some(ring)));
    let opened = buffer::outside_memory(call.env, call.state, at, len, Box::new(Rc::clone(&lent)));
    if opened.is_some() {
        *handle.lent.borrow_mut() = Some(lent);
    }
    Ok(opened.unwrap_or_else(|| call.env.null()))
}

/// `ringProducer(ring, batch)`.
pub(crate) fn new_producer(call: &Call<'_>) -> JsResult<Raw> {
    let batch = call.env.bool(call.arg(1)) == Some(true);
    let made = ring(call)?.held.with(|ring| ring.producer(ProducerOptions { batch, ..ProducerOptions::default() }))?;
    buffer::external(call.env, call.state, Handle::Producer(End::new(made)))
}

/// `ringConsumer(ring, ack)`.
pub(crate) fn new_consumer(call: &Call<'_>) -> JsResult<Raw> {
    let ack = word::<Ack>(call.env, call.arg(1), "ack")?;
    let made = ring(call)?.held.consumer(ConsumerOptions { ack })?;
    buffer::external(call.env, call.state, Handle::Consumer(End::new(made)))
}

/// `ringOwn(end)`: the own words of a handle as an `ArrayBuffer`, or null; JavaScript follows the protocol itself from now on.
pub(crate) fn own(call: &Call<'_>) -> JsResult<Raw> {
    either!(call, end => {
        end.with(|_| Ok(()))?;
        let at = end.own.as_ptr().cast_mut().cast();
        let opened = buffer::outside_memory(call.env, call.state, at, size_of_val(&*end.own), Box::new(Arc::clone(&end.own)));
        end.mapped.set(opened.is_some());
        Ok(opened.unwrap_or_else(|| call.env.null()))
    })
}

/// `ringSeat(end)`: the number of its seat.
pub(crate) fn seat(call: &Call<'_>) -> JsResult<Raw> {
    let seat = either!(call, end => end.with(|side| Ok(side.seat()))?);
    call.env.number(seat as f64)
}

/// `ringWake(end, lane)`: the other side of a lane, if it sleeps; after JavaScript has published.
pub(crate) fn wake(call: &Call<'_>) -> JsResult<Raw> {
    let lane = call.env.u32(call.arg(1))? as usize;
    either!(call, end => {
        if let Some(side) = &mut *end.side.borrow_mut() {
            side.wake_peer(lane);
        }
    });
    Ok(call.env.undefined())
}

/// `ringLeave(end)`.
pub(crate) fn leave(call: &Call<'_>) -> JsResult<Raw> {
    either!(call, end => end.leave());
    Ok(call.env.undefined())
}

/// Copies a record from JavaScript's memory with `push`.
fn push_with<R>(call: &Call<'_>, push: impl FnOnce(&mut Producer, &[u8]) -> Result<R>) -> JsResult<R> {
    let end = producer(call)?;
    let view = buffer::view(call.env, call.arg(1))?;
    // SAFETY: the memory stays while this thread is not in JavaScript; the ring only copies from it.
    let record = unsafe { view.as_slice() };
    Ok(end.with(|side| push(side, record))?)
}

/// `producerTryPush(producer, view)`.
pub(crate) fn try_push(call: &Call<'_>) -> JsResult<Raw> {
    let pushed = push_with(call, Producer::try_push)?;
    call.env.boolean(pushed)
}

/// `producerPush(producer, view)`, for a ring that does not wait: the core says what it does when there is no room.
pub(crate) fn push(call: &Call<'_>) -> JsResult<Raw> {
    push_with(call, |side, record| side.push(record, Some(Duration::ZERO)))?;
    Ok(call.env.undefined())
}

/// `producerClaim(producer, len)`: false while there is no room.
pub(crate) fn claim(call: &Call<'_>) -> JsResult<Raw> {
    let end = producer(call)?;
    let len = count(call.env, call.arg(1), "length")?;
    let room = end.with(|side| side.try_claim_ptr(len))?;
    end.room.set(room.map(|at| (at, len)));
    call.env.boolean(room.is_some())
}

/// `producerCommit(producer, view)`: the claimed record, filled from a view of the claimed length.
pub(crate) fn commit(call: &Call<'_>) -> JsResult<Raw> {
    let end = producer(call)?;
    let view = buffer::view(call.env, call.arg(1))?;
    let (at, len) = end.room.take().ok_or_else(|| Error::invalid("nothing is claimed"))?;
    if view.len != len {
        return Err(Error::invalid("record is not as long as its claim").with("len", view.len).with("claimed", len).into());
    }
    // SAFETY: the open claim has `len` bytes, which only this handle writes; the view stays while this thread is in here.
    unsafe { std::ptr::copy_nonoverlapping(view.as_slice().as_ptr(), at.as_ptr(), len) };
    end.with(|side| side.commit_claim(len))?;
    Ok(call.env.undefined())
}

/// `producerAbort(producer)`.
pub(crate) fn abort(call: &Call<'_>) -> JsResult<Raw> {
    let end = producer(call)?;
    if end.room.take().is_some() {
        end.with(|side| {
            side.abort_claim();
            Ok(())
        })?;
    }
    Ok(call.env.undefined())
}

/// `producerFlush(producer)`.
pub(crate) fn flush(call: &Call<'_>) -> JsResult<Raw> {
    producer(call)?.with(Producer::flush)?;
    Ok(call.env.undefined())
}

/// `producerWait(producer, len, note)`: true when there is room for a record of `len`, else `note` will tell.
pub(crate) fn wait_room(call: &Call<'_>) -> JsResult<Raw> {
    let end = producer(call)?;
    let (len, note) = (count(call.env, call.arg(1), "length")?, call.env.u32(call.arg(2))? as usize);
    let room = end.with(|side| {
        // From its first call on, a look that finds nothing arms.
        side.fd()?;
        side.has_room(len)
    })?;
    if !room {
        end.arm(call, note)?;
    }
    call.env.boolean(room)
}

/// `consumerFind(consumer, lane)`: whether there is a record; in lane `lane`, or in any other.
pub(crate) fn find(call: &Call<'_>) -> JsResult<Raw> {
    let lane = call.env.u32(call.arg(1))? as usize;
    let found = consumer(call)?.with(|side| {
        side.turn_to(lane);
        Ok(side.peek()?.is_some())
    })?;
    call.env.boolean(found)
}

/// `consumerWait(consumer, note)`: true when there is a record, else `note` will tell.
pub(crate) fn wait_record(call: &Call<'_>) -> JsResult<Raw> {
    let end = consumer(call)?;
    let note = call.env.u32(call.arg(1))? as usize;
    let found = end.with(|side| {
        side.fd()?;
        side.has_record()
    })?;
    if !found {
        end.arm(call, note)?;
    }
    call.env.boolean(found)
}

/// `consumerShow(consumer)`: `[copy of the oldest record, redelivered, delivery]`, or null. It stays the oldest until `consumerRelease`.
pub(crate) fn show(call: &Call<'_>) -> JsResult<Raw> {
    shown_by(call, |side| side.peek()?.map(|record| Ok((copied(record)?, record.is_redelivered(), record.delivery()))).transpose())
}

/// `consumerTake(consumer)`: as `consumerShow`, and lets go of it.
pub(crate) fn take(call: &Call<'_>) -> JsResult<Raw> {
    shown_by(call, |side| {
        side.try_pop()?.map(|record| Ok((copied(record.payload())?, record.is_redelivered(), record.delivery()))).transpose()
    })
}

/// A private copy, of a length that its producer chose.
fn copied(record: RecordRef<'_>) -> Result<Vec<u8>> {
    // SAFETY: a record is readable as long as it is.
    unsafe { buffer::copied(record.as_ptr(), record.len()) }
}

fn shown_by(call: &Call<'_>, look: impl FnOnce(&mut Consumer) -> Result<Option<(Vec<u8>, bool, u64)>>) -> JsResult<Raw> {
    let Some((record, redelivered, delivery)) = consumer(call)?.with(look)? else { return Ok(call.env.null()) };
    let out = call.env.array(3)?;
    call.env.set_at(out, 0, buffer::uint8array(call.env, call.state, Bytes::from(record))?)?;
    call.env.set_at(out, 1, call.env.boolean(redelivered)?)?;
    // Deliveries of one consumer are counted, so they stay exact.
    call.env.set_at(out, 2, call.env.number(delivery as f64)?)?;
    Ok(out)
}

/// `consumerStage(consumer, bytes)`: memory for `consumerPop` and `consumerRead`, or null.
pub(crate) fn stage(call: &Call<'_>) -> JsResult<Raw> {
    let end = consumer(call)?;
    let words = count(call.env, call.arg(1), "bytes")?.div_ceil(size_of::<u64>()).max(1);
    let stage: Arc<Stage> = (0..words).map(|_| AtomicU64::new(0)).collect();
    let at = stage.as_ptr().cast_mut().cast();
    let opened = buffer::outside_memory(call.env, call.state, at, size_of_val(&*stage), Box::new(Arc::clone(&stage)));
    if opened.is_some() {
        *end.stage.borrow_mut() = Some(stage);
    }
    Ok(opened.unwrap_or_else(|| call.env.null()))
}

/// Copies a record to a byte offset of the stage; where the next one begins.
fn put(stage: &Stage, at: usize, record: RecordRef<'_>) -> usize {
    let end = at + STAGE_HEADER + record.len();
    assert!(end <= size_of_val(stage), "a stage has room for the records that are asked for");
    let word = at / size_of::<u64>();
    stage[word].store(record.len() as u64 | u64::from(record.is_redelivered()) << 32, Ordering::Relaxed);
    stage[word + 1].store(record.delivery(), Ordering::Relaxed);
    // SAFETY: inside the stage, checked above.
    let payload = unsafe { stage.as_ptr().cast::<u8>().cast_mut().add(at + STAGE_HEADER) };
    // SAFETY: as above; the words are atomics, so they may be written through a shared reference, and JavaScript, which alone has
    // them too, does not run meanwhile.
    record.copy_to(unsafe { std::slice::from_raw_parts_mut(payload, record.len()) });
    end.next_multiple_of(size_of::<u64>())
}

fn staged<R>(call: &Call<'_>, pass: impl FnOnce(&mut Consumer, &Stage) -> Result<R>) -> JsResult<R> {
    let end = consumer(call)?;
    let stage = end.stage.borrow();
    let stage = stage.as_ref().ok_or_else(|| Error::invalid("consumer has no stage"))?;
    Ok(end.with(|side| pass(side, stage))?)
}

/// `consumerPop(consumer)`: stages the oldest record and lets go of it; false when there is none.
pub(crate) fn pop(call: &Call<'_>) -> JsResult<Raw> {
    let popped = staged(call, |side, stage| Ok(side.try_pop()?.map(|record| put(stage, STAGE_BEGIN, record.payload())).is_some()))?;
    call.env.boolean(popped)
}

/// `consumerRead(consumer, max)`: stages up to `max` records, and returns how many. They are this consumer's until `consumerReadDone`.
pub(crate) fn read(call: &Call<'_>) -> JsResult<Raw> {
    let max = count(call.env, call.arg(1), "max")?;
    let read = staged(call, |side, stage| {
        let mut at = STAGE_BEGIN;
        stage[STAGE_SEEN].store(0, Ordering::Relaxed);
        side.read_held(max, |record| at = put(stage, at, record))
    })?;
    consumer(call)?.reading.set(read);
    call.env.number(read as f64)
}

/// `consumerReadDone(consumer, unseen)`: lets go of what `consumerRead` staged; the last `unseen` records go to others.
pub(crate) fn read_done(call: &Call<'_>) -> JsResult<Raw> {
    let unseen = count(call.env, call.arg(1), "unseen")?;
    let end = consumer(call)?;
    end.reading.set(0);
    end.with(|side| side.end_read(unseen))?;
    Ok(call.env.undefined())
}

/// `consumerAck(consumer, delivery)`.
pub(crate) fn ack(call: &Call<'_>) -> JsResult<Raw> {
    end_delivery(call, Consumer::ack)
}

/// `consumerNack(consumer, delivery)`.
pub(crate) fn nack(call: &Call<'_>) -> JsResult<Raw> {
    end_delivery(call, Consumer::nack)
}

fn end_delivery(call: &Call<'_>, end: fn(&Consumer, u64) -> Result<()>) -> JsResult<Raw> {
    let delivery = count(call.env, call.arg(1), "delivery")?;
    consumer(call)?.with(|side| end(side, delivery as u64))?;
    Ok(call.env.undefined())
}

/// `consumerLost(consumer)`.
pub(crate) fn lost(call: &Call<'_>) -> JsResult<Raw> {
    let lost = consumer(call)?.with(|side| Ok(side.lost()))?;
    call.env.number(lost as f64)
}

/// `consumerRelease(consumer)`: lets go of the record that was shown.
pub(crate) fn release(call: &Call<'_>) -> JsResult<Raw> {
    consumer(call)?.with(|side| {
        side.release();
        Ok(())
    })?;
    Ok(call.env.undefined())
}

/// `ringLayout()`: where the words lie, from the core's own table.
pub(crate) fn layout(call: &Call<'_>) -> JsResult<Raw> {
    let facts = [
        ("seatsAt", layout::SEATS_AT),
        ("seatLength", layout::SEAT_LEN),
        ("state", layout::ring_word::STATE),
        ("members", layout::ring_word::MEMBERS),
        ("ready", layout::ring_word::READY),
        ("status", layout::seat_word::STATUS),
        ("role", layout::seat_word::ROLE),
        ("pid", layout::seat_word::PID),
        ("tail", layout::seat_word::TAIL),
        ("high", layout::seat_word::HIGH),
        ("committed", layout::seat_word::COMMITTED_AT),
        ("committedBit", layout::COMMITTED as usize),
        ("head", layout::seat_word::HEAD),
        ("seen", layout::seat_word::SEEN),
        ("waiting", layout::seat_word::WAITING),
        ("closed", layout::CLOSED as usize),
        ("poisoned", layout::POISONED as usize),
        ("live", layout::SEAT_LIVE as usize),
        ("recordHeader", layout::RECORD_HEADER as usize),
        ("align", layout::ALIGN as usize),
        ("data", layout::RECORD_DATA.into()),
        ("pad", layout::RECORD_PAD.into()),
        ("batchBytes", offloop::ring::BATCH_BYTES as usize),
        ("giveBack", offloop::ring::GIVE_BACK as usize),
        ("turn", offloop::ring::TURN as usize),
        ("lookAtAll", offloop::ring::LOOK_AT_ALL as usize),
        ("ownWords", OWN_WORDS),
        ("stageBegin", STAGE_BEGIN),
        ("stageHeader", STAGE_HEADER),
    ];
    value::to_js(call.env, call.state, Value::map(facts.map(|(name, fact)| (name, Value::Int(fact as i64)))))
}
