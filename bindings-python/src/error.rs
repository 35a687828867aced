//! Exception classes, built at import from core's error table.

use offloop::error::{ERROR_TABLE, Error, ErrorKind};
use pyo3::exceptions::{PyException, PyOverflowError, PyTypeError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBool, PyDict, PyMappingProxy, PyString, PyTuple, PyType};
use std::time::Duration;

struct Classes {
    base: Py<PyType>,
    /// Row order of the table: status -1 first.
    kinds: Vec<Py<PyType>>,
}

static CLASSES: PyOnceLock<Classes> = PyOnceLock::new();

/// A class by its dotted name; builtins need no dot.
fn stdlib_class<'py>(py: Python<'py>, path: &str) -> PyResult<Bound<'py, PyAny>> {
    let (module, name) = path.rsplit_once('.').unwrap_or(("builtins", path));
    py.import(module)?.getattr(name)
}

fn new_class<'py>(py: Python<'py>, name: &str, bases: Vec<Bound<'py, PyAny>>, body: &Bound<'py, PyDict>) -> PyResult<Bound<'py, PyType>> {
    body.set_item("__module__", "offloop")?;
    Ok(py.get_type::<PyType>().call1((name, PyTuple::new(py, bases)?, body))?.cast_into()?)
}

fn build(py: Python<'_>) -> PyResult<Classes> {
    let exception = py.get_type::<PyException>().into_any();
    let body = PyDict::new(py);
    body.set_item("__doc__", "Base of every offloop error: `kind`, `status`, `retry`, and `context` with the values that explain it.")?;
    body.set_item("kind", "")?;
    body.set_item("status", 0)?;
    body.set_item("retry", "never")?;
    body.set_item("context", PyDict::new(py))?;
    // OSError spells `[Errno n]` by itself; every face shows the same text instead.
    body.set_item("__str__", exception.getattr("__str__")?)?;
    let base = new_class(py, "OffloopError", vec![exception], &body)?;
    let kinds = ERROR_TABLE
        .iter()
        .map(|row| {
            let body = PyDict::new(py);
            body.set_item("__doc__", format!("{}: see the error table.", row.text))?;
            body.set_item("kind", row.name)?;
            body.set_item("status", row.status)?;
            body.set_item("retry", row.retry.as_str())?;
            match row.kind {
                ErrorKind::WorkerLost => {
                    body.set_item("exit_code", py.None())?;
                    body.set_item("signal", py.None())?;
                    body.set_item("oom", false)?;
                    body.set_item("poison", false)?;
                }
                ErrorKind::TaskFailed => {
                    body.set_item("name", "")?;
                    body.set_item("message", "")?;
                    body.set_item("stack", "")?;
                    body.set_item("properties", PyMappingProxy::new(py, PyDict::new(py).as_mapping()))?;
                }
                ErrorKind::Os => body.set_item("syscall", py.None())?,
                _ => {}
            }
            let mut bases = vec![base.clone().into_any()];
            for base in row.python_base.split_whitespace() {
                bases.push(stdlib_class(py, base)?);
            }
            Ok(new_class(py, row.python, bases, &body)?.unbind())
        })
        .collect::<PyResult<_>>()?;
    Ok(Classes { base: base.unbind(), kinds })
}

fn classes(py: Python<'_>) -> PyResult<&Classes> {
    CLASSES.get_or_try_init(py, || build(py))
}

/// The class of a status; `OffloopError` for a status of a newer core.
#[pyfunction]
pub(crate) fn error_class(py: Python<'_>, status: i32) -> PyResult<Bound<'_, PyType>> {
    let classes = classes(py)?;
    let kind = status.checked_neg().and_then(|n| usize::try_from(n - 1).ok()).and_then(|at| classes.kinds.get(at));
    Ok(kind.unwrap_or(&classes.base).bind(py).clone())
}

/// The code of one of offloop's own exceptions, as Node.js and C spell it.
pub(crate) fn code_of(exception: &Bound<'_, PyAny>) -> PyResult<Option<&'static str>> {
    if !exception.is_instance(classes(exception.py())?.base.bind(exception.py()))? {
        return Ok(None);
    }
    let status: i32 = exception.getattr("status")?.extract()?;
    Ok(ErrorKind::from_status(status).map(|kind| kind.row().code))
}

/// Makes those errors that are BrokenExecutor a BrokenProcessPool as well, which callers of ProcessPoolExecutor catch. Before the first
/// one is raised and not at import: that class lives in a module that takes milliseconds to load.
fn be_broken_process_pools(py: Python<'_>) -> PyResult<()> {
    static DONE: PyOnceLock<()> = PyOnceLock::new();
    DONE.get_or_try_init(py, || {
        let (broken, wanted) =
            (stdlib_class(py, "concurrent.futures.BrokenExecutor")?, stdlib_class(py, "concurrent.futures.process.BrokenProcessPool")?);
        for class in &classes(py)?.kinds {
            let bases: Vec<Bound<'_, PyAny>> = class.bind(py).getattr("__bases__")?.extract()?;
            if bases.iter().any(|base| base.is(&broken)) {
                let bases = bases.into_iter().map(|base| if base.is(&broken) { wanted.clone() } else { base });
                class.bind(py).setattr("__bases__", PyTuple::new(py, bases.collect::<Vec<_>>())?)?;
            }
        }
        Ok(())
    })
    .copied()
}

/// The exception of an error, not raised yet.
pub(crate) fn exception<'py>(py: Python<'py>, error: &Error) -> PyResult<Bound<'py, PyAny>> {
    if matches!(error.kind(), ErrorKind::WorkerLost | ErrorKind::StartFailed | ErrorKind::Degraded) {
        // Where the module cannot be loaded, as at the end of the interpreter, nobody catches its class.
        let _ = be_broken_process_pools(py);
    }
    let e = error_class(py, error.status())?.call1((error.to_string(),))?;
    if error_class(py, error.status())?.is(classes(py)?.base.bind(py)) {
        e.setattr("status", error.status())?;
    }
    if !error.context().is_empty() {
        let context = PyDict::new(py);
        for (name, value) in error.context() {
            context.set_item(name, value)?;
        }
        e.setattr("context", context)?;
    }
    if error.kind() == ErrorKind::WorkerLost {
        for (name, value) in error.context() {
            match *name {
                "exit_code" | "signal" => e.setattr(*name, value.parse::<i32>().ok())?,
                "oom" | "poison" => e.setattr(*name, true)?,
                _ => {}
            }
        }
    }
    if let Some((errno, syscall)) = error.errno() {
        e.setattr("errno", errno)?;
        e.setattr("strerror", error.message())?;
        e.setattr("syscall", syscall)?;
    }
    Ok(e)
}

/// The error as what a Python function raises.
pub(crate) fn raise(py: Python<'_>, error: &Error) -> PyErr {
    match exception(py, error) {
        Ok(e) => PyErr::from_value(e),
        Err(failed) => failed,
    }
}

/// Logs an exception that nobody is left to catch, where the stdlib's executors log theirs.
pub(crate) fn log<'py>(py: Python<'py>, level: &str, message: &str, args: Vec<Bound<'py, PyAny>>, error: &PyErr) {
    let logged = (|| {
        let logger = py.import("logging")?.call_method1("getLogger", ("concurrent.futures",))?;
        let kwargs = PyDict::new(py);
        kwargs.set_item("exc_info", error.value(py))?;
        let args = PyTuple::new(py, std::iter::once(PyString::new(py, message).into_any()).chain(args).collect::<Vec<_>>())?;
        logger.call_method(level, args, Some(&kwargs)).map(drop)
    })();
    if let Err(e) = logged {
        e.write_unraisable(py, None);
    }
}

/// `Invalid` with a name and a value, as every face spells it.
pub(crate) fn invalid(py: Python<'_>, message: &'static str, name: &'static str, value: impl std::fmt::Display) -> PyErr {
    raise(py, &Error::invalid(message).with(name, value))
}

/// An integer argument. One that its type does not hold is Invalid with its name and value, not a bare OverflowError.
pub(crate) fn number<T: TryFrom<i64>>(name: &'static str, value: &Bound<'_, PyAny>) -> PyResult<T> {
    let py = value.py();
    let out_of_range = || {
        // Python itself refuses to spell out an int of thousands of digits.
        let text = value.str().map_or_else(|_| "too long to show".to_owned(), |s| s.to_string_lossy().into_owned());
        raise(py, &Error::invalid("option is out of range").with("option", name).with("value", text))
    };
    match value.extract::<i64>() {
        Ok(n) => T::try_from(n).map_err(|_| out_of_range()),
        Err(e) if e.is_instance_of::<PyOverflowError>(py) => Err(out_of_range()),
        Err(e) => Err(e),
    }
}

/// [`number`] for an option of a pool: one of another type is Invalid too.
pub(crate) fn number_option<T: TryFrom<i64>>(name: &'static str, value: &Bound<'_, PyAny>) -> PyResult<T> {
    let py = value.py();
    number(name, value).map_err(|e| if e.is_instance_of::<PyTypeError>(py) { wrong_type(name, value, "an integer") } else { e })
}

/// What an argument of another type than `want` is refused with.
pub(crate) fn wrong_type(name: &'static str, value: &Bound<'_, PyAny>, want: &'static str) -> PyErr {
    raise(value.py(), &Error::invalid("option has the wrong type").with("option", name).with("value", given(value)).with("want", want))
}

fn given(value: &Bound<'_, PyAny>) -> String {
    value.repr().map_or_else(|_| "too long to show".to_owned(), |s| s.to_string_lossy().chars().take(80).collect())
}

/// A text argument of any type that Python could give.
pub(crate) fn text_option(message: &'static str, name: &'static str, value: &Bound<'_, PyAny>) -> PyResult<String> {
    text(message, name, value.cast::<PyString>().map_err(|_| wrong_type(name, value, "text"))?)
}

/// A limit in seconds; infinity is none. Neither text nor bool is a number of seconds.
pub(crate) fn duration(name: &'static str, value: &Bound<'_, PyAny>) -> PyResult<Option<Duration>> {
    let py = value.py();
    let seconds = match value.extract::<f64>() {
        Ok(seconds) if !value.is_instance_of::<PyBool>() => seconds,
        // An int beyond floats has a sign, and is out of range either way.
        Err(e) if e.is_instance_of::<PyOverflowError>(py) => {
            let e = Error::invalid("option is out of range").with("option", name).with("value", given(value));
            return Err(raise(py, &e));
        }
        Err(e) if !e.is_instance_of::<PyTypeError>(py) => return Err(e),
        _ => return Err(wrong_type(name, value, "seconds from 0")),
    };
    offloop::pool::duration(name, seconds, 1).map_err(|e| raise(py, &e))
}

/// A text argument. A lone surrogate has no UTF-8 form.
pub(crate) fn text(message: &'static str, name: &'static str, value: &Bound<'_, PyString>) -> PyResult<String> {
    value.to_str().map(str::to_owned).map_err(|_| invalid(value.py(), message, name, shown(value)))
}

/// Text with what has no UTF-8 form escaped.
pub(crate) fn shown(text: &Bound<'_, PyString>) -> String {
    text.repr().map_or_else(|_| "?".to_owned(), |r| r.to_string_lossy().into_owned())
}

pub(crate) fn install(m: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = m.py();
    let classes = classes(py)?;
    m.add("OffloopError", &classes.base)?;
    for (row, class) in ERROR_TABLE.iter().zip(&classes.kinds) {
        m.add(row.python, class)?;
    }
    m.add_function(wrap_pyfunction!(error_class, m)?)
}
