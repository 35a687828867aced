//! Byte layouts that another process or language reads.

pub mod channel;
mod fnv;
pub mod lane;
pub mod metrics;
pub mod ring;
pub mod supervisor;
pub mod value;
pub mod zygote;
