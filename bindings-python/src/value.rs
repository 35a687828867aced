//! Values of op options and op results: Python objects to core's tree and back.

use crate::buffer::{self, PyTransferBuffer};
use crate::copy;
use crate::error::{raise, shown};
use offloop::TransferBuffer;
use offloop::codec::{self, Options};
use offloop::error::{Error, ErrorKind};
use offloop::value::{BigInt, DType, Date, ErrorValue, MAX_HOST_ITEMS, TypedArray, Value};
use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::{PyBaseException, PyException, PyOverflowError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyByteArray, PyBytes, PyDict, PyFloat, PyInt, PyList, PyMemoryView, PyString, PyTuple};
use std::cell::{Cell, RefCell};
use std::ffi::CStr;

/// Arrays of at least so many bytes are views of the value's own memory, shorter ones copies.
const VIEW_FROM: usize = 4096;

/// The tree of a Python object. A `TransferBuffer` inside is copied: a call moves inputs, not options.
pub(crate) fn from_python(object: &Bound<'_, PyAny>) -> PyResult<Value> {
    convert(object, Place::root(&Cell::new(0)))
}

/// As [`from_python`], for a message: each `TransferBuffer` has an empty place in the tree, and is in `moving`, in the order in which the
/// codec numbers them.
pub(crate) fn from_python_moving(object: &Bound<'_, PyAny>, moving: &RefCell<Vec<Py<PyTransferBuffer>>>) -> PyResult<Value> {
    convert(object, Place { moving: Some(moving), ..Place::root(&Cell::new(0)) })
}

/// Where in the tree a value is.
#[derive(Clone, Copy)]
struct Place<'a> {
    depth: usize,
    /// Inside a property of an exception.
    in_property: bool,
    /// Values of the whole tree so far.
    items: &'a Cell<usize>,
    /// For buffers that move.
    moving: Option<&'a RefCell<Vec<Py<PyTransferBuffer>>>>,
}

impl<'a> Place<'a> {
    fn root(items: &'a Cell<usize>) -> Place<'a> {
        Place { depth: 0, in_property: false, items, moving: None }
    }

    fn inside(self) -> Place<'a> {
        Place { depth: self.depth + 1, ..self }
    }
}

/// Keyword arguments as a map; `None` stands for an absent option.
pub(crate) fn options(kwargs: Option<&Bound<'_, PyDict>>) -> PyResult<Value> {
    let Some(kwargs) = kwargs.filter(|k| !k.is_empty()) else { return Ok(Value::Nil) };
    let mut pairs = Vec::with_capacity(kwargs.len());
    let items = Cell::new(0);
    for (key, value) in kwargs {
        if !value.is_none() {
            pairs.push((convert(&key, Place::root(&items))?, convert(&value, Place::root(&items))?));
        }
    }
    Ok(if pairs.is_empty() { Value::Nil } else { Value::Map(pairs) })
}

fn convert(object: &Bound<'_, PyAny>, at: Place<'_>) -> PyResult<Value> {
    let py = object.py();
    let items = at.items.get() + 1;
    at.items.set(items);
    if items > MAX_HOST_ITEMS {
        let e = Error::new(ErrorKind::TooLarge, "value has too many items").with("items", items).with("max_items", MAX_HOST_ITEMS);
        return Err(raise(py, &e));
    }
    // A list that contains itself ends here too.
    let max_depth = Options::default().max_depth;
    if at.depth > max_depth {
        let e = Error::new(ErrorKind::TooLarge, "value is nested too deeply or in a cycle");
        return Err(raise(py, &e.with("depth", at.depth).with("max_depth", max_depth)));
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
            Err(_) => big(i.as_any()).map(BigInt::into_value),
        };
    }
    if let Ok(f) = object.cast::<PyFloat>() {
        return Ok(Value::Float(f.value()));
    }
    if let Ok(b) = object.cast::<PyBytes>() {
        return Ok(Value::Bytes(buffer::of_bytes(b)));
    }
    if let Ok(list) = object.cast::<PyList>() {
        return Ok(Value::Array(list.iter().map(|i| convert(&i, at.inside())).collect::<PyResult<_>>()?));
    }
    if let Ok(tuple) = object.cast::<PyTuple>() {
        return Ok(Value::Array(tuple.iter().map(|i| convert(&i, at.inside())).collect::<PyResult<_>>()?));
    }
    if let Ok(dict) = object.cast::<PyDict>() {
        return Ok(Value::Map(
            dict.iter().map(|(k, v)| Ok((convert(&k, at.inside())?, convert(&v, at.inside())?))).collect::<PyResult<_>>()?,
        ));
    }
    if object.is_instance(&py.import("datetime")?.getattr("datetime")?)? {
        return date(object).map(Value::Date);
    }
    if object.is_instance_of::<PyBaseException>() {
        return error(object, at).map(Value::from);
    }
    if let (Some(moving), Ok(buffer)) = (at.moving, object.cast::<PyTransferBuffer>()) {
        moving.borrow_mut().push(buffer.clone().unbind());
        return Ok(Value::Buffer(TransferBuffer::default()));
    }
    if object.is_instance_of::<PyByteArray>() || object.is_instance_of::<PyTransferBuffer>() {
        return Ok(Value::Bytes(copy::to_vec(object)?.into()));
    }
    if let Ok(view) = PyUntypedBuffer::get(object) {
        let format = view.format().to_owned();
        let (dtype, shape) = (dtype_of(&format), view.shape().iter().map(|n| *n as u64).collect());
        drop(view);
        return match dtype {
            Some(dtype) => Ok(TypedArray { dtype, shape, bytes: copy::to_vec(object)?.into() }.into()),
            None => Err(no_array(object, Some(&format))),
        };
    }
    // A numpy scalar, or an array of no dimensions: its one element. `item` of a type that Python lacks gives it back.
    if object.hasattr("dtype")? && object.hasattr("item")? {
        if object.hasattr("ndim")? && object.getattr("ndim")?.ne(0)? {
            return Err(no_array(object, None));
        }
        let item = object.call_method0("item")?;
        // A time whose unit Python lacks is given as the number of these units alone.
        if item.is_instance_of::<PyInt>() && object.getattr("dtype")?.getattr("kind").is_ok_and(|kind| is_time(&kind)) {
            return Err(no_array(object, None));
        }
        if !item.is(object) && !item.get_type().is(object.get_type()) {
            return convert(&item, at.inside());
        }
    }
    // Whatever else says that it is an integer. What can only be rounded to a float (`Decimal`, `Fraction`) is no number of the codec.
    if object.hasattr("__index__")? {
        return convert(&py.import("operator")?.call_method1("index", (object,))?, at.inside());
    }
    Err(raise(py, &Error::new(ErrorKind::Unserializable, "value of this type cannot travel").with("type", type_name(object))))
}

/// Why an array cannot travel, or a scalar of its library.
fn no_array(array: &Bound<'_, PyAny>, format: Option<&CStr>) -> PyErr {
    let mut e = Error::new(ErrorKind::Unserializable, "array has an element type that is not supported").with("type", type_name(array));
    if let Ok(dtype) = array.getattr("dtype").and_then(|d| d.str().map(|d| d.to_string_lossy().into_owned())) {
        e = e.with("dtype", dtype);
    }
    if let Some(format) = format {
        e = e.with("format", format.to_string_lossy());
    }
    raise(array.py(), &e)
}

/// Of numpy's kinds of elements those of `datetime64` and `timedelta64`.
fn is_time(kind: &Bound<'_, PyAny>) -> bool {
    kind.extract::<char>().is_ok_and(|kind| matches!(kind, 'M' | 'm'))
}

/// An aware `datetime` as it is, a naive one as local time, as Python itself reads it.
fn date(object: &Bound<'_, PyAny>) -> PyResult<Date> {
    let py = object.py();
    let since = object.call_method1("astimezone", (utc(py)?,))?.sub(epoch(py)?)?;
    let part = |name: &str| since.getattr(name)?.extract::<i64>();
    let nanos = u32::try_from(part("microseconds")? * 1000).unwrap_or(u32::MAX);
    let date = Date::new(part("days")? * 86_400 + part("seconds")?, nanos);
    Ok(date.expect("a timedelta has less than a second of microseconds"))
}

fn utc(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    py.import("datetime")?.getattr("timezone")?.getattr("utc")
}

fn epoch(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    py.import("datetime")?.getattr("datetime")?.call_method1("fromtimestamp", (0, utc(py)?))
}

/// An exception: class name, text, traceback, cause, and its attributes. One that came from elsewhere goes on as it came.
fn error(object: &Bound<'_, PyAny>, at: Place<'_>) -> PyResult<ErrorValue> {
    let py = object.py();
    let attributes = object.getattr("__dict__")?.cast_into::<PyDict>()?;
    let mut e = ErrorValue::default();
    let mut properties = attributes.clone();
    if let Some(remote) = attributes.get_item(REMOTE)? {
        let (name, message, stack, given): (String, String, String, Bound<'_, PyDict>) = remote.extract()?;
        (e.name, e.message, e.stack, properties) = (name, message, stack, given);
        if let Some(cause) = attributes.get_item("cause")? {
            e.cause = Some(convert(&cause, at.inside())?);
        }
    } else {
        e.name = type_name(object);
        e.message = object.str().map_or_else(|_| String::new(), |s| s.to_string_lossy().into_owned());
        if !object.getattr("__traceback__")?.is_none() {
            let kwargs = PyDict::new(py);
            kwargs.set_item("chain", false)?;
            let lines = py.import("traceback")?.call_method("format_exception", (object,), Some(&kwargs))?;
            e.stack = PyString::new(py, "").call_method1("join", (lines,))?.cast::<PyString>()?.to_string_lossy().into_owned();
        }
        if let Some(code) = crate::error::code_of(object)? {
            e.set_property("code", code.into());
        }
    }
    let suppressed = object.getattr("__suppress_context__")?.is_truthy()?;
    let cause = match object.getattr("__cause__")? {
        none if none.is_none() && !suppressed => object.getattr("__context__")?,
        cause => cause,
    };
    if !cause.is_none() {
        e.cause = Some(convert(&cause, at.inside())?);
    }
    for (name, value) in properties {
        let Ok(name) = name.extract::<String>() else { continue };
        match convert(&value, Place { in_property: true, ..at.inside().inside() }) {
            Ok(value) => e.set_property(&name, value),
            // An exception travels without those of its attributes that cannot: a socket, a function, a cycle. Not so an exception
            // inside an attribute, or each of a cycle's ways back would be tried at every depth.
            Err(_) if !at.in_property => {}
            Err(failed) => return Err(failed),
        }
    }
    Ok(e)
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
        b'B' | b'c' => DType::U8,
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
            let int = py.get_type::<PyInt>().call_method1("from_bytes", (copy::bytes_of(py, &b.magnitude)?, "little"))?;
            if b.negative { int.neg()? } else { int }
        }
        Value::Float(f) => PyFloat::new(py, f).into_any(),
        Value::Str(s) => copy::to_str(py, &s)?,
        Value::Bytes(b) => buffer::to_pybytes(py, &b)?,
        Value::Array(items) => {
            let mut list = copy::room(items.len())?;
            for item in items {
                list.push(to_python(py, item)?);
            }
            copy::to_list(py, list)?.into_any()
        }
        Value::Map(pairs) => {
            let dict = PyDict::new(py);
            for (k, v) in pairs {
                let kind = k.type_name();
                dict.set_item(to_key(py, k)?, to_python(py, v)?).map_err(|e| {
                    let no_key = Error::new(ErrorKind::Unsupported, "map has a key that a dict cannot have").with("type", kind);
                    if e.is_instance_of::<PyTypeError>(py) { raise(py, &no_key) } else { e }
                })?;
            }
            dict.into_any()
        }
        Value::Date(date) => {
            let kwargs = PyDict::new(py);
            kwargs.set_item("seconds", date.seconds())?;
            kwargs.set_item("microseconds", date.nanos() / 1000)?;
            let delta = py.import("datetime")?.getattr("timedelta")?.call((), Some(&kwargs));
            delta.and_then(|delta| epoch(py)?.add(delta)).map_err(|e| {
                let beyond = Error::new(ErrorKind::Unsupported, "date is not in the years 1 to 9999").with("seconds", date.seconds());
                if e.is_instance_of::<PyOverflowError>(py) { raise(py, &beyond) } else { e }
            })?
        }
        Value::Typed(array) => typed(py, *array)?,
        Value::Buffer(b) => Bound::new(py, PyTransferBuffer::new(b))?.into_any(),
        Value::Error(e) => exception(py, *e)?,
        other => return Err(raise(py, &Error::new(ErrorKind::Unsupported, "value has no Python form").with("type", other.type_name()))),
    })
}

/// The attribute that holds an exception's own parts as they came: name, message, stack, properties.
const REMOTE: &str = "_remote";

/// An error of elsewhere: the class of its kind when it is one of offloop's own, else a TaskFailedError.
pub(crate) fn exception(py: Python<'_>, e: ErrorValue) -> PyResult<Bound<'_, PyAny>> {
    // Who raised it chose how long they are.
    let name = copy::to_str(py, &e.name)?;
    let message = copy::to_str(py, &e.message)?;
    let stack = copy::to_str(py, &e.stack)?;
    let made = match e.kind() {
        Some(kind) => crate::error::error_class(py, kind.status())?.call1((&message,))?,
        None => {
            let row = ErrorKind::TaskFailed.row();
            let mut text = PyString::new(py, row.text).add(": ")?;
            if !e.name.is_empty() {
                text = text.add(&name)?.add(": ")?;
            }
            crate::error::error_class(py, row.status)?.call1((text.add(&message)?,))?
        }
    };
    let properties = PyDict::new(py);
    for (name, value) in e.properties {
        properties.set_item(name, to_python(py, value)?)?;
    }
    made.setattr("name", &name)?;
    made.setattr("message", &message)?;
    made.setattr("stack", &stack)?;
    made.setattr("properties", &properties)?;
    made.setattr(REMOTE, (name, message, stack, properties))?;
    if let Some(cause) = e.cause {
        let cause = to_python(py, cause)?;
        // Python only chains exceptions.
        made.setattr(if cause.is_instance_of::<PyBaseException>() { "__cause__" } else { "cause" }, cause)?;
    }
    Ok(made)
}

/// A key: lists are no keys, tuples are.
fn to_key(py: Python<'_>, key: Value) -> PyResult<Bound<'_, PyAny>> {
    match key {
        Value::Array(items) => {
            let items = items.into_iter().map(|i| to_key(py, i)).collect::<PyResult<Vec<_>>>()?;
            Ok(PyTuple::new(py, items)?.into_any())
        }
        key => to_python(py, key),
    }
}

/// The message of a value.
#[pyfunction]
fn _encode_value<'py>(value: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
    let py = value.py();
    let value = from_python(value)?;
    let mut message = Vec::new();
    codec::encode(&value, &Options::default(), &mut message).map_err(|e| raise(py, &e))?;
    Ok(PyBytes::new(py, &message))
}

/// The value of a message.
#[pyfunction]
#[pyo3(signature = (message, *, max_depth = None, max_items = None, max_bytes = None))]
fn _decode_value<'py>(
    message: &Bound<'py, PyBytes>,
    max_depth: Option<usize>,
    max_items: Option<usize>,
    max_bytes: Option<usize>,
) -> PyResult<Bound<'py, PyAny>> {
    let (py, defaults) = (message.py(), Options::default());
    let options = Options {
        max_depth: max_depth.unwrap_or(defaults.max_depth),
        max_items: max_items.unwrap_or(defaults.max_items),
        max_bytes: max_bytes.unwrap_or(defaults.max_bytes),
        ..defaults
    };
    let value = codec::decode_owned(message.as_bytes().into(), &mut [], &options).map_err(|e| raise(py, &e))?;
    to_python(py, value)
}

pub(crate) fn install(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(_encode_value, m)?)?;
    m.add_function(wrap_pyfunction!(_decode_value, m)?)
}

/// numpy, where it can be had. Loading it takes long enough to be interrupted.
fn numpy(py: Python<'_>) -> PyResult<Option<Bound<'_, PyModule>>> {
    match py.import("numpy") {
        Ok(numpy) => Ok(Some(numpy)),
        Err(e) if e.is_instance_of::<PyException>(py) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Loads what [`to_python`] needs for `value`, which runs no code of Python then.
///
/// # Errors
/// What is no `Exception`: KeyboardInterrupt.
pub(crate) fn prepare(py: Python<'_>, value: &Value) -> PyResult<()> {
    match value {
        Value::Typed(_) => numpy(py).map(drop),
        Value::Date(_) => epoch(py).map(drop).or_else(|e| if e.is_instance_of::<PyException>(py) { Ok(()) } else { Err(e) }),
        Value::Array(items) => items.iter().try_for_each(|item| prepare(py, item)),
        Value::Map(pairs) => pairs.iter().try_for_each(|(k, v)| prepare(py, k).and_then(|()| prepare(py, v))),
        _ => Ok(()),
    }
}

/// A numpy array where numpy is installed, else a memoryview of the same format and shape.
fn typed<'py>(py: Python<'py>, array: TypedArray) -> PyResult<Bound<'py, PyAny>> {
    let (format, numpy_name) = format_of(array.dtype);
    let bytes = if array.bytes.len() < VIEW_FROM {
        copy::to_bytearray(py, &array.bytes)?
    } else {
        let buffer = TransferBuffer::from_bytes(array.bytes).map_err(|e| raise(py, &e))?;
        Bound::new(py, PyTransferBuffer::new(buffer))?.into_any()
    };
    let shape = PyTuple::new(py, &array.shape)?;
    if let Some(numpy) = numpy(py)? {
        return numpy.call_method1("frombuffer", (bytes, numpy_name))?.call_method1("reshape", (shape,));
    }
    if array.shape.len() > 1 && array.shape.contains(&0) {
        let shape = format!("{:?}", array.shape);
        return Err(raise(py, &Error::new(ErrorKind::Unsupported, "memoryview has no such shape, numpy has").with("shape", shape)));
    }
    let view = PyMemoryView::from(&bytes)?;
    if array.shape.len() == 1 { view.call_method1("cast", (format,)) } else { view.call_method1("cast", (format, shape.to_list())) }
}
