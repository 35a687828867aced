//! The core's tables as JavaScript values: error classes, op wrappers and their types come from them.

use crate::js::{Call, JsResult, Raw};
use crate::value;
use offloop::error::{self, ERROR_TABLE};
use offloop::metrics::{Format, export};
use offloop::ops::{Inputs, ParamDefault, ParamType, Returns};
use offloop::{Error, Value};

fn text(s: impl Into<String>) -> Value {
    Value::from(s.into())
}

/// `version()` of this library.
pub(crate) fn version(call: &Call<'_>) -> JsResult<Raw> {
    call.env.string(env!("CARGO_PKG_VERSION"))
}

/// `errorTable()`: one object per kind.
pub(crate) fn errors(call: &Call<'_>) -> JsResult<Raw> {
    let rows = ERROR_TABLE.iter().map(|row| {
        Value::map([
            ("kind", Value::str(row.name)),
            ("status", Value::Int(row.status.into())),
            ("code", Value::str(row.code)),
            ("text", Value::str(row.text)),
            ("retry", Value::str(row.retry.as_str())),
        ])
    });
    value::to_js(call.env, call.state, Value::Array(rows.collect()))
}

/// `nearest(name, names)`: which of `names`, parted by spaces, was probably meant.
pub(crate) fn nearest(call: &Call<'_>) -> JsResult<Raw> {
    let text = |at| call.env.text(call.arg(at)).unwrap_or_default();
    let (name, names) = (text(0), text(1));
    error::nearest(&name, names.split(' ')).map_or_else(|| Ok(call.env.undefined()), |meant| call.env.string(meant))
}

/// `opTable()`: one object per op.
pub(crate) fn ops(call: &Call<'_>) -> JsResult<Raw> {
    let rows = offloop::ops::all().map(|op| {
        let (min, max) = match op.inputs {
            Inputs::None => (0, 0),
            Inputs::One => (1, 1),
            Inputs::Range(min, max) => (min as i64, max as i64),
        };
        let returns = match op.returns {
            Returns::Bytes => "Uint8Array",
            Returns::Str => "string",
            Returns::Encoded => "Encoded",
            Returns::Bool => "boolean",
            Returns::Int => "number",
            Returns::Value(typescript, _) => typescript,
        };
        let params = op.params.iter().map(|p| {
            let (ty, limits) = match p.ty {
                ParamType::Bool => (text("boolean"), None),
                ParamType::Int { min, max } => (text("number"), Some((min.to_string(), max.to_string()))),
                ParamType::Float { min, max } => (text("number"), Some((min.to_string(), max.to_string()))),
                ParamType::Str => (text("string"), None),
                ParamType::Enum(words) => (text(words.iter().map(|w| format!("'{w}'")).collect::<Vec<_>>().join(" | ")), None),
                ParamType::Bytes => (text("Bytes | string"), None),
                ParamType::StrList => (text("string[]"), None),
                ParamType::Any(typescript, _) => (text(typescript), None),
            };
            let default = match p.default {
                ParamDefault::Required | ParamDefault::Absent => Value::Nil,
                ParamDefault::Bool(b) => text(b.to_string()),
                ParamDefault::Int(i) => text(i.to_string()),
                ParamDefault::Float(f) => text(f.to_string()),
                ParamDefault::Str(s) => text(format!("'{s}'")),
            };
            let limits = limits.map_or(Value::Nil, |(min, max)| Value::Array(vec![text(min), text(max)]));
            Value::map([
                ("name", text(p.camel())),
                ("type", ty),
                ("limits", limits),
                ("required", Value::Bool(p.default == ParamDefault::Required)),
                ("default", default),
                ("about", Value::str(p.about)),
            ])
        });
        Value::map([
            ("name", Value::str(op.name)),
            ("about", Value::str(op.about)),
            ("minInputs", Value::Int(min)),
            ("maxInputs", Value::Int(max)),
            ("params", Value::Array(params.collect())),
            ("returns", Value::str(returns)),
            ("uncancellable", op.cancellable.exception().map_or(Value::Nil, Value::str)),
        ])
    });
    value::to_js(call.env, call.state, Value::Array(rows.collect()))
}

/// `metrics(format)`.
pub(crate) fn metrics(call: &Call<'_>) -> JsResult<Raw> {
    let format = if call.env.is_nullish(call.arg(0)) { "prometheus".to_owned() } else { call.env.text(call.arg(0)).unwrap_or_default() };
    let format = match format.as_str() {
        "prometheus" => Format::Prometheus,
        "json" => Format::Json,
        other => {
            let shown: String = other.chars().take(80).collect();
            return Err(Error::invalid("metrics format is not one of its words")
                .with("format", shown)
                .with("want", "prometheus json")
                .into());
        }
    };
    call.env.string(&export(format))
}
