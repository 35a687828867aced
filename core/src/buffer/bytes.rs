//! Read-only bytes of one task.

use crate::buffer::Region;
use crate::error::{Error, Result};
use std::any::Any;
use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

/// Bytes that do not change and do not move while they are borrowed: the input of an op, or its result.
pub struct Bytes(Repr);

enum Repr {
    Vec(Vec<u8>),
    Static(&'static [u8]),
    Region(Arc<Region>, usize),
    Part(Arc<Bytes>, Range<usize>),
    Foreign { ptr: *const u8, len: usize, _guard: Box<dyn Any + Send> },
}

// SAFETY: `Foreign` points at memory that its guard keeps alive and that nobody writes (contract of `from_foreign`);
// the guard itself is `Send`. Everything else is `Send` by its own right.
unsafe impl Send for Bytes {}
// SAFETY: shared access only reads, and the guard is not reachable through `&Bytes`.
unsafe impl Sync for Bytes {}

impl Bytes {
    /// Bytes of a host (immutable Python `bytes`, a C buffer with a free function) that are borrowed until drop.
    ///
    /// # Safety
    /// `ptr..ptr+len` stays readable and unwritten until `guard` is dropped; `guard` may be dropped on any thread.
    pub unsafe fn from_foreign(ptr: *const u8, len: usize, guard: Box<dyn Any + Send>) -> Bytes {
        if len == 0 { Bytes(Repr::Static(&[])) } else { Bytes(Repr::Foreign { ptr, len, _guard: guard }) }
    }

    /// Static bytes.
    #[must_use]
    pub const fn from_static(bytes: &'static [u8]) -> Bytes {
        Bytes(Repr::Static(bytes))
    }

    pub(crate) fn from_region(region: Arc<Region>, len: usize) -> Bytes {
        Bytes(Repr::Region(region, len))
    }

    /// A part of `whole`, which lives as long as any part. Parts of one whole never overlap, and nobody uses the whole meanwhile:
    /// so who owns a part of private memory may write it, as [`is_private`](Self::is_private) says.
    pub(crate) fn part(whole: &Arc<Bytes>, range: Range<usize>) -> Bytes {
        assert!(range.start <= range.end && range.end <= whole.len(), "a part lies inside its whole");
        Bytes(Repr::Part(whole.clone(), range))
    }

    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        match &self.0 {
            Repr::Vec(v) => v,
            Repr::Static(s) => s,
            // SAFETY: a region inside `Bytes` has no other owner that writes (it was moved in, or copied when a peer
            // could write it), and `len` is at most the region's length.
            Repr::Region(r, len) => unsafe { std::slice::from_raw_parts(r.as_ptr(), *len) },
            Repr::Part(whole, range) => &whole[range.clone()],
            // SAFETY: contract of `from_foreign`.
            Repr::Foreign { ptr, len, .. } => unsafe { std::slice::from_raw_parts(*ptr, *len) },
        }
    }

    /// The bytes as a region that nobody else has: moved where they own their memory whole, else copied.
    pub(crate) fn into_region(self) -> Result<Arc<Region>> {
        match self.0 {
            Repr::Region(region, len) if len == region.len() && Arc::strong_count(&region) == 1 => Ok(region),
            Repr::Vec(mut v) => {
                let (ptr, len) = (v.as_mut_ptr(), v.len());
                // SAFETY: the vector is the guard; moving it does not move its allocation.
                Ok(unsafe { Region::foreign(ptr, len, Box::new(v)) })
            }
            Repr::Part(ref whole, ref range) if whole.is_private() => {
                let (ptr, len) = (whole[range.clone()].as_ptr().cast_mut(), range.len());
                // SAFETY: the part is the guard and keeps its whole; parts do not overlap, so this one is ours to write.
                Ok(unsafe { Region::foreign(ptr, len, Box::new(self)) })
            }
            other => {
                let bytes = Bytes(other);
                let region = Region::heap_for_overwrite(bytes.len())?;
                // SAFETY: the region is new, ours alone and at least `bytes.len()` long.
                unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), region.as_ptr(), bytes.len()) };
                Ok(region)
            }
        }
    }

    /// Whoever owns this owns the memory and may write it: a vector, or a buffer that was moved in. Not static, and not a host's.
    #[must_use]
    pub fn is_private(&self) -> bool {
        match &self.0 {
            Repr::Vec(_) => true,
            Repr::Region(r, _) => !r.is_exported(),
            Repr::Part(whole, _) => whole.is_private(),
            Repr::Static(_) | Repr::Foreign { .. } => false,
        }
    }

    /// The bytes as a vector; free when they are one already.
    #[must_use]
    pub fn into_vec(self) -> Vec<u8> {
        match self.0 {
            Repr::Vec(v) => v,
            _ => self.as_slice().to_vec(),
        }
    }
}

/// A copy of what may be as long as memory: a host is not to die of it.
///
/// # Errors
/// `Os` (`ENOMEM`).
pub(crate) fn copied(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    append(&mut out, bytes)?;
    Ok(out)
}

/// As [`copied`], for a text.
pub(crate) fn copied_text(text: &str) -> Result<String> {
    let mut out = String::new();
    out.try_reserve_exact(text.len()).map_err(|_| no_memory(text.len()))?;
    out.push_str(text);
    Ok(out)
}

/// Appends a copy to `out`.
///
/// # Errors
/// `Os` (`ENOMEM`); `out` is then as it was.
pub(crate) fn append(out: &mut Vec<u8>, bytes: &[u8]) -> Result<()> {
    reserve(out, bytes.len())?;
    out.extend_from_slice(bytes);
    Ok(())
}

/// Makes room in `out` for so many more bytes.
///
/// # Errors
/// `Os` (`ENOMEM`).
#[inline]
pub(crate) fn reserve(out: &mut Vec<u8>, len: usize) -> Result<()> {
    out.try_reserve(len).map_err(|_| no_memory(len))
}

#[cold]
fn no_memory(len: usize) -> Error {
    Error::os("malloc", libc::ENOMEM).with("len", len)
}

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.as_slice()
    }
}
impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}
impl From<Vec<u8>> for Bytes {
    fn from(v: Vec<u8>) -> Bytes {
        Bytes(Repr::Vec(v))
    }
}
impl From<&[u8]> for Bytes {
    fn from(v: &[u8]) -> Bytes {
        Bytes(Repr::Vec(v.to_vec()))
    }
}
impl Default for Bytes {
    fn default() -> Bytes {
        Bytes::from_static(&[])
    }
}
impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({} B)", self.len())
    }
}
