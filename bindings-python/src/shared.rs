//! Counters and rate limiters that processes share. offloop/_shared.py is the other side.

use crate::cluster::PyCluster;
use crate::error::{invalid, number, raise, wrong_type};
use offloop::cluster;
use offloop::shared::{Counter, Limit, RateLimiter};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyString};

#[pyclass(name = "_Counter", module = "offloop._native", frozen)]
struct PyCounter(Counter);

#[pymethods]
impl PyCounter {
    #[new]
    fn new(py: Python<'_>, cluster: Option<&PyCluster>, name: &str) -> PyResult<PyCounter> {
        let found = match cluster {
            Some(cluster) => cluster.running(py)?.ledger().counter(name),
            None => py.detach(|| cluster::counter(name)),
        };
        found.map(PyCounter).map_err(|e| raise(py, &e))
    }

    fn add(&self, n: &Bound<'_, PyAny>) -> PyResult<i64> {
        Ok(self.0.add(number("n", n)?))
    }

    fn get(&self) -> i64 {
        self.0.get()
    }

    fn set(&self, value: &Bound<'_, PyAny>) -> PyResult<i64> {
        Ok(self.0.set(number("value", value)?))
    }
}

#[pyclass(name = "_Limiter", module = "offloop._native", frozen)]
struct PyLimiter(RateLimiter);

/// What is beyond a u32 is beyond the option's range, which the core names.
fn small(name: &'static str, value: &Bound<'_, PyAny>) -> PyResult<u32> {
    if value.is_instance_of::<PyBool>() {
        return Err(wrong_type(name, value, "an integer"));
    }
    let n: i64 = number(name, value)?;
    Ok(u32::try_from(n.max(0)).unwrap_or(u32::MAX))
}

#[pymethods]
impl PyLimiter {
    #[new]
    fn new(
        py: Python<'_>,
        cluster: Option<&PyCluster>,
        name: &str,
        rate: f64,
        burst: Option<&Bound<'_, PyAny>>,
        keys: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<PyLimiter> {
        let mut limit = Limit::per_second(rate);
        if let Some(burst) = burst {
            limit.burst = small("burst", burst)?;
        }
        if let Some(keys) = keys {
            limit.keys = small("keys", keys)?;
        }
        let found = match cluster {
            Some(cluster) => cluster.running(py)?.ledger().limiter(name, limit),
            None => py.detach(|| cluster::limiter(name, limit)),
        };
        found.map(PyLimiter).map_err(|e| raise(py, &e))
    }

    /// Whether the tokens were there, how many are now, seconds until they are.
    fn take(&self, key: &Bound<'_, PyAny>, cost: &Bound<'_, PyAny>) -> PyResult<(bool, u32, f64)> {
        let py = key.py();
        let n: i64 = number("cost", cost)?;
        let cost = u32::try_from(n).map_err(|_| invalid(py, "cost is below 0 or far above any burst", "cost", n))?;
        let taken = match (key.cast::<PyString>(), key.cast::<PyBytes>()) {
            (Ok(text), _) => self.0.take(text.to_str()?.as_bytes(), cost),
            (_, Ok(bytes)) => self.0.take(bytes.as_bytes(), cost),
            _ => return Err(wrong_type("key", key, "str or bytes")),
        };
        let taken = taken.map_err(|e| raise(py, &e))?;
        Ok((taken.allowed, taken.remaining, taken.retry_after.as_secs_f64()))
    }
}

pub(crate) fn install(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<PyCounter>()?;
    m.add_class::<PyLimiter>()
}
