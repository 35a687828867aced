//! A record that is in flight until it is acknowledged.

use crate::error::raise;
use offloop::ring::Acks;
use pyo3::prelude::*;

/// A record of a consumer with ack="manual". It comes again, to some consumer and marked, until it is acknowledged.
///
/// `ack` and `nack` may be called from any thread, also while another one waits for the next record.
#[pyclass(name = "Delivery", module = "offloop", frozen)]
pub(super) struct Delivery {
    /// A copy of the record.
    #[pyo3(get)]
    bytes: Py<PyAny>,
    /// Whether a consumer that died, or gave it back, may have seen it.
    #[pyo3(get)]
    redelivered: bool,
    acks: Acks,
    delivery: u64,
}

impl Delivery {
    pub(super) fn object<'py>(
        py: Python<'py>,
        bytes: Bound<'py, PyAny>,
        redelivered: bool,
        acks: &Acks,
        delivery: u64,
    ) -> PyResult<Bound<'py, PyAny>> {
        Ok(Bound::new(py, Delivery { bytes: bytes.unbind(), redelivered, acks: acks.clone(), delivery })?.into_any())
    }
}

#[pymethods]
impl Delivery {
    /// It is dealt with, and is not delivered again. InvalidError the second time, or after its consumer was closed.
    fn ack(&self, py: Python<'_>) -> PyResult<()> {
        self.acks.ack(self.delivery).map_err(|e| raise(py, &e))
    }

    /// Gives it back: some consumer, this one perhaps, gets it at once. Otherwise as `ack`.
    fn nack(&self, py: Python<'_>) -> PyResult<()> {
        self.acks.nack(self.delivery).map_err(|e| raise(py, &e))
    }

    fn __repr__(&self) -> String {
        format!("Delivery(redelivered={})", if self.redelivered { "True" } else { "False" })
    }
}
