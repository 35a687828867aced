//! offloop keeps event loops free: pools, transferable buffers and native ops for Rust, C, Node.js and Python.
//!
//! ```text
//!  error sync  ←  sys wire  ←  metrics shared  ←  buffer  ←  value  ←  ring  ←  codec ops  ←  channel  ←  abi supervisor  ←  pool cluster  ←  capi cli, bindings
//! ```
//!
//! Imports only go downwards (to the left). What a second language would need lives here; a binding only converts.

#![deny(unsafe_op_in_unsafe_fn)]

pub mod abi;
pub mod buffer;
#[cfg(feature = "capi")]
pub mod capi;
pub mod channel;
#[cfg(feature = "cli")]
pub mod cli;
pub mod cluster;
pub mod codec;
pub mod error;
pub mod metrics;
pub mod ops;
pub mod pool;
pub mod ring;
pub mod shared;
pub mod supervisor;
pub mod sync;
pub mod sys;
pub mod value;
pub mod wire;

pub use buffer::{Bytes, TransferBuffer, TransferToken};
pub use channel::Channel;
pub use cluster::Cluster;
pub use error::{Error, ErrorKind, Result, Retry};
pub use pool::{CompletionQueue, Task, ThreadPool};
pub use ring::RingBuffer;
pub use supervisor::Supervisor;
pub use value::Value;
