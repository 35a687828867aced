//! Values of op options and op results: Python objects to core's tree and back.

use crate::buffer::{self, PyTransferBuffer};
use crate::error::{raise, shown};
use offloop::error::{Error, ErrorKind};
use offloop::value::{BigInt, DType, TypedArray, Value};
use pyo3::buffer::PyUntypedBuffer;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyByteArray, PyBytes, PyDict, PyFloat, PyInt, PyList, PyMemoryView, PyString, PyTuple};
use std::ffi::CStr;

/// Deepest nesting that is converted, so that a list that contains itself is refused.
const MAX_DEPTH: usize = 128;

/// The tree of a Python object. A `TransferBuffer` inside is copied: a call moves inputs, not options.
pub(crate) fn from_python(object: &Bound<'_, PyAny>) -> PyResult<Value> {
    convert(object, 0)
}

/// Keyword arguments as a map; `None` stands for an absent option.
pub(crate) fn options(kwargs: Option<&Bound<'_, PyDict>>) -> PyResult<Value> {
    let Some(kwargs) = kwargs.filter(|k| !k.is_empty()) else { return Ok(Value::Nil) };
    let mut pairs = Vec::with_capacity(kwargs.len());
    for (key, value) in kwargs {
        if !value.is_none() {
            pairs.push((convert(&key, 0)?, convert(&value, 0)?));
        }
    }
    Ok(if pairs.is_empty() { Value::Nil } else { Value::Map(pairs) })
}

fn convert(object: &Bound<'_, PyAny>, depth: usize) -> PyResult<Value> {
    let py = object.py();
    if depth > MAX_DEPTH {
        return Err(raise(py, &Error::invalid("value is nested deeper than the limit").with("max_depth", MAX_DEPTH)));
    }
    if object.is_none() {
        return Ok(Value::Nil);
    }
    if let Ok(b) = object.cast::<PyBool>() {
        return Ok(Value::Bool(b.is_true()));
    }
    if let Ok(s) = object.cast::<PyString>() {
        // Lone surrogates have no UTF-8 form.
        let text = s.to_str().map_err(|_| raise(py, &Error::invalid("text is not valid Unicode").with("text", shown(s))))?;
        return Ok(Value::from(text.to_owned()));
    }
    if let Ok(i) = object.cast::<PyInt>() {
        return match i.extract::<i64>() {
            Ok(i) => Ok(Value::Int(i)),
            Err(_) => big(i.as_any()).map(Value::Big),
        };
    }
    if let Ok(f) = object.cast::<PyFloat>() {
        return Ok(Value::Float(f.value()));
    }
    if let Ok(b) = object.cast::<PyBytes>() {
        return Ok(Value::Bytes(b.as_bytes().into()));
    }
    if let Ok(list) = object.cast::<PyList>() {
        return Ok(Value::Array(list.iter().map(|i| convert(&i, depth + 1)).collect::<PyResult<_>>()?));
    }
    if let Ok(tuple) = object.cast::<PyTuple>() {
        return Ok(Value::Array(tuple.iter().map(|i| convert(&i, depth + 1)).collect::<PyResult<_>>()?));
    }
    if let Ok(dict) = object.cast::<PyDict>() {
        return Ok(Value::Map(dict.iter().map(|(k, v)| Ok((convert(&k, depth + 1)?, convert(&v, depth + 1)?))).collect::<PyResult<_>>()?));
    }
    if object.is_instance(&py.import("datetime")?.getattr("datetime")?)? {
        return Ok(Value::Date(object.call_method0("timestamp")?.extract::<f64>()? * 1e3));
    }
    if object.is_instance_of::<PyByteArray>() || object.is_instance_of::<PyTransferBuffer>() {
        return Ok(Value::Bytes(buffer::copy_buffer(object)?.into()));
    }
    if let Ok(view) = PyUntypedBuffer::get(object) {
        let (dtype, shape) = (dtype_of(view.format()), view.shape().iter().map(|n| *n as u64).collect());
        drop(view);
        let bytes = buffer::copy_buffer(object)?.into();
        return match dtype {
            Some(dtype) => Ok(Value::Typed(TypedArray { dtype, shape, bytes })),
            None => Err(raise(py, &Error::invalid("array has an element type that is not supported").with("type", type_name(object)))),
        };
    }
    // A numpy integer or float, and whatever else can say which number it is.
    if object.hasattr("__index__")? {
        return convert(&py.import("operator")?.call_method1("index", (object,))?, depth + 1);
    }
    if object.hasattr("__float__")? {
        return Ok(Value::Float(object.call_method0("__float__")?.extract()?));
    }
    Err(raise(py, &Error::new(ErrorKind::Unserializable, "value of this type cannot be an option").with("type", type_name(object))))
}

fn type_name(object: &Bound<'_, PyAny>) -> String {
    object.get_type().name().map_or_else(|_| "object".to_owned(), |n| n.to_string())
}

fn big(i: &Bound<'_, PyAny>) -> PyResult<BigInt> {
    let negative = i.lt(0)?;
    let magnitude = i.call_method0("__abs__")?;
    let bits: usize = magnitude.call_method0("bit_length")?.extract()?;
    let magnitude = magnitude.call_method1("to_bytes", (bits.div_ceil(8), "little"))?.extract()?;
    Ok(BigInt { negative, magnitude })
}

/// Element type of a buffer format in native or little-endian order.
fn dtype_of(format: &CStr) -> Option<DType> {
    let code = match format.to_bytes() {
        [code] | [b'@' | b'=' | b'<', code] => *code,
        _ => return None,
    };
    // `l` is 64 bits wide in native mode on every supported target; `=l` and `<l` are 32, but nobody exports them here.
    Some(match code {
        b'B' | b'?' | b'c' => DType::U8,
        b'b' => DType::I8,
        b'H' => DType::U16,
        b'h' => DType::I16,
        b'I' => DType::U32,
        b'i' => DType::I32,
        b'L' | b'Q' => DType::U64,
        b'l' | b'q' => DType::I64,
        b'f' => DType::F32,
        b'd' => DType::F64,
        _ => return None,
    })
}

/// Format of `memoryview.cast` and numpy's name of an element type.
fn format_of(dtype: DType) -> (&'static str, &'static str) {
    match dtype {
        DType::U8 => ("B", "u1"),
        DType::I8 => ("b", "i1"),
        DType::U16 => ("H", "<u2"),
        DType::I16 => ("h", "<i2"),
        DType::U32 => ("I", "<u4"),
        DType::I32 => ("i", "<i4"),
        DType::U64 => ("Q", "<u8"),
        DType::I64 => ("q", "<i8"),
        DType::F32 => ("f", "<f4"),
        DType::F64 => ("d", "<f8"),
    }
}

/// A result as a Python object: `bytes`, `str`, numbers, lists, dicts, aware `datetime`s, arrays, errors.
pub(crate) fn to_python<'py>(py: Python<'py>, value: Value) -> PyResult<Bound<'py, PyAny>> {
    Ok(match value {
        Value::Nil => py.None().into_bound(py),
        Value::Bool(b) => PyBool::new(py, b).to_owned().into_any(),
        Value::Int(i) => i.into_pyobject(py)?.into_any(),
        Value::Big(b) => {
            let int = py.get_type::<PyInt>().call_method1("from_bytes", (PyBytes::new(py, &b.magnitude), "little"))?;
            if b.negative { int.neg()? } else { int }
        }
        Value::Float(f) => PyFloat::new(py, f).into_any(),
        Value::Str(s) => PyString::new(py, &s).into_any(),
        Value::Bytes(b) => buffer::to_pybytes(py, &b)?,
        Value::Array(items) => {
            let items = items.into_iter().map(|i| to_python(py, i)).collect::<PyResult<Vec<_>>>()?;
            PyList::new(py, items)?.into_any()
        }
        Value::Map(pairs) => {
            let dict = PyDict::new(py);
            for (k, v) in pairs {
                let key = match k {
                    // Lists are no dict keys; tuples are.
                    Value::Array(_) => to_python(py, k)?.cast_into::<PyList>()?.to_tuple().into_any(),
                    k => to_python(py, k)?,
                };
                dict.set_item(key, to_python(py, v)?)?;
            }
            dict.into_any()
        }
        Value::Date(ms) => {
            let datetime = py.import("datetime")?;
            let utc = datetime.getattr("timezone")?.getattr("utc")?;
            let epoch = datetime.getattr("datetime")?.call_method1("fromtimestamp", (0, utc))?;
            // Not `fromtimestamp(ms)`: that refuses what a timedelta can still hold.
            let kwargs = PyDict::new(py);
            kwargs.set_item("milliseconds", ms)?;
            epoch.add(datetime.getattr("timedelta")?.call((), Some(&kwargs))?)?
        }
        Value::Typed(array) => typed(py, array)?,
        Value::Buffer(b) => Bound::new(py, PyTransferBuffer::new(b))?.into_any(),
        Value::Error(e) => {
            let text = if e.name.is_empty() { e.message } else { format!("{}: {}", e.name, e.message) };
            crate::error::exception(py, &Error::new(ErrorKind::TaskFailed, text))?
        }
        other => return Err(raise(py, &Error::new(ErrorKind::Unsupported, "value has no Python form").with("type", other.type_name()))),
    })
}

/// A numpy array where numpy is installed, else a memoryview of the same format and shape.
fn typed<'py>(py: Python<'py>, array: TypedArray) -> PyResult<Bound<'py, PyAny>> {
    let (format, numpy_name) = format_of(array.dtype);
    let bytes = PyByteArray::new(py, &array.bytes);
    let shape = PyTuple::new(py, &array.shape)?;
    if let Ok(numpy) = py.import("numpy") {
        return numpy.call_method1("frombuffer", (bytes, numpy_name))?.call_method1("reshape", (shape,));
    }
    let view = PyMemoryView::from(bytes.as_any())?;
    if array.shape.len() == 1 { view.call_method1("cast", (format,)) } else { view.call_method1("cast", (format, shape.to_list())) }
}
