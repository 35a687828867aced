//! The function table that a plugin gets, because it links to nothing.
//!
//! Entries are only ever added at the end; `abi_version` counts with them.

use crate::abi::buffer::{self, offloop_free_fn, offloop_token};
use crate::abi::ctx::{self, offloop_fn};
use crate::abi::ffi::{self, Options, UserArg, offloop_status};
use crate::abi::handle::{self, Handle, Kind, Object};
use crate::abi::status::{self, OFFLOOP_ABI_VERSION};
use crate::abi::value;
use crate::abi::{offloop_buffer, offloop_registry, offloop_task_ctx, offloop_value};
use crate::error::{Error, ErrorKind, Result};
use std::ffi::{c_char, c_void};

/// One op of a plugin. Fill `abi_version` with OFFLOOP_ABI_VERSION (OFFLOOP_OP_DEF_INIT does).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct offloop_op_def {
    /// sizeof(offloop_op_def).
    pub struct_size: usize,
    /// OFFLOOP_ABI_VERSION of the header that the plugin was compiled with.
    pub abi_version: u32,
    /// 0.
    pub reserved: u32,
    /// Name of the op, NUL-terminated, copied: 1 to 64 of a-z 0-9 _ and at most one dot, "image.blur". It may not be taken.
    pub name: *const c_char,
    /// The function. It may be called on several threads at once.
    pub function: offloop_fn,
    /// Passed to every call. May be NULL.
    pub arg: *mut c_void,
    /// Called once with `arg` when no call can come any more. May be NULL.
    pub arg_free: offloop_free_fn,
}

// SAFETY: `repr(C)`, plain data, all-zero is valid, `struct_size` first.
unsafe impl Options for offloop_op_def {
    const MIN_SIZE: usize = size_of::<offloop_op_def>();
    const NAME: &'static str = "offloop_op_def";
}

/// What a plugin has registered, until the pool takes it.
pub struct Registration {
    pub(crate) name: String,
    pub(crate) function: unsafe extern "C" fn(*mut offloop_task_ctx, *mut c_void) -> i32,
    pub(crate) arg: UserArg,
}

fn check_name(name: &str) -> Result<()> {
    let word = |w: &str| !w.is_empty() && w.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    let dots = name.bytes().filter(|b| *b == b'.').count();
    if name.len() <= 64 && dots <= 1 && name.split('.').all(word) {
        return Ok(());
    }
    Err(Error::invalid("op name is not 1 to 64 of a-z 0-9 _ with at most one dot").with("op", name.chars().take(80).collect::<String>()))
}

/// Registers an op, while the plugin loads. If it fails, `arg_free` is not called.
unsafe extern "C" fn register_op(registry: *mut offloop_registry, def: *const offloop_op_def) -> offloop_status {
    ffi::call(|| {
        if def.is_null() {
            return Err(Error::invalid("pointer is NULL").with("argument", "def"));
        }
        // SAFETY: the plugin's struct, as long as its `struct_size` says.
        let def = unsafe { ffi::options(def) }?;
        if !(1..=OFFLOOP_ABI_VERSION).contains(&def.abi_version) {
            return Err(Error::new(ErrorKind::Version, "plugin was compiled for another ABI; rebuild it with this library's offloop.h")
                .with("plugin_abi", def.abi_version)
                .with("host_abi", OFFLOOP_ABI_VERSION));
        }
        // SAFETY: NUL-terminated by contract.
        let name = unsafe { ffi::str(def.name, "name") }?.to_owned();
        check_name(&name)?;
        let function = def.function.ok_or_else(|| Error::invalid("op has no function").with("op", &name))?;
        handle::with(Handle::of(registry), Some(Kind::Registry), |object| {
            let Object::Registry(list) = object else {
                return Err(Error::invalid("handle is of another type").with("want", "registry"));
            };
            if list.iter().any(|r| r.name == name) {
                return Err(Error::new(ErrorKind::Exists, "plugin registers an op twice").with("op", name));
            }
            list.push(Registration { name, function, arg: UserArg::new(def.arg, def.arg_free) });
            Ok(())
        })
    })
}

/// What a plugin may call: the functions of this header, in a table, because a plugin links to nothing. A field has the
/// meaning of the function of the same name with `offloop_` before it; register_op is described at offloop_op_def.
#[repr(C)]
#[allow(missing_docs, reason = "each field is documented at the function of its name")]
pub struct offloop_host {
    /// sizeof(offloop_host) of the host.
    pub struct_size: usize,
    /// ABI version of the host: refuse to load below the one that the plugin needs (OFFLOOP_PLUGIN_CHECK does).
    pub abi_version: u32,
    /// 0.
    pub reserved: u32,
    pub register_op: unsafe extern "C" fn(registry: *mut offloop_registry, def: *const offloop_op_def) -> offloop_status,
    pub last_error: unsafe extern "C" fn() -> *const c_char,
    pub status_name: unsafe extern "C" fn(status: offloop_status) -> *const c_char,
    pub wire_version: unsafe extern "C" fn() -> u32,
    pub ctx_cancelled: unsafe extern "C" fn(ctx: *mut offloop_task_ctx) -> offloop_status,
    pub ctx_progress: unsafe extern "C" fn(ctx: *mut offloop_task_ctx, value_io: *mut *mut offloop_value) -> offloop_status,
    pub ctx_params: unsafe extern "C" fn(ctx: *mut offloop_task_ctx, out: *mut *const offloop_value) -> offloop_status,
    pub ctx_input_count: unsafe extern "C" fn(ctx: *mut offloop_task_ctx, out: *mut usize) -> offloop_status,
    pub ctx_input: unsafe extern "C" fn(ctx: *mut offloop_task_ctx, index: usize, data: *mut *const u8, len: *mut usize) -> offloop_status,
    pub ctx_take_input: unsafe extern "C" fn(ctx: *mut offloop_task_ctx, index: usize, out: *mut *mut offloop_buffer) -> offloop_status,
    pub ctx_set_result: unsafe extern "C" fn(ctx: *mut offloop_task_ctx, value_io: *mut *mut offloop_value) -> offloop_status,
    pub ctx_set_error: unsafe extern "C" fn(ctx: *mut offloop_task_ctx, text: *const c_char) -> offloop_status,
    pub value_new_nil: unsafe extern "C" fn(out: *mut *mut offloop_value) -> offloop_status,
    pub value_new_bool: unsafe extern "C" fn(value: bool, out: *mut *mut offloop_value) -> offloop_status,
    pub value_new_int: unsafe extern "C" fn(value: i64, out: *mut *mut offloop_value) -> offloop_status,
    pub value_new_big:
        unsafe extern "C" fn(negative: bool, magnitude: *const u8, len: usize, out: *mut *mut offloop_value) -> offloop_status,
    pub value_new_float: unsafe extern "C" fn(value: f64, out: *mut *mut offloop_value) -> offloop_status,
    pub value_new_str: unsafe extern "C" fn(text: *const c_char, len: usize, out: *mut *mut offloop_value) -> offloop_status,
    pub value_new_bytes: unsafe extern "C" fn(data: *const c_void, len: usize, out: *mut *mut offloop_value) -> offloop_status,
    pub value_new_buffer: unsafe extern "C" fn(buffer_io: *mut *mut offloop_buffer, out: *mut *mut offloop_value) -> offloop_status,
    pub value_new_array: unsafe extern "C" fn(out: *mut *mut offloop_value) -> offloop_status,
    pub value_new_map: unsafe extern "C" fn(out: *mut *mut offloop_value) -> offloop_status,
    pub value_new_date: unsafe extern "C" fn(unix_ms: f64, out: *mut *mut offloop_value) -> offloop_status,
    pub value_new_typed: unsafe extern "C" fn(
        dtype: u32,
        shape: *const u64,
        dimensions: usize,
        data: *const c_void,
        len: usize,
        out: *mut *mut offloop_value,
    ) -> offloop_status,
    pub value_new_error: unsafe extern "C" fn(name: *const c_char, message: *const c_char, out: *mut *mut offloop_value) -> offloop_status,
    pub value_copy: unsafe extern "C" fn(value: *const offloop_value, out: *mut *mut offloop_value) -> offloop_status,
    pub value_free: unsafe extern "C" fn(value: *mut offloop_value),
    pub value_get_type: unsafe extern "C" fn(value: *const offloop_value, out: *mut u32) -> offloop_status,
    pub value_get_bool: unsafe extern "C" fn(value: *const offloop_value, out: *mut bool) -> offloop_status,
    pub value_get_int: unsafe extern "C" fn(value: *const offloop_value, out: *mut i64) -> offloop_status,
    pub value_get_float: unsafe extern "C" fn(value: *const offloop_value, out: *mut f64) -> offloop_status,
    pub value_get_date: unsafe extern "C" fn(value: *const offloop_value, out: *mut f64) -> offloop_status,
    pub value_get_big: unsafe extern "C" fn(
        value: *const offloop_value,
        negative: *mut bool,
        magnitude: *mut *const u8,
        len: *mut usize,
    ) -> offloop_status,
    pub value_get_str: unsafe extern "C" fn(value: *const offloop_value, text: *mut *const c_char, len: *mut usize) -> offloop_status,
    pub value_get_bytes: unsafe extern "C" fn(value: *const offloop_value, data: *mut *const u8, len: *mut usize) -> offloop_status,
    pub value_get_typed: unsafe extern "C" fn(
        value: *const offloop_value,
        dtype: *mut u32,
        shape: *mut *const u64,
        dimensions: *mut usize,
    ) -> offloop_status,
    pub value_get_error: unsafe extern "C" fn(
        value: *const offloop_value,
        name: *mut *const c_char,
        name_len: *mut usize,
        message: *mut *const c_char,
        message_len: *mut usize,
    ) -> offloop_status,
    pub value_take_buffer: unsafe extern "C" fn(value_io: *mut *mut offloop_value, out: *mut *mut offloop_buffer) -> offloop_status,
    pub value_array_push: unsafe extern "C" fn(array: *mut offloop_value, item_io: *mut *mut offloop_value) -> offloop_status,
    pub value_array_len: unsafe extern "C" fn(array: *const offloop_value, out: *mut usize) -> offloop_status,
    pub value_array_get: unsafe extern "C" fn(array: *const offloop_value, index: usize, out: *mut *const offloop_value) -> offloop_status,
    pub value_map_set:
        unsafe extern "C" fn(map: *mut offloop_value, key: *const c_char, item_io: *mut *mut offloop_value) -> offloop_status,
    pub value_map_len: unsafe extern "C" fn(map: *const offloop_value, out: *mut usize) -> offloop_status,
    pub value_map_get:
        unsafe extern "C" fn(map: *const offloop_value, key: *const c_char, out: *mut *const offloop_value) -> offloop_status,
    pub value_map_at: unsafe extern "C" fn(
        map: *const offloop_value,
        index: usize,
        key: *mut *const offloop_value,
        item: *mut *const offloop_value,
    ) -> offloop_status,
    pub buffer_new: unsafe extern "C" fn(len: usize, out: *mut *mut offloop_buffer) -> offloop_status,
    pub buffer_new_shared: unsafe extern "C" fn(len: usize, out: *mut *mut offloop_buffer) -> offloop_status,
    pub buffer_from_bytes: unsafe extern "C" fn(data: *const c_void, len: usize, out: *mut *mut offloop_buffer) -> offloop_status,
    pub buffer_from_foreign: unsafe extern "C" fn(
        data: *mut c_void,
        len: usize,
        user: *mut c_void,
        user_free: offloop_free_fn,
        out: *mut *mut offloop_buffer,
    ) -> offloop_status,
    pub buffer_data: unsafe extern "C" fn(buffer: *mut offloop_buffer, data: *mut *mut u8, len: *mut usize) -> offloop_status,
    pub buffer_fd: unsafe extern "C" fn(buffer: *mut offloop_buffer, out: *mut i32) -> offloop_status,
    pub buffer_attach: unsafe extern "C" fn(fd: i32, out: *mut *mut offloop_buffer) -> offloop_status,
    pub buffer_transfer: unsafe extern "C" fn(buffer_io: *mut *mut offloop_buffer, out: *mut offloop_token) -> offloop_status,
    pub buffer_receive: unsafe extern "C" fn(from: *const offloop_token, out: *mut *mut offloop_buffer) -> offloop_status,
    pub token_revoke: unsafe extern "C" fn(which: *const offloop_token) -> offloop_status,
    pub buffer_free: unsafe extern "C" fn(buffer: *mut offloop_buffer),
}

/// The one table of this process.
pub(crate) static HOST: offloop_host = offloop_host {
    struct_size: size_of::<offloop_host>(),
    abi_version: OFFLOOP_ABI_VERSION,
    reserved: 0,
    register_op,
    last_error: status::offloop_last_error,
    status_name: status::offloop_status_name,
    wire_version: status::offloop_wire_version,
    ctx_cancelled: ctx::offloop_ctx_cancelled,
    ctx_progress: ctx::offloop_ctx_progress,
    ctx_params: ctx::offloop_ctx_params,
    ctx_input_count: ctx::offloop_ctx_input_count,
    ctx_input: ctx::offloop_ctx_input,
    ctx_take_input: ctx::offloop_ctx_take_input,
    ctx_set_result: ctx::offloop_ctx_set_result,
    ctx_set_error: ctx::offloop_ctx_set_error,
    value_new_nil: value::offloop_value_new_nil,
    value_new_bool: value::offloop_value_new_bool,
    value_new_int: value::offloop_value_new_int,
    value_new_big: value::offloop_value_new_big,
    value_new_float: value::offloop_value_new_float,
    value_new_str: value::offloop_value_new_str,
    value_new_bytes: value::offloop_value_new_bytes,
    value_new_buffer: value::offloop_value_new_buffer,
    value_new_array: value::offloop_value_new_array,
    value_new_map: value::offloop_value_new_map,
    value_new_date: value::offloop_value_new_date,
    value_new_typed: value::offloop_value_new_typed,
    value_new_error: value::offloop_value_new_error,
    value_copy: value::offloop_value_copy,
    value_free: value::offloop_value_free,
    value_get_type: value::offloop_value_get_type,
    value_get_bool: value::offloop_value_get_bool,
    value_get_int: value::offloop_value_get_int,
    value_get_float: value::offloop_value_get_float,
    value_get_date: value::offloop_value_get_date,
    value_get_big: value::offloop_value_get_big,
    value_get_str: value::offloop_value_get_str,
    value_get_bytes: value::offloop_value_get_bytes,
    value_get_typed: value::offloop_value_get_typed,
    value_get_error: value::offloop_value_get_error,
    value_take_buffer: value::offloop_value_take_buffer,
    value_array_push: value::offloop_value_array_push,
    value_array_len: value::offloop_value_array_len,
    value_array_get: value::offloop_value_array_get,
    value_map_set: value::offloop_value_map_set,
    value_map_len: value::offloop_value_map_len,
    value_map_get: value::offloop_value_map_get,
    value_map_at: value::offloop_value_map_at,
    buffer_new: buffer::offloop_buffer_new,
    buffer_new_shared: buffer::offloop_buffer_new_shared,
    buffer_from_bytes: buffer::offloop_buffer_from_bytes,
    buffer_from_foreign: buffer::offloop_buffer_from_foreign,
    buffer_data: buffer::offloop_buffer_data,
    buffer_fd: buffer::offloop_buffer_fd,
    buffer_attach: buffer::offloop_buffer_attach,
    buffer_transfer: buffer::offloop_buffer_transfer,
    buffer_receive: buffer::offloop_buffer_receive,
    token_revoke: buffer::offloop_token_revoke,
    buffer_free: buffer::offloop_buffer_free,
};
