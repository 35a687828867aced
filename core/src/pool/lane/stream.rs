//! What a task says while it runs, in order and without loss: a *stream* of frames.
//!
//! ```text
//!  caller                     pool                                 worker
//!  ──────                     ────                                 ──────
//!                             read_frame, deliver  ◄── frames + 1 ── try_frame
//!  take ───────────────────►  answer ── taken ────────────────────► the next one may come
//! ```
//!
//! One frame is with the caller's side until it was taken: whoever is slow to take holds up the function, and nothing piles up. A frame has
//! several records, so that a function that is faster than the way there and back is not held up by it: [`frame`](super::frame).
//!
//! | Pair                        | Release                         | Acquire                       |
//! |-----------------------------|---------------------------------|-------------------------------|
//! | a frame and its place       | `Worker::try_frame` (`frames`)  | `Lane::read_frame`            |
//! | "it was taken", "stop"      | `Lane::answer` (`taken`)        | `Worker::taken`               |
//! | "I wait" and "it was taken" | fences (SeqCst) in `Worker::listen` and `Lane::answer`          |

use super::frame;
use super::host::Lane;
use crate::error::{Error, ErrorKind, Result};
use crate::pool::task::Task;
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::lock;
use crate::sys::futex;
use crate::value::Value;
use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

/// Takes the frames of one task; see [`Request::streaming`](super::Request::streaming). Clones are the same stream.
#[derive(Clone)]
pub struct Stream(Arc<Shared>);

struct Shared {
    told: Box<dyn Fn() + Send + Sync>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Each with the run that it is of.
    frames: VecDeque<(u64, Value)>,
    /// How often its task was sent.
    runs: u64,
    /// Where its task was sent last.
    source: Option<Source>,
    stopped: bool,
}

#[derive(Clone)]
struct Source {
    lane: Weak<Lane>,
    index: usize,
    given: u64,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").finish_non_exhaustive()
    }
}

impl Stream {
    /// `told` is called when a frame is there, on a thread that works for the pool: it is short, and calls nothing of the pool but this
    /// stream. The task's outcome comes as of any other task, after its last frame.
    #[must_use]
    pub fn new(told: Box<dyn Fn() + Send + Sync>) -> Stream {
        Stream(Arc::new(Shared { told, state: Mutex::default() }))
    }

    /// The next frame, `Bytes` or a `Buffer` where it is long, if it is there. Its worker may send another one from now on.
    #[must_use]
    pub fn take(&self) -> Option<Value> {
        let (frame, source) = {
            let mut state = lock(&self.0.state);
            let (run, frame) = state.frames.pop_front()?;
            // A worker that was lost waits for no answer.
            (frame, state.source.clone().filter(|_| run == state.runs))
        };
        if let Some(source) = source {
            source.answer(false);
        }
        Some(frame)
    }

    /// Nobody takes any more: frames that are there are dropped, and the function hears of it when it sends the next one, and when it looks.
    /// The task goes on until it ends.
    pub fn stop(&self) {
        let (frames, source) = {
            let mut state = lock(&self.0.state);
            state.stopped = true;
            (std::mem::take(&mut state.frames), state.source.clone())
        };
        drop(frames);
        if let Some(source) = source {
            source.answer(true);
        }
    }

    fn is_stopped(&self) -> bool {
        lock(&self.0.state).stopped
    }

    /// Its task was sent: in which run, and whether nobody takes its frames any more.
    pub(super) fn begin(&self, lane: Weak<Lane>, index: usize, given: u64) -> (u64, bool) {
        let mut state = lock(&self.0.state);
        state.source = Some(Source { lane, index, given });
        state.runs += 1;
        (state.runs, state.stopped)
    }

    pub(super) fn deliver(&self, run: u64, frame: Value) {
        {
            let mut state = lock(&self.0.state);
            if state.stopped {
                return;
            }
            state.frames.push_back((run, frame));
        }
        (self.0.told)();
    }
}

impl Source {
    fn answer(&self, stop: bool) {
        if let Some(lane) = self.lane.upgrade() {
            lane.answer(self.index, self.given, stop);
        }
    }
}

/// A task with its stream, for a thread that waits for one record after the other. Dropped before its end, it cancels the task.
#[derive(Debug)]
pub struct Streamed {
    task: Task,
    stream: Stream,
    news: Arc<News>,
    open: Mutex<Option<Open>>,
}

/// Bumped by each frame and by the outcome.
#[derive(Debug, Default)]
struct News(AtomicU32);

impl News {
    fn tell(&self) {
        self.0.fetch_add(1, Ordering::Release);
        futex::wake(&self.0, u32::MAX);
    }
}

/// A frame, and what of it was not read yet.
#[derive(Debug)]
struct Open {
    frame: Vec<u8>,
    records: VecDeque<Range<usize>>,
}

impl Streamed {
    /// `submit` gets the stream for its request.
    pub(in crate::pool) fn new<E>(submit: impl FnOnce(&Stream) -> Result<Task, E>) -> Result<Streamed, E> {
        let news = Arc::new(News::default());
        let stream = Stream::new({
            let news = Arc::clone(&news);
            Box::new(move || news.tell())
        });
        let task = submit(&stream)?;
        task.on_done_inline({
            let news = Arc::clone(&news);
            move |_| news.tell()
        });
        Ok(Streamed { task, stream, news, open: Mutex::new(None) })
    }

    /// The task: to cancel it, and its outcome after the last record.
    #[must_use]
    pub fn task(&self) -> &Task {
        &self.task
    }

    /// Reads the next record; `None` when there are no more, and the task has its outcome.
    ///
    /// # Errors
    /// `Timeout` of this wait: the next call waits for the same record. `Corrupt`.
    pub fn next<R>(&self, timeout: Option<Duration>, read: impl FnOnce(&[u8]) -> R) -> Result<Option<R>> {
        let end = timeout.and_then(|t| Instant::now().checked_add(t));
        let mut open = lock(&self.open);
        loop {
            if self.stream.is_stopped() {
                *open = None;
            }
            if let Some(Open { frame, records }) = &mut *open
                && let Some(range) = records.pop_front()
            {
                return Ok(Some(read(&frame[range])));
            }
            // Before the look: what comes after it changes this.
            let seen = self.news.0.load(Ordering::Acquire);
            let is_done = self.task.is_done();
            if let Some(frame) = self.stream.take() {
                // Its worker may still write it.
                let frame = match frame {
                    Value::Buffer(buffer) => buffer.to_vec()?,
                    other => other.into_bytes()?.into_vec(),
                };
                let records = frame::records(&frame)?.into();
                *open = Some(Open { frame, records });
                continue;
            }
            *open = None;
            if is_done {
                return Ok(None);
            }
            let left = end.map(|e| e.saturating_duration_since(Instant::now()));
            if left.is_some_and(|l| l.is_zero()) {
                return Err(Error::new(ErrorKind::Timeout, "the task has said nothing more yet")
                    .with("waited_ms", timeout.unwrap_or_default().as_secs_f64() * 1e3));
            }
            futex::wait(&self.news.0, seen, left);
        }
    }

    /// As a drop before the end: the task is cancelled.
    pub fn cancel(&self) {
        if !self.task.is_done() {
            self.stream.stop();
            self.task.cancel();
        }
    }

    /// Nobody reads any more, and what was not read is dropped: the function hears of it, and the task ends when the function has.
    pub fn stop(&self) {
        self.stream.stop();
    }
}

impl Drop for Streamed {
    fn drop(&mut self) {
        self.cancel();
    }
}
