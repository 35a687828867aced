//! `csv.aggregate`: groups of rows, by SQL's rules for nulls: aggregates leave nulls out, null is a group of its own.
//!
//! Each piece is grouped by itself and the parts are merged in the order of the text, so that floating-point sums do not
//! depend on the number of threads. Sums of floats carry their rounding error along (Neumaier 1974).

use super::table::{Table, in_order};
use crate::error::{Error, ErrorKind, Result};
use crate::ops::OpCtx;
use crate::sync::lock;
use crate::value::Value;
use arrow_array::cast::AsArray;
use arrow_array::types::{
    ArrowPrimitiveType, Date32Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, TimestampMicrosecondType,
    TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType, UInt8Type, UInt16Type, UInt32Type,
};
use arrow_array::{Array, ArrayRef, BooleanArray, PrimitiveArray, RecordBatch, StringArray};
use arrow_buffer::NullBuffer;
use arrow_schema::{DataType, Field as Column, Schema, TimeUnit};
use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Function {
    Count,
    CountDistinct,
    Sum,
    Min,
    Max,
    Mean,
}

const FUNCTIONS: [(&str, Function); 6] = [
    ("count", Function::Count),
    ("count_distinct", Function::CountDistinct),
    ("sum", Function::Sum),
    ("min", Function::Min),
    ("max", Function::Max),
    ("mean", Function::Mean),
];

/// One column of the result.
struct Wish {
    name: String,
    function: Function,
    /// Column of the table; `None` counts rows.
    column: Option<usize>,
}

/// What is asked for.
pub(super) struct Plan {
    keys: Vec<usize>,
    wishes: Vec<Wish>,
    max_groups: usize,
}

/// A value of a cell.
#[derive(Clone, Debug)]
enum Cell {
    Int(i64),
    Float(f64),
    Text(Box<str>),
}

/// A column of a batch, its numbers in one of two forms.
enum Cells<'a> {
    Int(Vec<i64>, Option<&'a NullBuffer>),
    Float(Vec<f64>, Option<&'a NullBuffer>),
    Text(&'a StringArray),
}

enum Part {
    Count(i64),
    Distinct(HashSet<Box<[u8]>>),
    /// Exact: 2^63 values of 64 bits fit.
    Int {
        sum: i128,
        n: i64,
    },
    Float {
        sum: f64,
        lost: f64,
        n: i64,
    },
    Extreme(Option<Cell>, Ordering),
}

struct Group {
    key: Box<[u8]>,
    parts: Vec<Part>,
}

#[derive(Default)]
struct Groups {
    at: HashMap<Box<[u8]>, usize>,
    list: Vec<Group>,
    /// Groups and distinct values held.
    held: usize,
}

impl Plan {
    pub(super) fn of(ctx: &OpCtx<'_>, table: &Table<'_>) -> Result<Plan> {
        let params = ctx.params();
        let mut keys: Vec<usize> = Vec::new();
        for name in params.str_list("group_by") {
            let column = table.column("group_by", name)?;
            if keys.contains(&column) {
                return Err(Error::invalid("column is grouped by twice").with("option", "group_by").with("column", name));
            }
            keys.push(column);
        }
        let Some(Value::Map(pairs)) = params.any("aggregates") else {
            return Err(Error::invalid("aggregates is not a map from names to functions").with("option", "aggregates"));
        };
        let mut wishes: Vec<Wish> = Vec::new();
        for (name, wish) in pairs {
            let Some(name) = name.as_str() else {
                return Err(Error::invalid("name of an aggregate is not text").with("option", "aggregates"));
            };
            let broken = |why: &'static str| Error::invalid(why).with("option", "aggregates").with("name", name);
            let (function, column) = match wish {
                Value::Str(f) => (f.as_ref(), None),
                Value::Map(_) => {
                    let Value::Map(entries) = wish else { unreachable!("matched above") };
                    if let Some((k, _)) = entries.iter().find(|(k, _)| !matches!(k.as_str(), Some("fn" | "column"))) {
                        return Err(broken("unknown key of an aggregate").with("key", k.as_str().unwrap_or("?")));
                    }
                    let function = wish.get("fn").and_then(Value::as_str).ok_or_else(|| broken("aggregate has no fn"))?;
                    match wish.get("column") {
                        None | Some(Value::Nil) => (function, None),
                        Some(column) => (function, Some(column.as_str().ok_or_else(|| broken("column of an aggregate is not text"))?)),
                    }
                }
                _ => return Err(broken("aggregate is neither a function's name nor a map of fn and column")),
            };
            let known = || FUNCTIONS.map(|f| f.0).join(" ");
            let function = FUNCTIONS
                .iter()
                .find(|f| f.0 == function)
                .ok_or_else(|| broken("unknown aggregate function").with("fn", function).with("known", known()))?
                .1;
            if column.is_none() && function != Function::Count {
                return Err(broken("this aggregate needs a column"));
            }
            let column = column.map(|c| table.column("aggregates", c)).transpose()?;
            if wishes.iter().any(|w| w.name == name) || keys.iter().any(|&k| table.name(k) == name) {
                return Err(broken("name of a result column is given twice"));
            }
            wishes.push(Wish { name: name.to_owned(), function, column });
        }
        if keys.is_empty() && wishes.is_empty() {
            return Err(Error::invalid("nothing to compute: give group_by, aggregates or both").with("option", "aggregates"));
        }
        Ok(Plan { keys, wishes, max_groups: params.int("max_groups") as usize })
    }

    /// The table's columns that are needed, in order and once each.
    pub(super) fn columns(&self) -> Vec<usize> {
        let mut all: Vec<usize> = self.keys.iter().copied().chain(self.wishes.iter().filter_map(|w| w.column)).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    fn new_parts(&self, table: &Table<'_>) -> Vec<Part> {
        self.wishes
            .iter()
            .map(|w| match (w.function, w.column.map(|c| table.data_type(c))) {
                (Function::Count, _) => Part::Count(0),
                (Function::CountDistinct, _) => Part::Distinct(HashSet::new()),
                (Function::Min, _) => Part::Extreme(None, Ordering::Less),
                (Function::Max, _) => Part::Extreme(None, Ordering::Greater),
                (_, Some(DataType::Float32 | DataType::Float64)) => Part::Float { sum: 0.0, lost: 0.0, n: 0 },
                _ => Part::Int { sum: 0, n: 0 },
            })
            .collect()
    }

    /// Groups the whole table; the settled columns are those of [`Plan::columns`].
    pub(super) fn run(&self, ctx: &OpCtx<'_>, table: &Table<'_>) -> Result<RecordBatch> {
        for w in &self.wishes {
            if let (Function::Sum | Function::Mean, Some(c)) = (w.function, w.column)
                && !is_number(table.data_type(c))
                && table.rows() > 0
            {
                return Err(Error::invalid("column is not of numbers")
                    .with("column", table.name(c))
                    .with("type", super::types::name_of_type(table.data_type(c)))
                    .with("name", &w.name));
            }
        }
        let columns = self.columns();
        let slot = |c: usize| columns.binary_search(&c).expect("every needed column is in the list");
        let keys: Vec<usize> = self.keys.iter().map(|&c| slot(c)).collect();
        let inputs: Vec<Option<usize>> = self.wishes.iter().map(|w| w.column.map(slot)).collect();
        let schema = table.schema();
        let mut all = Groups::default();
        // Pieces are merged a round at a time, which bounds what unmerged parts hold.
        let round = (ctx.width() * 4).max(4);
        for from in (0..table.pieces()).step_by(round) {
            let n = round.min(table.pieces() - from);
            let parts: Vec<Mutex<Groups>> = (0..n).map(|_| Mutex::default()).collect();
            in_order(ctx, n, &|i| {
                let mut groups = Groups::default();
                for batch in table.batches(ctx, from + i, &schema, usize::MAX)? {
                    self.add(ctx, table, &batch, &keys, &inputs, &mut groups)?;
                }
                *lock(&parts[i]) = groups;
                Ok(())
            })?;
            for part in parts {
                let part = part.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
                self.merge(ctx, &mut all, part)?;
            }
            ctx.progress(Value::Float((from + n) as f64 / table.pieces() as f64));
        }
        if self.keys.is_empty() && all.list.is_empty() {
            // A total over no rows is one row, as in SQL.
            all.list.push(Group { key: Box::default(), parts: self.new_parts(table) });
        }
        self.result(table, &all)
    }

    fn add(
        &self,
        ctx: &OpCtx<'_>,
        table: &Table<'_>,
        batch: &RecordBatch,
        keys: &[usize],
        inputs: &[Option<usize>],
        groups: &mut Groups,
    ) -> Result<()> {
        let cells: Vec<Cells<'_>> = batch.columns().iter().map(Cells::of).collect();
        let mut key = Vec::new();
        for row in 0..batch.num_rows() {
            if row % 8192 == 0 {
                ctx.check()?;
            }
            key.clear();
            for &k in keys {
                cells[k].encode(row, &mut key);
            }
            let at = match groups.at.get(key.as_slice()) {
                Some(&at) => at,
                None => self.insert(groups, key.as_slice().into(), self.new_parts(table))?,
            };
            for (part, input) in groups.list[at].parts.iter_mut().zip(inputs) {
                match input {
                    None => part.count(),
                    Some(c) => groups.held += part.add(&cells[*c], row),
                }
            }
            self.bound(groups)?;
        }
        Ok(())
    }

    fn insert(&self, groups: &mut Groups, key: Box<[u8]>, parts: Vec<Part>) -> Result<usize> {
        let at = groups.list.len();
        groups.held += 1;
        self.bound(groups)?;
        groups.at.insert(key.clone(), at);
        groups.list.push(Group { key, parts });
        Ok(at)
    }

    fn bound(&self, groups: &Groups) -> Result<()> {
        if groups.held <= self.max_groups {
            return Ok(());
        }
        Err(Error::new(ErrorKind::TooLarge, "too many groups and distinct values").with("max_groups", self.max_groups))
    }

    fn merge(&self, ctx: &OpCtx<'_>, all: &mut Groups, part: Groups) -> Result<()> {
        for (i, group) in part.list.into_iter().enumerate() {
            if i % 8192 == 0 {
                ctx.check()?;
            }
            match all.at.get(&group.key) {
                Some(&at) => {
                    for (a, b) in all.list[at].parts.iter_mut().zip(group.parts) {
                        all.held += a.merge(b);
                    }
                }
                None => {
                    all.held += group.parts.iter().map(Part::held).sum::<usize>();
                    self.insert(all, group.key, group.parts)?;
                }
            }
            self.bound(all)?;
        }
        Ok(())
    }

    fn result(&self, table: &Table<'_>, all: &Groups) -> Result<RecordBatch> {
        let mut columns = Vec::new();
        let mut arrays: Vec<ArrayRef> = Vec::new();
        let mut keys: Vec<Vec<Option<Cell>>> = self.keys.iter().map(|_| Vec::with_capacity(all.list.len())).collect();
        for group in &all.list {
            let mut rest = &*group.key;
            keys.iter_mut().for_each(|k| k.push(decode(&mut rest)));
        }
        for (&c, cells) in self.keys.iter().zip(keys) {
            columns.push(Column::new(table.name(c), table.data_type(c).clone(), true));
            arrays.push(array(table.data_type(c), cells));
        }
        for (i, w) in self.wishes.iter().enumerate() {
            let input = w.column.map_or(&DataType::Int64, |c| table.data_type(c));
            let ty = match w.function {
                Function::Count | Function::CountDistinct => DataType::Int64,
                Function::Min | Function::Max => input.clone(),
                Function::Mean => DataType::Float64,
                Function::Sum if matches!(input, DataType::Float32 | DataType::Float64) => DataType::Float64,
                Function::Sum => DataType::Int64,
            };
            let cells = all.list.iter().map(|g| g.parts[i].outcome(w, &ty)).collect::<Result<Vec<_>>>()?;
            columns.push(Column::new(&w.name, ty.clone(), true));
            arrays.push(array(&ty, cells));
        }
        Ok(RecordBatch::try_new(Arc::new(Schema::new(columns)), arrays).expect("arrays have the schema's types and one length"))
    }
}

fn is_number(ty: &DataType) -> bool {
    ty.is_integer() || ty.is_floating()
}

impl Part {
    fn count(&mut self) {
        if let Part::Count(n) = self {
            *n += 1;
        }
    }

    /// Takes a cell in; returns how many distinct values more are held.
    fn add(&mut self, cells: &Cells<'_>, row: usize) -> usize {
        if cells.is_null(row) {
            return 0;
        }
        match (self, cells) {
            (Part::Count(n), _) => *n += 1,
            (Part::Distinct(set), cells) => {
                let mut key = Vec::new();
                cells.encode(row, &mut key);
                return usize::from(set.insert(key.into()));
            }
            (Part::Int { sum, n }, Cells::Int(v, _)) => {
                *sum += v[row] as i128;
                *n += 1;
            }
            (Part::Float { sum, lost, n }, Cells::Float(v, _)) => {
                add_float(sum, lost, v[row]);
                *n += 1;
            }
            (Part::Extreme(best, wanted), cells) => {
                if best.as_ref().is_none_or(|b| cells.compare(row, b) == *wanted) {
                    *best = Some(cells.cell(row));
                }
            }
            _ => unreachable!("sums are made for columns of numbers only"),
        }
        0
    }

    fn merge(&mut self, other: Part) -> usize {
        match (self, other) {
            (Part::Count(a), Part::Count(b)) => *a += b,
            (Part::Distinct(a), Part::Distinct(b)) => {
                let before = a.len();
                a.extend(b);
                return a.len() - before;
            }
            (Part::Int { sum, n }, Part::Int { sum: s, n: m }) => {
                *sum += s;
                *n += m;
            }
            (Part::Float { sum, lost, n }, Part::Float { sum: s, lost: l, n: m }) => {
                add_float(sum, lost, s);
                *lost += l;
                *n += m;
            }
            (Part::Extreme(a, wanted), Part::Extreme(Some(b), _)) => {
                if a.as_ref().is_none_or(|a| compare(&b, a) == *wanted) {
                    *a = Some(b);
                }
            }
            (Part::Extreme(..), Part::Extreme(None, _)) => {}
            _ => unreachable!("parts of one plan have the same forms"),
        }
        0
    }

    fn held(&self) -> usize {
        if let Part::Distinct(set) = self { set.len() } else { 0 }
    }

    fn outcome(&self, wish: &Wish, ty: &DataType) -> Result<Option<Cell>> {
        Ok(match self {
            Part::Count(n) => Some(Cell::Int(*n)),
            Part::Distinct(set) => Some(Cell::Int(set.len() as i64)),
            Part::Int { n: 0, .. } | Part::Float { n: 0, .. } => None,
            Part::Int { sum, n } if *ty == DataType::Float64 => Some(Cell::Float(*sum as f64 / *n as f64)),
            Part::Int { sum, .. } => {
                let sum = i64::try_from(*sum)
                    .map_err(|_| Error::new(ErrorKind::TooLarge, "sum does not fit 64 bits").with("name", &wish.name).with("sum", sum))?;
                Some(Cell::Int(sum))
            }
            Part::Float { sum, lost, n } => {
                // An infinite sum makes the carried error meaningless.
                let total = if sum.is_finite() { sum + lost } else { *sum };
                Some(Cell::Float(if wish.function == Function::Mean { total / *n as f64 } else { total }))
            }
            Part::Extreme(best, _) => best.clone(),
        })
    }
}

fn add_float(sum: &mut f64, lost: &mut f64, x: f64) {
    let t = *sum + x;
    *lost += if sum.abs() >= x.abs() { (*sum - t) + x } else { (x - t) + *sum };
    *sum = t;
}

/// NaN sorts after every number, as in PostgreSQL.
fn compare_floats(a: f64, b: f64) -> Ordering {
    a.partial_cmp(&b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
}

fn compare(a: &Cell, b: &Cell) -> Ordering {
    match (a, b) {
        (Cell::Int(a), Cell::Int(b)) => a.cmp(b),
        (Cell::Float(a), Cell::Float(b)) => compare_floats(*a, *b),
        (Cell::Text(a), Cell::Text(b)) => a.cmp(b),
        _ => unreachable!("cells of one column have one form"),
    }
}

impl<'a> Cells<'a> {
    fn of(array: &'a ArrayRef) -> Cells<'a> {
        fn ints<T: ArrowPrimitiveType<Native: Into<i64>>>(array: &ArrayRef) -> Cells<'_> {
            Cells::Int(array.as_primitive::<T>().values().iter().map(|&v| v.into()).collect(), array.nulls())
        }
        match array.data_type() {
            DataType::Boolean => {
                let values = array.as_boolean().values();
                Cells::Int((0..values.len()).map(|i| values.value(i).into()).collect(), array.nulls())
            }
            DataType::Utf8 => Cells::Text(array.as_string()),
            DataType::Int8 => ints::<Int8Type>(array),
            DataType::Int16 => ints::<Int16Type>(array),
            DataType::Int32 => ints::<Int32Type>(array),
            DataType::Int64 => ints::<Int64Type>(array),
            DataType::UInt8 => ints::<UInt8Type>(array),
            DataType::UInt16 => ints::<UInt16Type>(array),
            DataType::UInt32 => ints::<UInt32Type>(array),
            DataType::Float32 => {
                Cells::Float(array.as_primitive::<Float32Type>().values().iter().map(|&v| v.into()).collect(), array.nulls())
            }
            DataType::Float64 => Cells::Float(array.as_primitive::<Float64Type>().values().to_vec(), array.nulls()),
            DataType::Date32 => ints::<Date32Type>(array),
            DataType::Timestamp(TimeUnit::Second, _) => ints::<TimestampSecondType>(array),
            DataType::Timestamp(TimeUnit::Millisecond, _) => ints::<TimestampMillisecondType>(array),
            DataType::Timestamp(TimeUnit::Microsecond, _) => ints::<TimestampMicrosecondType>(array),
            DataType::Timestamp(TimeUnit::Nanosecond, _) => ints::<TimestampNanosecondType>(array),
            other => unreachable!("no column has the type {other}"),
        }
    }

    fn is_null(&self, row: usize) -> bool {
        match self {
            Cells::Int(_, nulls) | Cells::Float(_, nulls) => nulls.is_some_and(|n| n.is_null(row)),
            Cells::Text(array) => array.is_null(row),
        }
    }

    fn cell(&self, row: usize) -> Cell {
        match self {
            Cells::Int(v, _) => Cell::Int(v[row]),
            Cells::Float(v, _) => Cell::Float(v[row]),
            Cells::Text(array) => Cell::Text(array.value(row).into()),
        }
    }

    fn compare(&self, row: usize, with: &Cell) -> Ordering {
        match (self, with) {
            (Cells::Int(v, _), Cell::Int(b)) => v[row].cmp(b),
            (Cells::Float(v, _), Cell::Float(b)) => compare_floats(v[row], *b),
            (Cells::Text(array), Cell::Text(b)) => array.value(row).cmp(b),
            _ => unreachable!("cells of one column have one form"),
        }
    }

    /// Appends the cell in a form that equals only its equals, and that [`decode`] reads.
    fn encode(&self, row: usize, out: &mut Vec<u8>) {
        if self.is_null(row) {
            return out.push(0);
        }
        match self {
            Cells::Int(v, _) => {
                out.push(1);
                out.extend_from_slice(&v[row].to_le_bytes());
            }
            Cells::Float(v, _) => {
                out.push(2);
                // One zero and one NaN.
                let v = if v[row].is_nan() { f64::NAN } else { v[row] + 0.0 };
                out.extend_from_slice(&v.to_le_bytes());
            }
            Cells::Text(array) => {
                let text = array.value(row);
                out.push(3);
                out.extend_from_slice(&(text.len() as u64).to_le_bytes());
                out.extend_from_slice(text.as_bytes());
            }
        }
    }
}

fn decode(rest: &mut &[u8]) -> Option<Cell> {
    let word = |rest: &mut &[u8]| {
        let (head, tail) = rest.split_first_chunk::<8>().expect("a key holds what encode wrote");
        *rest = tail;
        *head
    };
    let (&tag, tail) = rest.split_first().expect("a key holds what encode wrote");
    *rest = tail;
    match tag {
        0 => None,
        1 => Some(Cell::Int(i64::from_le_bytes(word(rest)))),
        2 => Some(Cell::Float(f64::from_le_bytes(word(rest)))),
        _ => {
            let len = u64::from_le_bytes(word(rest)) as usize;
            let (text, tail) = rest.split_at(len);
            *rest = tail;
            Some(Cell::Text(std::str::from_utf8(text).expect("it was text").into()))
        }
    }
}

/// Cells as an array of `ty`, which is the type that they came from.
fn array(ty: &DataType, cells: Vec<Option<Cell>>) -> ArrayRef {
    fn int(cell: Option<Cell>) -> Option<i64> {
        if let Some(Cell::Int(i)) = cell { Some(i) } else { None }
    }
    fn float(cell: Option<Cell>) -> Option<f64> {
        if let Some(Cell::Float(f)) = cell { Some(f) } else { None }
    }
    fn ints<T: ArrowPrimitiveType<Native: TryFrom<i64>>>(cells: Vec<Option<Cell>>, ty: &DataType) -> ArrayRef {
        let values = cells.into_iter().map(|c| int(c).and_then(|i| i.try_into().ok()));
        Arc::new(values.collect::<PrimitiveArray<T>>().with_data_type(ty.clone()))
    }
    match ty {
        DataType::Boolean => Arc::new(cells.into_iter().map(|c| int(c).map(|i| i != 0)).collect::<BooleanArray>()),
        DataType::Utf8 => {
            let text = |c: &'_ Option<Cell>| if let Some(Cell::Text(t)) = c { Some(t.clone()) } else { None };
            Arc::new(cells.iter().map(text).collect::<StringArray>())
        }
        DataType::Int8 => ints::<Int8Type>(cells, ty),
        DataType::Int16 => ints::<Int16Type>(cells, ty),
        DataType::Int32 => ints::<Int32Type>(cells, ty),
        DataType::UInt8 => ints::<UInt8Type>(cells, ty),
        DataType::UInt16 => ints::<UInt16Type>(cells, ty),
        DataType::UInt32 => ints::<UInt32Type>(cells, ty),
        DataType::Float32 => Arc::new(cells.into_iter().map(|c| float(c).map(|f| f as f32)).collect::<PrimitiveArray<Float32Type>>()),
        DataType::Float64 => Arc::new(cells.into_iter().map(float).collect::<PrimitiveArray<Float64Type>>()),
        DataType::Date32 => ints::<Date32Type>(cells, ty),
        DataType::Timestamp(TimeUnit::Second, _) => ints::<TimestampSecondType>(cells, ty),
        DataType::Timestamp(TimeUnit::Millisecond, _) => ints::<TimestampMillisecondType>(cells, ty),
        DataType::Timestamp(TimeUnit::Microsecond, _) => ints::<TimestampMicrosecondType>(cells, ty),
        DataType::Timestamp(TimeUnit::Nanosecond, _) => ints::<TimestampNanosecondType>(cells, ty),
        _ => ints::<Int64Type>(cells, ty),
    }
}
