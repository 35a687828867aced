//! The op table and the metrics, as Python sees them.

use crate::error::{invalid, text};
use offloop::metrics::{Format, export};
use offloop::ops::{self, Inputs, ParamDef, ParamDefault, ParamType, Returns};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString};

/// What the generator of `offloop.ops` reads: one dict per op.
#[pyfunction]
fn _op_table(py: Python<'_>) -> PyResult<Bound<'_, PyList>> {
    let table = PyList::empty(py);
    for op in ops::all() {
        let d = PyDict::new(py);
        d.set_item("name", op.name)?;
        d.set_item("about", op.about)?;
        d.set_item(
            "inputs",
            match op.inputs {
                Inputs::None => (0, 0),
                Inputs::One => (1, 1),
                Inputs::Range(min, max) => (min, max),
            },
        )?;
        let returns = match op.returns {
            Returns::Bytes => "bytes",
            Returns::Str => "str",
            Returns::Encoded => "encoded",
            Returns::Bool => "bool",
            Returns::Int => "int",
            Returns::Value(_, python) => python,
        };
        d.set_item("returns", returns)?;
        d.set_item("uncancellable", op.cancellable.exception())?;
        d.set_item("params", op.params.iter().map(|p| param(py, p)).collect::<PyResult<Vec<_>>>()?)?;
        table.append(d)?;
    }
    Ok(table)
}

fn param<'py>(py: Python<'py>, p: &ParamDef) -> PyResult<Bound<'py, PyDict>> {
    let d = PyDict::new(py);
    d.set_item("name", p.name)?;
    d.set_item("about", p.about)?;
    let range = |low: String, high: String| format!("{low} to {high}");
    let (ty, range) = match p.ty {
        ParamType::Bool => ("bool".to_owned(), None),
        ParamType::Int { min, max } => ("int".to_owned(), Some(range(min.to_string(), max.to_string()))),
        ParamType::Float { min, max } => ("float".to_owned(), Some(range(min.to_string(), max.to_string()))),
        ParamType::Str => ("str".to_owned(), None),
        ParamType::Enum(words) => {
            let words: Vec<String> = words.iter().map(|w| format!("\"{w}\"")).collect();
            (format!("Literal[{}]", words.join(", ")), None)
        }
        ParamType::Bytes => ("Buffer".to_owned(), None),
        ParamType::StrList => ("Sequence[str]".to_owned(), None),
        ParamType::Any(_, python) => (python.to_owned(), None),
    };
    d.set_item("type", ty)?;
    d.set_item("range", range)?;
    d.set_item("required", p.default == ParamDefault::Required)?;
    match p.default {
        ParamDefault::Required | ParamDefault::Absent => d.set_item("default", py.None())?,
        ParamDefault::Bool(b) => d.set_item("default", b)?,
        ParamDefault::Int(i) => d.set_item("default", i)?,
        ParamDefault::Float(f) => d.set_item("default", f)?,
        ParamDefault::Str(s) => d.set_item("default", s)?,
    }
    Ok(d)
}

/// The counters of every pool of this process, as Prometheus text or as JSON.
#[pyfunction]
#[pyo3(signature = (format = None), text_signature = "(format=\"prometheus\")")]
fn metrics(py: Python<'_>, format: Option<Bound<'_, PyString>>) -> PyResult<String> {
    let format = format.map(|f| text("format is not valid Unicode", "format", &f)).transpose()?;
    let format = match format.as_deref() {
        None | Some("prometheus") => Format::Prometheus,
        Some("json") => Format::Json,
        Some(other) => return Err(invalid(py, "format is neither prometheus nor json", "format", other)),
    };
    Ok(py.detach(|| export(format)))
}

pub(crate) fn install(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(_op_table, m)?)?;
    m.add_function(wrap_pyfunction!(metrics, m)?)
}
