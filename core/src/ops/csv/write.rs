//! Batches as bytes: Arrow IPC, JSON, CSV.

use super::types::civil;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::OpCtx;
use arrow_array::cast::AsArray;
use arrow_array::types::{
    Date32Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, TimestampMicrosecondType, TimestampMillisecondType,
    TimestampNanosecondType, TimestampSecondType, UInt8Type, UInt16Type, UInt32Type,
};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_ipc::writer::{FileWriter, StreamWriter};
use arrow_schema::{ArrowError, DataType, Schema, TimeUnit};
use std::fmt::Write as _;
use std::io;

/// A vector with an end: what is over it is an error, not memory.
struct Bounded {
    bytes: Vec<u8>,
    max: usize,
}

impl io::Write for Bounded {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + buf.len() > self.max {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(buf);
        Ok(buf.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn over(max: usize) -> Error {
    Error::new(ErrorKind::TooLarge, "output is over the limit").with("max_output", max)
}

/// Batches, one after the other, as an Arrow IPC stream or file.
pub(super) fn arrow(
    ctx: &OpCtx<'_>,
    file: bool,
    schema: &Schema,
    batches: impl Iterator<Item = Result<RecordBatch>>,
    expected: usize,
    max: usize,
) -> Result<Vec<u8>> {
    let out = Bounded { bytes: Vec::with_capacity(expected.min(max)), max };
    let failed = |e: ArrowError| match e {
        ArrowError::IoError(_, e) if e.kind() == io::ErrorKind::FileTooLarge => over(max),
        e => Error::new(ErrorKind::Unsupported, e.to_string()),
    };
    macro_rules! write {
        ($writer:ident) => {{
            let mut writer = $writer::try_new(out, schema).map_err(failed)?;
            for batch in batches {
                ctx.check()?;
                writer.write(&batch?).map_err(failed)?;
            }
            writer.into_inner().map_err(failed)?.bytes
        }};
    }
    Ok(if file { write!(FileWriter) } else { write!(StreamWriter) })
}

/// Appends the text of a cell that is not null.
fn text(array: &ArrayRef, row: usize, out: &mut String) {
    fn stamp(array: &ArrayRef, value: i64, per_second: i64, digits: usize, out: &mut String) {
        let DataType::Timestamp(_, zone) = array.data_type() else { return };
        let offset = zone.as_ref().map(|z| super::types::parse_offset(z.as_bytes()).unwrap_or(0));
        let seconds = value.div_euclid(per_second) + offset.unwrap_or(0);
        let (y, m, d) = civil(seconds.div_euclid(86_400));
        let s = seconds.rem_euclid(86_400);
        let _ = write!(out, "{y:04}-{m:02}-{d:02}T{:02}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
        if digits > 0 {
            let _ = write!(out, ".{:0digits$}", value.rem_euclid(per_second));
        }
        match offset {
            None => {}
            Some(0) => out.push('Z'),
            Some(o) => {
                let _ = write!(out, "{}{:02}:{:02}", if o < 0 { '-' } else { '+' }, o.abs() / 3600, o.abs() / 60 % 60);
            }
        }
    }
    macro_rules! number {
        ($ty:ty) => {{
            let _ = write!(out, "{}", array.as_primitive::<$ty>().value(row));
        }};
    }
    match array.data_type() {
        DataType::Boolean => out.push_str(if array.as_boolean().value(row) { "true" } else { "false" }),
        DataType::Utf8 => out.push_str(array.as_string::<i32>().value(row)),
        DataType::Int8 => number!(Int8Type),
        DataType::Int16 => number!(Int16Type),
        DataType::Int32 => number!(Int32Type),
        DataType::Int64 => number!(Int64Type),
        DataType::UInt8 => number!(UInt8Type),
        DataType::UInt16 => number!(UInt16Type),
        DataType::UInt32 => number!(UInt32Type),
        // Debug keeps the fraction of a whole float and writes great ones with an exponent.
        DataType::Float32 => {
            let _ = write!(out, "{:?}", array.as_primitive::<Float32Type>().value(row));
        }
        DataType::Float64 => {
            let _ = write!(out, "{:?}", array.as_primitive::<Float64Type>().value(row));
        }
        DataType::Date32 => {
            let (y, m, d) = civil(array.as_primitive::<Date32Type>().value(row) as i64);
            let _ = write!(out, "{y:04}-{m:02}-{d:02}");
        }
        DataType::Timestamp(TimeUnit::Second, _) => stamp(array, array.as_primitive::<TimestampSecondType>().value(row), 1, 0, out),
        DataType::Timestamp(TimeUnit::Millisecond, _) => {
            stamp(array, array.as_primitive::<TimestampMillisecondType>().value(row), 1_000, 3, out)
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            stamp(array, array.as_primitive::<TimestampMicrosecondType>().value(row), 1_000_000, 6, out)
        }
        DataType::Timestamp(TimeUnit::Nanosecond, _) => {
            stamp(array, array.as_primitive::<TimestampNanosecondType>().value(row), 1_000_000_000, 9, out)
        }
        other => unreachable!("no column has the type {other}"),
    }
}

fn is_finite(array: &ArrayRef, row: usize) -> bool {
    match array.data_type() {
        DataType::Float32 => array.as_primitive::<Float32Type>().value(row).is_finite(),
        DataType::Float64 => array.as_primitive::<Float64Type>().value(row).is_finite(),
        _ => true,
    }
}

fn json_string(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\0'..='\x1F' => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            _ => out.push(c),
        }
    }
    out.push('"');
}

/// An array of objects. What JSON has no number for is null.
pub(super) fn json(ctx: &OpCtx<'_>, batch: &RecordBatch, max: usize) -> Result<Vec<u8>> {
    let schema = batch.schema();
    let names: Vec<String> = schema
        .fields()
        .iter()
        .map(|f| {
            let mut name = String::new();
            json_string(f.name(), &mut name);
            name
        })
        .collect();
    let mut out = String::from("[");
    let mut cell = String::new();
    for row in 0..batch.num_rows() {
        if row % 4096 == 0 {
            ctx.check()?;
        }
        out.push_str(if row == 0 { "{" } else { ",{" });
        for (i, array) in batch.columns().iter().enumerate() {
            if i > 0 {
                out.push(',');
            }
            out.push_str(&names[i]);
            out.push(':');
            if array.is_null(row) || !is_finite(array, row) {
                out.push_str("null");
                continue;
            }
            if matches!(array.data_type(), DataType::Utf8 | DataType::Date32 | DataType::Timestamp(..)) {
                cell.clear();
                text(array, row, &mut cell);
                json_string(&cell, &mut out);
            } else {
                text(array, row, &mut out);
            }
        }
        out.push('}');
        if out.len() >= max {
            return Err(over(max));
        }
    }
    out.push(']');
    Ok(out.into_bytes())
}

/// RFC 4180 with a header; null is an empty field, an empty text is `""`.
pub(super) fn csv(ctx: &OpCtx<'_>, batch: &RecordBatch, max: usize) -> Result<Vec<u8>> {
    fn field(text: &str, out: &mut String) {
        if text.is_empty() || text.contains(['"', ',', '\n', '\r']) {
            out.push('"');
            out.push_str(&text.replace('"', "\"\""));
            out.push('"');
        } else {
            out.push_str(text);
        }
    }
    let mut out = String::new();
    let schema = batch.schema();
    for (i, f) in schema.fields().iter().enumerate() {
        out.push_str(if i > 0 { "," } else { "" });
        field(f.name(), &mut out);
    }
    out.push_str("\r\n");
    let mut cell = String::new();
    for row in 0..batch.num_rows() {
        if row % 4096 == 0 {
            ctx.check()?;
        }
        for (i, array) in batch.columns().iter().enumerate() {
            out.push_str(if i > 0 { "," } else { "" });
            if !array.is_null(row) {
                cell.clear();
                text(array, row, &mut cell);
                field(&cell, &mut out);
            }
        }
        out.push_str("\r\n");
        if out.len() > max {
            return Err(over(max));
        }
    }
    Ok(out.into_bytes())
}
