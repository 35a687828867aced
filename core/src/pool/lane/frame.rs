//! What a frame says: records, each of which is like a reply (its first byte tells whose form it has).
//!
//! ```text
//!  0 count (u32) │ 4 zero (u32) │ 8 length of each (u64) │ the records, each at a multiple of 64
//! ```

use super::worker::{Sent, Worker};
use crate::error::{Error, ErrorKind, Result};
use std::ops::Range;

/// Records begin at multiples of this, so that arrays in them are aligned.
const ALIGN: usize = 64;
/// Records that are kept for the next frame while the last one was not taken, and their bytes.
const AHEAD: usize = 64;
const AHEAD_BYTES: usize = 64 << 10;

/// The parts of a frame before its records, and between two: `head`, then each record followed by `padding(its length)`.
#[must_use]
pub fn head(lens: &[usize]) -> Vec<u8> {
    let mut head = Vec::with_capacity((8 + 8 * lens.len()).next_multiple_of(ALIGN));
    head.extend_from_slice(&(lens.len() as u64).to_le_bytes());
    lens.iter().for_each(|len| head.extend_from_slice(&(*len as u64).to_le_bytes()));
    head.resize(head.len().next_multiple_of(ALIGN), 0);
    head
}

/// What follows a record of this length.
#[must_use]
pub fn padding(len: usize) -> &'static [u8] {
    &[0; ALIGN][..len.next_multiple_of(ALIGN) - len]
}

/// Where the records of a frame are.
///
/// # Errors
/// `Corrupt`.
pub fn records(frame: &[u8]) -> Result<Vec<Range<usize>>> {
    // SAFETY: all of a slice.
    unsafe { records_at(frame.as_ptr(), frame.len()) }
}

/// As [`records`], of a frame that its worker may still be writing: each length is read once, and then judged.
///
/// # Errors
/// `Corrupt`.
///
/// # Safety
/// `frame` is readable for `frame_len` bytes.
pub unsafe fn records_at(frame: *const u8, frame_len: usize) -> Result<Vec<Range<usize>>> {
    let corrupt = || Error::new(ErrorKind::Corrupt, "frame contradicts its length").with("len", frame_len);
    let u64_at = |at: usize| {
        // SAFETY: inside of the frame, as is seen here.
        let word = (at + 8 <= frame_len).then(|| unsafe { frame.add(at).cast::<[u8; 8]>().read_volatile() })?;
        usize::try_from(u64::from_le_bytes(word)).ok()
    };
    // A record has a byte at least, and its length.
    let count = u64_at(0).filter(|n| *n <= frame_len / (ALIGN + 8) + 1).ok_or_else(corrupt)?;
    let mut at = (8 + 8 * count).next_multiple_of(ALIGN);
    let mut all = Vec::with_capacity(count);
    for i in 0..count {
        let len = u64_at(8 + 8 * i).filter(|n| (1..=frame_len).contains(n)).ok_or_else(corrupt)?;
        if at + len > frame_len {
            return Err(corrupt());
        }
        all.push(at..at + len);
        at = (at + len).next_multiple_of(ALIGN);
    }
    Ok(all)
}

/// What a job has to say and could not send yet.
#[derive(Debug)]
pub struct Records {
    index: usize,
    kept: Vec<Vec<u8>>,
    bytes: usize,
}

impl Records {
    /// Of the job of this number.
    #[must_use]
    pub fn new(index: usize) -> Records {
        Records { index, kept: Vec::new(), bytes: 0 }
    }

    /// Adds a record, and sends what there is if that can be done now. `Sent::NotYet`: there is room for more records; once
    /// [`is_full`](Self::is_full), [`Worker::wait_taken`] comes before the next.
    ///
    /// # Errors
    /// As [`Worker::try_frame`]: what there was is dropped, this record included.
    pub fn push(&mut self, worker: &Worker, record: Vec<u8>) -> Result<Sent> {
        self.keep(record);
        self.send(worker)
    }

    /// Adds a record, for the next [`send`](Self::send).
    pub fn keep(&mut self, record: Vec<u8>) {
        self.bytes += record.len();
        self.kept.push(record);
    }

    /// Has so much that the function is to wait.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.kept.len() >= AHEAD || self.bytes >= AHEAD_BYTES
    }

    /// Nothing waits to be sent.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Sends what there is, if that can be done now.
    ///
    /// # Errors
    /// As [`Worker::try_frame`]: what there was is dropped.
    pub fn send(&mut self, worker: &Worker) -> Result<Sent> {
        if self.kept.is_empty() {
            return Ok(if worker.is_streamed(self.index) { Sent::Sent } else { Sent::Stopped });
        }
        let lens: Vec<usize> = self.kept.iter().map(Vec::len).collect();
        let head = head(&lens);
        let mut parts: Vec<&[u8]> = vec![&head];
        self.kept.iter().for_each(|record| parts.extend([record.as_slice(), padding(record.len())]));
        let sent = worker.try_frame(self.index, &parts);
        if !matches!(sent, Ok(Sent::NotYet)) {
            self.kept.clear();
            self.bytes = 0;
        }
        sent
    }

    /// Sends what there is, and waits until that can be done. False if nobody takes it.
    ///
    /// # Errors
    /// As [`Worker::try_frame`]: what there was is dropped.
    pub fn flush(&mut self, worker: &Worker) -> Result<bool> {
        loop {
            match self.send(worker)? {
                Sent::Sent => return Ok(true),
                Sent::Stopped => return Ok(false),
                Sent::NotYet => drop(worker.wait_taken(self.index)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(records: &[&[u8]]) -> Vec<u8> {
        let lens: Vec<usize> = records.iter().map(|r| r.len()).collect();
        let mut all = head(&lens);
        records.iter().for_each(|r| all.extend([r, padding(r.len())].concat()));
        all
    }

    #[test]
    fn records_are_found_again_and_aligned() {
        let long = vec![7; 1000];
        for list in [vec![], vec![&b"y"[..]], vec![&b"a"[..], &long, b"z", &[1; 64]], vec![&b"x"[..]; 100]] {
            let frame = frame(&list);
            let found = records(&frame).expect("whole");
            assert_eq!(found.iter().map(|r| &frame[r.clone()]).collect::<Vec<_>>(), list);
            assert!(found.iter().all(|r| r.start.is_multiple_of(ALIGN)));
        }
    }

    #[test]
    fn a_frame_that_lies_is_refused() {
        let whole = frame(&[b"abc", b"defg"]);
        let lie = |at: usize, n: u64| {
            let mut bad = whole.clone();
            bad[at..at + 8].copy_from_slice(&n.to_le_bytes());
            bad
        };
        let bad = [
            vec![],
            vec![0; 7],
            lie(0, 100),
            lie(0, u64::MAX),
            lie(0, 1 << 61),
            lie(8, u64::MAX),
            lie(8, 0),
            lie(16, 65),
            [&[255, 1, 0, 0, 0, 0, 0, 0][..], &[0; 8000]].concat(),
            whole[..100].to_vec(),
        ];
        for bad in bad {
            assert_eq!(records(&bad).expect_err("refused").kind(), ErrorKind::Corrupt, "{bad:?}");
        }
    }
}
