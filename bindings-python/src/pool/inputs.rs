//! The inputs of one call of an op.

use crate::buffer::Moved;
use offloop::Bytes;
use pyo3::prelude::*;

/// Inputs, and where they came from, so that a call that was not accepted loses nothing.
pub(super) struct Inputs<'py> {
    pub(super) bytes: Vec<Bytes>,
    moved: Vec<Moved<'py>>,
}

impl<'py> Inputs<'py> {
    /// `convert` is [`buffer::input`](crate::buffer::input) or its like.
    pub(super) fn take(
        objects: impl Iterator<Item = Bound<'py, PyAny>>,
        convert: fn(&Bound<'py, PyAny>, &mut Vec<Moved<'py>>) -> PyResult<Bytes>,
    ) -> PyResult<Inputs<'py>> {
        let mut inputs = Inputs { bytes: Vec::new(), moved: Vec::new() };
        for object in objects {
            match convert(&object, &mut inputs.moved) {
                Ok(bytes) => inputs.bytes.push(bytes),
                Err(e) => {
                    let bytes = std::mem::take(&mut inputs.bytes);
                    inputs.restore(bytes);
                    return Err(e);
                }
            }
        }
        Ok(inputs)
    }

    /// Gives moved buffers back, now that no task has their bytes.
    pub(super) fn restore(self, bytes: Vec<Bytes>) {
        drop(bytes);
        self.moved.into_iter().for_each(Moved::put_back);
    }
}
