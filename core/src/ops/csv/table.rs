//! One CSV text, opened: options, header, pieces, types.

use super::columns::{Piece, Reading};
use super::read::{Dialect, Field, Ragged, Reader, Rules, split};
use super::types::{Seen, type_of_name};
use crate::error::{Error, ErrorKind, Result};
use crate::ops::place::corrupt_at;
use crate::ops::{OpCtx, Params};
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::lock;
use crate::value::Value;
use arrow_array::{RecordBatch, RecordBatchOptions};
use arrow_schema::{DataType, Field as Column, Schema};
use std::collections::HashSet;
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// Up to this size the places of fields are kept from inference to conversion; a larger text is read twice instead, because
/// they take about as much memory as the text.
const KEEP_FIELDS: usize = 256 << 20;

pub(super) struct Table<'a> {
    text: &'a [u8],
    reading: Reading,
    rules: Rules,
    names: Vec<String>,
    /// Types that the caller gave.
    given: Vec<Option<DataType>>,
    infer_rows: usize,
    max_rows: usize,
    max_output: usize,
    pieces: Vec<Range<usize>>,
    /// Columns with wanted types.
    wanted: Vec<usize>,
    /// Of all columns; of those that are not wanted, of no meaning.
    types: Vec<DataType>,
    pub(super) nullable: Vec<bool>,
    fields: Vec<Mutex<Option<Vec<Field>>>>,
    /// Rows of each piece.
    rows: Vec<usize>,
    filled: AtomicUsize,
}

fn byte(params: &Params, name: &'static str) -> Result<Option<u8>> {
    match params.opt_str(name).unwrap_or("").as_bytes() {
        [] => Ok(None),
        [b] if b.is_ascii() && !matches!(b, b'\n' | b'\r' | 0) => Ok(Some(*b)),
        _ => Err(Error::invalid("option is not one ASCII character").with("option", name).with("value", params.str(name))),
    }
}

impl<'a> Table<'a> {
    /// Opens the text: reads the header and cuts pieces of `piece` bytes.
    pub(super) fn open(ctx: &OpCtx<'_>, text: &'a [u8], piece: usize) -> Result<Table<'a>> {
        let params = ctx.params();
        let dialect = Dialect {
            delimiter: byte(params, "delimiter")?.ok_or_else(|| Error::invalid("delimiter is empty").with("option", "delimiter"))?,
            quote: byte(params, "quote")?,
            escape: byte(params, "escape")?,
            comment: byte(params, "comment")?,
        };
        let special = [Some(dialect.delimiter), dialect.quote, dialect.escape, dialect.comment];
        for (i, a) in special.iter().enumerate() {
            if a.is_some() && special[..i].contains(a) {
                let value = a.map_or(' ', char::from);
                return Err(Error::invalid("delimiter, quote, escape and comment must differ").with("value", value));
            }
        }
        let start = if text.starts_with(b"\xEF\xBB\xBF") { 3 } else { 0 };
        let max_record = params.int("max_record") as usize;
        let max_columns = params.int("max_columns") as usize;
        let mut reader = Reader::new(text, start..text.len(), dialect, max_record);
        let first = reader.one()?;
        let header = params.bool("header");
        if first.len() > max_columns {
            return Err(Error::new(ErrorKind::TooLarge, "too many columns").with("columns", first.len()).with("max_columns", max_columns));
        }
        let given_names = params.str_list("names");
        let names = if params.has("names") {
            if given_names.len() != first.len() && !(first.is_empty() && start == text.len()) {
                return Err(Error::invalid("names do not fit the columns").with("names", given_names.len()).with("columns", first.len()));
            }
            given_names.iter().map(|n| (*n).to_owned()).collect()
        } else if header {
            let text = &text[start..];
            first
                .iter()
                .map(|f| {
                    let name = f.text(text, &dialect).into_owned();
                    String::from_utf8(name).map_err(|_| Error::new(ErrorKind::Corrupt, "header is not valid utf-8").with("line", 1))
                })
                .collect::<Result<Vec<_>>>()?
        } else {
            (1..=first.len()).map(|i| format!("column_{i}")).collect()
        };
        let names = distinct(names);
        let body = if header { reader.pos() } else { start };
        let mut given = vec![(!params.bool("infer_types")).then_some(DataType::Utf8); names.len()];
        match params.any("schema") {
            None => {}
            Some(Value::Map(pairs)) => {
                for (column, ty) in pairs {
                    let (Some(column), Some(ty)) = (column.as_str(), ty.as_str()) else {
                        return Err(Error::invalid("schema maps column names to type names"));
                    };
                    let ty = type_of_name(column, ty)?;
                    given[position(&names, "schema", column)?] = Some(ty);
                }
            }
            Some(other) => return Err(Error::invalid("schema is not a map of column names to type names").with("got", other.type_name())),
        }
        let nulls = match params.has("null_values") {
            true => params.str_list("null_values").iter().map(|n| n.as_bytes().to_vec()).collect(),
            false => vec![Vec::new()],
        };
        let max_output = params.int("max_output") as usize;
        let ragged = match params.str("ragged") {
            "fill" => Ragged::Fill,
            "skip" => Ragged::Skip,
            _ => Ragged::Fail,
        };
        // No columns, no records: what is left are blank lines.
        let body = if names.is_empty() { text.len() } else { body };
        let pieces = split(ctx, text, body, dialect, piece, max_record)?;
        Ok(Table {
            text,
            reading: Reading { dialect, nulls, trim: params.bool("trim") },
            rules: Rules { ragged, max_record, max_filled: max_output },
            given,
            infer_rows: match params.int("infer_rows") {
                0 => usize::MAX,
                n => n as usize,
            },
            max_rows: params.opt_int("max_rows").map_or(usize::MAX, |n| n as usize),
            max_output,
            wanted: Vec::new(),
            types: vec![DataType::Utf8; names.len()],
            nullable: vec![true; names.len()],
            fields: pieces.iter().map(|_| Mutex::default()).collect(),
            rows: vec![0; pieces.len()],
            pieces,
            names,
            filled: AtomicUsize::new(0),
        })
    }

    /// The number of the column of that name.
    pub(super) fn column(&self, option: &'static str, name: &str) -> Result<usize> {
        position(&self.names, option, name)
    }

    pub(super) fn columns(&self) -> Range<usize> {
        0..self.names.len()
    }

    pub(super) fn name(&self, column: usize) -> &str {
        &self.names[column]
    }

    pub(super) fn data_type(&self, column: usize) -> &DataType {
        &self.types[column]
    }

    pub(super) fn rows(&self) -> usize {
        self.rows.iter().sum()
    }

    pub(super) fn pieces(&self) -> usize {
        self.pieces.len()
    }

    /// The fields of piece `i`, checked to be UTF-8.
    fn read(&self, ctx: &OpCtx<'_>, i: usize, filled: &AtomicUsize) -> Result<Vec<Field>> {
        let range = self.pieces[i].clone();
        let mut at = range.start;
        while at < range.end {
            ctx.check()?;
            let end = range.end.min(at + (1 << 20));
            match std::str::from_utf8(&self.text[at..end]) {
                Ok(_) => at = end,
                // A character may lie across the end of this window, never across the end of a piece.
                Err(e) if e.error_len().is_none() && end < range.end => at += e.valid_up_to(),
                Err(e) => return Err(corrupt_at(self.text, at + e.valid_up_to(), "csv is not valid utf-8")),
            }
        }
        Reader::new(self.text, range, self.reading.dialect, self.rules.max_record).all(self.names.len(), &self.rules, filled, ctx.control())
    }

    fn piece<'b>(&'b self, ctx: &'b OpCtx<'_>, i: usize, fields: &'b [Field]) -> Piece<'b> {
        Piece {
            whole: self.text,
            range: self.pieces[i].clone(),
            fields,
            columns: self.names.len(),
            reading: &self.reading,
            control: ctx.control(),
        }
    }

    /// Reads all records and settles the types of the columns `wanted`.
    pub(super) fn settle(&mut self, ctx: &OpCtx<'_>, wanted: Vec<usize>) -> Result<()> {
        let n = self.pieces.len();
        let keep = self.text.len() <= KEEP_FIELDS;
        let open: Vec<usize> = wanted.iter().copied().filter(|&c| self.given[c].is_none()).collect();
        let seen: Vec<Mutex<Vec<Seen>>> = (0..n).map(|_| Mutex::new(vec![Seen::default(); open.len()])).collect();
        let counts: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
        let total = AtomicUsize::new(0);
        let this = &*self;
        let one = |i: usize, look_rows: usize| -> Result<()> {
            let fields = this.read(ctx, i, &this.filled)?;
            let piece = this.piece(ctx, i, &fields);
            let rows = piece.rows();
            counts[i].store(rows, Ordering::Relaxed);
            if total.fetch_add(rows, Ordering::Relaxed) + rows > this.max_rows {
                return Err(Error::new(ErrorKind::TooLarge, "too many rows").with("max_rows", this.max_rows));
            }
            for (seen, &column) in lock(&seen[i]).iter_mut().zip(&open) {
                piece.look(column, look_rows, seen)?;
            }
            if keep {
                *lock(&this.fields[i]) = Some(fields);
            }
            Ok(())
        };
        // With a bounded sample the pieces that hold it are read first and in order; the rest has nothing to look at.
        let mut first = 0;
        let mut left = self.infer_rows;
        if left != usize::MAX {
            while first < n && left > 0 {
                one(first, left)?;
                left = left.saturating_sub(counts[first].load(Ordering::Relaxed));
                first += 1;
            }
        }
        // Of several broken places the first is reported, on any number of threads.
        in_order(ctx, n - first, &|i| one(first + i, left))?;
        let mut all = vec![Seen::default(); open.len()];
        for piece in &seen {
            all.iter_mut().zip(&*lock(piece)).for_each(|(a, s)| a.merge(*s));
        }
        self.rows = counts.iter().map(|c| c.load(Ordering::Relaxed)).collect();
        for (seen, &column) in all.iter().zip(&open) {
            self.types[column] = seen.data_type();
            self.nullable[column] = seen.null;
        }
        for &column in &wanted {
            if let Some(given) = &self.given[column] {
                self.types[column] = given.clone();
            }
        }
        self.wanted = wanted;
        Ok(())
    }

    /// The schema of the wanted columns. Every column may hold nulls.
    pub(super) fn schema(&self) -> Arc<Schema> {
        Arc::new(Schema::new(self.wanted.iter().map(|&c| Column::new(&self.names[c], self.types[c].clone(), true)).collect::<Vec<_>>()))
    }

    /// Converts piece `i` into batches of at most `batch_rows` rows. Each piece is taken once.
    pub(super) fn batches(&self, ctx: &OpCtx<'_>, i: usize, schema: &Arc<Schema>, batch_rows: usize) -> Result<Vec<RecordBatch>> {
        let kept = lock(&self.fields[i]).take();
        let fields = match kept {
            Some(fields) => fields,
            // The missing fields were counted by the first reading.
            None => self.read(ctx, i, &AtomicUsize::new(0))?,
        };
        let piece = self.piece(ctx, i, &fields);
        let rows = piece.rows();
        let mut out = Vec::with_capacity(rows.div_ceil(batch_rows));
        let mut from = 0;
        while from < rows {
            let part = from..rows.min(from + batch_rows);
            let arrays =
                self.wanted.iter().map(|&c| piece.array(c, &self.names[c], &self.types[c], part.clone())).collect::<Result<Vec<_>>>()?;
            from = part.end;
            // The count is said, because a batch of no columns has nothing else to tell it from.
            let count = RecordBatchOptions::new().with_row_count(Some(part.len()));
            let batch = RecordBatch::try_new_with_options(schema.clone(), arrays, &count);
            out.push(batch.expect("arrays have the schema's types and one length"));
        }
        Ok(out)
    }

    pub(super) fn max_output(&self) -> usize {
        self.max_output
    }
}

/// `ctx.parallel`, with the error of the lowest piece among those that fail.
pub(super) fn in_order(ctx: &OpCtx<'_>, n: usize, work: &(dyn Fn(usize) -> Result<()> + Sync)) -> Result<()> {
    let failed: Mutex<Option<(usize, Error)>> = Mutex::new(None);
    let bound = AtomicUsize::new(usize::MAX);
    ctx.parallel(n, &|i| {
        if i > bound.load(Ordering::Relaxed) {
            return Ok(());
        }
        let Err(e) = work(i) else { return Ok(()) };
        if matches!(e.kind(), ErrorKind::Cancelled | ErrorKind::Timeout) {
            return Err(e);
        }
        bound.fetch_min(i, Ordering::Relaxed);
        let mut failed = lock(&failed);
        if failed.as_ref().is_none_or(|f| i < f.0) {
            *failed = Some((i, e));
        }
        Ok(())
    })?;
    lock(&failed).take().map_or(Ok(()), |f| Err(f.1))
}

fn position(names: &[String], option: &'static str, name: &str) -> Result<usize> {
    names.iter().position(|n| n == name).ok_or_else(|| {
        let known: String = names.join(" ").chars().take(400).collect();
        Error::invalid("no column of that name").with("option", option).with("column", name).with("known", known)
    })
}

/// Makes names distinct as pandas does: a, a.1, a.2.
fn distinct(names: Vec<String>) -> Vec<String> {
    let taken: HashSet<String> = names.iter().cloned().collect();
    let mut used = HashSet::new();
    names
        .into_iter()
        .map(|name| {
            let mut unique = name.clone();
            let mut n = 0;
            while !used.insert(unique.clone()) {
                n += 1;
                unique = format!("{name}.{n}");
                while taken.contains(&unique) {
                    n += 1;
                    unique = format!("{name}.{n}");
                }
            }
            unique
        })
        .collect()
}
