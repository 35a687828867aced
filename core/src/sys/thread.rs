//! Threads.

use crate::error::{Error, Result};

/// Starts a thread.
///
/// # Errors
/// `Os`.
pub fn spawn(name: &str, nice: i32, f: impl FnOnce() + Send + 'static) -> Result<()> {
    let _ = nice;
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(f)
        .map(drop)
        .map_err(|e| Error::os("pthread_create", e.raw_os_error().unwrap_or(0)))
}
