//! Runs every file of `tests/vectors/ops` (schema: `tests/vectors/README.md`).
#![cfg(feature = "ops")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

mod notation;

use notation::{hex, repeat, to_value};
use offloop::{Bytes, Error, Value, ops};
use serde_json::Value as Json;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors")
}

fn base64(s: &str) -> Vec<u8> {
    let digit = |c: u8| match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => panic!("not base64: {s}"),
    };
    let mut out = Vec::new();
    let (mut acc, mut bits) = (0u32, 0);
    for c in s.bytes().filter(|c| *c != b'=' && !c.is_ascii_whitespace()) {
        acc = acc << 6 | u32::from(digit(c));
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            out.push((acc >> bits) as u8);
        }
    }
    out
}

/// The bytes of `<prefix>text`, `<prefix>hex`, … of an entry, if it has one of them.
fn bytes_of(entry: &Json, prefix: &str) -> Option<Vec<u8>> {
    let mut found = None;
    for (key, v) in entry.as_object().unwrap() {
        let Some(form) = key.strip_prefix(prefix) else { continue };
        let n = |name: &str| v[name].as_u64().unwrap();
        let bytes = match form {
            "text" => v.as_str().unwrap().as_bytes().to_vec(),
            "hex" => hex(v.as_str().unwrap()),
            "base64" => base64(v.as_str().unwrap()),
            "file" => std::fs::read(root().join(v.as_str().unwrap())).unwrap_or_else(|e| panic!("{v}: {e}")),
            "repeat" => repeat(v),
            "numbered" => (0..n("times")).flat_map(|i| v["text"].as_str().unwrap().replace("%i", &i.to_string()).into_bytes()).collect(),
            "cycle" => (0..n("length")).map(|k| (k % n("modulo")) as u8).collect(),
            "lcg" => {
                let mut x = n("seed") as u32;
                let mut next = || {
                    x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (x >> 24) as u8
                };
                (0..n("length")).map(|_| next()).collect()
            }
            _ => continue,
        };
        assert!(found.replace(bytes).is_none(), "two of {prefix}*: {entry}");
    }
    found
}

fn inputs(entry: &Json) -> Vec<Vec<u8>> {
    match entry.get("inputs") {
        Some(list) => list.as_array().unwrap().iter().map(|i| bytes_of(i, "input_").unwrap()).collect(),
        None => bytes_of(entry, "input_").into_iter().collect(),
    }
}

/// Whether two values are equal as a driver sees them: numbers by value, maps without regard to order.
fn same(got: &Value, want: &Value) -> bool {
    match (got, want) {
        (Value::Nil, Value::Nil) => true,
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (Value::Int(a), Value::Int(b)) => a == b,
        (Value::Big(a), Value::Big(b)) => a == b,
        (Value::Int(_) | Value::Float(_), Value::Int(_) | Value::Float(_)) => {
            let (a, b) = (got.as_float().unwrap(), want.as_float().unwrap());
            a == b || a.is_nan() && b.is_nan()
        }
        (Value::Date(a), Value::Date(b)) => a == b,
        (Value::Str(a), Value::Str(b)) => a == b,
        (Value::Bytes(a), Value::Bytes(b)) => a.as_slice() == b.as_slice(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Map(a), Value::Map(b)) => {
            a.len() == b.len() && b.iter().all(|(k, v)| k.as_str().and_then(|k| got.get(k)).is_some_and(|g| same(g, v)))
        }
        _ => false,
    }
}

fn run(op: &str, inputs: &[Vec<u8>], params: &Json) -> Result<Value, Error> {
    ops::run_inline(op, inputs.iter().map(|i| Bytes::from(i.clone())).collect(), &to_value(params))
}

/// The bytes of a bytes or text result.
fn flat(v: &Value) -> Option<&[u8]> {
    match v {
        Value::Bytes(b) => Some(b.as_slice()),
        Value::Str(s) => Some(s.as_bytes()),
        _ => None,
    }
}

fn shown(v: &Value) -> String {
    match v {
        Value::Bytes(b) if b.len() <= 4096 => b.iter().map(|b| format!("{b:02x}")).collect(),
        Value::Bytes(b) => format!("{} bytes", b.len()),
        other => format!("{other:?}"),
    }
}

fn check_case(op: &str, case: &Json) -> Result<(), String> {
    let inputs = inputs(case);
    let got = run(op, &inputs, &case["params"]).map_err(|e| e.to_string())?;
    let mut answers = 0;
    let mut hold = |ok: bool, what: &str| {
        answers += 1;
        if ok { Ok(()) } else { Err(format!("{what} differs, got {}", shown(&got))) }
    };
    for form in ["hex", "base64", "text", "file"] {
        let key = format!("output_{form}");
        if let Some(want) = case.get(&key) {
            let text = form == "text" || matches!(got, Value::Bytes(_));
            let one = serde_json::json!({ (key.clone()): want });
            hold(text && flat(&got) == bytes_of(&one, "output_").as_deref(), &key)?;
        }
    }
    if let Some(want) = case.get("output_sha256") {
        let sum = run("sha256", &[flat(&got).ok_or("no bytes")?.to_vec()], &Json::Null).map_err(|e| e.to_string())?;
        hold(flat(&sum) == Some(&hex(want.as_str().unwrap())), "output_sha256")?;
    }
    if let Some(want) = case.get("output_length") {
        hold(flat(&got).map(|b| b.len() as u64) == want.as_u64(), "output_length")?;
    }
    if case.get("output_same").is_some() {
        hold(flat(&got) == Some(&inputs[0]), "output_same")?;
    }
    if let Some(want) = case.get("output") {
        hold(same(&got, &to_value(want)), "output")?;
    }
    if answers == 0 { Err("case has no answer".into()) } else { Ok(()) }
}

fn check_error(op: &str, entry: &Json) -> Result<(), String> {
    let e = match run(op, &inputs(entry), &entry["params"]) {
        Ok(v) => return Err(format!("no error, got {}", shown(&v))),
        Err(e) => e,
    };
    if e.kind().row().name != entry["kind"].as_str().unwrap() {
        return Err(format!("kind differs: {e}"));
    }
    let parts = match &entry["contains"] {
        Json::Null => Vec::new(),
        Json::String(s) => vec![s.as_str()],
        list => list.as_array().unwrap().iter().map(|s| s.as_str().unwrap()).collect(),
    };
    match parts.iter().find(|p| !e.to_string().contains(**p)) {
        Some(missing) => Err(format!("message lacks {missing:?}: {e}")),
        None => Ok(()),
    }
}

fn check_roundtrip(op: &str, entry: &Json) -> Result<(), String> {
    let inputs = inputs(entry);
    let there = run(op, &inputs, &entry["params"]).map_err(|e| e.to_string())?;
    let inverse = entry["inverse"].as_str().unwrap();
    let back = run(inverse, &[flat(&there).ok_or("no bytes")?.to_vec()], &entry["inverse_params"]).map_err(|e| e.to_string())?;
    if flat(&back) == Some(&inputs[0]) { Ok(()) } else { Err("does not come back".into()) }
}

fn files() -> Vec<(String, Json)> {
    let mut out = Vec::new();
    for file in std::fs::read_dir(root().join("ops")).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|e| e == "json") {
            let json: Json = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let op = path.file_stem().unwrap().to_str().unwrap().to_owned();
            assert_eq!(json["op"].as_str(), Some(op.as_str()), "{}", path.display());
            assert!(json["source"].as_str().is_some_and(|s| !s.is_empty()), "{}: source is missing", path.display());
            out.push((op, json));
        }
    }
    out.sort_by(|a, b| a.0.cmp(&b.0));
    out
}

#[test]
fn every_vector_holds() {
    let mut failures = Vec::new();
    let mut run_count = 0;
    for (op, json) in files() {
        for (list, check) in [("cases", check_case as fn(&str, &Json) -> _), ("errors", check_error), ("roundtrip", check_roundtrip)] {
            for (i, entry) in json[list].as_array().into_iter().flatten().enumerate() {
                run_count += 1;
                if let Err(why) = check(&op, entry) {
                    let name = entry["name"].as_str().map_or_else(|| format!("#{i}"), str::to_owned);
                    failures.push(format!("{op} {list} {name}: {why}"));
                }
            }
        }
    }
    println!("{run_count} vectors");
    assert!(run_count > 0);
    assert!(failures.is_empty(), "{} of {run_count} vectors fail:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn every_op_has_vectors() {
    let files: Vec<String> = files().into_iter().map(|(op, _)| op).collect();
    let missing: Vec<&str> = ops::all().map(|o| o.name).filter(|n| *n != "noop" && !files.iter().any(|f| f == n)).collect();
    assert!(missing.is_empty(), "no file in tests/vectors/ops for: {}", missing.join(" "));
}
