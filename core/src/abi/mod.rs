//! What a C program and a C plugin have in common: handles, values, buffers and the context of a running task.
//!
//! ```text
//!   C program ──► offloop_* symbols (capi) ─┐
//!                                           ├─► the functions of this module ─► handle table ─► Value, TransferBuffer, OpCtx
//!   plugin ─────► offloop_host (a table) ───┘
//! ```
//!
//! A function is: boundary ([`ffi::call`]), convert, call, convert. It is compiled into every build, because a plugin
//! runs in Node.js and Python too; only the feature `capi` gives it a symbol.
//!
//! An `offloop_x *` is never dereferenced: it is a number that is looked up in [`handle`]'s table, so that a stale, forged or
//! mistyped handle is `Invalid`.
#![allow(non_camel_case_types, reason = "these are the names of the C header")]

pub mod buffer;
pub mod codec;
pub mod ctx;
pub mod ffi;
pub mod handle;
pub mod host;
pub mod status;
pub mod value;

macro_rules! kinds {
    ($($name:ident = $kind:ident),*) => {$(
        impl crate::abi::handle::Kinded for $name {
            const KIND: crate::abi::handle::Kind = crate::abi::handle::Kind::$kind;
        }
    )*};
}
#[cfg(feature = "capi")]
pub(crate) use kinds;

/// A value tree, or a borrowed place in one.
#[derive(Debug)]
pub struct offloop_value {
    _opaque: (),
}

/// Bytes with one owner.
#[derive(Debug)]
pub struct offloop_buffer {
    _opaque: (),
}

/// The context of a running task.
#[derive(Debug)]
pub struct offloop_task_ctx {
    _opaque: (),
}

/// Where a plugin registers its ops, while it loads.
#[derive(Debug)]
pub struct offloop_registry {
    _opaque: (),
}

kinds!(offloop_value = Value, offloop_buffer = Buffer, offloop_task_ctx = Ctx, offloop_registry = Registry);
