//! A call of a method without a bound method and a tuple made for it.

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyString;
use std::ptr;

// Exported by every CPython since 3.9 and part of its stable ABI, whose listing begins with 3.12; pyo3 goes by the listing.
unsafe extern "C" {
    fn PyObject_VectorcallMethod(
        name: *mut ffi::PyObject,
        args: *const *mut ffi::PyObject,
        nargsf: usize,
        kwnames: *mut ffi::PyObject,
    ) -> *mut ffi::PyObject;
}

/// `args[0].name(*args[1:])`.
pub(crate) fn call_method<'py, const N: usize>(name: &Bound<'py, PyString>, args: [&Bound<'py, PyAny>; N]) -> PyResult<Bound<'py, PyAny>> {
    let py = name.py();
    let args = args.map(Bound::as_ptr);
    // SAFETY: the GIL is held; `args` are N live objects; null stands for no keywords; null comes back with an exception set.
    unsafe { Bound::from_owned_ptr_or_err(py, PyObject_VectorcallMethod(name.as_ptr(), args.as_ptr(), N, ptr::null_mut())) }
}
