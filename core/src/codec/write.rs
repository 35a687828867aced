//! Values to bytes.

use super::Options;
use crate::buffer::{Bytes, TransferBuffer, append, reserve};
use crate::error::{Error, ErrorKind, Result};
use crate::value::{BigInt, Date, ErrorValue, TypedArray, Value};
use crate::wire::value::{ALIGN, BIG, BUFFER, DATE, ERROR, IS_BUFFER, IS_BYTES, MAX_DIMENSIONS, OUT_OF_BAND, TYPED};

/// Appends `value` to `out` and returns how many buffers travel beside it; [`take_buffers`] gives them.
///
/// Alignment counts from where `out` ends now: the message's first byte.
///
/// # Errors
/// `TooLarge` beyond a limit of `options`, `Detached`, `Forked`, `Invalid` for a typed array whose bytes do not fill its shape,
/// `Os` (`ENOMEM`) when a text or bytes of it do not fit in memory.
/// `out` is then as it was.
pub fn encode(value: &Value, options: &Options, out: &mut Vec<u8>) -> Result<usize> {
    options.check()?;
    let base = out.len();
    // The writer has the vector itself: its length and capacity are then one step away.
    let mut writer = Writer { base, options, items: options.max_items, buffers: 0, out: std::mem::take(out) };
    let done = writer.value(value, 0).and_then(|()| options.check_bytes(writer.len()));
    let buffers = writer.buffers;
    *out = writer.out;
    if let Err(e) = done {
        out.truncate(base);
        return Err(e);
    }
    Ok(buffers)
}

/// Takes out of `value` the buffers that [`encode`] with the same options numbered, in their order. What owns its memory is
/// moved, memory of a host is copied.
///
/// # Errors
/// `Os` (`ENOMEM`) when a copy was not possible.
pub fn take_buffers(value: &mut Value, options: &Options) -> Result<Vec<TransferBuffer>> {
    let mut out = Vec::new();
    if options.out_of_band.is_some() {
        take(value, options, &mut out)?;
    }
    Ok(out)
}

/// Shows `visit` the `TransferBuffer`s of `value` in the order in which [`encode`] numbers them where nothing else travels beside the message.
pub(crate) fn each_buffer<'a>(value: &'a Value, visit: &mut impl FnMut(&'a TransferBuffer) -> Result<()>) -> Result<()> {
    match value {
        Value::Array(items) => items.iter().try_for_each(|item| each_buffer(item, visit)),
        Value::Map(pairs) => pairs.iter().try_for_each(|(key, item)| {
            each_buffer(key, visit)?;
            each_buffer(item, visit)
        }),
        Value::Error(e) => {
            if let Some(cause) = &e.cause {
                each_buffer(cause, visit)?;
            }
            e.properties.iter().try_for_each(|(_, item)| each_buffer(item, visit))
        }
        Value::Buffer(buffer) => visit(buffer),
        _ => Ok(()),
    }
}

fn take(value: &mut Value, options: &Options, out: &mut Vec<TransferBuffer>) -> Result<()> {
    match value {
        Value::Array(items) => items.iter_mut().try_for_each(|item| take(item, options, out)),
        Value::Map(pairs) => pairs.iter_mut().try_for_each(|(key, item)| {
            take(key, options, out)?;
            take(item, options, out)
        }),
        Value::Error(e) => {
            if let Some(cause) = &mut e.cause {
                take(cause, options, out)?;
            }
            e.properties.iter_mut().try_for_each(|(_, item)| take(item, options, out))
        }
        Value::Buffer(_) => {
            if let Value::Buffer(buffer) = std::mem::take(value) {
                out.push(buffer);
            }
            Ok(())
        }
        Value::Bytes(bytes) => take_bytes(bytes, options, out),
        Value::Typed(array) => take_bytes(&mut array.bytes, options, out),
        _ => Ok(()),
    }
}

fn take_bytes(bytes: &mut Bytes, options: &Options, out: &mut Vec<TransferBuffer>) -> Result<()> {
    if options.beside(bytes.len()) {
        out.push(TransferBuffer::from_bytes(std::mem::take(bytes))?);
    }
    Ok(())
}

struct Writer<'a> {
    out: Vec<u8>,
    /// Where the message begins in `out`.
    base: usize,
    options: &'a Options,
    /// Items that may still come.
    items: usize,
    buffers: usize,
}

impl Writer<'_> {
    fn len(&self) -> usize {
        self.out.len() - self.base
    }

    #[inline(always)]
    fn head<const N: usize>(&mut self, marker: u8, tail: [u8; N]) {
        // Both in one piece, so that the capacity is checked once and the copy is of a known length.
        let mut head = [marker; 9];
        head[1..=N].copy_from_slice(&tail);
        self.out.extend_from_slice(&head[..=N]);
    }

    fn value(&mut self, value: &Value, depth: usize) -> Result<()> {
        match value {
            Value::Nil => self.out.push(0xc0),
            Value::Bool(b) => self.out.push(0xc2 | u8::from(*b)),
            Value::Int(i) => self.int(*i),
            Value::Big(b) => self.big(b)?,
            Value::Float(f) => self.head(0xcb, f.to_be_bytes()),
            Value::Str(s) => self.text(s)?,
            Value::Bytes(b) if self.options.beside(b.len()) => self.reference(IS_BYTES)?,
            Value::Bytes(b) => {
                self.bytes_head(b.len())?;
                append(&mut self.out, b)?;
            }
            Value::Array(items) => {
                let depth = self.open(items.len(), 1, depth)?;
                self.container(0x90, 0xdc, items.len())?;
                for item in items {
                    self.value(item, depth)?;
                }
            }
            Value::Map(pairs) => {
                let depth = self.open(pairs.len(), 2, depth)?;
                self.container(0x80, 0xde, pairs.len())?;
                for (key, item) in pairs {
                    self.value(key, depth)?;
                    self.value(item, depth)?;
                }
            }
            Value::Date(d) => self.date(*d),
            Value::Typed(array) => self.typed(array)?,
            Value::Buffer(buffer) => {
                buffer.view()?; // Detached and Forked are said as such
                if self.options.out_of_band.is_some() {
                    self.reference(IS_BUFFER)?;
                } else {
                    self.bytes_head(buffer.len())?;
                    buffer.append_to(&mut self.out)?;
                }
            }
            Value::Error(e) => self.error(e, depth)?,
        }
        Ok(())
    }

    /// Counts the children of a container and returns their depth.
    fn open(&mut self, len: usize, each: usize, depth: usize) -> Result<usize> {
        self.items = self.options.check_items(self.items, len.saturating_mul(each))?;
        self.options.inside(depth)
    }

    /// A length that MessagePack has 32 bits for, and for which the message has room.
    fn length(&self, len: usize) -> Result<u32> {
        self.options.check_bytes(self.len().saturating_add(len))?;
        wire_len(len)
    }

    fn int(&mut self, i: i64) {
        match i {
            0.. => self.uint(i as u64),
            -32.. => self.out.push(i as u8),
            -0x80.. => self.head(0xd0, (i as i8).to_be_bytes()),
            -0x8000.. => self.head(0xd1, (i as i16).to_be_bytes()),
            -0x8000_0000.. => self.head(0xd2, (i as i32).to_be_bytes()),
            _ => self.head(0xd3, i.to_be_bytes()),
        }
    }

    fn uint(&mut self, n: u64) {
        match n {
            0..0x80 => self.out.push(n as u8),
            0x80..=0xff => self.head(0xcc, [n as u8]),
            0x100..=0xffff => self.head(0xcd, (n as u16).to_be_bytes()),
            0x1_0000..=0xffff_ffff => self.head(0xce, (n as u32).to_be_bytes()),
            _ => self.head(0xcf, n.to_be_bytes()),
        }
    }

    fn big(&mut self, b: &BigInt) -> Result<()> {
        let len = b.magnitude.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
        if len <= 8 {
            match b.clone().into_value() {
                Value::Int(i) => {
                    self.int(i);
                    return Ok(());
                }
                Value::Big(b) if !b.negative => {
                    self.uint(b.magnitude.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)));
                    return Ok(());
                }
                _ => {}
            }
        }
        self.ext_head(BIG, ext_head_len(len + 1), len + 1)?;
        self.out.push(u8::from(b.negative));
        append(&mut self.out, &b.magnitude[..len])
    }

    fn text(&mut self, s: &str) -> Result<()> {
        let len = self.length(s.len())?;
        reserve(&mut self.out, 5 + s.len())?;
        match len {
            0..32 => self.out.push(0xa0 | len as u8),
            32..=0xff => self.head(0xd9, [len as u8]),
            0x100..=0xffff => self.head(0xda, (len as u16).to_be_bytes()),
            _ => self.head(0xdb, len.to_be_bytes()),
        }
        self.out.extend_from_slice(s.as_bytes());
        Ok(())
    }

    fn bytes_head(&mut self, len: usize) -> Result<()> {
        let len = self.length(len)?;
        match len {
            0..=0xff => self.head(0xc4, [len as u8]),
            0x100..=0xffff => self.head(0xc5, (len as u16).to_be_bytes()),
            _ => self.head(0xc6, len.to_be_bytes()),
        }
        Ok(())
    }

    /// `fix` is the marker for less than 16 items, `wide` the one with a 16-bit length; the one with 32 bits follows it.
    fn container(&mut self, fix: u8, wide: u8, len: usize) -> Result<()> {
        let len = self.length(len)?;
        match len {
            0..16 => self.out.push(fix | len as u8),
            16..=0xffff => self.head(wide, (len as u16).to_be_bytes()),
            _ => self.head(wide + 1, len.to_be_bytes()),
        }
        Ok(())
    }

    /// The head of an extension in `head` bytes: one that has room for `len`.
    fn ext_head(&mut self, code: i8, head: usize, len: usize) -> Result<()> {
        let len = self.length(len)?;
        match head {
            2 => self.out.push(0xd4 + len.trailing_zeros() as u8),
            3 => self.head(0xc7, [len as u8]),
            4 => self.head(0xc8, (len as u16).to_be_bytes()),
            _ => self.head(0xc9, len.to_be_bytes()),
        }
        self.out.push(code as u8);
        Ok(())
    }

    fn date(&mut self, d: Date) {
        let (seconds, nanos) = (d.seconds(), d.nanos());
        match (u64::try_from(seconds), nanos) {
            (Ok(s @ 0..=0xffff_ffff), 0) => {
                self.head(0xd6, [DATE as u8]);
                self.out.extend_from_slice(&(s as u32).to_be_bytes());
            }
            (Ok(s @ 0..0x4_0000_0000), _) => {
                self.head(0xd7, [DATE as u8]);
                self.out.extend_from_slice(&(u64::from(nanos) << 34 | s).to_be_bytes());
            }
            _ => {
                self.head(0xc7, [12, DATE as u8]);
                self.out.extend_from_slice(&nanos.to_be_bytes());
                self.out.extend_from_slice(&seconds.to_be_bytes());
            }
        }
    }

    /// The next number in the list of buffers.
    fn number(&mut self) -> u64 {
        self.buffers += 1;
        self.buffers as u64 - 1
    }

    fn reference(&mut self, what: u8) -> Result<()> {
        let index = self.number();
        self.ext_head(BUFFER, ext_head_len(1 + uint_len(index)), 1 + uint_len(index))?;
        self.out.push(what);
        self.uint(index);
        Ok(())
    }

    fn typed(&mut self, t: &TypedArray) -> Result<()> {
        if t.shape.len() > MAX_DIMENSIONS {
            return Err(Error::invalid("typed array has too many dimensions")
                .with("dimensions", t.shape.len())
                .with("max", MAX_DIMENSIONS));
        }
        if t.dtype.byte_len(&t.shape) != Some(t.bytes.len()) {
            let shape = format_args!("{:?}", t.shape).to_string();
            return Err(Error::invalid("bytes do not fill the shape").with("len", t.bytes.len()).with("shape", shape));
        }
        let fixed = 3 + t.shape.iter().map(|n| uint_len(*n)).sum::<usize>();
        let beside = self.options.beside(t.bytes.len());
        let (flags, head, payload) = if beside {
            let payload = fixed + uint_len(self.buffers as u64);
            (OUT_OF_BAND, ext_head_len(payload), payload)
        } else {
            // The padding depends on the head's length, and the head on the padding: the shortest head with room for both.
            let padded = |head: usize| {
                let pad = (self.len() + head + fixed).wrapping_neg() % ALIGN;
                (pad as u8, head, fixed + pad + t.bytes.len())
            };
            let fits = |(_, head, len): &(u8, usize, usize)| *head == ext_head_len(*len) || *head > 2 && *head > ext_head_len(*len);
            [2, 3, 4].map(padded).into_iter().find(fits).unwrap_or_else(|| padded(6))
        };
        self.ext_head(TYPED, head, payload)?;
        self.out.extend_from_slice(&[t.dtype as u8, flags, t.shape.len() as u8]);
        for n in &t.shape {
            self.uint(*n);
        }
        if beside {
            let index = self.number();
            self.uint(index);
        } else {
            self.out.resize(self.out.len() + usize::from(flags), 0);
            append(&mut self.out, &t.bytes)?;
        }
        Ok(())
    }

    fn error(&mut self, e: &ErrorValue, depth: usize) -> Result<()> {
        let fields = match e {
            e if !e.properties.is_empty() => 5,
            e if e.cause.is_some() => 4,
            e if !e.stack.is_empty() => 3,
            _ => 2,
        };
        let depth = self.open(fields, 1, depth)?;
        self.head(0xc9, [0; 4]);
        self.out.push(ERROR as u8);
        let start = self.out.len();
        self.out.push(0x90 | fields as u8);
        for text in [&e.name, &e.message, &e.stack].into_iter().take(fields) {
            self.text(text)?;
        }
        if fields >= 4 {
            self.value(e.cause.as_ref().unwrap_or(&Value::Nil), depth)?;
        }
        if fields == 5 {
            let depth = self.open(e.properties.len(), 2, depth)?;
            self.container(0x80, 0xde, e.properties.len())?;
            for (key, item) in &e.properties {
                self.text(key)?;
                self.value(item, depth)?;
            }
        }
        self.options.check_bytes(self.len())?;
        let len = wire_len(self.out.len() - start)?;
        self.out[start - 5..start - 1].copy_from_slice(&len.to_be_bytes());
        Ok(())
    }
}

#[inline]
fn wire_len(len: usize) -> Result<u32> {
    u32::try_from(len).map_err(|_| too_long_to_say(len))
}

#[cold]
fn too_long_to_say(len: usize) -> Error {
    Error::new(ErrorKind::TooLarge, "value is longer than a message can say").with("len", len).with("max", u32::MAX)
}

/// Bytes of [`Writer::uint`].
fn uint_len(n: u64) -> usize {
    match n {
        0..0x80 => 1,
        0x80..=0xff => 2,
        0x100..=0xffff => 3,
        0x1_0000..=0xffff_ffff => 5,
        _ => 9,
    }
}

/// Bytes of [`Writer::ext_head`].
fn ext_head_len(payload: usize) -> usize {
    match payload {
        1 | 2 | 4 | 8 | 16 => 2,
        0..=0xff => 3,
        0x100..=0xffff => 4,
        _ => 6,
    }
}
