//! The `csv` family: CSV (RFC 4180) into Arrow columns, and groups of rows.
//!
//! ```text
//!  read     cuts at records; where each field lies        (parallel by pieces)
//!  types    what the fields look like → one type per column
//!  columns  fields → Arrow arrays                          (parallel by pieces)
//!  table    the three in order;  aggregate, write: what comes out
//! ```

mod aggregate;
mod columns;
mod read;
mod table;
#[cfg(test)]
mod tests;
mod types;
mod write;

use crate::error::{Error, ErrorKind, Result};
use crate::ops::{Cancellable, Inputs, OpCtx, OpDef, ParamDef, ParamDefault, ParamType, Returns};
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::lock;
use crate::value::Value;
use arrow_array::RecordBatch;
use std::sync::Mutex;
use table::Table;

/// Bytes of text that one thread reads at a time. Cuts depend on it, so it is no option and no function of the machine.
const PIECE: usize = 1 << 20;

const DELIMITER: ParamDef = ParamDef {
    name: "delimiter",
    ty: ParamType::Str,
    default: ParamDefault::Str(","),
    about: "What separates fields: one ASCII character.",
};
const QUOTE: ParamDef = ParamDef {
    name: "quote",
    ty: ParamType::Str,
    default: ParamDefault::Str("\""),
    about: "What encloses a field that holds delimiters, quotes (doubled) or line ends: one ASCII character, or empty for none.",
};
const ESCAPE: ParamDef = ParamDef {
    name: "escape",
    ty: ParamType::Str,
    default: ParamDefault::Absent,
    about: "A character, such as \\, that takes the meaning from the one after it. None by default.",
};
const COMMENT: ParamDef = ParamDef {
    name: "comment",
    ty: ParamType::Str,
    default: ParamDefault::Absent,
    about: "Leaves out lines that begin with this character. None by default.",
};
const HEADER: ParamDef = ParamDef {
    name: "header",
    ty: ParamType::Bool,
    default: ParamDefault::Bool(true),
    about: "The first record holds the column names; false names them column_1, column_2 and so on. A name that comes again gets .1, .2.",
};
const NAMES: ParamDef =
    ParamDef { name: "names", ty: ParamType::StrList, default: ParamDefault::Absent, about: "Column names, in place of the header's." };
const SCHEMA: ParamDef = ParamDef {
    name: "schema",
    ty: ParamType::Any("Record<string, string>", "Mapping[str, str]"),
    default: ParamDefault::Absent,
    about: "Types of columns by name; the others are inferred. bool, int8, int16, int32, int64, uint8, uint16, uint32, float32, float64, \
            string, date, timestamp[s], [ms], [us] or [ns], with a zone as timestamp[ms, UTC] or timestamp[ms, +02:00]. A field that does \
            not have its type is Corrupt with its line.",
};
const NULL_VALUES: ParamDef = ParamDef {
    name: "null_values",
    ty: ParamType::StrList,
    default: ParamDefault::Absent,
    about: "Texts that mean null; by default the empty text alone. In a column of text a quoted field is never null.",
};
const TRIM: ParamDef = ParamDef {
    name: "trim",
    ty: ParamType::Bool,
    default: ParamDefault::Bool(false),
    about: "Removes spaces and tabs around unquoted fields.",
};
const RAGGED: ParamDef = ParamDef {
    name: "ragged",
    ty: ParamType::Enum(&["fail", "fill", "skip"]),
    default: ParamDefault::Str("fail"),
    about: "What a record with too few or too many fields does: Corrupt with its line; empty fields where some are missing (too many are \
            still Corrupt); or nothing, the record is left out.",
};
const INFER_ROWS: ParamDef = ParamDef {
    name: "infer_rows",
    ty: ParamType::Int { min: 0, max: i64::MAX },
    default: ParamDefault::Int(0),
    about: "Infers types from so many rows; a later field that does not fit is Corrupt with its line. 0 looks at all rows, so that \
            every field fits.",
};
const INFER_TYPES: ParamDef = ParamDef {
    name: "infer_types",
    ty: ParamType::Bool,
    default: ParamDefault::Bool(true),
    about: "false makes every column a string that schema does not name.",
};
const MAX_ROWS: ParamDef = ParamDef {
    name: "max_rows",
    ty: ParamType::Int { min: 0, max: i64::MAX },
    default: ParamDefault::Absent,
    about: "Most rows; more is TooLarge. No limit by default.",
};
const MAX_COLUMNS: ParamDef = ParamDef {
    name: "max_columns",
    ty: ParamType::Int { min: 1, max: 1 << 20 },
    default: ParamDefault::Int(4096),
    about: "Most columns; more is TooLarge.",
};
const MAX_RECORD: ParamDef = ParamDef {
    name: "max_record",
    ty: ParamType::Int { min: 1, max: 1 << 30 },
    default: ParamDefault::Int(16 << 20),
    about: "Most bytes of one record; more is TooLarge. Default 16 MiB.",
};
const MAX_OUTPUT: ParamDef = ParamDef {
    name: "max_output",
    ty: ParamType::Int { min: 0, max: i64::MAX },
    default: ParamDefault::Int(4 << 30),
    about: "Most bytes of the result, and of the fields that ragged: fill adds; more is TooLarge. Default 4 GiB.",
};
const CONTAINER: ParamDef = ParamDef {
    name: "container",
    ty: ParamType::Enum(&["stream", "file"]),
    default: ParamDefault::Str("stream"),
    about: "Arrow IPC streaming format, or file format (random access, Feather version 2).",
};

/// How CSV is read, the same for every op.
const READING: [ParamDef; 16] = [
    DELIMITER,
    QUOTE,
    ESCAPE,
    COMMENT,
    HEADER,
    NAMES,
    SCHEMA,
    NULL_VALUES,
    TRIM,
    RAGGED,
    INFER_TYPES,
    INFER_ROWS,
    MAX_ROWS,
    MAX_COLUMNS,
    MAX_RECORD,
    MAX_OUTPUT,
];

/// The options of an op of its own, then those of [`READING`].
const fn and_reading<const OWN: usize, const ALL: usize>(own: [ParamDef; OWN]) -> [ParamDef; ALL] {
    assert!(ALL == OWN + READING.len());
    let mut all = [DELIMITER; ALL];
    let mut i = 0;
    while i < ALL {
        all[i] = if i < OWN { own[i] } else { READING[i - OWN] };
        i += 1;
    }
    all
}

/// The ops of this family.
pub(super) const OPS: &[OpDef] = &[
    OpDef {
        name: "csv.to_arrow",
        about: "Converts CSV (RFC 4180, UTF-8 with or without a byte order mark, lines ending with LF, CRLF or CR, blank lines left out) to \
                Arrow IPC. Types are inferred from all rows: bool (true, True, TRUE, false, False, FALSE; other cases are text), int64, float64, date (2024-02-29), timestamp (2024-02-29T12:30, \
                seconds and fraction optional, with the unit its digits need, in UTC when every field has an offset), otherwise string. Numbers \
                with leading zeros and integers beyond 64 bits stay string, so that no digit is lost. Quotes inside unquoted fields, text after \
                a closing quote and invalid UTF-8 are Corrupt with the line.",
        inputs: Inputs::One,
        params: &and_reading::<3, 19>([
            CONTAINER,
            ParamDef {
                name: "columns",
                ty: ParamType::StrList,
                default: ParamDefault::Absent,
                about: "Columns to keep, in this order. All by default.",
            },
            ParamDef {
                name: "batch_rows",
                ty: ParamType::Int { min: 1, max: 1 << 31 },
                default: ParamDefault::Int(65_536),
                about: "Most rows of one record batch. A batch also ends where 1 MiB of the text ends.",
            },
        ]),
        returns: Returns::Bytes,
        cancellable: Cancellable::Always,
        run: to_arrow,
    },
    OpDef {
        name: "csv.probe",
        about: "Reads CSV as csv.to_arrow does and returns its columns, with the names and types that csv.to_arrow gives them and whether \
                nulls were seen, and the number of rows.",
        inputs: Inputs::One,
        params: &READING,
        returns: Returns::Value(
            "{ columns: { name: string; type: string; nullable: boolean }[]; rows: number }",
            "dict[str, list[dict[str, str | bool]] | int]",
        ),
        cancellable: Cancellable::Always,
        run: probe,
    },
    OpDef {
        name: "csv.aggregate",
        about: "Groups the rows of CSV, read as by csv.to_arrow, and aggregates each group by SQL's rules: nulls are left out, a group without \
                values gives null (count gives 0), null is a group of its own. Groups come in the order of their first row; without group_by \
                there is one. Sums of integers are exact and TooLarge beyond 64 bits; sums of floats are compensated and do not depend on the \
                number of threads; NaN is the greatest number.",
        inputs: Inputs::One,
        params: &and_reading::<5, 21>([
            ParamDef {
                name: "group_by",
                ty: ParamType::StrList,
                default: ParamDefault::Absent,
                about: "Columns whose values make a group.",
            },
            ParamDef {
                name: "aggregates",
                ty: ParamType::Any(
                    "Record<string, 'count' | { fn: 'count' | 'count_distinct' | 'sum' | 'min' | 'max' | 'mean'; column?: string }>",
                    "Mapping[str, str | Mapping[str, str]]",
                ),
                default: ParamDefault::Required,
                about: "Result columns by name: { n: 'count', total: { fn: 'sum', column: 'price' } }. count without a column counts rows; \
                        sum and mean want numbers, min and max take any type.",
            },
            ParamDef {
                name: "format",
                ty: ParamType::Enum(&["arrow", "json", "csv"]),
                default: ParamDefault::Str("arrow"),
                about: "Arrow IPC; a JSON array of objects, dates and timestamps as ISO 8601 text, NaN and infinities as null; or CSV with CRLF.",
            },
            CONTAINER,
            ParamDef {
                name: "max_groups",
                ty: ParamType::Int { min: 1, max: 1 << 32 },
                default: ParamDefault::Int(1_000_000),
                about: "Most groups, the distinct values of count_distinct included; more is TooLarge.",
            },
        ]),
        returns: Returns::Bytes,
        cancellable: Cancellable::Always,
        run: aggregate,
    },
];

fn to_arrow(ctx: &mut OpCtx<'_>) -> Result<Value> {
    Ok(arrow_of(ctx, PIECE)?.into())
}

fn arrow_of(ctx: &OpCtx<'_>, piece: usize) -> Result<Vec<u8>> {
    let params = ctx.params();
    let mut table = Table::open(ctx, ctx.input(), piece)?;
    let wanted = if params.has("columns") {
        let mut wanted = Vec::new();
        for name in params.str_list("columns") {
            let column = table.column("columns", name)?;
            if wanted.contains(&column) {
                return Err(Error::invalid("column is named twice").with("option", "columns").with("column", name));
            }
            wanted.push(column);
        }
        wanted
    } else {
        table.columns().collect()
    };
    table.settle(ctx, wanted)?;
    let schema = table.schema();
    let batch_rows = params.int("batch_rows") as usize;
    let done: Vec<Mutex<Vec<RecordBatch>>> = (0..table.pieces()).map(|_| Mutex::default()).collect();
    let held = AtomicUsize::new(0);
    table::in_order(ctx, table.pieces(), &|i| {
        let batches = table.batches(ctx, i, &schema, batch_rows)?;
        let bytes: usize = batches.iter().map(RecordBatch::get_array_memory_size).sum();
        // Capacities are counted, hence twice the limit; what is written is held to it to the byte.
        if held.fetch_add(bytes, Ordering::Relaxed) + bytes > table.max_output().saturating_mul(2).saturating_add(1 << 20) {
            return Err(Error::new(ErrorKind::TooLarge, "columns are over the limit").with("max_output", table.max_output()));
        }
        *lock(&done[i]) = batches;
        Ok(())
    })?;
    let total = done.len().max(1);
    let batches = done.iter().enumerate().flat_map(|(i, batches)| {
        ctx.progress(Value::Float((i + 1) as f64 / total as f64));
        std::mem::take(&mut *lock(batches)).into_iter().map(Ok)
    });
    let expected = held.load(Ordering::Relaxed);
    write::arrow(ctx, params.str("container") == "file", &schema, batches, expected, table.max_output())
}

fn probe(ctx: &mut OpCtx<'_>) -> Result<Value> {
    let mut table = Table::open(ctx, ctx.input(), PIECE)?;
    table.settle(ctx, table.columns().collect())?;
    let column = |c: usize| {
        Value::map([
            ("name", table.name(c).to_owned().into()),
            ("type", types::name_of_type(table.data_type(c)).into()),
            ("nullable", table.nullable[c].into()),
        ])
    };
    Ok(Value::map([("columns", Value::Array(table.columns().map(column).collect())), ("rows", Value::Int(table.rows() as i64))]))
}

fn aggregate(ctx: &mut OpCtx<'_>) -> Result<Value> {
    Ok(aggregate_of(ctx, PIECE)?.into())
}

fn aggregate_of(ctx: &OpCtx<'_>, piece: usize) -> Result<Vec<u8>> {
    let params = ctx.params();
    let mut table = Table::open(ctx, ctx.input(), piece)?;
    let plan = aggregate::Plan::of(ctx, &table)?;
    table.settle(ctx, plan.columns())?;
    let result = plan.run(ctx, &table)?;
    let max = table.max_output();
    match params.str("format") {
        "json" => write::json(ctx, &result, max),
        "csv" => write::csv(ctx, &result, max),
        _ => write::arrow(ctx, params.str("container") == "file", &result.schema(), std::iter::once(Ok(result.clone())), 4096, max),
    }
}
