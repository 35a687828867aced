//! The codec against what else reads and writes MessagePack in Rust. The peers read into trees of their own, without limits.

use crate::Results;
use offloop::codec::{self, Options};
use offloop::value::{DType, TypedArray};
use offloop::{Bytes, TransferBuffer, Value};
use std::hint::black_box;
use std::time::Instant;

const ROUNDS: usize = 15;
const RECORDS: usize = 1000;

/// What services send each other: a thousand records with texts, numbers, a flag and a list.
fn records() -> Value {
    let record = |i: usize| {
        Value::map([
            ("id", Value::Int(i as i64 * 7919)),
            ("name", Value::from(format!("station-{i}"))),
            ("share", Value::Float(i as f64 / 3.0)),
            ("active", Value::Bool(i.is_multiple_of(3))),
            ("note", if i.is_multiple_of(2) { Value::Nil } else { Value::str("checked by hand, see the log") }),
            ("tags", Value::Array((0..4).map(|n| Value::Int((i + n) as i64)).collect())),
        ])
    };
    Value::Array((0..RECORDS).map(record).collect())
}

fn per_record(mut f: impl FnMut()) -> f64 {
    let start = Instant::now();
    for _ in 0..20 {
        f();
    }
    start.elapsed().as_nanos() as f64 / 20.0 / RECORDS as f64
}

pub(crate) fn run(results: &mut Results) -> Result<(), String> {
    let options = Options::default();
    let value = records();
    let mut message = Vec::new();
    codec::encode(&value, &options, &mut message).map_err(|e| e.to_string())?;
    let theirs = rmpv::decode::read_value(&mut message.as_slice()).map_err(|e| e.to_string())?;
    let json: serde_json::Value = rmp_serde::from_slice(&message).map_err(|e| e.to_string())?;

    let floats = Value::from(TypedArray { dtype: DType::F64, shape: vec![1 << 21], bytes: vec![0u8; 16 << 20].into() });
    let mut large = Vec::new();
    codec::encode(&floats, &options, &mut large).map_err(|e| e.to_string())?;
    let (mut out, mut beside) = (Vec::with_capacity(message.len()), Vec::<Option<TransferBuffer>>::new());
    for _ in 0..ROUNDS {
        results.add(
            "codec.write",
            "offloop",
            per_record(|| {
                out.clear();
                black_box(codec::encode(black_box(&value), &options, &mut out)).expect("it did before");
            }),
        );
        results.add(
            "codec.write",
            "rmpv",
            per_record(|| {
                out.clear();
                rmpv::encode::write_value(&mut out, black_box(&theirs)).expect("it did before");
            }),
        );
        results.add(
            "codec.write",
            "rmp-serde",
            per_record(|| {
                out.clear();
                rmp_serde::encode::write(&mut out, black_box(&json)).expect("it did before");
            }),
        );
        results.add(
            "codec.read",
            "offloop",
            per_record(|| {
                black_box(codec::decode(black_box(&message), &mut beside, &options)).expect("it did before");
            }),
        );
        results.add(
            "codec.read",
            "rmpv",
            per_record(|| {
                black_box(rmpv::decode::read_value(&mut black_box(message.as_slice()))).expect("it did before");
            }),
        );
        results.add(
            "codec.read",
            "rmp-serde",
            per_record(|| {
                black_box(rmp_serde::from_slice::<serde_json::Value>(black_box(&message))).expect("it did before");
            }),
        );
        let copy = Bytes::from(large.clone());
        let start = Instant::now();
        black_box(codec::decode_owned(copy, &mut beside, &options)).map_err(|e| e.to_string())?;
        results.add("codec.array", "offloop", start.elapsed().as_secs_f64() * 1e6);
        let start = Instant::now();
        black_box(rmpv::decode::read_value(&mut black_box(large.as_slice()))).map_err(|e| e.to_string())?;
        results.add("codec.array", "rmpv", start.elapsed().as_secs_f64() * 1e6);
    }
    Ok(())
}
