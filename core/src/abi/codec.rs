//! Values as messages, for C.

use crate::abi::ffi::{self, Options, offloop_status};
use crate::abi::handle::{self, Kind, Object};
use crate::abi::value::{make, read};
use crate::abi::{offloop_buffer, offloop_value};
use crate::buffer::TransferBuffer;
use crate::codec;
use crate::error::Result;
use std::ffi::c_void;

/// Limits of offloop_value_encode and offloop_value_decode; 0 is the default.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct offloop_codec_options {
    /// sizeof(offloop_codec_options).
    pub struct_size: usize,
    /// Most arrays, maps and errors inside each other: 128, at most 512.
    pub max_depth: usize,
    /// Most items, keys, values and fields together: 4,194,304.
    pub max_items: usize,
    /// Longest message: 256 MiB.
    pub max_bytes: usize,
}

// SAFETY: `repr(C)`, plain data, all-zero is valid, `struct_size` first.
unsafe impl Options for offloop_codec_options {
    const MIN_SIZE: usize = size_of::<offloop_codec_options>();
    const NAME: &'static str = "offloop_codec_options";
}

/// # Safety
/// `options` is NULL or points at a struct of its `struct_size`.
unsafe fn codec_options(options: *const offloop_codec_options) -> Result<codec::Options> {
    let defaults = codec::Options::default();
    if options.is_null() {
        return Ok(defaults);
    }
    // SAFETY: this function's contract.
    let given = unsafe { ffi::options(options) }?;
    let or = |n: usize, default| if n == 0 { default } else { n };
    Ok(codec::Options {
        max_depth: or(given.max_depth, defaults.max_depth),
        max_items: or(given.max_items, defaults.max_items),
        max_bytes: or(given.max_bytes, defaults.max_bytes),
        ..defaults
    })
}

/// Writes a value as a message that every language reads: MessagePack with the extension types of docs/values.md. Buffers inside
/// are copied and become bytes. `options` may be NULL. OFFLOOP_ERR_TOO_LARGE beyond a limit.
///
/// # Safety
/// `options` is NULL or points at a struct of its `struct_size`, `out` is valid for writing.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_value_encode(
    value: *const offloop_value,
    options: *const offloop_codec_options,
    out: *mut *mut offloop_buffer,
) -> offloop_status {
    ffi::call(|| {
        let out = ffi::out(out, "out")?;
        // SAFETY: this function's contract.
        let options = unsafe { codec_options(options) }?;
        let mut message = Vec::new();
        read(value, |v| codec::encode(v, &options, &mut message))?;
        let buffer = TransferBuffer::from_bytes(message.into())?;
        out.set(handle::insert(Kind::Buffer, Object::Buffer(buffer))?.as_ptr());
        Ok(())
    })
}

/// Reads a message of offloop_value_encode or of any MessagePack library. `options` may be NULL. OFFLOOP_ERR_CORRUPT, with the offset in
/// the text, when it is malformed; OFFLOOP_ERR_TOO_LARGE beyond a limit.
///
/// # Safety
/// `data` points at `len` bytes, `options` is NULL or points at a struct of its `struct_size`, `out` is valid for writing.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_value_decode(
    data: *const c_void,
    len: usize,
    options: *const offloop_codec_options,
    out: *mut *mut offloop_value,
) -> offloop_status {
    make(out, || {
        // SAFETY: this function's contract.
        let (data, options) = unsafe { (ffi::slice(data.cast::<u8>(), len, "data")?, codec_options(options)?) };
        codec::decode(data, &mut [], &options)
    })
}
