//! Metrics for C.

use crate::abi::ffi::{self, offloop_status};
use crate::abi::{offloop_value, value};
use crate::error::Error;
use crate::metrics::{self, Format};
use crate::value::Value;

/// The text format that Prometheus reads.
pub const OFFLOOP_METRICS_PROMETHEUS: u32 = 0;
/// JSON.
pub const OFFLOOP_METRICS_JSON: u32 = 1;

/// Gives the metrics of all pools of this process as a text value; per pool see offloop_pool_stats.
///
/// # Safety
/// `out` is valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn offloop_metrics(format: u32, out: *mut *mut offloop_value) -> offloop_status {
    ffi::call(|| {
        let out = ffi::out(out, "out")?;
        let format = match format {
            OFFLOOP_METRICS_PROMETHEUS => Format::Prometheus,
            OFFLOOP_METRICS_JSON => Format::Json,
            other => return Err(Error::invalid("no metrics format of that number").with("format", other)),
        };
        out.set(value::give(Value::from(metrics::export(format)))?);
        Ok(())
    })
}
