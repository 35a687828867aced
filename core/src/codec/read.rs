//! Bytes to values.

use super::Options;
use crate::buffer::{Bytes, TransferBuffer, copied, copied_text};
use crate::error::{Error, ErrorKind, Result};
use crate::value::{BigInt, DType, Date, ErrorValue, TypedArray, Value};
use crate::wire::value::{ALIGN, BIG, BUFFER, DATE, ERROR, IS_BUFFER, IS_BYTES, MAX_DIMENSIONS, OUT_OF_BAND, PAD, TYPED};
use std::sync::Arc;

/// Payloads of at least so many bytes become parts of the message instead of copies. A part keeps the whole message.
const PART_MIN: usize = 4096;

/// Reads one value, which is all that `message` holds; payloads are copied. `buffers` are those that came beside it: each one
/// that the value names is taken.
///
/// # Errors
/// `Corrupt` with the offset, `TooLarge` with the limit. Buffers that were taken before that are gone.
pub fn decode(message: &[u8], buffers: &mut [Option<TransferBuffer>], options: &Options) -> Result<Value> {
    read(message, None, buffers, options)
}

/// As [`decode`], for a message that nobody else uses: payloads of 4 KiB and more are parts of it instead of copies. Elements of
/// typed arrays are, too, where they lie at a multiple of their size: in a message that begins at a multiple of 8.
///
/// # Errors
/// As [`decode`].
pub fn decode_owned(message: Bytes, buffers: &mut [Option<TransferBuffer>], options: &Options) -> Result<Value> {
    let message = Arc::new(message);
    read(&message, Some(&message), buffers, options)
}

fn read(bytes: &[u8], whole: Option<&Arc<Bytes>>, buffers: &mut [Option<TransferBuffer>], options: &Options) -> Result<Value> {
    options.check()?;
    options.check_bytes(bytes.len())?;
    let mut reader = Reader { bytes, whole, buffers, options, at: 0, end: bytes.len(), items: options.max_items, owed: 0 };
    let value = reader.value(0)?;
    if reader.at != reader.end {
        return Err(reader.corrupt("message goes on after its value", reader.at).with("len", bytes.len()));
    }
    Ok(value)
}

struct Reader<'a> {
    bytes: &'a [u8],
    whole: Option<&'a Arc<Bytes>>,
    buffers: &'a mut [Option<TransferBuffer>],
    options: &'a Options,
    at: usize,
    /// Where the message ends, or the error that is being read.
    end: usize,
    /// Items that may still come.
    items: usize,
    /// Items that the open containers still claim. Each needs a byte, so never more than there are before `end`.
    owed: usize,
}

impl<'a> Reader<'a> {
    #[cold]
    fn corrupt(&self, what: &'static str, offset: usize) -> Error {
        Error::new(ErrorKind::Corrupt, what).with("offset", offset)
    }

    #[cold]
    fn short(&self, need: usize) -> Error {
        self.corrupt("message ends inside a value", self.at).with("need", need).with("left", self.end - self.at)
    }

    fn slice(&mut self, len: usize) -> Result<&'a [u8]> {
        if len > self.end - self.at {
            return Err(self.short(len));
        }
        let out = &self.bytes[self.at..self.at + len];
        self.at += len;
        Ok(out)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(*self.slice(N)?.first_chunk().expect("`slice` gives what it was asked for"))
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    fn len8(&mut self) -> Result<usize> {
        Ok(usize::from(self.byte()?))
    }

    fn len16(&mut self) -> Result<usize> {
        Ok(usize::from(u16::from_be_bytes(self.array()?)))
    }

    fn len32(&mut self) -> Result<usize> {
        Ok(u32::from_be_bytes(self.array()?) as usize)
    }

    fn value(&mut self, depth: usize) -> Result<Value> {
        let start = self.at;
        let marker = self.byte()?;
        Ok(match marker {
            0x00..=0x7f => Value::Int(i64::from(marker)),
            0x80..=0x8f => self.map(start, usize::from(marker & 0x0f), depth)?,
            0x90..=0x9f => self.list(start, usize::from(marker & 0x0f), depth)?,
            0xa0..=0xbf => self.text(start, usize::from(marker & 0x1f))?,
            0xc0 => Value::Nil,
            0xc1 => return Err(self.corrupt("byte is no marker of a value", start).with("marker", "0xc1")),
            0xc2 => Value::Bool(false),
            0xc3 => Value::Bool(true),
            0xc4 => self.len8().and_then(|len| self.binary(len))?,
            0xc5 => self.len16().and_then(|len| self.binary(len))?,
            0xc6 => self.len32().and_then(|len| self.binary(len))?,
            0xc7 => self.len8().and_then(|len| self.ext(start, len, depth))?,
            0xc8 => self.len16().and_then(|len| self.ext(start, len, depth))?,
            0xc9 => self.len32().and_then(|len| self.ext(start, len, depth))?,
            0xca => Value::Float(f64::from(f32::from_be_bytes(self.array()?))),
            0xcb => Value::Float(f64::from_be_bytes(self.array()?)),
            0xcc => Value::Int(i64::from(self.byte()?)),
            0xcd => Value::Int(i64::from(u16::from_be_bytes(self.array()?))),
            0xce => Value::Int(i64::from(u32::from_be_bytes(self.array()?))),
            0xcf => match u64::from_be_bytes(self.array()?) {
                n @ 0..=0x7fff_ffff_ffff_ffff => Value::Int(n as i64),
                n => Value::Big(BigInt { negative: false, magnitude: n.to_le_bytes().to_vec() }),
            },
            0xd0 => Value::Int(i64::from(i8::from_be_bytes(self.array()?))),
            0xd1 => Value::Int(i64::from(i16::from_be_bytes(self.array()?))),
            0xd2 => Value::Int(i64::from(i32::from_be_bytes(self.array()?))),
            0xd3 => Value::Int(i64::from_be_bytes(self.array()?)),
            0xd4..=0xd8 => self.ext(start, 1 << (marker - 0xd4), depth)?,
            0xd9 => self.len8().and_then(|len| self.text(start, len))?,
            0xda => self.len16().and_then(|len| self.text(start, len))?,
            0xdb => self.len32().and_then(|len| self.text(start, len))?,
            0xdc => self.len16().and_then(|len| self.list(start, len, depth))?,
            0xdd => self.len32().and_then(|len| self.list(start, len, depth))?,
            0xde => self.len16().and_then(|len| self.map(start, len, depth))?,
            0xdf => self.len32().and_then(|len| self.map(start, len, depth))?,
            0xe0..=0xff => Value::Int(i64::from(marker as i8)),
        })
    }

    /// Opens a container of `items` that began at `start`: checks what it claims before anything is reserved for it, and returns
    /// the depth inside.
    fn open(&mut self, start: usize, items: usize, depth: usize) -> Result<usize> {
        let left = self.end - self.at;
        self.owed = self.owed.saturating_add(items);
        if self.owed > left {
            return Err(self.corrupt("message ends before the items that it claims", start).with("items", self.owed).with("left", left));
        }
        self.items = self.options.check_items(self.items, items).map_err(|e| e.with("offset", start))?;
        self.options.inside(depth).map_err(|e| e.with("offset", start))
    }

    fn item(&mut self, depth: usize) -> Result<Value> {
        self.owed -= 1;
        self.value(depth)
    }

    fn list(&mut self, start: usize, len: usize, depth: usize) -> Result<Value> {
        let depth = self.open(start, len, depth)?;
        let mut items = Vec::with_capacity(len);
        for _ in 0..len {
            items.push(self.item(depth)?);
        }
        Ok(Value::Array(items))
    }

    fn map(&mut self, start: usize, len: usize, depth: usize) -> Result<Value> {
        let depth = self.open(start, 2 * len, depth)?;
        let mut pairs = Vec::with_capacity(len);
        for _ in 0..len {
            pairs.push((self.item(depth)?, self.item(depth)?));
        }
        Ok(Value::Map(pairs))
    }

    fn text(&mut self, start: usize, len: usize) -> Result<Value> {
        match std::str::from_utf8(self.slice(len)?) {
            Ok(text) => copied_text(text).map(Value::from),
            Err(e) => Err(self.corrupt("text is no UTF-8", start).with("valid_up_to", e.valid_up_to()).with("len", len)),
        }
    }

    fn binary(&mut self, len: usize) -> Result<Value> {
        self.payload(len, 1).map(Value::Bytes)
    }

    /// The next `len` bytes: a part of the message where that is worth it and they lie at a multiple of `align`, else a copy.
    fn payload(&mut self, len: usize, align: usize) -> Result<Bytes> {
        let at = self.at;
        let bytes = self.slice(len)?;
        Ok(match self.whole {
            Some(whole) if len >= PART_MIN && bytes.as_ptr().addr().is_multiple_of(align) => Bytes::part(whole, at..at + len),
            _ => copied(bytes)?.into(),
        })
    }

    fn ext(&mut self, start: usize, len: usize, depth: usize) -> Result<Value> {
        let code = self.byte()? as i8;
        if len > self.end - self.at {
            return Err(self.short(len));
        }
        // What lies inside ends where the extension ends, and does not see what is owed outside.
        let (end, owed) = (self.end, self.owed);
        (self.end, self.owed) = (self.at + len, 0);
        let value = match code {
            DATE => self.date(start, len),
            BIG => self.big(start),
            TYPED => self.typed(start),
            BUFFER => self.reference(start),
            ERROR => self.error(start, depth),
            _ => Err(self.corrupt("extension type is not known", start).with("type", code)),
        }?;
        if self.at != self.end {
            return Err(self.corrupt("extension goes on after its value", self.at).with("type", code).with("left", self.end - self.at));
        }
        (self.end, self.owed) = (end, owed);
        Ok(value)
    }

    fn date(&mut self, start: usize, len: usize) -> Result<Value> {
        let (seconds, nanos) = match len {
            4 => (i64::from(u32::from_be_bytes(self.array()?)), 0),
            8 => {
                let word = u64::from_be_bytes(self.array()?);
                ((word & 0x3_ffff_ffff) as i64, (word >> 34) as u32)
            }
            12 => {
                let nanos = u32::from_be_bytes(self.array()?);
                (i64::from_be_bytes(self.array()?), nanos)
            }
            _ => return Err(self.corrupt("date is not 4, 8 or 12 bytes long", start).with("len", len)),
        };
        let date = Date::new(seconds, nanos);
        date.map(Value::Date)
            .ok_or_else(|| self.corrupt("date has a second or more of nanoseconds", start).with("nanos", nanos).with("max", 999_999_999))
    }

    fn big(&mut self, start: usize) -> Result<Value> {
        let negative = match self.byte()? {
            0 => false,
            1 => true,
            sign => return Err(self.corrupt("sign of an integer is neither 0 nor 1", start).with("sign", sign)),
        };
        let magnitude = copied(self.slice(self.end - self.at)?)?;
        Ok(BigInt { negative, magnitude }.into_value())
    }

    /// An unsigned integer inside an extension.
    fn uint(&mut self) -> Result<u64> {
        let start = self.at;
        Ok(match self.byte()? {
            n @ 0..=0x7f => u64::from(n),
            0xcc => u64::from(self.byte()?),
            0xcd => u64::from(u16::from_be_bytes(self.array()?)),
            0xce => u64::from(u32::from_be_bytes(self.array()?)),
            0xcf => u64::from_be_bytes(self.array()?),
            marker => return Err(self.corrupt("number is no unsigned integer", start).with("marker", format_args!("{marker:#04x}"))),
        })
    }

    /// The buffer beside the message that is named here.
    fn buffer(&mut self, start: usize) -> Result<TransferBuffer> {
        let index = self.uint()?;
        let count = self.buffers.len();
        let Some(buffer) = usize::try_from(index).ok().and_then(|i| self.buffers.get_mut(i)) else {
            return Err(self.corrupt("buffer did not come with the message", start).with("index", index).with("buffers", count));
        };
        buffer.take().ok_or_else(|| self.corrupt("buffer is named twice", start).with("index", index))
    }

    /// Bytes beside the message. They may have to be copied, so shorter ones than a sender puts there are refused.
    fn beside(&mut self, start: usize) -> Result<Bytes> {
        let buffer = self.buffer(start)?;
        match self.options.out_of_band {
            Some(min) if buffer.len() < min => {
                Err(self.corrupt("bytes beside the message are too short for that", start).with("len", buffer.len()).with("min", min))
            }
            _ => buffer.into_bytes(),
        }
    }

    fn reference(&mut self, start: usize) -> Result<Value> {
        let what = self.byte()?;
        match what {
            IS_BUFFER => self.buffer(start).map(Value::Buffer),
            IS_BYTES => self.beside(start).map(Value::Bytes),
            _ => Err(self.corrupt("buffer is of no known kind", start).with("what", what)),
        }
    }

    fn typed(&mut self, start: usize) -> Result<Value> {
        let [dtype, flags, dims] = self.array()?;
        let Some(dtype) = DType::from_u8(dtype) else {
            return Err(self.corrupt("element type is not known", start).with("dtype", dtype));
        };
        let (pad, beside) = (usize::from(flags & PAD), flags & OUT_OF_BAND != 0);
        if flags & !(PAD | OUT_OF_BAND) != 0 || beside && pad != 0 {
            return Err(self.corrupt("typed array has flags that are not known", start).with("flags", format_args!("{flags:#04x}")));
        }
        let dims = usize::from(dims);
        if dims > MAX_DIMENSIONS {
            return Err(self.corrupt("typed array has too many dimensions", start).with("dimensions", dims).with("max", MAX_DIMENSIONS));
        }
        let mut shape = Vec::with_capacity(dims.min(self.end - self.at));
        for _ in 0..dims {
            shape.push(self.uint()?);
        }
        if self.slice(pad)?.iter().any(|byte| *byte != 0) {
            return Err(self.corrupt("padding is not zero", self.at - pad));
        }
        let bytes = if beside { self.beside(start)? } else { self.payload(self.end - self.at, dtype.size().min(ALIGN))? };
        if dtype.byte_len(&shape) != Some(bytes.len()) {
            let shape = format!("{shape:?}");
            return Err(self.corrupt("elements do not fill the shape", start).with("len", bytes.len()).with("shape", shape));
        }
        Ok(TypedArray { dtype, shape, bytes }.into())
    }

    /// The head of an array (`fix` 0x90, `wide` 0xdc) or map (0x80, 0xde) inside an error.
    fn head(&mut self, fix: u8, wide: u8) -> Result<usize> {
        let start = self.at;
        match self.byte()? {
            marker if marker & 0xf0 == fix => Ok(usize::from(marker & 0x0f)),
            marker if marker == wide => self.len16(),
            marker if marker == wide + 1 => self.len32(),
            marker => {
                let want = if fix == 0x90 { "array" } else { "map" };
                Err(self
                    .corrupt("field of an error is of another type", start)
                    .with("marker", format_args!("{marker:#04x}"))
                    .with("want", want))
            }
        }
    }

    fn error_text(&mut self, depth: usize) -> Result<String> {
        let start = self.at;
        match self.item(depth)? {
            Value::Str(s) => Ok(s.into_owned()),
            other => {
                Err(self.corrupt("field of an error is of another type", start).with("type", other.type_name()).with("want", "string"))
            }
        }
    }

    fn error(&mut self, start: usize, depth: usize) -> Result<Value> {
        let fields = self.head(0x90, 0xdc)?;
        if !(2..=5).contains(&fields) {
            return Err(self.corrupt("error does not have 2 to 5 fields", start).with("fields", fields));
        }
        let depth = self.open(start, fields, depth)?;
        let mut e = ErrorValue::new(self.error_text(depth)?, self.error_text(depth)?);
        if fields >= 3 {
            e.stack = self.error_text(depth)?;
        }
        if fields >= 4 {
            e.cause = Some(self.item(depth)?).filter(|cause| !matches!(cause, Value::Nil));
        }
        if fields == 5 {
            self.owed -= 1;
            let start = self.at;
            let len = self.head(0x80, 0xde)?;
            let depth = self.open(start, 2 * len, depth)?;
            e.properties.reserve_exact(len);
            for _ in 0..len {
                e.properties.push((self.error_text(depth)?, self.item(depth)?));
            }
        }
        Ok(e.into())
    }
}
