//! What vectors cannot say: the columns inside Arrow, cuts at every place, threads, cancellation, damaged input.

use crate::error::{ErrorKind, Result};
use crate::ops::testing::{CancelAfter, Random, Threads, run_with};
use crate::ops::{OpCtx, Params, find, run_inline};
use crate::value::Value;
use arrow_array::cast::AsArray;
use arrow_array::types::{Date32Type, Float64Type, Int8Type, Int64Type, TimestampMillisecondType};
use arrow_array::{Array, RecordBatch};
use arrow_ipc::reader::{FileReader, StreamReader};
use arrow_schema::{DataType, TimeUnit};
use std::io::Cursor;

fn arrow(text: &[u8], params: &Value) -> Vec<RecordBatch> {
    let bytes = run_inline("csv.to_arrow", vec![text.into()], params).and_then(Value::into_bytes).expect("valid CSV");
    StreamReader::try_new(Cursor::new(bytes.to_vec()), None).expect("a stream").map(|b| b.expect("a batch")).collect()
}

/// The op over pieces of `piece` bytes on `threads` threads.
fn pieces(name: &str, text: &[u8], params: &Value, piece: usize, threads: usize) -> Result<Vec<u8>> {
    let op = find(name)?;
    let params = Params::check(op.name, op.params, params)?;
    let (control, threads) = (CancelAfter::new(usize::MAX), Threads(threads));
    let ctx = OpCtx::new(vec![text.into()], &params, &control, &threads);
    if name == "csv.to_arrow" { super::arrow_of(&ctx, piece) } else { super::aggregate_of(&ctx, piece) }
}

/// Every cell as text, row by row, whatever the batches.
fn rows(bytes: &[u8]) -> Vec<Vec<String>> {
    let reader = StreamReader::try_new(Cursor::new(bytes), None).expect("a stream");
    let mut out = vec![reader.schema().fields().iter().map(|f| format!("{} {}", f.name(), f.data_type())).collect()];
    for batch in reader {
        let batch = batch.expect("a batch");
        for row in 0..batch.num_rows() {
            out.push(batch.columns().iter().map(|c| format!("{:?}", c.slice(row, 1))).collect());
        }
    }
    out
}

#[test]
fn columns_hold_what_the_fields_say() {
    let text = "i,f,b,d,t,s,z\n1,1.5,true,2024-02-29,2024-02-29T12:30:01.25,\"a\"\"b\n\",\"\"\n-2,,FALSE,1969-12-31,1969-12-31 23:59,é,\n";
    let batches = arrow(text.as_bytes(), &Value::Nil);
    assert_eq!(batches.len(), 1);
    let b = &batches[0];
    assert_eq!(b.column(0).as_primitive::<Int64Type>().values(), &[1, -2]);
    let f = b.column(1).as_primitive::<Float64Type>();
    assert!(f.value(0) == 1.5 && f.is_null(1));
    assert!(b.column(2).as_boolean().value(0) && !b.column(2).as_boolean().value(1));
    assert_eq!(b.column(3).as_primitive::<Date32Type>().values(), &[19_782, -1]);
    assert_eq!(b.column(4).data_type(), &DataType::Timestamp(TimeUnit::Millisecond, None));
    assert_eq!(b.column(4).as_primitive::<TimestampMillisecondType>().values(), &[1_709_209_801_250, -60_000]);
    let s = b.column(5).as_string::<i32>();
    assert_eq!((s.value(0), s.value(1)), ("a\"b\n", "é"));
    let z = b.column(6).as_string::<i32>();
    assert!(z.is_valid(0) && z.value(0).is_empty() && z.is_null(1), "a quoted empty field is text, an unquoted one null");
}

#[test]
fn given_types_columns_and_batches_are_obeyed() {
    let text = "a,b,c\n1,2,3\n4,5,6\n7,8,9\n";
    let schema = Value::map([("a", "int8".into()), ("c", "timestamp[ms, +01:00]".into())]);
    let params = Value::map([
        ("schema", Value::map([("a", "int8".into())])),
        ("columns", Value::Array(vec!["b".into(), "a".into()])),
        ("batch_rows", Value::Int(2)),
    ]);
    let batches = arrow(text.as_bytes(), &params);
    assert_eq!(batches.iter().map(RecordBatch::num_rows).collect::<Vec<_>>(), [2, 1]);
    assert_eq!(batches[0].schema().field(0).name(), "b");
    assert_eq!(batches[0].column(1).as_primitive::<Int8Type>().values(), &[1, 4]);
    let zoned = arrow(b"a,c\n1,1970-01-01T01:00:00\n2,1970-01-01T00:00:00Z\n", &Value::map([("schema", schema)]));
    assert_eq!(zoned[0].column(1).as_primitive::<TimestampMillisecondType>().values(), &[0, 0]);
}

#[test]
fn the_file_container_is_an_arrow_file() {
    let params = Value::map([("container", "file".into())]);
    let bytes = run_inline("csv.to_arrow", vec![b"a\n1\n2\n".to_vec().into()], &params).and_then(Value::into_bytes).expect("valid");
    let batches: Vec<_> = FileReader::try_new(Cursor::new(bytes.to_vec()), None).expect("a file").map(|b| b.expect("a batch")).collect();
    assert_eq!(batches[0].column(0).as_primitive::<Int64Type>().values(), &[1, 2]);
}

#[test]
fn floats_are_the_nearest_ones() {
    let mut random = Random(754);
    let mut text = String::from("x\n");
    let mut want = Vec::new();
    for _ in 0..20_000 {
        let digits = 1 + random.below(19);
        let mut number: String = (0..digits).map(|_| char::from(b'0' + random.below(10) as u8)).collect();
        number.insert(random.below(digits + 1), '.');
        if random.below(2) == 0 {
            number.push_str(&format!("e{}", random.below(600) as i64 - 300));
        }
        let number = format!("{}1{number}", if random.below(2) == 0 { "-" } else { "" });
        want.push(number.parse::<f64>().expect("a number"));
        text.push_str(&number);
        text.push('\n');
    }
    let got: Vec<f64> =
        arrow(text.as_bytes(), &Value::Nil).iter().flat_map(|b| b.column(0).as_primitive::<Float64Type>().values().to_vec()).collect();
    assert_eq!(got.iter().map(|f| f.to_bits()).collect::<Vec<_>>(), want.iter().map(|f| f.to_bits()).collect::<Vec<_>>());
}

#[test]
fn dates_are_days_in_the_gregorian_calendar() {
    let mut days = super::types::parse_date(b"0001-01-01").expect("a date") as i64;
    assert_eq!(days, -719_162);
    for y in 1..=9999i64 {
        for m in 1..=12 {
            for d in 1..=31 {
                let text = format!("{y:04}-{m:02}-{d:02}");
                if let Some(got) = super::types::parse_date(text.as_bytes()) {
                    assert_eq!(got as i64, days, "{text}");
                    assert_eq!(super::types::civil(days), (y, m, d));
                    days += 1;
                }
            }
        }
    }
    assert_eq!(days, 2_932_897);
}

/// A valid CSV full of quotes, line ends and odd fields.
fn random_csv(random: &mut Random) -> String {
    let columns = 1 + random.below(4);
    let mut text = String::new();
    for row in 0..1 + random.below(60) {
        for c in 0..columns {
            text.push_str(if c > 0 { "," } else { "" });
            let number = random.below(1000).to_string();
            text.push_str(match random.below(if row == 0 { 1 } else { 9 }) {
                0 => "n",
                1 | 2 => &number,
                3 => "1.25",
                4 => "\"a\nb\"",
                5 => "\"\"\"\r\n,\"\"\"",
                6 => "\"\"",
                7 if columns > 1 => "",
                _ => "ü",
            });
        }
        text.push_str(["\n", "\r\n", "\r", "\n\n"][random.below(4)]);
    }
    text
}

#[test]
fn cuts_at_any_place_and_any_number_of_threads_change_nothing() {
    let mut random = Random(4180);
    for _ in 0..400 {
        let text = random_csv(&mut random);
        let whole = rows(&pieces("csv.to_arrow", text.as_bytes(), &Value::Nil, usize::MAX / 2, 1).expect(&text));
        for piece in [1, 2, 3, 7, 16, 61] {
            for params in [Value::Nil, Value::map([("comment", "#".into())])] {
                let cut = rows(&pieces("csv.to_arrow", text.as_bytes(), &params, piece, 3).expect(&text));
                assert_eq!(cut, whole, "pieces of {piece} bytes of {text:?}");
            }
        }
        let plan = || {
            let first = whole[0][0].split(' ').next().expect("a name").to_owned();
            let max = Value::map([("fn", "max".into()), ("column", first.clone().into())]);
            Value::map([
                ("group_by", Value::Array(vec![first.into()])),
                ("aggregates", Value::map([("rows", "count".into()), ("max", max)])),
            ])
        };
        let one = pieces("csv.aggregate", text.as_bytes(), &plan(), usize::MAX / 2, 1).expect(&text);
        assert_eq!(pieces("csv.aggregate", text.as_bytes(), &plan(), 5, 3).expect(&text), one);
    }
}

#[test]
fn the_first_broken_record_is_reported_wherever_the_cuts_are() {
    let mut random = Random(99);
    for _ in 0..300 {
        let mut text = random_csv(&mut random).into_bytes();
        for _ in 0..2 {
            let at = random.below(text.len());
            text[at] = b"\",\n\rx\xFF"[random.below(6)];
        }
        let whole = pieces("csv.to_arrow", &text, &Value::Nil, usize::MAX / 2, 1);
        for piece in [1, 5, 17] {
            let cut = pieces("csv.to_arrow", &text, &Value::Nil, piece, 3);
            match (&whole, &cut) {
                (Ok(a), Ok(b)) => assert_eq!(rows(a), rows(b)),
                // Invalid UTF-8 is met before the records of the same piece, so only that it is Corrupt is fixed then.
                (Err(a), Err(b)) if std::str::from_utf8(&text).is_ok() => assert_eq!(a, b, "{:?}", String::from_utf8_lossy(&text)),
                (Err(a), Err(b)) => assert_eq!(a.kind(), b.kind()),
                (a, b) => panic!("{a:?} against {b:?} of {:?}", String::from_utf8_lossy(&text)),
            }
        }
    }
}

#[test]
fn every_op_sees_cancellation() {
    let short = "a,b\n".to_owned() + &"1,x\n".repeat(1_500_000);
    let long = format!("a\n\"{}\"\n", "x\n".repeat(6 << 20));
    let sum = || Value::map([("aggregates", Value::map([("n", "count".into())])), ("group_by", Value::Array(vec!["a".into()]))]);
    for text in [&short, &long] {
        for (op, params) in [("csv.to_arrow", Value::Nil), ("csv.probe", Value::Nil), ("csv.aggregate", sum())] {
            for after in [0, 3, 10] {
                let e = run_with(op, text.as_bytes(), &params, &CancelAfter::new(after), 1).expect_err("cancelled");
                assert_eq!(e.kind(), ErrorKind::Cancelled, "{op} after {after}");
            }
            run_with(op, text.as_bytes(), &params, &CancelAfter::new(100_000), 2).expect("an op that is not cancelled ends");
        }
    }
}

#[test]
fn damaged_input_is_an_error_and_never_a_panic() {
    let mut random = Random(7);
    let base = "a,b,c\n1,\"x \"\"y\"\"\",2024-01-01\n2.5,,2024-01-01T00:00:00.123+02:00\n\"q\nr\",é,NaN\n";
    for _ in 0..20_000 {
        let mut text = base.as_bytes().to_vec();
        for _ in 0..random.below(5) {
            let at = random.below(text.len());
            match random.below(3) {
                0 => text.truncate(at.max(1)),
                1 => text[at] = b"\",\n\r\\#1.-e:T\xC3\x00 "[random.below(15)],
                _ => text.insert(at, b"\",\n\r\\#1.-e:T\xC3\x00 "[random.below(15)]),
            }
        }
        let ragged = ["fail", "fill", "skip"][random.below(3)];
        let mut options = vec![("ragged", Value::from(ragged)), ("infer_rows", Value::Int(random.below(3) as i64))];
        if random.below(2) == 0 {
            options.extend([("escape", "\\".into()), ("comment", "#".into())]);
        }
        let params = Value::map(options);
        for op in ["csv.to_arrow", "csv.probe"] {
            if let Err(e) = run_inline(op, vec![text[..].into()], &params) {
                assert_eq!(e.kind(), ErrorKind::Corrupt, "{e}");
            }
        }
    }
}
