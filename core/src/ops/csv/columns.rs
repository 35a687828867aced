//! Fields of one piece as Arrow columns.

use super::read::{Dialect, Field};
use super::types::{Seen, name_of_type, parse_bool, parse_date, parse_float, parse_int, parse_offset, parse_time, per_second};
use crate::error::{Error, ErrorKind, Result};
use crate::ops::Control;
use crate::ops::place::line_and_column;
use arrow_array::types::ArrowPrimitiveType;
use arrow_array::types::{
    Date32Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, TimestampMicrosecondType, TimestampMillisecondType,
    TimestampNanosecondType, TimestampSecondType, UInt8Type, UInt16Type, UInt32Type,
};
use arrow_array::{ArrayRef, BooleanArray, PrimitiveArray, StringArray};
use arrow_buffer::{BooleanBufferBuilder, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow_schema::{DataType, TimeUnit};
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

/// Fields between two looks at the token.
const FIELDS: usize = 1 << 14;

/// How texts become values.
pub(super) struct Reading {
    pub(super) dialect: Dialect,
    /// Texts that mean null when they are not quoted.
    pub(super) nulls: Vec<Vec<u8>>,
    pub(super) trim: bool,
}

impl Reading {
    #[inline(always)]
    fn text<'a>(&self, piece: &'a [u8], field: Field) -> Cow<'a, [u8]> {
        match field.text(piece, &self.dialect) {
            Cow::Borrowed(t) if self.trim && !field.is_quoted() => Cow::Borrowed(t.trim_ascii()),
            text => text,
        }
    }

    #[inline(always)]
    fn is_null(&self, text: &[u8]) -> bool {
        self.nulls.iter().any(|n| n.as_slice() == text)
    }
}

/// The fields of one piece.
pub(super) struct Piece<'a> {
    pub(super) whole: &'a [u8],
    pub(super) range: Range<usize>,
    pub(super) fields: &'a [Field],
    /// Fields per record.
    pub(super) columns: usize,
    pub(super) reading: &'a Reading,
    pub(super) control: &'a dyn Control,
}

impl<'a> Piece<'a> {
    pub(super) fn rows(&self) -> usize {
        self.fields.len().checked_div(self.columns).unwrap_or(0)
    }

    /// Adds to `seen` what column `column` looks like in the first `rows` rows.
    pub(super) fn look(&self, column: usize, rows: usize, seen: &mut Seen) -> Result<()> {
        let text = &self.whole[self.range.clone()];
        for (i, record) in self.fields.chunks_exact(self.columns).take(rows).enumerate() {
            if i % FIELDS == 0 {
                self.control.check()?;
            }
            let field = self.reading.text(text, record[column]);
            if self.reading.is_null(&field) {
                // A quoted null is null in a column of numbers and text in a column of text: it decides nothing.
                seen.null = true;
            } else {
                seen.add(&field);
            }
        }
        Ok(())
    }

    fn wrong(&self, row: usize, column: usize, name: &str, want: &DataType, text: &[u8]) -> Error {
        let at = self.fields[row * self.columns + column].start() + self.range.start;
        let shown: String = String::from_utf8_lossy(text).chars().take(80).collect();
        Error::new(ErrorKind::Corrupt, "field does not have the type of its column")
            .with("line", line_and_column(self.whole, at).0)
            .with("column", name)
            .with("type", name_of_type(want))
            .with("field", shown)
    }

    /// Column `column` of the rows as an array of `want`.
    pub(super) fn array(&self, column: usize, name: &str, want: &DataType, rows: Range<usize>) -> Result<ArrayRef> {
        macro_rules! int {
            ($ty:ty) => {
                self.primitive::<$ty>(column, name, want, rows, |t| parse_int(t)?.try_into().ok())
            };
        }
        let stamp = |unit: TimeUnit, zone: &Option<Arc<str>>| {
            let per_second = per_second(unit);
            let home = zone.as_ref().map(|z| parse_offset(z.as_bytes()).unwrap_or(0));
            move |text: &[u8]| -> Option<i64> {
                let t = parse_time(text)?;
                let seconds = match (t.zoned, home) {
                    (true, None) => return None,
                    // A wall clock in a column with a zone is that zone's.
                    (false, Some(offset)) => t.seconds - offset,
                    _ => t.seconds,
                };
                // Digits beyond the unit would be lost.
                if t.nanos % (1_000_000_000 / per_second) != 0 {
                    return None;
                }
                seconds.checked_mul(per_second)?.checked_add(t.nanos / (1_000_000_000 / per_second))
            }
        };
        macro_rules! stamp {
            ($ty:ty, $unit:expr, $zone:expr) => {{
                let parse = stamp($unit, $zone);
                let array = self.typed::<$ty>(column, name, want, rows, parse)?;
                Ok(Arc::new(array.with_timezone_opt($zone.clone())))
            }};
        }
        match want {
            DataType::Boolean => self.bools(column, name, want, rows),
            DataType::Utf8 => self.strings(column, rows),
            DataType::Int8 => int!(Int8Type),
            DataType::Int16 => int!(Int16Type),
            DataType::Int32 => int!(Int32Type),
            DataType::Int64 => self.primitive::<Int64Type>(column, name, want, rows, parse_int),
            DataType::UInt8 => int!(UInt8Type),
            DataType::UInt16 => int!(UInt16Type),
            DataType::UInt32 => int!(UInt32Type),
            DataType::Float32 => self.primitive::<Float32Type>(column, name, want, rows, |t| {
                // Parsed as such, because rounding twice differs from rounding once.
                parse_float(t).and_then(|_| std::str::from_utf8(t).ok()?.parse().ok())
            }),
            DataType::Float64 => self.primitive::<Float64Type>(column, name, want, rows, parse_float),
            DataType::Date32 => self.primitive::<Date32Type>(column, name, want, rows, parse_date),
            DataType::Timestamp(TimeUnit::Second, zone) => stamp!(TimestampSecondType, TimeUnit::Second, zone),
            DataType::Timestamp(TimeUnit::Millisecond, zone) => stamp!(TimestampMillisecondType, TimeUnit::Millisecond, zone),
            DataType::Timestamp(TimeUnit::Microsecond, zone) => stamp!(TimestampMicrosecondType, TimeUnit::Microsecond, zone),
            DataType::Timestamp(TimeUnit::Nanosecond, zone) => stamp!(TimestampNanosecondType, TimeUnit::Nanosecond, zone),
            other => unreachable!("no option and no inference yields {other}"),
        }
    }

    /// Calls `each` with every field of the column: its row, whether it is null, its text.
    #[inline(always)]
    fn each(&self, column: usize, rows: Range<usize>, mut each: impl FnMut(usize, Field, Cow<'a, [u8]>) -> Result<()>) -> Result<()> {
        let text = &self.whole[self.range.clone()];
        let records = &self.fields[rows.start * self.columns..rows.end * self.columns];
        for (i, record) in records.chunks_exact(self.columns).enumerate() {
            if i % FIELDS == 0 {
                self.control.check()?;
            }
            each(rows.start + i, record[column], self.reading.text(text, record[column]))?;
        }
        Ok(())
    }

    fn primitive<T: ArrowPrimitiveType>(
        &self,
        column: usize,
        name: &str,
        want: &DataType,
        rows: Range<usize>,
        parse: impl Fn(&[u8]) -> Option<T::Native>,
    ) -> Result<ArrayRef> {
        Ok(Arc::new(self.typed::<T>(column, name, want, rows, parse)?))
    }

    fn typed<T: ArrowPrimitiveType>(
        &self,
        column: usize,
        name: &str,
        want: &DataType,
        rows: Range<usize>,
        parse: impl Fn(&[u8]) -> Option<T::Native>,
    ) -> Result<PrimitiveArray<T>> {
        let mut values: Vec<T::Native> = Vec::with_capacity(rows.len());
        let mut valid = Valid::new(rows.len());
        // The empty text is no value of any type, so with it alone a field that parses is not null.
        let only_empty = self.reading.nulls.iter().all(Vec::is_empty);
        self.each(column, rows, |row, _, text| {
            match parse(&text) {
                Some(v) if only_empty || !self.reading.is_null(&text) => {
                    values.push(v);
                    valid.push(true);
                }
                _ if self.reading.is_null(&text) => {
                    values.push(T::Native::default());
                    valid.push(false);
                }
                _ => return Err(self.wrong(row, column, name, want, &text)),
            }
            Ok(())
        })?;
        Ok(PrimitiveArray::new(ScalarBuffer::from(values), valid.finish()))
    }

    fn bools(&self, column: usize, name: &str, want: &DataType, rows: Range<usize>) -> Result<ArrayRef> {
        let mut values = BooleanBufferBuilder::new(rows.len());
        let mut valid = Valid::new(rows.len());
        self.each(column, rows, |row, _, text| {
            let null = self.reading.is_null(&text);
            let value = if null { Some(false) } else { parse_bool(&text) };
            values.append(value.ok_or_else(|| self.wrong(row, column, name, want, &text))?);
            valid.push(!null);
            Ok(())
        })?;
        Ok(Arc::new(BooleanArray::new(values.finish(), valid.finish())))
    }

    fn strings(&self, column: usize, rows: Range<usize>) -> Result<ArrayRef> {
        let mut bytes = Vec::new();
        let mut offsets = Vec::with_capacity(rows.len() + 1);
        offsets.push(0i32);
        let mut valid = Valid::new(rows.len());
        self.each(column, rows, |_, field, text| {
            let null = !field.is_quoted() && self.reading.is_null(&text);
            if !null {
                bytes.extend_from_slice(&text);
            }
            // One piece may hold a record of up to 1 GiB and little beside it, so 32 bits suffice; a limit, not a promise.
            offsets
                .push(i32::try_from(bytes.len()).map_err(|_| Error::new(ErrorKind::TooLarge, "text column is over 2 GiB in one batch"))?);
            valid.push(!null);
            Ok(())
        })?;
        let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
        match StringArray::try_new(offsets, bytes.into(), valid.finish()) {
            Ok(array) => Ok(Arc::new(array)),
            Err(_) => Err(Error::new(ErrorKind::Corrupt, "an escape cuts a character in a text column")),
        }
    }
}

/// A null bitmap that is built only once a null is seen.
struct Valid {
    len: usize,
    capacity: usize,
    bits: Option<BooleanBufferBuilder>,
}

impl Valid {
    fn new(capacity: usize) -> Valid {
        Valid { len: 0, capacity, bits: None }
    }

    #[inline(always)]
    fn push(&mut self, valid: bool) {
        match &mut self.bits {
            Some(bits) => bits.append(valid),
            None if valid => self.len += 1,
            None => {
                let mut bits = BooleanBufferBuilder::new(self.capacity);
                bits.append_n(self.len, true);
                bits.append(false);
                self.bits = Some(bits);
            }
        }
    }

    fn finish(self) -> Option<NullBuffer> {
        self.bits.map(|mut bits| NullBuffer::new(bits.finish()))
    }
}
