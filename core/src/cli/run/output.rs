//! The last lines that workers have printed, for `offloop logs`.

use crate::cluster::{Line, Stream};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::lock;
use crate::sys::eventfd::EventFd;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

/// Lines that are kept, and their bytes.
pub(super) const KEPT_LINES: usize = 5000;
pub(super) const KEPT_BYTES: usize = 512 << 10;

/// A line as it is kept.
#[derive(Clone, Debug)]
struct Kept {
    slot: u32,
    generation: u32,
    pid: i32,
    stream: Stream,
    text: String,
}

#[derive(Default)]
struct Tail {
    lines: VecDeque<Kept>,
    bytes: usize,
    /// The number of the first of them; they count from 0 on.
    first: u64,
}

/// The last lines, which the thread of the logs adds to and the run process reads.
pub(super) struct Output {
    tail: Mutex<Tail>,
    /// Somebody wants to hear of each line.
    followed: AtomicBool,
    bell: Arc<EventFd>,
}

impl Output {
    pub(super) fn new(bell: Arc<EventFd>) -> Arc<Output> {
        Arc::new(Output { tail: Mutex::default(), followed: AtomicBool::new(false), bell })
    }

    pub(super) fn keep(&self, line: &Line<'_>) {
        let mut tail = lock(&self.tail);
        let text = String::from_utf8_lossy(line.bytes).into_owned();
        tail.bytes += text.len();
        tail.lines.push_back(Kept { slot: line.worker.slot, generation: line.worker.generation, pid: line.pid, stream: line.stream, text });
        while tail.lines.len() > KEPT_LINES || tail.bytes > KEPT_BYTES {
            let Some(gone) = tail.lines.pop_front() else { break };
            tail.bytes -= gone.text.len();
            tail.first += 1;
        }
        drop(tail);
        // Relaxed: who begins to follow reads what is there by then, and a line that is added later finds the flag or is found itself.
        if self.followed.load(Ordering::Relaxed) {
            self.bell.signal();
        }
    }

    pub(super) fn follow(&self, followed: bool) {
        self.followed.store(followed, Ordering::Relaxed);
    }

    /// The number of the line that is the `n`th from the end.
    pub(super) fn last(&self, n: usize) -> u64 {
        let tail = lock(&self.tail);
        tail.first + tail.lines.len().saturating_sub(n) as u64
    }

    /// The lines from that number on, and the number of the next one.
    pub(super) fn since(&self, n: u64) -> (Vec<Value>, u64) {
        let tail = lock(&self.tail);
        let skip = usize::try_from(n.saturating_sub(tail.first)).unwrap_or(usize::MAX);
        let of = |line: &Kept| {
            let stream = if line.stream == Stream::Out { "out" } else { "err" };
            json!({"slot": line.slot, "generation": line.generation, "pid": line.pid, "stream": stream, "text": line.text})
        };
        (tail.lines.iter().skip(skip).map(of).collect(), tail.first + tail.lines.len() as u64)
    }

    /// The last words of a generation's workers on their error output, as further lines of an error.
    pub(super) fn words(&self, generation: u32) -> String {
        let tail = lock(&self.tail);
        let said = tail.lines.iter().rev().filter(|line| line.generation == generation && line.stream == Stream::Err);
        let mut lines: Vec<&str> = said.take(8).map(|line| line.text.as_str()).collect();
        lines.reverse();
        lines.iter().map(|line| format!("\n  | {line}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept_and_not_more() {
        let bell = Arc::new(EventFd::new().expect("bell"));
        let output = Output::new(Arc::clone(&bell));
        for n in 0..KEPT_LINES + 10 {
            output.keep(&Line::sample(format!("line {n}").as_bytes(), Stream::Out));
        }
        assert!(!bell.clear(), "nobody follows");
        output.follow(true);
        output.keep(&Line::sample(b"last \xff", Stream::Err));
        assert!(bell.clear());
        let (lines, next) = output.since(output.last(2));
        assert_eq!((lines.len(), next), (2, KEPT_LINES as u64 + 11));
        assert_eq!(lines[1], json!({"slot": 2, "generation": 3, "pid": 77, "stream": "err", "text": "last \u{fffd}"}));
        assert_eq!(output.since(0).0.len(), KEPT_LINES);
        assert_eq!(output.since(next).0.len(), 0);
        assert_eq!((output.words(3), output.words(4)), ("\n  | last \u{fffd}".to_owned(), String::new()));
        output.keep(&Line::sample(&vec![b'x'; KEPT_BYTES], Stream::Out));
        assert_eq!(output.since(0).0.len(), 1, "bytes count, too");
    }
}
