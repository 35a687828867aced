//! The one typed value tree: op options, op results, and (with the codec) what crosses languages.

use crate::buffer::{Bytes, TransferBuffer};
use crate::error::{Error, ErrorKind, Result};
use std::borrow::Cow;

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

/// A big integer: sign and magnitude, little-endian bytes without trailing zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BigInt {
    /// Below zero.
    pub negative: bool,
    /// Magnitude, least significant byte first.
    pub magnitude: Vec<u8>,
}

/// A user's error as a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorValue {
    /// Class name.
    pub name: String,
    /// Message.
    pub message: String,
    /// Stack or traceback, empty when there is none.
    pub stack: String,
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
    /// Pairs in their order; keys of any type.
    Map(Vec<(Value, Value)>),
    /// Milliseconds since 1970-01-01 UTC.
    Date(f64),
    /// Typed elements.
    Typed(TypedArray),
    /// A buffer with one owner.
    Buffer(TransferBuffer),
    /// An error.
    Error(ErrorValue),
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
        pairs.iter().find(|(k, _)| k.as_str() == Some(key)).map(|(_, v)| v)
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

    /// A deep copy. Buffers are copied into plain bytes, because a buffer has one owner.
    pub fn deep_clone(&self) -> Result<Value> {
        Ok(match self {
            Value::Nil => Value::Nil,
            Value::Bool(b) => Value::Bool(*b),
            Value::Int(i) => Value::Int(*i),
            Value::Big(b) => Value::Big(b.clone()),
            Value::Float(f) => Value::Float(*f),
            Value::Str(s) => Value::Str(s.clone()),
            Value::Bytes(b) => Value::Bytes(b.to_vec().into()),
            Value::Array(a) => Value::Array(a.iter().map(Value::deep_clone).collect::<Result<_>>()?),
            Value::Map(m) => Value::Map(m.iter().map(|(k, v)| Ok((k.deep_clone()?, v.deep_clone()?))).collect::<Result<_>>()?),
            Value::Date(d) => Value::Date(*d),
            Value::Typed(t) => Value::Typed(TypedArray { dtype: t.dtype, shape: t.shape.clone(), bytes: t.bytes.to_vec().into() }),
            Value::Buffer(b) => Value::Bytes(b.to_vec()?.into()),
            Value::Error(e) => Value::Error(e.clone()),
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
