//! Lines that wait for a host that hears of them in a loop of its own.

use super::logs::Line;
use crate::error::{Error, ErrorKind};

/// Bytes of lines that wait for a host's loop, each line counted with [`WITH_EACH`] more.
pub const MAX_BACKLOG: usize = 1 << 20;
/// What is counted of a line beside its bytes.
pub const WITH_EACH: usize = 64;

/// Counts what waits. No worker waits for such a host, which may itself be waiting for that worker: a line that has no room is left out, as are those after it, until half of what
/// waits was taken; then the host is told how many.
#[derive(Debug, Default)]
pub struct Backlog {
    bytes: usize,
    left_out: u64,
    closed: bool,
}

impl Backlog {
    /// What this line takes until it is [released](Self::release); `None` if it is left out.
    pub fn admit(&mut self, line: &Line<'_>) -> Option<usize> {
        let cost = line.bytes.len() + WITH_EACH;
        if self.closed {
            return None;
        }
        if self.left_out > 0 || self.bytes + cost > MAX_BACKLOG {
            self.left_out += 1;
            return None;
        }
        self.bytes += cost;
        Some(cost)
    }

    /// The host has heard so much: what it is to be warned of.
    pub fn release(&mut self, cost: usize) -> Option<Error> {
        self.bytes = self.bytes.saturating_sub(cost);
        if self.bytes <= MAX_BACKLOG / 2 { self.warning() } else { None }
    }

    /// The host has taken all that waits: the same.
    pub fn taken(&mut self) -> Option<Error> {
        self.release(self.bytes)
    }

    /// No line comes any more: the same.
    pub fn close(&mut self) -> Option<Error> {
        self.closed = true;
        self.warning()
    }

    fn warning(&mut self) -> Option<Error> {
        let lines = std::mem::take(&mut self.left_out);
        let error = || Error::new(ErrorKind::Full, "lines of workers were left out, which the host has not taken in time");
        (lines > 0).then(|| error().with("lines", lines).with("max_bytes", MAX_BACKLOG))
    }
}

#[cfg(test)]
mod tests {
    use super::super::logs::Stream;
    use super::*;

    #[test]
    fn what_has_no_room_is_left_out_and_counted() {
        let bytes = vec![b'x'; 1000];
        let line = Line::sample(&bytes, Stream::Out);
        let mut backlog = Backlog::default();
        let admit = |backlog: &mut Backlog, n: usize| (0..n).filter(|_| backlog.admit(&line).is_some()).count();
        let fit = MAX_BACKLOG / (1000 + WITH_EACH);
        assert_eq!(admit(&mut backlog, fit + 7), fit);
        // In order: a short one does not pass them.
        assert_eq!(backlog.admit(&Line::sample(b"", Stream::Err)), None);
        assert_eq!(backlog.release(1000 + WITH_EACH), None);
        assert_eq!(admit(&mut backlog, 1), 0);
        let told = backlog.taken().expect("a warning").to_string();
        assert!(told.contains("lines=9, max_bytes=1048576"), "{told}");
        assert_eq!(backlog.taken(), None);
        assert_eq!(admit(&mut backlog, fit + 1), fit);
        assert!(backlog.close().expect("a warning").to_string().contains("lines=1,"));
        assert_eq!(admit(&mut backlog, 1), 0);
        assert_eq!(backlog.close(), None);
    }
}
