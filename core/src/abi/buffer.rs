//! Buffers for C.

use crate::abi::ffi::{self, UserArg, offloop_status};
use crate::abi::handle::{self, Handle, Kind, Object, Place};
use crate::abi::offloop_buffer;
use crate::buffer::{TransferBuffer, TransferToken, revoke_token};
use crate::error::{Error, Result};
use std::ffi::{c_char, c_void};
use std::os::fd::BorrowedFd;

/// Room for the text of a token, its NUL byte included.
pub const OFFLOOP_TOKEN_SIZE: usize = 80;

/// The one-shot right to take a transferred buffer: NUL-terminated text, which may travel in JSON or a message inside this
/// process. Node.js and Python show the same text.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct offloop_token {
    /// The text.
    pub text: [c_char; 80],
}

/// A user's free function for a user's pointer.
pub type offloop_free_fn = Option<unsafe extern "C" fn(arg: *mut c_void)>;

fn make(out: *mut *mut offloop_buffer, buffer: impl FnOnce() -> Result<TransferBuffer>) -> offloop_status {
    ffi::call(|| {
        let out = ffi::out(out, "out")?;
        out.set(handle::insert(Kind::Buffer, Object::Buffer(buffer()?))?.as_ptr());
        Ok(())
    })
}

fn read<R>(buffer: *const offloop_buffer, f: impl FnOnce(&mut TransferBuffer) -> Result<R>) -> Result<R> {
    handle::with(Handle::of(buffer), Some(Kind::Buffer), |object| match object {
        Object::Buffer(buffer) => f(buffer),
        _ => Err(Error::invalid("handle is of another type").with("want", "buffer")),
    })
}

/// Makes a buffer of `len` zeroed bytes on the heap. OFFLOOP_ERR_TOO_LARGE above 2^50, OFFLOOP_ERR_OS without memory.
///
/// # Safety
/// `out` is valid for writing.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_buffer_new(len: usize, out: *mut *mut offloop_buffer) -> offloop_status {
    make(out, || TransferBuffer::alloc(len))
}

/// Makes a buffer of `len` zeroed bytes in a sealed memfd, which another process can map (offloop_buffer_fd).
///
/// # Safety
/// `out` is valid for writing.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_buffer_new_shared(len: usize, out: *mut *mut offloop_buffer) -> offloop_status {
    make(out, || TransferBuffer::alloc_shared(len))
}

/// Makes a buffer on the heap with a copy of `data`.
///
/// # Safety
/// `data` points at `len` bytes, `out` is valid for writing.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_buffer_from_bytes(data: *const c_void, len: usize, out: *mut *mut offloop_buffer) -> offloop_status {
    // SAFETY: this function's contract.
    make(out, || TransferBuffer::from_slice(unsafe { ffi::slice(data.cast::<u8>(), len, "data") }?))
}

/// Makes a buffer of the caller's memory, without a copy. On OK the memory belongs to the buffer: nobody else touches it, and
/// `user_free(user)` is called once when the bytes are needed no more, on any thread. On error `user_free` is not called.
///
/// # Safety
/// `data` points at `len` bytes that stay valid and untouched until `user_free` is called; `out` is valid for writing.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_buffer_from_foreign(
    data: *mut c_void,
    len: usize,
    user: *mut c_void,
    user_free: offloop_free_fn,
    out: *mut *mut offloop_buffer,
) -> offloop_status {
    ffi::call(|| {
        let out = ffi::out(out, "out")?;
        // SAFETY: this function's contract; checked for NULL and length only.
        unsafe { ffi::slice(data.cast::<u8>().cast_const(), len, "data") }?;
        let place = Place::new()?;
        // SAFETY: this function's contract.
        let buffer = unsafe { TransferBuffer::from_foreign(data.cast(), len, Box::new(UserArg::new(user, user_free))) };
        out.set(place.fill(Kind::Buffer, Object::Buffer(buffer)).as_ptr());
        Ok(())
    })
}

/// Gives first byte and length. The pointer lives until the buffer is moved or freed.
///
/// # Safety
/// Both results are valid for writing.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_buffer_data(buffer: *mut offloop_buffer, data: *mut *mut u8, len: *mut usize) -> offloop_status {
    ffi::call(|| {
        let (data, len) = (ffi::out(data, "data")?, ffi::out(len, "len")?);
        let (_, p, n) = read(buffer, |b| b.view())?;
        data.set(p);
        len.set(n);
        Ok(())
    })
}

/// Gives the memfd of a shared buffer, to be passed to another process. It is the buffer's: duplicate it to keep it longer.
/// From now on ops copy the bytes first, because the other process may write them. OFFLOOP_ERR_INVALID for a heap buffer.
///
/// # Safety
/// `out` is valid for writing.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_buffer_fd(buffer: *mut offloop_buffer, out: *mut i32) -> offloop_status {
    ffi::call(|| {
        let out = ffi::out(out, "out")?;
        out.set(read(buffer, |b| {
            b.view()?; // Detached and Forked are said as such
            b.fd().ok_or_else(|| Error::invalid("buffer is not shared; make it with offloop_buffer_new_shared"))
        })?);
        Ok(())
    })
}

/// Maps the memfd of another process's shared buffer. The fd is duplicated and stays the caller's. OFFLOOP_ERR_INVALID for
/// an fd that is no memfd sealed against shrinking and growing; OFFLOOP_ERR_TOO_LARGE when it is longer than the machine's memory and
/// swap, or than the process may map.
///
/// # Safety
/// `out` is valid for writing.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_buffer_attach(fd: i32, out: *mut *mut offloop_buffer) -> offloop_status {
    make(out, || {
        if fd < 0 {
            return Err(Error::invalid("fd is negative").with("fd", fd));
        }
        // SAFETY: not -1; a number that is not open is refused by the first call on it.
        TransferBuffer::attach(unsafe { BorrowedFd::borrow_raw(fd) })
    })
}

/// Moves the bytes out of a buffer: the handle ends and `*out` holds the one-shot right to take them, in this process. What
/// nobody takes is freed by offloop_token_revoke.
///
/// # Safety
/// `buffer_io` points at a handle, `out` is valid for writing.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_buffer_transfer(buffer_io: *mut *mut offloop_buffer, out: *mut offloop_token) -> offloop_status {
    ffi::call(|| {
        let out = ffi::out(out, "out")?;
        // SAFETY: this function's contract.
        let mut buffer = unsafe { ffi::moved(buffer_io, "buffer_io") }?;
        let Object::Buffer(b) = buffer.object() else {
            return Err(Error::invalid("handle is of another type").with("want", "buffer"));
        };
        let text = b.transfer()?.to_string();
        drop(buffer.done());
        let mut token = offloop_token { text: [0; OFFLOOP_TOKEN_SIZE] };
        for (to, from) in token.text.iter_mut().zip(text.bytes().take(OFFLOOP_TOKEN_SIZE - 1)) {
            *to = from as c_char;
        }
        out.set(token);
        Ok(())
    })
}

/// # Safety
/// `token` is NULL or points at a token.
unsafe fn token(token: *const offloop_token) -> Result<TransferToken> {
    // SAFETY: this function's contract.
    let token = unsafe { ffi::slice(token, 1, "token") }?;
    let bytes: Vec<u8> = token[0].text.iter().map(|c| *c as u8).take_while(|b| *b != 0).collect();
    String::from_utf8_lossy(&bytes).parse()
}

/// Takes the bytes behind a token. OFFLOOP_ERR_DETACHED for a used one, OFFLOOP_ERR_INVALID for one of another process.
///
/// # Safety
/// `from` points at a token, `out` is valid for writing.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_buffer_receive(from: *const offloop_token, out: *mut *mut offloop_buffer) -> offloop_status {
    ffi::call(|| {
        let out = ffi::out(out, "out")?;
        let place = Place::new()?;
        // SAFETY: this function's contract.
        let buffer = TransferBuffer::receive(unsafe { token(from) }?)?;
        out.set(place.fill(Kind::Buffer, Object::Buffer(buffer)).as_ptr());
        Ok(())
    })
}

/// Frees the bytes behind a token that nobody will take. OFFLOOP_ERR_DETACHED for a used one.
///
/// # Safety
/// `which` points at a token.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_token_revoke(which: *const offloop_token) -> offloop_status {
    // SAFETY: this function's contract.
    ffi::call(|| revoke_token(unsafe { token(which) }?))
}

/// Frees a buffer. NULL is allowed. A buffer that another thread's call is moving ends with that call, or goes where it moves it.
///
/// # Safety
/// Any pointer is safe.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_buffer_free(buffer: *mut offloop_buffer) {
    if !buffer.is_null() {
        ffi::call(|| handle::free(buffer));
    }
}
