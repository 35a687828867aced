//! Byte layouts that another process or language reads.

pub mod channel;
pub mod cluster;
mod fnv;
pub mod lane;
pub mod metrics;
pub mod ring;
pub mod shared;
pub mod supervisor;
pub mod value;
pub mod zygote;
