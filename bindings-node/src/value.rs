//! `Value` ↔ JavaScript.
//!
//! | Value            | JavaScript                                                        |
//! |------------------|-------------------------------------------------------------------|
//! | Nil              | `null`; `undefined` becomes Nil as well                           |
//! | Bool, Str        | boolean, string                                                   |
//! | Date             | Date: whole milliseconds, rounded down; Unsupported beyond ±8.64e15 |
//! | Int, Big         | number up to ±(2^53 − 1), BigInt beyond                           |
//! | Float            | number; a number without a fraction becomes Int, but −0 stays     |
//! | Bytes            | Uint8Array; every byte view and ArrayBuffer becomes Bytes (copied) |
//! | Typed            | the typed array of its element type, flat                         |
//! | Array            | Array                                                             |
//! | Map              | plain object when every key is text, Map otherwise; a Map gives its pairs |
//! | Buffer           | TransferBuffer; one inside options is copied, one inside a message moves |
//! | Error            | Error of the standard class of its name, with stack, cause and own properties; an OffloopError by its code |

use crate::buffer::{self, Handle, Owned};
use crate::js::{Call, Env, Fail, JsResult, Raw};
use crate::state::State;
use napi::sys;
use offloop::codec::{self, Options};
use offloop::value::{BigInt, DType, Date, ErrorValue, MAX_HOST_ITEMS, TypedArray};
use offloop::{Error, ErrorKind, TransferBuffer, Value};
use std::cell::{Cell, RefCell};

const MAX_SAFE: i64 = (1 << 53) - 1;
/// V8's longest has 2^30 bits.
const MAX_BIGINT_WORDS: usize = 1 << 24;
/// ECMA-262, 21.4.1.1: a Date beyond is an invalid one.
const MAX_DATE_MS: f64 = 8.64e15;

fn unserializable(what: &str) -> Fail {
    Error::new(ErrorKind::Unserializable, "value cannot travel").with("type", what).into()
}

/// A JavaScript value as a tree. Bytes are copied.
pub(crate) fn from_js(call: &Call<'_>, value: Raw) -> JsResult<Value> {
    from_js_at(call, value, Place { depth: 0, in_property: false, items: &Cell::new(0), moving: None })
}

/// Handles of the buffers that a value moves, in the order in which the codec numbers them.
pub(crate) type Moving<'a> = RefCell<Vec<&'a Owned>>;

/// As [`from_js`], for a message: each `TransferBuffer` has an empty place in the tree and its handle in `moving`. JavaScript has said
/// before that it gives handles instead of bytes.
pub(crate) fn from_js_moving<'a>(call: &'a Call<'_>, value: Raw, moving: &Moving<'a>) -> JsResult<Value> {
    let place = MovePlace { call, moving };
    from_js_at(call, value, Place { depth: 0, in_property: false, items: &Cell::new(0), moving: Some(&place) })
}

/// Where the handles of moved buffers go, whatever the lifetime of the call.
trait Move {
    fn add(&self, handle: Raw) -> JsResult<()>;
}

struct MovePlace<'m, 'a, 'c> {
    call: &'a Call<'c>,
    moving: &'m Moving<'a>,
}

impl Move for MovePlace<'_, '_, '_> {
    fn add(&self, handle: Raw) -> JsResult<()> {
        self.moving.borrow_mut().push(buffer::owned(self.call, handle)?);
        Ok(())
    }
}

/// Where in the tree a value is.
#[derive(Clone, Copy)]
struct Place<'a> {
    depth: usize,
    /// Inside a property of an error.
    in_property: bool,
    /// Values of the whole tree so far.
    items: &'a Cell<usize>,
    /// For buffers that move.
    moving: Option<&'a dyn Move>,
}

impl Place<'_> {
    fn inside(self) -> Self {
        Place { depth: self.depth + 1, ..self }
    }
}

fn from_js_at(call: &Call<'_>, value: Raw, at: Place<'_>) -> JsResult<Value> {
    let env = call.env;
    let items = at.items.get() + 1;
    at.items.set(items);
    if items > MAX_HOST_ITEMS {
        let e = Error::new(ErrorKind::TooLarge, "value has too many items").with("items", items).with("max_items", MAX_HOST_ITEMS);
        return Err(e.into());
    }
    // A cycle ends here too.
    let max_depth = Options::default().max_depth;
    if at.depth > max_depth {
        return Err(Error::new(ErrorKind::TooLarge, "value is nested too deeply or in a cycle")
            .with("depth", at.depth)
            .with("max_depth", max_depth)
            .into());
    }
    Ok(match env.type_of(value)? {
        sys::ValueType::napi_undefined | sys::ValueType::napi_null => Value::Nil,
        sys::ValueType::napi_boolean => Value::Bool(env.bool(value).unwrap_or_default()),
        sys::ValueType::napi_number => number(env.f64(value).unwrap_or_default()),
        sys::ValueType::napi_string => Value::from(env.text(value).unwrap_or_default()),
        sys::ValueType::napi_bigint => {
            let (negative, words) = env.bigint_words(value)?;
            bigint(negative, &words)
        }
        sys::ValueType::napi_symbol => return Err(unserializable("symbol")),
        sys::ValueType::napi_function => return Err(unserializable("function")),
        sys::ValueType::napi_object => object(call, value, at)?,
        _ => return Err(unserializable("external")),
    })
}

fn number(n: f64) -> Value {
    let whole = n.fract() == 0.0 && n.abs() <= MAX_SAFE as f64 && !(n == 0.0 && n.is_sign_negative());
    if whole { Value::Int(n as i64) } else { Value::Float(n) }
}

fn bigint(negative: bool, words: &[u64]) -> Value {
    BigInt { negative, magnitude: words.iter().flat_map(|w| w.to_le_bytes()).collect() }.into_value()
}

fn object(call: &Call<'_>, value: Raw, at: Place<'_>) -> JsResult<Value> {
    let env = call.env;
    if env.is_array(value)? {
        let len = env.len(value)?;
        return (0..len).map(|i| from_js_at(call, env.at(value, i)?, at.inside())).collect::<JsResult<Vec<_>>>().map(Value::Array);
    }
    if env.is_typedarray(value)? {
        return buffer::copy_typed(env, value);
    }
    if env.is_date(value)? {
        let ms = env.date_value(value)?;
        return Date::from_millis(ms).map(Value::Date).ok_or_else(|| unserializable("invalid Date"));
    }
    if env.is_error(value)? {
        return error(call, value, at);
    }
    // Classes that Node-API cannot tell apart are unwrapped in JavaScript: bytes, the entries of a Map, the name of a class
    // that cannot travel, or nothing for a plain object.
    let unwrapped = env.call(call.state.unwrap(env)?, &[value])?;
    if env.is_typedarray(unwrapped)? {
        return buffer::copy_typed(env, unwrapped);
    }
    if let (Some(moving), sys::ValueType::napi_external) = (at.moving, env.type_of(unwrapped)?) {
        moving.add(unwrapped)?;
        return Ok(Value::Buffer(TransferBuffer::default()));
    }
    if env.is_array(unwrapped)? {
        let len = env.len(unwrapped)?;
        let pair = |i| {
            let entry = env.at(unwrapped, i)?;
            Ok((from_js_at(call, env.at(entry, 0)?, at.inside())?, from_js_at(call, env.at(entry, 1)?, at.inside())?))
        };
        return (0..len).map(pair).collect::<JsResult<Vec<_>>>().map(Value::Map);
    }
    if let Some(class) = env.text(unwrapped) {
        return Err(unserializable(&class));
    }
    let keys = env.keys(value)?;
    let len = env.len(keys)?;
    let mut pairs = Vec::with_capacity(len as usize);
    for i in 0..len {
        let key = env.at(keys, i)?;
        let item = env.get(value, key)?;
        // As JSON does: a property that is undefined is not there.
        if env.type_of(item)? != sys::ValueType::napi_undefined {
            pairs.push((Value::from(env.text(key).unwrap_or_default()), from_js_at(call, item, at.inside())?));
        }
    }
    Ok(Value::Map(pairs))
}

/// An error, which JavaScript takes apart: `[name, message, stack, cause, properties]`.
fn error(call: &Call<'_>, value: Raw, at: Place<'_>) -> JsResult<Value> {
    let env = call.env;
    let parts = env.call(call.state.unwrap_error(env)?, &[value])?;
    let text = |i| Ok::<_, Fail>(env.text(env.at(parts, i)?).unwrap_or_default());
    let mut e = ErrorValue { name: text(0)?, message: text(1)?, stack: text(2)?, ..ErrorValue::default() };
    let cause = env.at(parts, 3)?;
    if !env.is_nullish(cause) {
        e.cause = Some(from_js_at(call, cause, at.inside())?);
    }
    let properties = env.at(parts, 4)?;
    for i in 0..env.len(properties)? {
        let pair = env.at(properties, i)?;
        let name = env.text(env.at(pair, 0)?).unwrap_or_default();
        match from_js_at(call, env.at(pair, 1)?, Place { in_property: true, ..at.inside().inside() }) {
            Ok(value) => e.properties.push((name, value)),
            // An error travels without those of its properties that cannot: a socket, a function, a cycle. Not so an error inside
            // a property, or each of a cycle's ways back would be tried at every depth.
            Err(Fail::Error(_)) if !at.in_property => {}
            Err(failed) => return Err(failed),
        }
    }
    Ok(e.into())
}

/// `roundTrip(value)`: there and back; for tests.
pub(crate) fn round_trip(call: &Call<'_>) -> JsResult<Raw> {
    let value = from_js(call, call.arg(0))?;
    to_js(call.env, call.state, value)
}

/// `encode(value)`: the message, as a `Uint8Array`; for tests.
pub(crate) fn encode(call: &Call<'_>) -> JsResult<Raw> {
    let value = from_js(call, call.arg(0))?;
    let mut message = Vec::new();
    codec::encode(&value, &Options::default(), &mut message)?;
    buffer::uint8array(call.env, call.state, message.into())
}

/// `decode(message, maxDepth, maxItems, maxBytes)`: the value; undefined limits are the defaults; for tests.
pub(crate) fn decode(call: &Call<'_>) -> JsResult<Raw> {
    let limit = |i, default| call.env.u32(call.arg(i)).map_or(default, |n| n as usize);
    let defaults = Options::default();
    let options = Options {
        max_depth: limit(1, defaults.max_depth),
        max_items: limit(2, defaults.max_items),
        max_bytes: limit(3, defaults.max_bytes),
        ..defaults
    };
    let message = buffer::copy(call.env, call.arg(0))?;
    to_js(call.env, call.state, codec::decode_owned(message.into(), &mut [], &options)?)
}

/// A tree as a JavaScript value. Large bytes become external memory, the rest is copied.
pub(crate) fn to_js(env: Env, state: &State, value: Value) -> JsResult<Raw> {
    match value {
        Value::Nil => Ok(env.null()),
        Value::Bool(b) => env.boolean(b),
        Value::Int(i) if i.unsigned_abs() <= MAX_SAFE.unsigned_abs() => env.number(i as f64),
        Value::Int(i) => env.bigint(i < 0, &[i.unsigned_abs()]),
        Value::Big(b) => {
            let chunks = b.magnitude.chunks(8);
            // What has more is no BigInt: it is not copied.
            let len = chunks.len();
            if len > MAX_BIGINT_WORDS {
                return Err(Error::new(ErrorKind::TooLarge, "integer is longer than a BigInt").with("words", len).into());
            }
            let words: Vec<u64> = chunks.map(|chunk| chunk.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))).collect();
            env.bigint(b.negative, &words)
        }
        Value::Float(f) => env.number(f),
        Value::Str(s) => env.string(&s),
        Value::Bytes(b) => buffer::uint8array(env, state, b),
        Value::Array(items) => {
            let out = env.array(items.len())?;
            for (i, item) in items.into_iter().enumerate() {
                env.set_at(out, i as u32, to_js(env, state, item)?)?;
            }
            Ok(out)
        }
        Value::Map(pairs) => map(env, state, pairs),
        // JavaScript itself rounds towards zero.
        Value::Date(date) if date.as_millis().floor().abs() <= MAX_DATE_MS => env.date(date.as_millis().floor()),
        Value::Date(date) => {
            let beyond = Error::new(ErrorKind::Unsupported, "date is more than 100 million days from 1970");
            Err(beyond.with("seconds", date.seconds()).into())
        }
        Value::Typed(array) => {
            let TypedArray { dtype, bytes, .. } = *array;
            buffer::typedarray(env, state, bytes, typedarray_type(dtype), dtype.size())
        }
        Value::Buffer(b) => {
            let handle = buffer::external(env, state, Handle::Buffer(b.into()))?;
            env.call(state.wrap_buffer(env)?, &[handle])
        }
        Value::Error(e) => {
            let status = e.kind().map_or(0, ErrorKind::status);
            let cause = e.cause.map_or(Ok(env.undefined()), |cause| to_js(env, state, cause))?;
            let properties = env.array(e.properties.len())?;
            for (i, (name, value)) in e.properties.into_iter().enumerate() {
                let pair = env.array(2)?;
                env.set_at(pair, 0, env.string(&name)?)?;
                env.set_at(pair, 1, to_js(env, state, value)?)?;
                env.set_at(properties, i as u32, pair)?;
            }
            let [name, message, stack] = [&e.name, &e.message, &e.stack].map(|text| env.string(text));
            env.call(state.wrap_error(env)?, &[name?, message?, stack?, cause, properties, env.number(f64::from(status))?])
        }
        other => Err(unserializable(other.type_name())),
    }
}

fn map(env: Env, state: &State, pairs: Vec<(Value, Value)>) -> JsResult<Raw> {
    if pairs.iter().all(|(k, _)| k.as_str().is_some()) {
        let out = env.object()?;
        for (key, value) in pairs {
            let key = env.string(key.as_str().unwrap_or_default())?;
            env.set(out, key, to_js(env, state, value)?)?;
        }
        return Ok(out);
    }
    let entries = env.array(pairs.len())?;
    for (i, (key, value)) in pairs.into_iter().enumerate() {
        let entry = env.array(2)?;
        env.set_at(entry, 0, to_js(env, state, key)?)?;
        env.set_at(entry, 1, to_js(env, state, value)?)?;
        env.set_at(entries, i as u32, entry)?;
    }
    env.call(state.wrap_map(env)?, &[entries])
}

fn typedarray_type(dtype: DType) -> sys::napi_typedarray_type {
    match dtype {
        DType::U8 => sys::TypedarrayType::uint8_array,
        DType::I8 => sys::TypedarrayType::int8_array,
        DType::U16 => sys::TypedarrayType::uint16_array,
        DType::I16 => sys::TypedarrayType::int16_array,
        DType::U32 => sys::TypedarrayType::uint32_array,
        DType::I32 => sys::TypedarrayType::int32_array,
        DType::U64 => sys::TypedarrayType::biguint64_array,
        DType::I64 => sys::TypedarrayType::bigint64_array,
        DType::F32 => sys::TypedarrayType::float32_array,
        DType::F64 => sys::TypedarrayType::float64_array,
    }
}

/// The element type of a JavaScript typed array; plain bytes for the byte kinds, `None` for one of a newer language.
pub(crate) fn dtype(kind: sys::napi_typedarray_type) -> Option<DType> {
    Some(match kind {
        sys::TypedarrayType::uint8_array | sys::TypedarrayType::uint8_clamped_array => DType::U8,
        sys::TypedarrayType::int8_array => DType::I8,
        sys::TypedarrayType::uint16_array => DType::U16,
        sys::TypedarrayType::int16_array => DType::I16,
        sys::TypedarrayType::uint32_array => DType::U32,
        sys::TypedarrayType::int32_array => DType::I32,
        sys::TypedarrayType::biguint64_array => DType::U64,
        sys::TypedarrayType::bigint64_array => DType::I64,
        sys::TypedarrayType::float32_array => DType::F32,
        sys::TypedarrayType::float64_array => DType::F64,
        _ => return None,
    })
}
