//! Where bytes live and who owns them.
//!
//! * [`Bytes`]: read-only bytes for one task: a heap vector, a moved buffer, or host memory that a guard keeps alive.
//! * [`TransferBuffer`]: bytes with one owner that move between threads and processes without a copy.
//! * [`TransferToken`]: the one-shot right to take a buffer that was transferred.

mod bytes;
mod region;
mod token;
mod transfer;

pub use bytes::Bytes;
pub(crate) use bytes::{append, copied, copied_text, reserve};
pub use region::Region;
pub use token::{TransferToken, instance, revoke_token, tokens_untaken};
pub use transfer::{MAX_LEN, TransferBuffer};
