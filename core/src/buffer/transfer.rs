//! [`TransferBuffer`]: bytes with one owner.

use crate::buffer::token::{self, TransferToken};
use crate::buffer::{Bytes, Region};
use crate::error::{Error, ErrorKind, Result};
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::Arc;

/// Longest buffer: 1 PiB, so that a negative number that became a size is refused before anything is allocated.
pub const MAX_LEN: usize = 1 << 50;

/// Bytes with one owner. `transfer` moves them; the old handle is then *detached* and has length 0.
///
/// States: Owned (heap) or Shared (a memfd, allocated in full and sealed) → Detached, which is the default.
///
/// ```
/// use offloop::{ErrorKind, TransferBuffer};
/// let mut b = TransferBuffer::from_slice(b"hello")?;
/// let token = b.transfer()?;
/// assert!(b.is_detached() && b.len() == 0);
/// let b2 = TransferBuffer::receive(token)?;
/// assert_eq!(b2.to_vec()?, b"hello");
/// assert_eq!(TransferBuffer::receive(token).unwrap_err().kind(), ErrorKind::Detached);
/// # Ok::<(), offloop::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct TransferBuffer {
    region: Option<Arc<Region>>,
}

fn check_len(len: usize) -> Result<()> {
    if len > MAX_LEN {
        return Err(Error::new(ErrorKind::TooLarge, "buffer is longer than the limit").with("len", len).with("max_len", MAX_LEN));
    }
    Ok(())
}

impl TransferBuffer {
    /// Zeroed bytes on the heap.
    ///
    /// # Errors
    /// `TooLarge` above [`MAX_LEN`], `Os` (`ENOMEM`).
    pub fn alloc(len: usize) -> Result<TransferBuffer> {
        check_len(len)?;
        Ok(TransferBuffer { region: Some(Region::heap(len)?) })
    }

    /// Zeroed bytes in a sealed memfd, which another process can map through [`fd`](Self::fd).
    ///
    /// # Errors
    /// `TooLarge` above [`MAX_LEN`], `Os` (`ENOSPC`, `ENOMEM`, `EMFILE`).
    pub fn alloc_shared(len: usize) -> Result<TransferBuffer> {
        check_len(len)?;
        Ok(TransferBuffer { region: Some(Region::shared(len)?) })
    }

    /// A heap copy of `bytes`.
    ///
    /// # Errors
    /// `Os` (`ENOMEM`).
    pub fn from_slice(bytes: &[u8]) -> Result<TransferBuffer> {
        let region = Region::heap_for_overwrite(bytes.len())?;
        // SAFETY: the region is new, ours alone and at least `bytes.len()` long.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), region.as_ptr(), bytes.len()) };
        Ok(TransferBuffer { region: Some(region) })
    }

    /// A buffer of bytes, moved where they own their memory, copied where they only borrow it.
    ///
    /// # Errors
    /// `Os` (`ENOMEM`) when they had to be copied.
    pub fn from_bytes(bytes: Bytes) -> Result<TransferBuffer> {
        Ok(TransferBuffer { region: Some(bytes.into_region()?) })
    }

    /// A buffer of the host's memory, without a copy. Dropping `guard` gives the memory back.
    ///
    /// # Safety
    /// `ptr..ptr+len` stays valid and is touched by nobody else until `guard` is dropped; `guard` may be dropped on any thread.
    #[must_use]
    pub unsafe fn from_foreign(ptr: *mut u8, len: usize, guard: Box<dyn std::any::Any + Send>) -> TransferBuffer {
        // SAFETY: this function's contract.
        TransferBuffer { region: Some(unsafe { Region::foreign(ptr, len, guard) }) }
    }

    /// A buffer of mapped memory that a peer may write, without a copy. Dropping `guard` gives the memory back.
    ///
    /// # Safety
    /// `ptr..ptr+len` stays mapped until `guard` is dropped; `guard` may be dropped on any thread.
    pub(crate) unsafe fn from_mapped(ptr: *mut u8, len: usize, guard: Box<dyn std::any::Any + Send>) -> TransferBuffer {
        // SAFETY: this function's contract.
        TransferBuffer { region: Some(unsafe { Region::mapped(ptr, len, guard) }) }
    }

    /// Maps a sealed memfd of another process, who may still write it.
    ///
    /// # Errors
    /// `Invalid` when `fd` is no sealed memfd; `TooLarge` when it is longer than the machine's memory and swap or `RLIMIT_AS`; `Os`.
    pub fn attach(fd: BorrowedFd<'_>) -> Result<TransferBuffer> {
        Ok(TransferBuffer { region: Some(Region::attach(fd)?) })
    }

    fn region(&self) -> Result<&Arc<Region>> {
        let region = self.region.as_ref().ok_or_else(|| Error::new(ErrorKind::Detached, "buffer was transferred"))?;
        if region.is_shared() && region.is_forked() {
            return Err(Error::new(ErrorKind::Forked, "shared buffer belongs to the parent of this forked process"));
        }
        Ok(region)
    }

    /// Bytes; 0 when detached.
    #[must_use]
    pub fn len(&self) -> usize {
        self.region.as_ref().map_or(0, |r| r.len())
    }

    /// No bytes, or detached.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Was transferred.
    #[must_use]
    pub fn is_detached(&self) -> bool {
        self.region.is_none()
    }

    /// The memfd of a shared buffer; valid while this process keeps the buffer, so duplicate it to keep it longer.
    /// Once asked for, a peer is taken to write the bytes: ops copy them first.
    #[must_use]
    pub fn fd(&self) -> Option<RawFd> {
        self.region().ok()?.export_fd()
    }

    /// First byte and length, for a face that makes a host view. The view keeps the region alive.
    ///
    /// # Errors
    /// `Detached`, `Forked`.
    pub fn view(&self) -> Result<(Arc<Region>, *mut u8, usize)> {
        let r = self.region()?;
        Ok((r.clone(), r.as_ptr(), r.len()))
    }

    /// The `len` bytes from `at` on as a buffer of their own, which keeps all of this one's memory; somebody else may write them.
    ///
    /// # Errors
    /// `Detached`, `Forked`; `Invalid` for bytes that it does not have.
    pub fn part(&self, at: usize, len: usize) -> Result<TransferBuffer> {
        let region = self.region()?;
        if len > region.len() || at > region.len() - len {
            return Err(Error::invalid("part lies outside of its buffer").with("at", at).with("len", len).with("max", region.len()));
        }
        // SAFETY: inside of the region, as checked, which the guard keeps.
        Ok(unsafe { TransferBuffer::from_mapped(region.as_ptr().add(at), len, Box::new(Arc::clone(region))) })
    }

    /// A copy of the bytes.
    ///
    /// # Errors
    /// `Detached`, `Forked`, `Os` (`ENOMEM`).
    pub fn to_vec(&self) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        self.append_to(&mut out)?;
        Ok(out)
    }

    /// Appends a copy of the bytes.
    ///
    /// # Errors
    /// `Detached`, `Forked`, `Os` (`ENOMEM`).
    pub fn append_to(&self, out: &mut Vec<u8>) -> Result<()> {
        let r = self.region()?;
        out.try_reserve(r.len()).map_err(|_| Error::os("malloc", libc::ENOMEM).with("len", r.len()))?;
        // SAFETY: the region has `len` readable bytes, `out` has room; no reference to memory that a peer may write.
        unsafe {
            std::ptr::copy_nonoverlapping(r.as_ptr(), out.as_mut_ptr().add(out.len()), r.len());
            out.set_len(out.len() + r.len());
        }
        Ok(())
    }

    /// Copies `src` into the buffer at `offset`.
    ///
    /// # Errors
    /// `Invalid` when it does not fit, `Detached`, `Forked`.
    pub fn write_at(&mut self, offset: usize, src: &[u8]) -> Result<()> {
        let r = self.region()?;
        if offset.checked_add(src.len()).is_none_or(|end| end > r.len()) {
            return Err(Error::invalid("write is outside the buffer")
                .with("offset", offset)
                .with("src_len", src.len())
                .with("len", r.len()));
        }
        // SAFETY: bounds checked above; `&mut self` is the one owner, and the memory is never behind a reference here.
        unsafe { std::ptr::copy_nonoverlapping(src.as_ptr(), r.as_ptr().add(offset), src.len()) };
        Ok(())
    }

    /// A copy in a sealed memfd.
    ///
    /// # Errors
    /// `Detached`, `Forked`, `Os` (`ENOMEM`, `EMFILE`).
    pub fn to_shared(&self) -> Result<TransferBuffer> {
        let from = self.region()?;
        let to = Region::shared(from.len())?;
        // SAFETY: both regions have this many bytes, the new one is ours alone; no reference to memory that a peer may write.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.as_ptr(), from.len()) };
        Ok(TransferBuffer { region: Some(to) })
    }

    /// Moves the bytes out of this handle, which is detached from now on.
    ///
    /// # Errors
    /// `Detached`, `Forked`; the buffer is then untouched.
    pub fn transfer(&mut self) -> Result<TransferToken> {
        self.region()?;
        let region = self.region.take().expect("checked above");
        token::issue(region).map_err(|(e, region)| {
            self.region = Some(region);
            e
        })
    }

    /// Takes the bytes behind a token.
    ///
    /// # Errors
    /// `Detached` for a used or revoked token, `Invalid` for a foreign or made-up one.
    pub fn receive(token: TransferToken) -> Result<TransferBuffer> {
        Ok(TransferBuffer { region: Some(token::take(token)?) })
    }

    /// Moves the bytes into the input of a task, without a copy unless a peer may write them.
    ///
    /// # Errors
    /// `Detached`, `Forked`.
    pub fn into_bytes(mut self) -> Result<Bytes> {
        self.take_bytes()
    }

    /// As [`into_bytes`](Self::into_bytes), and detaches this handle. On error it is untouched.
    ///
    /// # Errors
    /// `Detached`, `Forked`.
    pub fn take_bytes(&mut self) -> Result<Bytes> {
        // SAFETY: `&mut self`, and the handle is detached right away.
        let bytes = unsafe { self.lend() }?;
        self.detach();
        Ok(bytes)
    }

    /// The bytes for a task that may yet be refused: this handle keeps them until [`detach`](Self::detach). A copy where
    /// a peer may write them.
    ///
    /// # Errors
    /// `Detached`, `Forked`.
    ///
    /// # Safety
    /// Nobody writes the memory, through this handle or a view of it, until the handle is detached or the bytes are dropped.
    pub unsafe fn lend(&self) -> Result<Bytes> {
        let region = self.region()?;
        if region.is_exported() {
            return Ok(self.to_vec()?.into());
        }
        Ok(Bytes::from_region(region.clone(), region.len()))
    }

    /// Gives the bytes up: what was lent goes on, this handle is detached.
    pub fn detach(&mut self) {
        self.region = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_copy_without_memory_is_an_error() {
        // SAFETY: no vector is as long as this claims to be, so nothing is read.
        let b = unsafe { TransferBuffer::from_foreign(std::ptr::null_mut(), usize::MAX, Box::new(())) };
        assert_eq!(b.to_vec().expect_err("no memory").errno(), Some((libc::ENOMEM, "malloc")));
    }

    #[test]
    fn transfer_detaches_and_is_one_shot() {
        let mut b = TransferBuffer::from_slice(b"abc").expect("alloc");
        let t = b.transfer().expect("transfer");
        assert!(b.is_detached());
        assert_eq!(b.transfer().expect_err("detached").kind(), ErrorKind::Detached);
        let text = t.to_string();
        let c = TransferBuffer::receive(text.parse().expect("token")).expect("receive");
        assert_eq!(c.to_vec().expect("bytes"), b"abc");
        assert_eq!(TransferBuffer::receive(t).expect_err("used").kind(), ErrorKind::Detached);
    }

    #[test]
    fn a_part_keeps_the_memory_of_its_buffer_and_is_copied_before_it_is_read() {
        let whole = TransferBuffer::from_slice(b"0123456789").expect("alloc");
        let part = whole.part(3, 4).expect("inside");
        let at = whole.view().expect("view").1;
        drop(whole);
        assert_eq!(part.to_vec().expect("bytes"), b"3456");
        assert_eq!(part.view().expect("view").1 as usize, at as usize + 3);
        // SAFETY: nobody writes it.
        let lent = unsafe { part.lend() }.expect("copied");
        assert_ne!(lent.as_slice().as_ptr() as usize, at as usize + 3);
        for (at, len) in [(3, 2), (5, 0), (usize::MAX, 2), (0, usize::MAX)] {
            assert_eq!(part.part(at, len).expect_err("outside").kind(), ErrorKind::Invalid, "{at} {len}");
        }
        assert_eq!(part.part(4, 0).expect("nothing").len(), 0);
    }

    #[test]
    fn lent_bytes_stay_until_the_handle_is_detached() {
        let mut b = TransferBuffer::from_slice(b"abc").expect("alloc");
        // SAFETY: nobody writes the buffer in this test.
        let refused = unsafe { b.lend() }.expect("lend");
        drop(refused);
        assert_eq!(b.to_vec().expect("kept"), b"abc");
        // SAFETY: as above.
        let taken = unsafe { b.lend() }.expect("lend");
        b.detach();
        assert!(b.is_detached());
        assert_eq!(&taken[..], b"abc");
        assert!(taken.is_private());
    }

    #[test]
    fn foreign_and_forged_tokens_are_invalid() {
        let mut b = TransferBuffer::from_slice(b"abc").expect("alloc");
        let t = b.transfer().expect("transfer");
        let text = t.to_string();
        let forged = format!("{}{}", &text[..text.len() - 1], if text.ends_with('0') { '1' } else { '0' });
        let foreign = text.replacen(&text[4..20], "0123456789abcdef", 1);
        for bad in [&forged, &foreign, "", "olt-1-2", "olt-x-1-1", "olt-1-1-1-1"] {
            let e = bad.parse().and_then(TransferBuffer::receive).expect_err(bad);
            assert_eq!(e.kind(), ErrorKind::Invalid, "{bad}");
        }
        revoke(t);
    }

    fn revoke(t: TransferToken) {
        crate::buffer::revoke_token(t).expect("revoke");
        assert_eq!(crate::buffer::revoke_token(t).expect_err("twice").kind(), ErrorKind::Detached);
    }

    #[test]
    fn shared_buffer_is_seen_by_whoever_attaches() {
        let mut b = TransferBuffer::alloc_shared(100_000).expect("alloc");
        b.write_at(99_997, b"end").expect("write");
        // SAFETY: `b` keeps the fd open for the borrow.
        let fd = unsafe { BorrowedFd::borrow_raw(b.fd().expect("shared")) };
        let c = TransferBuffer::attach(fd.as_fd()).expect("attach");
        assert_eq!(&c.to_vec().expect("bytes")[99_997..], b"end");
    }

    #[test]
    fn refuses_absurd_sizes_and_bad_ranges() {
        assert_eq!(TransferBuffer::alloc(usize::MAX).expect_err("huge").kind(), ErrorKind::TooLarge);
        assert_eq!(TransferBuffer::alloc_shared(1 << 49).expect_err("no memory").kind(), ErrorKind::Os);
        let mut b = TransferBuffer::alloc(4).expect("alloc");
        assert_eq!(b.write_at(3, b"xy").expect_err("range").kind(), ErrorKind::Invalid);
        assert_eq!(b.write_at(usize::MAX, b"xy").expect_err("range").kind(), ErrorKind::Invalid);
    }
}
