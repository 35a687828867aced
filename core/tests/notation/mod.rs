//! Values in JSON, as the vectors write them (`tests/vectors/README.md`).
#![allow(dead_code, reason = "not every test binary uses all of it")]

use offloop::value::{BigInt, DType, Date, ErrorValue, TypedArray};
use offloop::{TransferBuffer, Value};
use serde_json::Value as Json;

pub(crate) fn hex(s: &str) -> Vec<u8> {
    let digits: Vec<u8> = s.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    assert!(digits.len().is_multiple_of(2), "odd number of hex digits: {s}");
    digits.chunks(2).map(|p| u8::from_str_radix(std::str::from_utf8(p).unwrap(), 16).unwrap()).collect()
}

pub(crate) fn repeat(spec: &Json) -> Vec<u8> {
    let unit = match (spec.get("text"), spec.get("hex")) {
        (Some(t), None) => t.as_str().unwrap().as_bytes().to_vec(),
        (None, Some(h)) => hex(h.as_str().unwrap()),
        _ => panic!("repeat needs text or hex: {spec}"),
    };
    unit.repeat(spec["times"].as_u64().unwrap() as usize)
}

pub(crate) fn to_value(json: &Json) -> Value {
    match json {
        Json::Null => Value::Nil,
        Json::Bool(b) => Value::Bool(*b),
        Json::Number(n) => match n.as_i64() {
            Some(i) => Value::Int(i),
            None => Value::Float(n.as_f64().unwrap()),
        },
        Json::String(s) => Value::from(s.clone()),
        Json::Array(a) => Value::Array(a.iter().map(to_value).collect()),
        Json::Object(o) if o.len() == 1 && o.keys().all(|k| k.starts_with('$')) => {
            let (form, v) = o.iter().next().unwrap();
            match form.as_str() {
                "$hex" => hex(v.as_str().unwrap()).into(),
                "$text" => v.as_str().unwrap().as_bytes().to_vec().into(),
                "$repeat" => repeat(v).into(),
                "$date" => Date::from_millis(v.as_f64().unwrap()).unwrap().into(),
                "$float" => Value::Float(v.as_str().unwrap().parse().unwrap()),
                "$int" => int(v.as_str().unwrap()),
                "$time" => Date::new(v[0].as_i64().unwrap(), v[1].as_u64().unwrap() as u32).unwrap().into(),
                "$map" => Value::Map(v.as_array().unwrap().iter().map(|p| (to_value(&p[0]), to_value(&p[1]))).collect()),
                "$typed" => typed(v),
                "$error" => error(v),
                "$buffer" => Value::Buffer(TransferBuffer::from_slice(&hex(v.as_str().unwrap())).unwrap()),
                _ => panic!("unknown form {form}"),
            }
        }
        Json::Object(o) => Value::Map(o.iter().map(|(k, v)| (Value::from(k.clone()), to_value(v))).collect()),
    }
}

fn int(text: &str) -> Value {
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |d| (true, d));
    let mut magnitude = vec![0u8];
    for d in digits.bytes() {
        let mut carry = u32::from(d - b'0');
        for byte in &mut magnitude {
            carry += u32::from(*byte) * 10;
            *byte = carry as u8;
            carry >>= 8;
        }
        if carry > 0 {
            magnitude.push(carry as u8);
        }
    }
    BigInt { negative, magnitude }.into_value()
}

fn typed(spec: &Json) -> Value {
    let name = spec["dtype"].as_str().unwrap();
    let dtype = DType::ALL.into_iter().find(|d| format!("{d:?}").eq_ignore_ascii_case(name)).unwrap();
    let shape: Vec<u64> = spec["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
    let mut bytes = Vec::new();
    for element in spec["elements"].as_array().unwrap() {
        let text = element.as_str().map_or_else(|| element.to_string(), str::to_owned);
        let whole = || text.parse::<i128>().unwrap().to_le_bytes()[..dtype.size()].to_vec();
        bytes.extend(match dtype {
            DType::F32 => text.parse::<f32>().unwrap().to_le_bytes().to_vec(),
            DType::F64 => text.parse::<f64>().unwrap().to_le_bytes().to_vec(),
            _ => whole(),
        });
    }
    TypedArray { dtype, shape, bytes: bytes.into() }.into()
}

fn error(spec: &Json) -> Value {
    let text = |field: &str| spec[field].as_str().unwrap_or_default().to_owned();
    let properties = spec["properties"].as_object().into_iter().flatten();
    Value::from(ErrorValue {
        name: text("name"),
        message: text("message"),
        stack: text("stack"),
        cause: spec.get("cause").map(to_value),
        properties: properties.map(|(k, v)| (k.clone(), to_value(v))).collect(),
    })
}
