//! The one typed value tree: op options, op results, and (with [`crate::codec`]) what crosses languages.

use crate::buffer::{Bytes, TransferBuffer, copied, copied_text};
use crate::error::{ERROR_TABLE, Error, ErrorKind, Result};
use std::borrow::Cow;

/// Most items, keys and values together of what Node.js and Python convert from their own objects. Fewer than
/// [`codec::Options::max_items`](crate::codec::Options::max_items), because the caller's thread waits meanwhile, and because 25 lists
/// that each hold the next one twice are 2²⁵ items.
pub const MAX_HOST_ITEMS: usize = 1 << 18;

/// Element type of a [`TypedArray`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs, reason = "the names are the documentation")]
pub enum DType {
    U8 = 1,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F32,
    F64,
}

impl DType {
    /// Every element type.
    pub const ALL: [DType; 10] =
        [DType::U8, DType::I8, DType::U16, DType::I16, DType::U32, DType::I32, DType::U64, DType::I64, DType::F32, DType::F64];

    /// Bytes of one element.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            DType::U8 | DType::I8 => 1,
            DType::U16 | DType::I16 => 2,
            DType::U32 | DType::I32 | DType::F32 => 4,
            DType::U64 | DType::I64 | DType::F64 => 8,
        }
    }

    /// Bytes of the elements of a shape; `None` when no memory holds them. A length of 0 excuses no other one, as in
    /// numpy, so that every host takes the same shapes.
    #[must_use]
    pub fn byte_len(self, shape: &[u64]) -> Option<usize> {
        let len = shape.iter().filter(|n| **n > 0).try_fold(self.size() as u64, |len, n| len.checked_mul(*n))?;
        let len = isize::try_from(len).ok()?.unsigned_abs();
        Some(if shape.contains(&0) { 0 } else { len })
    }

    /// The element type with that number.
    #[must_use]
    pub fn from_u8(n: u8) -> Option<DType> {
        DType::ALL.into_iter().find(|d| *d as u8 == n)
    }
}

/// Elements of one type with a shape, little-endian, C order.
#[derive(Debug)]
pub struct TypedArray {
    /// Element type.
    pub dtype: DType,
    /// Elements per dimension.
    pub shape: Vec<u64>,
    /// The elements.
    pub bytes: Bytes,
}

impl From<TypedArray> for Value {
    fn from(t: TypedArray) -> Value {
        Value::Typed(Box::new(t))
    }
}

/// A big integer: sign and magnitude, little-endian bytes without trailing zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BigInt {
    /// Below zero.
    pub negative: bool,
    /// Magnitude, least significant byte first.
    pub magnitude: Vec<u8>,
}

impl BigInt {
    /// The integer as a value of its smallest form: `Int` where 64 bits hold it, `Big` beyond. Zero bytes above the magnitude are cut.
    #[must_use]
    pub fn into_value(mut self) -> Value {
        while self.magnitude.last() == Some(&0) {
            self.magnitude.pop();
        }
        if self.magnitude.len() > 8 {
            return Value::Big(self);
        }
        let word = self.magnitude.iter().rev().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
        match i64::try_from(word) {
            Ok(i) => Value::Int(if self.negative { -i } else { i }),
            Err(_) if self.negative && word == 1 << 63 => Value::Int(i64::MIN),
            Err(_) => Value::Big(self),
        }
    }
}

/// A point in time, to the nanosecond.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Date {
    seconds: i64,
    nanos: u32,
}

impl Date {
    /// `seconds` since 1970-01-01 UTC, rounded down, and `nanos` after them; `None` for a second or more of nanoseconds.
    #[must_use]
    pub fn new(seconds: i64, nanos: u32) -> Option<Date> {
        (nanos < 1_000_000_000).then_some(Date { seconds, nanos })
    }

    /// Milliseconds since 1970-01-01 UTC; `None` for what is no time (NaN, infinite) or more than 64 bits of seconds away.
    #[must_use]
    pub fn from_millis(ms: f64) -> Option<Date> {
        let seconds = (ms / 1e3).floor();
        if !(-9.2e18..9.2e18).contains(&seconds) {
            return None;
        }
        // A fraction that rounds up to a whole second carries over.
        let nanos = ((ms - seconds * 1e3) * 1e6).round().clamp(0.0, 1e9) as u32;
        Date::new(seconds as i64 + i64::from(nanos / 1_000_000_000), nanos % 1_000_000_000)
    }

    /// Seconds since 1970-01-01 UTC, rounded down.
    #[must_use]
    pub const fn seconds(self) -> i64 {
        self.seconds
    }

    /// Nanoseconds after [`seconds`](Self::seconds), below 10⁹.
    #[must_use]
    pub const fn nanos(self) -> u32 {
        self.nanos
    }

    /// Milliseconds since 1970-01-01 UTC, as near as a float is.
    #[must_use]
    pub fn as_millis(self) -> f64 {
        self.seconds as f64 * 1e3 + f64::from(self.nanos) / 1e6
    }
}

/// A user's error as a value.
#[derive(Debug, Default)]
pub struct ErrorValue {
    /// Class name.
    pub name: String,
    /// Message.
    pub message: String,
    /// Stack or traceback, empty when there is none.
    pub stack: String,
    /// What caused it: usually an error.
    pub cause: Option<Value>,
    /// The error's own further properties in their order, `code` (`ENOENT`, `ERR_OFFLOOP_FULL`) among them.
    pub properties: Vec<(String, Value)>,
}

impl ErrorValue {
    /// An error of a class with a message, and nothing else.
    pub fn new(name: impl Into<String>, message: impl Into<String>) -> ErrorValue {
        ErrorValue { name: name.into(), message: message.into(), ..ErrorValue::default() }
    }

    /// A property by its name; of several the last counts.
    #[must_use]
    pub fn property(&self, name: &str) -> Option<&Value> {
        self.properties.iter().rfind(|(key, _)| key == name).map(|(_, value)| value)
    }

    /// Sets a property, replacing its old value.
    pub fn set_property(&mut self, name: &str, value: Value) {
        match self.properties.iter_mut().rfind(|(key, _)| key == name) {
            Some((_, old)) => *old = value,
            None => self.properties.push((name.to_owned(), value)),
        }
    }

    /// The kind that `code` names, if it is one of offloop's own.
    #[must_use]
    pub fn kind(&self) -> Option<ErrorKind> {
        let code = self.property("code")?.as_str()?;
        ERROR_TABLE.iter().find(|row| row.code == code).map(|row| row.kind)
    }

    fn deep_clone(&self) -> Result<ErrorValue> {
        Ok(ErrorValue {
            name: self.name.clone(),
            message: self.message.clone(),
            stack: self.stack.clone(),
            cause: self.cause.as_ref().map(Value::deep_clone).transpose()?,
            properties: self.properties.iter().map(|(k, v)| Ok((k.clone(), v.deep_clone()?))).collect::<Result<_>>()?,
        })
    }
}

impl From<ErrorValue> for Value {
    fn from(e: ErrorValue) -> Value {
        Value::Error(Box::new(e))
    }
}

/// A value of any language.
#[derive(Debug, Default)]
#[non_exhaustive]
pub enum Value {
    /// Nothing: `null`, `None`.
    #[default]
    Nil,
    /// A boolean.
    Bool(bool),
    /// An integer of 64 bits.
    Int(i64),
    /// An integer beyond 64 bits.
    Big(BigInt),
    /// A float.
    Float(f64),
    /// Text.
    Str(Cow<'static, str>),
    /// Bytes.
    Bytes(Bytes),
    /// A list.
    Array(Vec<Value>),
    /// Pairs in their order; keys of any type. Of several pairs with one key the last counts.
    Map(Vec<(Value, Value)>),
    /// A point in time.
    Date(Date),
    /// Typed elements. Boxed, as errors are: every value is as large as its largest kind.
    Typed(Box<TypedArray>),
    /// A buffer with one owner.
    Buffer(TransferBuffer),
    /// An error.
    Error(Box<ErrorValue>),
}

impl Value {
    /// Text from anything stringy.
    pub fn str(s: impl Into<Cow<'static, str>>) -> Value {
        Value::Str(s.into())
    }

    /// A map with text keys, in the given order.
    pub fn map(pairs: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
        Value::Map(pairs.into_iter().map(|(k, v)| (Value::str(k), v)).collect())
    }

    /// The kind's word, for messages.
    #[must_use]
    pub fn type_name(&self) -> &'static str {
        match self {
            Value::Nil => "nil",
            Value::Bool(_) => "bool",
            Value::Int(_) | Value::Big(_) => "int",
            Value::Float(_) => "float",
            Value::Str(_) => "string",
            Value::Bytes(_) => "bytes",
            Value::Array(_) => "array",
            Value::Map(_) => "map",
            Value::Date(_) => "date",
            Value::Typed(_) => "typed array",
            Value::Buffer(_) => "buffer",
            Value::Error(_) => "error",
        }
    }

    /// The text, if this is text.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        if let Value::Str(s) = self { Some(s) } else { None }
    }

    /// The integer, if this is one; a float without a fraction counts.
    #[must_use]
    pub fn as_int(&self) -> Option<i64> {
        match self {
            Value::Int(i) => Some(*i),
            Value::Float(f) if f.fract() == 0.0 && f.abs() < 9.007_199_254_740_992e15 => Some(*f as i64),
            _ => None,
        }
    }

    /// The number as a float, if this is a number.
    #[must_use]
    pub fn as_float(&self) -> Option<f64> {
        match self {
            Value::Int(i) => Some(*i as f64),
            Value::Float(f) => Some(*f),
            _ => None,
        }
    }

    /// The boolean, if this is one.
    #[must_use]
    pub fn as_bool(&self) -> Option<bool> {
        if let Value::Bool(b) = self { Some(*b) } else { None }
    }

    /// The value of a text key, if this is a map that has it.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        let Value::Map(pairs) = self else { return None };
        pairs.iter().rfind(|(k, _)| k.as_str() == Some(key)).map(|(_, v)| v)
    }

    /// The bytes of a byte value, a buffer or a typed array; `Invalid` otherwise.
    pub fn into_bytes(self) -> Result<Bytes> {
        match self {
            Value::Bytes(b) => Ok(b),
            Value::Typed(t) => Ok(t.bytes),
            Value::Buffer(b) => b.into_bytes(),
            other => Err(Error::new(ErrorKind::Invalid, "value has no bytes").with("type", other.type_name())),
        }
    }

    /// Arrays, maps and errors inside each other, counted as [`crate::codec`] counts them. Looks no deeper than `most`.
    pub(crate) fn depth(&self, most: usize) -> usize {
        let Some(most) = most.checked_sub(1) else { return 0 };
        let inside = |values: &mut dyn Iterator<Item = &Value>, most| values.map(|v| v.depth(most)).max().unwrap_or(0);
        match self {
            Value::Array(items) => 1 + inside(&mut items.iter(), most),
            Value::Map(pairs) => 1 + inside(&mut pairs.iter().flat_map(|(k, v)| [k, v]), most),
            Value::Error(e) => {
                let cause = inside(&mut e.cause.iter(), most);
                // The properties are a map of their own.
                let own = usize::from(most > 0 && !e.properties.is_empty());
                let properties = own + inside(&mut e.properties.iter().map(|(_, v)| v), most.saturating_sub(1));
                1 + cause.max(properties)
            }
            _ => 0,
        }
    }

    /// Shows every `TransferBuffer` inside to `visit`, in the order in which the codec numbers them.
    pub fn each_buffer_mut(&mut self, visit: &mut dyn FnMut(&mut TransferBuffer)) {
        match self {
            Value::Array(items) => items.iter_mut().for_each(|item| item.each_buffer_mut(visit)),
            Value::Map(pairs) => pairs.iter_mut().for_each(|(key, item)| {
                key.each_buffer_mut(visit);
                item.each_buffer_mut(visit);
            }),
            Value::Error(e) => {
                e.cause.iter_mut().for_each(|cause| cause.each_buffer_mut(visit));
                e.properties.iter_mut().for_each(|(_, item)| item.each_buffer_mut(visit));
            }
            Value::Buffer(buffer) => visit(buffer),
            _ => {}
        }
    }

    /// A deep copy. Buffers are copied into plain bytes, because a buffer has one owner.
    pub fn deep_clone(&self) -> Result<Value> {
        Ok(match self {
            Value::Nil => Value::Nil,
            Value::Bool(b) => Value::Bool(*b),
            Value::Int(i) => Value::Int(*i),
            Value::Big(b) => Value::Big(b.clone()),
            Value::Float(f) => Value::Float(*f),
            Value::Str(Cow::Borrowed(s)) => Value::Str(Cow::Borrowed(s)),
            Value::Str(Cow::Owned(s)) => Value::from(copied_text(s)?),
            Value::Bytes(b) => Value::Bytes(copied(b)?.into()),
            Value::Array(a) => Value::Array(a.iter().map(Value::deep_clone).collect::<Result<_>>()?),
            Value::Map(m) => Value::Map(m.iter().map(|(k, v)| Ok((k.deep_clone()?, v.deep_clone()?))).collect::<Result<_>>()?),
            Value::Date(d) => Value::Date(*d),
            Value::Typed(t) => Value::from(TypedArray { dtype: t.dtype, shape: t.shape.clone(), bytes: copied(&t.bytes)?.into() }),
            Value::Buffer(b) => Value::Bytes(b.to_vec()?.into()),
            Value::Error(e) => Value::from(e.deep_clone()?),
        })
    }
}

impl From<Vec<u8>> for Value {
    fn from(v: Vec<u8>) -> Value {
        Value::Bytes(v.into())
    }
}
impl From<bool> for Value {
    fn from(v: bool) -> Value {
        Value::Bool(v)
    }
}
impl From<Date> for Value {
    fn from(v: Date) -> Value {
        Value::Date(v)
    }
}
impl From<i64> for Value {
    fn from(v: i64) -> Value {
        Value::Int(v)
    }
}
impl From<f64> for Value {
    fn from(v: f64) -> Value {
        Value::Float(v)
    }
}
impl From<String> for Value {
    fn from(v: String) -> Value {
        Value::Str(v.into())
    }
}
impl From<&'static str> for Value {
    fn from(v: &'static str) -> Value {
        Value::str(v)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_keep_milliseconds_and_carry() {
        let parts = |ms| Date::from_millis(ms).map(|d| (d.seconds(), d.nanos()));
        assert_eq!(parts(1.7e12 + 123.0), Some((1_700_000_000, 123_000_000)));
        assert_eq!(parts(-1.0), Some((-1, 999_000_000)));
        assert_eq!(parts(999.999_999_9), Some((1, 0)));
        assert_eq!(parts(8.64e15), Some((8_640_000_000_000, 0)));
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e300, -1e22] {
            assert_eq!(parts(bad), None, "{bad}");
        }
        for ms in [0.0, 0.5, -0.25, 1.7e12 + 0.125, -8.64e15] {
            assert_eq!(Date::from_millis(ms).map(Date::as_millis), Some(ms));
        }
        assert_eq!(Date::new(0, 1_000_000_000), None);
    }

    #[test]
    fn integers_take_their_smallest_form() {
        let small = |negative, magnitude: &[u8]| match (BigInt { negative, magnitude: magnitude.to_vec() }).into_value() {
            Value::Int(i) => Ok(i),
            Value::Big(b) => Err((b.negative, b.magnitude)),
            other => panic!("{other:?}"),
        };
        assert_eq!(small(true, &[]), Ok(0));
        assert_eq!(small(true, &[5, 0, 0, 0, 0, 0, 0, 0, 0, 0]), Ok(-5));
        assert_eq!(small(false, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]), Ok(i64::MAX));
        assert_eq!(small(true, &[0, 0, 0, 0, 0, 0, 0, 0x80]), Ok(i64::MIN));
        assert_eq!(small(false, &[0, 0, 0, 0, 0, 0, 0, 0x80]), Err((false, vec![0, 0, 0, 0, 0, 0, 0, 0x80])));
    }

    #[test]
    fn the_last_pair_of_a_key_counts() {
        assert_eq!(Value::map([("a", 1.into()), ("a", 2.into())]).get("a").and_then(Value::as_int), Some(2));
    }

    #[test]
    fn depth_counts_containers_up_to_the_most_that_is_asked_for() {
        let list = |inner| Value::Array(vec![Value::Nil, inner]);
        assert_eq!(Value::Int(1).depth(9), 0);
        assert_eq!(Value::Array(vec![]).depth(9), 1);
        assert_eq!(Value::map([("a", list(list(Value::Nil))), ("b", Value::Nil)]).depth(9), 3);
        let mut error = ErrorValue { cause: Some(list(Value::Nil)), ..ErrorValue::default() };
        assert_eq!(Value::from(error).depth(9), 2);
        error = ErrorValue::default();
        error.set_property("list", list(Value::Nil));
        let error = Value::from(error);
        assert_eq!([1, 2, 3, 4].map(|most| error.depth(most)), [1, 2, 3, 3]);
    }

    #[test]
    fn a_value_stays_small() {
        assert!(size_of::<Value>() <= 40, "{}", size_of::<Value>());
    }
}
