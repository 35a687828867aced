//! Another process's metrics.

use super::Snapshot;
use super::pool::Sums;
use crate::error::{Error, ErrorKind, Result};
use crate::sync::mapped::Ordering;
use crate::sys::clock;
use crate::sys::words::{Words, open_readonly};
use crate::wire::metrics::{Header, header_word};
use std::fs::File;
use std::path::Path;

/// A read-only view of a pool's metrics, for example in another process. Its writer may die at any time; the last
/// numbers stay readable.
#[derive(Debug)]
pub struct Reader {
    words: Words,
    header: Header,
}

impl Reader {
    /// Opens a region by path, for example `/proc/<pid>/fd/<n>`.
    ///
    /// # Errors
    /// `NotFound`, `Os`, and those of [`Reader::attach`].
    pub fn open(path: impl AsRef<Path>) -> Result<Reader> {
        Reader::attach(&open_readonly(path.as_ref())?)
    }

    /// Maps a region; the file may be closed afterwards.
    ///
    /// # Errors
    /// `Invalid` when it is not a memfd with a sealed size, `Corrupt` when it is no metrics region, `Version` when it has
    /// another layout, `Os`.
    pub fn attach(file: &File) -> Result<Reader> {
        let words = Words::attach(file)?;
        let header = Reader::header_of(&words)?;
        Ok(Reader { words, header })
    }

    /// Validates a private copy of the header: what the writer changes later changes nothing here.
    fn header_of(words: &Words) -> Result<Header> {
        let all = words.as_slice();
        if all.len() < 32 {
            return Err(Error::new(ErrorKind::Corrupt, "region is too short").with("len", all.len() * 8));
        }
        // Acquire: with the magic, the rest of the header is there. Pairs with `PoolMetrics::create`.
        let magic = all[header_word::MAGIC].load(Ordering::Acquire);
        let mut copy = [0u8; 256];
        for (to, word) in copy.as_chunks_mut::<8>().0.iter_mut().zip(all) {
            *to = word.load(Ordering::Relaxed).to_le_bytes();
        }
        copy[..8].copy_from_slice(&magic.to_le_bytes());
        Header::decode(&copy, words.byte_len())
    }

    /// Whose metrics they are.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The pool's numbers now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.sums().snapshot(clock::monotonic_ns().saturating_sub(self.header.created_mono_ns))
    }

    pub(super) fn sums(&self) -> Sums {
        let used = (self.words.as_slice()[header_word::SHARDS_USED].load(Ordering::Relaxed) >> 32) as usize;
        // `used` is the one field that grows; the bound is the copy that was validated.
        let used = used.clamp(1, self.header.shards as usize);
        Sums::of_region(self.words.as_slice(), self.header.header_len as usize, self.header.shard_len as usize, used)
    }
}
