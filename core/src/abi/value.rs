//! Values for C: a builder and a reader of the one typed tree.
//!
//! An owned value is a handle of its own. What a reader gives (`const offloop_value *`) is a *view*: a place in the tree of an
//! owned value or of a task's options. A root lists its views and ends them when it is changed, moved or freed; a view is
//! read under the lock of its root, so it can be stale but never dangling.

use crate::abi::ffi::{self, offloop_status};
use crate::abi::handle::{self, Handle, Kind, Object, Place};
use crate::abi::{offloop_buffer, offloop_value};
use crate::buffer::{TransferBuffer, copied, copied_text};
use crate::codec::MAX_DEPTH;
use crate::error::{Error, ErrorKind, Result};
use crate::value::{BigInt, DType, Date, ErrorValue, TypedArray, Value};
use crate::wire::value::MAX_DIMENSIONS;
use std::collections::HashMap;
use std::ffi::{c_char, c_void};

/// The views of a root, by the address they look at.
pub(crate) type Views = HashMap<usize, Handle>;

/// An owned value with its views.
#[derive(Default)]
pub struct Root {
    pub(crate) value: Value,
    pub(crate) views: Views,
    /// At least the value's depth, so that nesting costs no walk per item; counted when somebody first needs it.
    depth: Option<usize>,
}

impl Root {
    pub(crate) fn object(value: Value) -> Object {
        Object::Value(Box::new(Root { value, ..Root::default() }))
    }

    /// At least the value's depth. A value that came from elsewhere may be deeper than the limit: one level beyond says so.
    fn depth(&mut self) -> usize {
        *self.depth.get_or_insert_with(|| self.value.depth(MAX_DEPTH + 1))
    }

    /// The depth of a value that holds this one `levels` further down. Dropping and copying a value recurse, as the codec does:
    /// so nothing is built that it would refuse.
    fn depth_below(&mut self, levels: usize) -> Result<usize> {
        if self.depth() + levels > MAX_DEPTH {
            // What was replaced since counts no longer.
            self.depth = None;
        }
        let depth = self.depth() + levels;
        if depth > MAX_DEPTH {
            return Err(Error::new(ErrorKind::TooLarge, "value is nested too deeply").with("depth", depth).with("max_depth", MAX_DEPTH));
        }
        Ok(depth)
    }

    /// The value, about to hold an item that makes it so deep.
    fn deepen(&mut self, depth: usize) -> &mut Value {
        self.depth = Some(self.depth().max(depth));
        &mut self.value
    }
}

pub(crate) fn end_views(views: Views) {
    for view in views.into_values() {
        // A view that somebody has ended already is no loss.
        drop(handle::take(view, Kind::Value));
    }
}

/// Gives a value out as an owned handle.
pub(crate) fn give(value: Value) -> Result<*mut offloop_value> {
    Ok(handle::insert(Kind::Value, Root::object(value))?.as_ptr())
}

/// Calls `f` with the value that `p` names, its root's views and the root, under the root's lock.
fn at_root<R>(p: *const offloop_value, f: impl FnOnce(&Value, &mut Views, Handle) -> Result<R>) -> Result<R> {
    let own = Handle::of(p);
    let mut f = Some(f);
    let mut view = None;
    let done = handle::with(own, Some(Kind::Value), |object| match object {
        Object::Value(root) => {
            let Root { value, views, .. } = &mut **root;
            f.take().map(|f| f(value, views, own)).transpose()
        }
        Object::View { root, at } => {
            view = Some((*root, *at));
            Ok(None)
        }
        _ => Err(Error::invalid("handle is of another type").with("want", "value")),
    })?;
    if let Some(done) = done {
        return Ok(done);
    }
    let (Some((root, at)), Some(f)) = (view, f) else {
        return Err(Error::invalid("handle is of another type").with("want", "value"));
    };
    let ended = || Error::invalid("borrowed value ended with the value it came from");
    handle::with(root, None, |object| {
        let views = match object {
            Object::Value(root) => &mut root.views,
            Object::Ctx(ctx) => ctx.views(),
            _ => return Err(ended()),
        };
        // The root may have changed between the two locks; then it no longer lists this view.
        if views.get(&at.addr()) != Some(&own) {
            return Err(ended());
        }
        // SAFETY: a root ends its views before its tree changes, so a listed view points into the present tree; the root's
        // lock, which is held here, keeps it so.
        f(unsafe { &*at }, views, root)
    })
    .map_err(|e| if e.message() == "handle was freed or moved" { ended() } else { e })
}

/// Reads a value.
pub(crate) fn read<R>(p: *const offloop_value, f: impl FnOnce(&Value) -> Result<R>) -> Result<R> {
    at_root(p, |value, _, _| f(value))
}

/// A view of `at` for the list of `root`; the same place gives the same view.
pub(crate) fn view(at: &Value, views: &mut Views, root: Handle) -> Result<*const offloop_value> {
    let at: *const Value = at;
    let view = match views.get(&at.addr()) {
        Some(view) => *view,
        None => {
            let view = handle::insert(Kind::Value, Object::View { root, at })?;
            views.insert(at.addr(), view);
            view
        }
    };
    Ok(view.as_ptr::<offloop_value>().cast_const())
}

/// Changes an owned value, which other calls see as `InUse` meanwhile; its views end.
fn change<R>(p: *mut offloop_value, f: impl FnOnce(&mut Root) -> Result<R>) -> Result<R> {
    let mut reserved = handle::reserve(Handle::of(p), Kind::Value)?;
    let Object::Value(root) = reserved.object() else {
        return Err(Error::invalid("borrowed value cannot be changed"));
    };
    let done = f(root)?;
    let views = std::mem::take(&mut root.views);
    drop(reserved);
    end_views(views);
    Ok(done)
}

/// The value inside a moved parameter; refuses a view.
pub(crate) fn owned(object: &mut Object) -> Result<&mut Value> {
    owned_root(object).map(|root| &mut root.value)
}

fn owned_root(object: &mut Object) -> Result<&mut Root> {
    match object {
        Object::Value(root) => Ok(root),
        _ => Err(Error::invalid("borrowed value cannot be moved; copy it with offloop_value_copy")),
    }
}

/// The value of a committed parameter.
pub(crate) fn into_value(object: Object) -> Value {
    match object {
        Object::Value(root) => {
            end_views(root.views);
            root.value
        }
        _ => Value::Nil,
    }
}

fn wrong_type(want: &'static str, got: &Value) -> Error {
    Error::invalid("value has another type").with("want", want).with("got", got.type_name())
}

pub(super) fn make(out: *mut *mut offloop_value, value: impl FnOnce() -> Result<Value>) -> offloop_status {
    ffi::call(|| {
        let out = ffi::out(out, "out")?;
        out.set(give(value()?)?);
        Ok(())
    })
}

/// Makes a nil.
///
/// # Safety
/// `out` is valid for writing.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_value_new_nil(out: *mut *mut offloop_value) -> offloop_status {
    make(out, || Ok(Value::Nil))
}

/// Makes a boolean.
///
/// # Safety
/// `out` is valid for writing.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_value_new_bool(value: bool, out: *mut *mut offloop_value) -> offloop_status {
    make(out, || Ok(Value::Bool(value)))
}

/// Makes an integer.
///
/// # Safety
/// `out` is valid for writing.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_value_new_int(value: i64, out: *mut *mut offloop_value) -> offloop_status {
    make(out, || Ok(Value::Int(value)))
}

/// Makes an integer of any size from its magnitude, least significant byte first: OFFLOOP_TYPE_INT where 64 bits hold it,
/// OFFLOOP_TYPE_BIG beyond.
///
/// # Safety
/// `magnitude` points at `len` bytes, `out` is valid for writing.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_value_new_big(
    negative: bool,
    magnitude: *const u8,
    len: usize,
    out: *mut *mut offloop_value,
) -> offloop_status {
    make(out, || {
        // SAFETY: this function's contract.
        let magnitude = copied(unsafe { ffi::slice(magnitude, len, "magnitude") }?)?;
        Ok(BigInt { negative, magnitude }.into_value())
    })
}

/// Makes a float.
///
/// # Safety
/// `out` is valid for writing.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_value_new_float(value: f64, out: *mut *mut offloop_value) -> offloop_status {
    make(out, || Ok(Value::Float(value)))
}

/// Makes a text of `len` bytes of UTF-8, or up to its NUL byte when `len` is OFFLOOP_NUL_TERMINATED. Copied.
///
/// # Safety
/// `text` points at `len` bytes or is NUL-terminated, `out` is valid for writing.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_value_new_str(text: *const c_char, len: usize, out: *mut *mut offloop_value) -> offloop_status {
    // SAFETY: this function's contract.
    make(out, || Ok(Value::from(copied_text(unsafe { ffi::text(text, len, "text") }?)?)))
}

/// Makes bytes. Copied; offloop_value_new_buffer does not copy.
///
/// # Safety
/// `data` points at `len` bytes, `out` is valid for writing.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_value_new_bytes(data: *const c_void, len: usize, out: *mut *mut offloop_value) -> offloop_status {
    // SAFETY: this function's contract.
    make(out, || Ok(Value::from(copied(unsafe { ffi::slice(data.cast::<u8>(), len, "data") }?)?)))
}

/// Makes a value of a buffer, which is moved, not copied.
///
/// # Safety
/// `buffer_io` points at a handle, `out` is valid for writing.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_value_new_buffer(buffer_io: *mut *mut offloop_buffer, out: *mut *mut offloop_value) -> offloop_status {
    ffi::call(|| {
        let out = ffi::out(out, "out")?;
        // SAFETY: this function's contract.
        let buffer = unsafe { ffi::moved(buffer_io, "buffer_io") }?;
        let place = Place::new()?;
        if let Object::Buffer(buffer) = buffer.done() {
            out.set(place.fill(Kind::Value, Root::object(Value::Buffer(buffer))).as_ptr());
        }
        Ok(())
    })
}

/// Makes an empty array.
///
/// # Safety
/// `out` is valid for writing.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_value_new_array(out: *mut *mut offloop_value) -> offloop_status {
    make(out, || Ok(Value::Array(Vec::new())))
}

/// Makes an empty map.
///
/// # Safety
/// `out` is valid for writing.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_value_new_map(out: *mut *mut offloop_value) -> offloop_status {
    make(out, || Ok(Value::Map(Vec::new())))
}

/// Makes a date: milliseconds since 1970-01-01 UTC. A host that cannot show a date (Python: years 1 to 9999, Node.js: 100 million days
/// around 1970) gives its user OFFLOOP_ERR_UNSUPPORTED in place of the result.
///
/// # Safety
/// `out` is valid for writing.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_value_new_date(unix_ms: f64, out: *mut *mut offloop_value) -> offloop_status {
    make(out, || {
        let date = Date::from_millis(unix_ms).ok_or_else(|| Error::invalid("date is no time").with("unix_ms", unix_ms))?;
        Ok(Value::Date(date))
    })
}

/// Makes a date to the nanosecond: seconds since 1970-01-01 UTC, rounded down, and nanoseconds after them, as in struct timespec.
/// Hosts show it as offloop_value_new_date says.
///
/// # Safety
/// `out` is valid for writing.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_value_new_time(seconds: i64, nanos: u32, out: *mut *mut offloop_value) -> offloop_status {
    make(out, || {
        let date = Date::new(seconds, nanos)
            .ok_or_else(|| Error::invalid("date has a second or more of nanoseconds").with("nanos", nanos).with("max", 999_999_999))?;
        Ok(Value::Date(date))
    })
}

/// Makes an array of elements of one type (OFFLOOP_DTYPE_…) in C order; `shape` has `dimensions` lengths, at most 64. Copied.
///
/// # Safety
/// `shape` points at `dimensions` numbers, `data` at `len` bytes, `out` is valid for writing.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_value_new_typed(
    dtype: u32,
    shape: *const u64,
    dimensions: usize,
    data: *const c_void,
    len: usize,
    out: *mut *mut offloop_value,
) -> offloop_status {
    make(out, || {
        let dtype = u8::try_from(dtype)
            .ok()
            .and_then(DType::from_u8)
            .ok_or_else(|| Error::invalid("no element type of that number").with("dtype", dtype))?;
        // SAFETY: this function's contract.
        let (shape, data) = unsafe { (ffi::slice(shape, dimensions, "shape")?, ffi::slice(data.cast::<u8>(), len, "data")?) };
        if shape.len() > MAX_DIMENSIONS {
            return Err(Error::invalid("typed array has too many dimensions").with("dimensions", shape.len()).with("max", MAX_DIMENSIONS));
        }
        if dtype.byte_len(shape) != Some(len) {
            return Err(Error::invalid("bytes do not fill the shape").with("len", len).with("shape", format_args!("{shape:?}")));
        }
        Ok(TypedArray { dtype, shape: shape.to_vec(), bytes: copied(data)?.into() }.into())
    })
}

/// Makes an error: a class name and a message, both NUL-terminated. offloop_value_error_set adds what else it has.
///
/// # Safety
/// Both texts are NUL-terminated, `out` is valid for writing.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_value_new_error(
    name: *const c_char,
    message: *const c_char,
    out: *mut *mut offloop_value,
) -> offloop_status {
    make(out, || {
        // SAFETY: this function's contract.
        let (name, message) = unsafe { (ffi::str(name, "name")?, ffi::str(message, "message")?) };
        Ok(ErrorValue::new(name, message).into())
    })
}

/// Copies a value with all it holds; buffers become plain bytes. The way to own what is borrowed.
///
/// # Safety
/// `out` is valid for writing.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_value_copy(value: *const offloop_value, out: *mut *mut offloop_value) -> offloop_status {
    make(out, || read(value, Value::deep_clone))
}

/// Frees an owned value and ends its views. NULL is allowed. A borrowed value needs no free and is left alone. A value that
/// another thread's call is moving or changing ends with that call.
///
/// # Safety
/// Any pointer is safe.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_value_free(value: *mut offloop_value) {
    if !value.is_null() {
        ffi::call(|| handle::free(value));
    }
}

/// Gives the type of a value: one of OFFLOOP_TYPE_….
///
/// # Safety
/// `out` is valid for writing.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_value_get_type(value: *const offloop_value, out: *mut u32) -> offloop_status {
    ffi::call(|| {
        let out = ffi::out(out, "out")?;
        out.set(read(value, |v| Ok(type_number(v)))?);
        Ok(())
    })
}

/// OFFLOOP_TYPE_… of the header, in its order.
#[must_use]
pub fn type_number(v: &Value) -> u32 {
    match v {
        Value::Nil => 0,
        Value::Bool(_) => 1,
        Value::Int(_) => 2,
        Value::Big(_) => 3,
        Value::Float(_) => 4,
        Value::Str(_) => 5,
        Value::Bytes(_) => 6,
        Value::Array(_) => 7,
        Value::Map(_) => 8,
        Value::Date(_) => 9,
        Value::Typed(_) => 10,
        Value::Buffer(_) => 11,
        Value::Error(_) => 12,
    }
}

/// The names behind [`type_number`], for the header.
pub const TYPE_NAMES: [&str; 13] =
    ["NIL", "BOOL", "INT", "BIG", "FLOAT", "STR", "BYTES", "ARRAY", "MAP", "DATE", "TYPED", "BUFFER", "ERROR"];

fn get<T>(value: *const offloop_value, out: *mut T, want: &'static str, pick: impl FnOnce(&Value) -> Option<T>) -> offloop_status {
    ffi::call(|| {
        let out = ffi::out(out, "out")?;
        out.set(read(value, |v| pick(v).ok_or_else(|| wrong_type(want, v)))?);
        Ok(())
    })
}

/// Reads a boolean; OFFLOOP_ERR_INVALID for another type.
///
/// # Safety
/// `out` is valid for writing.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_value_get_bool(value: *const offloop_value, out: *mut bool) -> offloop_status {
    get(value, out, "bool", Value::as_bool)
}

/// Reads an integer, or a float without a fraction; OFFLOOP_ERR_INVALID for another type.
///
/// # Safety
/// `out` is valid for writing.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_value_get_int(value: *const offloop_value, out: *mut i64) -> offloop_status {
    get(value, out, "int", Value::as_int)
}

/// Reads a number as a float; OFFLOOP_ERR_INVALID for another type.
///
/// # Safety
/// `out` is valid for writing.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_value_get_float(value: *const offloop_value, out: *mut f64) -> offloop_status {
    get(value, out, "float", Value::as_float)
}

/// Reads a date: milliseconds since 1970-01-01 UTC.
///
/// # Safety
/// `out` is valid for writing.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_value_get_date(value: *const offloop_value, out: *mut f64) -> offloop_status {
    get(value, out, "date", |v| if let Value::Date(d) = v { Some(d.as_millis()) } else { None })
}

/// Reads a date to the nanosecond: seconds since 1970-01-01 UTC, rounded down, and nanoseconds after them.
///
/// # Safety
/// Both results are valid for writing.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_value_get_time(value: *const offloop_value, seconds: *mut i64, nanos: *mut u32) -> offloop_status {
    ffi::call(|| {
        let (seconds, nanos) = (ffi::out(seconds, "seconds")?, ffi::out(nanos, "nanos")?);
        read(value, |v| {
            let Value::Date(d) = v else { return Err(wrong_type("date", v)) };
            seconds.set(d.seconds());
            nanos.set(d.nanos());
            Ok(())
        })
    })
}

/// Reads an integer beyond 64 bits: sign, and magnitude least significant byte first. The pointer lives as long as the value.
///
/// # Safety
/// The three results are valid for writing.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_value_get_big(
    value: *const offloop_value,
    negative: *mut bool,
    magnitude: *mut *const u8,
    len: *mut usize,
) -> offloop_status {
    ffi::call(|| {
        let (negative, magnitude, len) = (ffi::out(negative, "negative")?, ffi::out(magnitude, "magnitude")?, ffi::out(len, "len")?);
        read(value, |v| {
            let Value::Big(big) = v else { return Err(wrong_type("big int", v)) };
            negative.set(big.negative);
            magnitude.set(big.magnitude.as_ptr());
            len.set(big.magnitude.len());
            Ok(())
        })
    })
}

/// Reads a text: UTF-8, `len` bytes, *not* NUL-terminated. The pointer lives until the value is changed, moved or freed.
///
/// # Safety
/// Both results are valid for writing.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_value_get_str(value: *const offloop_value, text: *mut *const c_char, len: *mut usize) -> offloop_status {
    ffi::call(|| {
        let (text, len) = (ffi::out(text, "text")?, ffi::out(len, "len")?);
        read(value, |v| {
            let s = v.as_str().ok_or_else(|| wrong_type("string", v))?;
            text.set(s.as_ptr().cast());
            len.set(s.len());
            Ok(())
        })
    })
}

/// Reads the bytes of bytes, a typed array or a buffer. The pointer lives until the value is changed, moved or freed.
///
/// # Safety
/// Both results are valid for writing.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_value_get_bytes(value: *const offloop_value, data: *mut *const u8, len: *mut usize) -> offloop_status {
    ffi::call(|| {
        let (data, len) = (ffi::out(data, "data")?, ffi::out(len, "len")?);
        let (p, n) = read(value, |v| match v {
            Value::Bytes(b) => Ok((b.as_ptr(), b.len())),
            Value::Typed(t) => Ok((t.bytes.as_ptr(), t.bytes.len())),
            Value::Buffer(b) => b.view().map(|(_, p, n)| (p.cast_const(), n)),
            other => Err(wrong_type("bytes", other)),
        })?;
        data.set(p);
        len.set(n);
        Ok(())
    })
}

/// Reads element type and shape of a typed array; its bytes come from offloop_value_get_bytes.
///
/// # Safety
/// The three results are valid for writing.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_value_get_typed(
    value: *const offloop_value,
    dtype: *mut u32,
    shape: *mut *const u64,
    dimensions: *mut usize,
) -> offloop_status {
    ffi::call(|| {
        let (dtype, shape, dimensions) = (ffi::out(dtype, "dtype")?, ffi::out(shape, "shape")?, ffi::out(dimensions, "dimensions")?);
        read(value, |v| {
            let Value::Typed(t) = v else { return Err(wrong_type("typed array", v)) };
            dtype.set(t.dtype as u32);
            shape.set(t.shape.as_ptr());
            dimensions.set(t.shape.len());
            Ok(())
        })
    })
}

/// Reads an error: class name and message as borrowed texts.
///
/// # Safety
/// The four results are valid for writing.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_value_get_error(
    value: *const offloop_value,
    name: *mut *const c_char,
    name_len: *mut usize,
    message: *mut *const c_char,
    message_len: *mut usize,
) -> offloop_status {
    ffi::call(|| {
        let (name, name_len) = (ffi::out(name, "name")?, ffi::out(name_len, "name_len")?);
        let (message, message_len) = (ffi::out(message, "message")?, ffi::out(message_len, "message_len")?);
        read(value, |v| {
            let Value::Error(e) = v else { return Err(wrong_type("error", v)) };
            name.set(e.name.as_ptr().cast());
            name_len.set(e.name.len());
            message.set(e.message.as_ptr().cast());
            message_len.set(e.message.len());
            Ok(())
        })
    })
}

/// Reads the stack or traceback of an error as a borrowed text; empty when it has none.
///
/// # Safety
/// Both results are valid for writing.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_value_get_stack(value: *const offloop_value, text: *mut *const c_char, len: *mut usize) -> offloop_status {
    ffi::call(|| {
        let (text, len) = (ffi::out(text, "text")?, ffi::out(len, "len")?);
        read(value, |v| {
            let Value::Error(e) = v else { return Err(wrong_type("error", v)) };
            text.set(e.stack.as_ptr().cast());
            len.set(e.stack.len());
            Ok(())
        })
    })
}

/// Sets a part of an error (NUL-terminated UTF-8), replacing its old value: "stack" (a text), "cause" (any value, usually an error),
/// or a property of its own, "code" among them. The item is moved; the error's views end. OFFLOOP_ERR_TOO_LARGE beyond 512 levels
/// of arrays, maps and errors.
///
/// # Safety
/// `name` is NUL-terminated, `item_io` points at a handle.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_value_error_set(
    error: *mut offloop_value,
    name: *const c_char,
    item_io: *mut *mut offloop_value,
) -> offloop_status {
    ffi::call(|| {
        // SAFETY: this function's contract.
        let (name, mut item) = unsafe { (ffi::str(name, "name")?, ffi::moved(item_io, "item_io")?) };
        let stack = match (name, owned(item.object())?) {
            ("stack", Value::Str(text)) => Some(text.to_string()),
            ("stack", other) => return Err(wrong_type("string", other)),
            _ => None,
        };
        // The properties of an error are a map of their own.
        let depth = owned_root(item.object())?.depth_below(if name == "cause" { 1 } else { 2 })?;
        change(error, |root| {
            let Value::Error(e) = root.deepen(depth) else { return Err(wrong_type("error", &root.value)) };
            let item = into_value(item.done());
            match (name, stack) {
                (_, Some(stack)) => e.stack = stack,
                ("cause", _) => e.cause = Some(item).filter(|cause| !matches!(cause, Value::Nil)),
                _ => e.set_property(name, item),
            }
            Ok(())
        })
    })
}

/// Borrows the "cause" of an error or a property of its own; OFFLOOP_ERR_NOT_FOUND when it has none of that name.
///
/// # Safety
/// `name` is NUL-terminated, `out` is valid for writing.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_value_error_get(
    error: *const offloop_value,
    name: *const c_char,
    out: *mut *const offloop_value,
) -> offloop_status {
    ffi::call(|| {
        let out = ffi::out(out, "out")?;
        // SAFETY: this function's contract.
        let name = unsafe { ffi::str(name, "name") }?;
        out.set(at_root(error, |v, views, root| {
            let Value::Error(e) = v else { return Err(wrong_type("error", v)) };
            let item = if name == "cause" { e.cause.as_ref() } else { e.property(name) };
            let item = item.ok_or_else(|| {
                Error::new(ErrorKind::NotFound, "error has no such property").with("name", name.chars().take(80).collect::<String>())
            })?;
            view(item, views, root)
        })?);
        Ok(())
    })
}

/// Takes the bytes out of a value as a buffer, without a copy where the memory allows it. The value is moved.
///
/// # Safety
/// `value_io` points at a handle, `out` is valid for writing.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_value_take_buffer(value_io: *mut *mut offloop_value, out: *mut *mut offloop_buffer) -> offloop_status {
    ffi::call(|| {
        let out = ffi::out(out, "out")?;
        // SAFETY: this function's contract.
        let mut value = unsafe { ffi::moved(value_io, "value_io") }?;
        match owned(value.object())? {
            Value::Bytes(_) | Value::Typed(_) | Value::Buffer(_) => {}
            other => return Err(wrong_type("bytes", other)),
        }
        let place = Place::new()?;
        let buffer = match into_value(value.done()) {
            Value::Buffer(buffer) => buffer,
            other => TransferBuffer::from_bytes(other.into_bytes()?)?,
        };
        out.set(place.fill(Kind::Buffer, Object::Buffer(buffer)).as_ptr());
        Ok(())
    })
}

/// Appends to an array. The item is moved; the array's views end. OFFLOOP_ERR_TOO_LARGE beyond 512 levels of arrays, maps and errors.
///
/// # Safety
/// `item_io` points at a handle.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_value_array_push(array: *mut offloop_value, item_io: *mut *mut offloop_value) -> offloop_status {
    ffi::call(|| {
        // SAFETY: this function's contract.
        let mut item = unsafe { ffi::moved(item_io, "item_io") }?;
        let depth = owned_root(item.object())?.depth_below(1)?;
        change(array, |root| {
            let Value::Array(items) = root.deepen(depth) else { return Err(wrong_type("array", &root.value)) };
            items.push(into_value(item.done()));
            Ok(())
        })
    })
}

/// Gives the number of items of an array.
///
/// # Safety
/// `out` is valid for writing.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_value_array_len(array: *const offloop_value, out: *mut usize) -> offloop_status {
    get(array, out, "array", |v| if let Value::Array(items) = v { Some(items.len()) } else { None })
}

/// Borrows an item of an array; OFFLOOP_ERR_NOT_FOUND beyond its end.
///
/// # Safety
/// `out` is valid for writing.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_value_array_get(
    array: *const offloop_value,
    index: usize,
    out: *mut *const offloop_value,
) -> offloop_status {
    ffi::call(|| {
        let out = ffi::out(out, "out")?;
        out.set(at_root(array, |v, views, root| {
            let Value::Array(items) = v else { return Err(wrong_type("array", v)) };
            let item = items.get(index).ok_or_else(|| {
                Error::new(ErrorKind::NotFound, "index is beyond the array").with("index", index).with("len", items.len())
            })?;
            view(item, views, root)
        })?);
        Ok(())
    })
}

/// Sets a key (NUL-terminated UTF-8) of a map, replacing its old value. The item is moved; the map's views end.
/// OFFLOOP_ERR_TOO_LARGE beyond 512 levels of arrays, maps and errors.
///
/// # Safety
/// `key` is NUL-terminated, `item_io` points at a handle.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_value_map_set(
    map: *mut offloop_value,
    key: *const c_char,
    item_io: *mut *mut offloop_value,
) -> offloop_status {
    ffi::call(|| {
        // SAFETY: this function's contract.
        let (key, mut item) = unsafe { (ffi::str(key, "key")?, ffi::moved(item_io, "item_io")?) };
        let depth = owned_root(item.object())?.depth_below(1)?;
        change(map, |root| {
            let Value::Map(pairs) = root.deepen(depth) else { return Err(wrong_type("map", &root.value)) };
            let item = into_value(item.done());
            match pairs.iter_mut().rfind(|(k, _)| k.as_str() == Some(key)) {
                Some((_, old)) => *old = item,
                None => pairs.push((Value::from(key.to_owned()), item)),
            }
            Ok(())
        })
    })
}

/// Gives the number of pairs of a map.
///
/// # Safety
/// `out` is valid for writing.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_value_map_len(map: *const offloop_value, out: *mut usize) -> offloop_status {
    get(map, out, "map", |v| if let Value::Map(pairs) = v { Some(pairs.len()) } else { None })
}

/// Borrows the value of a key of a map; OFFLOOP_ERR_NOT_FOUND when it has no such key.
///
/// # Safety
/// `key` is NUL-terminated, `out` is valid for writing.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_value_map_get(
    map: *const offloop_value,
    key: *const c_char,
    out: *mut *const offloop_value,
) -> offloop_status {
    ffi::call(|| {
        let out = ffi::out(out, "out")?;
        // SAFETY: this function's contract.
        let key = unsafe { ffi::str(key, "key") }?;
        out.set(at_root(map, |v, views, root| {
            if !matches!(v, Value::Map(_)) {
                return Err(wrong_type("map", v));
            }
            let item = v.get(key).ok_or_else(|| {
                Error::new(ErrorKind::NotFound, "map has no such key").with("key", key.chars().take(80).collect::<String>())
            })?;
            view(item, views, root)
        })?);
        Ok(())
    })
}

/// Borrows the pair at a place of a map, in the order of insertion; OFFLOOP_ERR_NOT_FOUND beyond its end.
///
/// # Safety
/// Both results are valid for writing.
#[cfg_attr(feature = "capi", unsafe(no_mangle))]
pub unsafe extern "C" fn offloop_value_map_at(
    map: *const offloop_value,
    index: usize,
    key: *mut *const offloop_value,
    item: *mut *const offloop_value,
) -> offloop_status {
    ffi::call(|| {
        let (key, item) = (ffi::out(key, "key")?, ffi::out(item, "item")?);
        let (k, i) = at_root(map, |v, views, root| {
            let Value::Map(pairs) = v else { return Err(wrong_type("map", v)) };
            let (k, i) = pairs
                .get(index)
                .ok_or_else(|| Error::new(ErrorKind::NotFound, "index is beyond the map").with("index", index).with("len", pairs.len()))?;
            Ok((view(k, views, root)?, view(i, views, root)?))
        })?;
        key.set(k);
        item.set(i);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn int(n: i64) -> *mut offloop_value {
        give(Value::Int(n)).expect("handle")
    }

    #[test]
    fn builds_and_reads_a_tree() {
        let (mut map, mut list, mut one) = (give(Value::Map(vec![])).expect("map"), give(Value::Array(vec![])).expect("array"), int(1));
        // SAFETY: every pointer is a local of this test.
        unsafe {
            assert_eq!(offloop_value_array_push(list, &raw mut one), 0);
            assert!(one.is_null());
            assert_eq!(offloop_value_map_set(map, c"list".as_ptr(), &raw mut list), 0);
            let (mut l, mut item, mut n, mut len, mut f) = (std::ptr::null(), std::ptr::null(), 0i64, 0usize, 0f64);
            assert_eq!(offloop_value_map_get(map, c"list".as_ptr(), &raw mut l), 0);
            assert_eq!(offloop_value_array_get(l, 0, &raw mut item), 0);
            assert_eq!(offloop_value_get_int(item, &raw mut n), 0);
            assert_eq!(n, 1);
            assert_eq!(offloop_value_array_get(l, 1, &raw mut item), ErrorKind::NotFound.status());
            assert_eq!(offloop_value_get_float(l, &raw mut f), ErrorKind::Invalid.status());
            // A view cannot be moved, changed or freed.
            let mut borrowed = l.cast_mut();
            assert_eq!(offloop_value_array_push(borrowed, &raw mut map), ErrorKind::Invalid.status());
            assert_eq!(offloop_value_map_set(map, c"x".as_ptr(), &raw mut borrowed), ErrorKind::Invalid.status());
            offloop_value_free(borrowed);
            assert_eq!(offloop_value_array_len(l, &raw mut len), 0);
            // A change ends the views; so does the end of the root.
            let mut two = int(2);
            assert_eq!(offloop_value_map_set(map, c"two".as_ptr(), &raw mut two), 0);
            assert_eq!(offloop_value_array_len(l, &raw mut len), ErrorKind::Invalid.status());
            assert_eq!(offloop_value_map_get(map, c"two".as_ptr(), &raw mut item), 0);
            offloop_value_free(map);
            assert_eq!(offloop_value_get_int(item, &raw mut n), ErrorKind::Invalid.status());
        }
    }

    #[test]
    fn a_value_that_holds_itself_is_refused_and_stays_whole() {
        let mut list = give(Value::Array(vec![])).expect("array");
        let mut len = 0usize;
        // SAFETY: every pointer is a local of this test.
        unsafe {
            assert_eq!(offloop_value_array_push(list, &raw mut list), ErrorKind::InUse.status());
            assert!(!list.is_null());
            assert_eq!(offloop_value_array_len(list, &raw mut len), 0);
            offloop_value_free(list);
        }
    }

    /// Puts a value into a new array, map or error, or frees both.
    fn wrap(way: usize, item: *mut offloop_value) -> (offloop_status, *mut offloop_value) {
        let outer =
            [Value::Array(vec![Value::Nil]), Value::Map(vec![]), ErrorValue::default().into()].into_iter().nth(way).expect("three ways");
        let (outer, mut item) = (give(outer).expect("handle"), item);
        // SAFETY: every pointer is a local of this function.
        let status = unsafe {
            match way {
                0 => offloop_value_array_push(outer, &raw mut item),
                1 => offloop_value_map_set(outer, c"k".as_ptr(), &raw mut item),
                _ => offloop_value_error_set(outer, c"cause".as_ptr(), &raw mut item),
            }
        };
        if status == 0 {
            return (0, outer);
        }
        // SAFETY: an owned handle.
        unsafe { offloop_value_free(outer) };
        (status, item)
    }

    #[test]
    fn nesting_beyond_the_limit_is_refused_and_the_item_stays() {
        let mut value = int(1);
        for level in 0..MAX_DEPTH {
            let (status, outer) = wrap(level % 3, value);
            assert_eq!(status, 0, "level {level}");
            value = outer;
        }
        for way in 0..3 {
            let (status, item) = wrap(way, value);
            assert_eq!((status, item), (ErrorKind::TooLarge.status(), value));
        }
        // A copy is counted anew, and is as deep.
        let mut copy = std::ptr::null_mut();
        // SAFETY: every pointer is a local of this test.
        unsafe {
            assert_eq!(offloop_value_copy(value, &raw mut copy), 0);
            assert_eq!(wrap(0, copy).0, ErrorKind::TooLarge.status());
            offloop_value_free(copy);
            offloop_value_free(value);
        }
    }

    #[test]
    fn what_was_replaced_no_longer_counts() {
        let deep = (0..MAX_DEPTH - 1).fold(Value::Nil, |inner, _| Value::Array(vec![inner]));
        let (map, mut deep, mut flat) = (give(Value::Map(vec![])).expect("map"), give(deep).expect("deep"), int(1));
        // SAFETY: every pointer is a local of this test.
        unsafe {
            assert_eq!(offloop_value_map_set(map, c"k".as_ptr(), &raw mut deep), 0);
            assert_eq!(wrap(0, map), (ErrorKind::TooLarge.status(), map));
            assert_eq!(offloop_value_map_set(map, c"k".as_ptr(), &raw mut flat), 0);
            let (status, outer) = wrap(0, map);
            assert_eq!(status, 0);
            offloop_value_free(outer);
        }
    }

    #[test]
    fn type_numbers_follow_the_header_names() {
        assert_eq!(TYPE_NAMES[type_number(&Value::Nil) as usize], "NIL");
        assert_eq!(TYPE_NAMES[type_number(&Value::from(ErrorValue::default())) as usize], "ERROR");
    }
}
