//! The `json` family.

use crate::ops::OpDef;

/// The ops of this family.
pub(super) const OPS: &[OpDef] = &[];
