//! What requests and replies say. The first byte is who wrote the rest: [`COMMON`] is a message of the [common codec](crate::codec), which
//! every worker reads; the others are the own form of one language, for calls within it. In a reply [`FAILED`] is added when the function
//! failed, and the rest is its error.
//!
//! A common request is an array of the function's name, an array of arguments, and a map of named ones or nil; a reply is one value.

use crate::codec::{self, Options};
use crate::error::{Error, ErrorKind, Result};
use crate::value::{ErrorValue, Value};

/// The common codec.
pub const COMMON: u8 = 1;
/// Python's own: see the Python library.
pub const PYTHON: u8 = 2;
/// JavaScript's own: see the Node.js library.
pub const NODE: u8 = 3;
/// The function failed.
pub const FAILED: u8 = 0x80;

/// A call that any language can make.
#[derive(Debug)]
pub struct Call {
    /// Which function.
    pub name: String,
    /// Its arguments in order.
    pub args: Vec<Value>,
    /// Arguments by name; only Python's functions have some.
    pub named: Vec<(Value, Value)>,
}

fn write(first: u8, value: &Value) -> Result<Vec<u8>> {
    let mut out = vec![first];
    codec::encode(value, &Options::default(), &mut out)?;
    Ok(out)
}

/// The request of the three parts of a call, or a reply, for whoever keeps them.
pub(crate) fn encode_parts(parts: &Value) -> Result<Vec<u8>> {
    write(COMMON, parts)
}

impl Call {
    /// The request.
    ///
    /// # Errors
    /// `TooLarge` for a limit of the codec, `Unserializable` for what it has no form for.
    pub fn encode(self) -> Result<Vec<u8>> {
        let named = if self.named.is_empty() { Value::Nil } else { Value::Map(self.named) };
        encode_parts(&Value::Array(vec![Value::str(self.name), Value::Array(self.args), named]))
    }

    /// Reads a request.
    ///
    /// # Errors
    /// `Unsupported` for a request in another language's own form, `Corrupt`, `TooLarge`.
    pub fn decode(request: &[u8]) -> Result<Call> {
        let shape = || Error::new(ErrorKind::Corrupt, "request is not a call");
        let (first, message) = request.split_first().ok_or_else(shape)?;
        if *first != COMMON {
            return Err(Error::new(ErrorKind::Unsupported, "the call is in another language's own form").with("form", first));
        }
        let Value::Array(parts) = codec::decode(message, &mut [], &Options::default())? else { return Err(shape()) };
        let [Value::Str(name), Value::Array(args), named] = <[Value; 3]>::try_from(parts).map_err(|_| shape())? else {
            return Err(shape());
        };
        let named = match named {
            Value::Nil => Vec::new(),
            Value::Map(pairs) => pairs,
            _ => return Err(shape()),
        };
        Ok(Call { name: name.into_owned(), args, named })
    }
}

/// The reply of a function.
///
/// # Errors
/// As [`Call::encode`].
pub fn encode_reply(result: Result<Value, Box<ErrorValue>>) -> Result<Vec<u8>> {
    match result {
        Ok(value) => write(COMMON, &value),
        Err(error) => write(COMMON | FAILED, &Value::Error(error)),
    }
}

/// Reads a reply: what the function returned, or its error.
///
/// # Errors
/// `Unsupported` for a reply in another language's own form, `Corrupt`, `TooLarge`.
pub fn decode_reply(reply: &[u8]) -> Result<Result<Value, Box<ErrorValue>>> {
    let shape = || Error::new(ErrorKind::Corrupt, "reply is neither a value nor an error");
    let (first, message) = reply.split_first().ok_or_else(shape)?;
    if first & !FAILED != COMMON {
        return Err(Error::new(ErrorKind::Unsupported, "the reply is in another language's own form").with("form", first));
    }
    match (first & FAILED != 0, codec::decode(message, &mut [], &Options::default())?) {
        (false, value) => Ok(Ok(value)),
        (true, Value::Error(error)) => Ok(Err(error)),
        (true, _) => Err(shape()),
    }
}

/// An error of the core as a function's own error: [`ErrorValue::kind`] finds its kind again.
#[must_use]
pub fn error_value(error: &Error) -> ErrorValue {
    let mut value = ErrorValue::new("OffloopError", error.to_string());
    value.set_property("code", Value::str(error.kind().row().code));
    value
}
