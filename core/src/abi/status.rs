//! Statuses, messages and versions.

use crate::abi::ffi::{self, offloop_status};
use crate::error::ERROR_TABLE;
use std::ffi::{CStr, c_char};
use std::sync::OnceLock;

/// The version of this header's functions and structs. Functions are only ever added, at the end of a table.
pub const OFFLOOP_ABI_VERSION: u32 = 1;

/// The version of what two processes say to each other.
pub const OFFLOOP_WIRE_VERSION: u32 = 1;

/// This thread's last error message, with the values that explain it; "" before the first error. Borrowed until the next
/// call of an offloop function on this thread.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub extern "C" fn offloop_last_error() -> *const c_char {
    ffi::last_error()
}

/// The name of a status: "OFFLOOP_OK", "ERR_OFFLOOP_FULL" …; "ERR_OFFLOOP_UNKNOWN" for one of a newer library. Static.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub extern "C" fn offloop_status_name(status: offloop_status) -> *const c_char {
    static NAMES: OnceLock<Vec<std::ffi::CString>> = OnceLock::new();
    ffi::call_or(c"ERR_OFFLOOP_UNKNOWN".as_ptr(), || {
        if status == ffi::OK {
            return c"OFFLOOP_OK".as_ptr();
        }
        let names = NAMES.get_or_init(|| ERROR_TABLE.iter().map(|r| std::ffi::CString::new(r.code).unwrap_or_default()).collect());
        let at = ERROR_TABLE.iter().position(|r| r.status == status);
        at.map_or(c"ERR_OFFLOOP_UNKNOWN", |i| CStr::as_ref(&names[i])).as_ptr()
    })
}

/// The ABI version of the library; compare it with OFFLOOP_ABI_VERSION of the header.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub extern "C" fn offloop_abi_version() -> u32 {
    OFFLOOP_ABI_VERSION
}

/// The wire version of the library.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub extern "C" fn offloop_wire_version() -> u32 {
    OFFLOOP_WIRE_VERSION
}
