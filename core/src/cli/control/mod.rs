//! How commands talk to a cluster that `offloop run` keeps: by a unix socket of its name.
//!
//! ```text
//!  offloop reload NAME ── one line of JSON ──► $XDG_RUNTIME_DIR/offloop/NAME.sock ──► the run process
//!                      ◄── lines of JSON ─────
//! ```
//!
//! A request is `{"do": "status"}`, `reload`, `scale` (`workers`), `stop` (`fast`), `events`, `logs` (`lines`, `follow`), `metrics`. The answer's first line has `"ok"`: true with what
//! there is to tell, or false with `error`. One request per connection; `events` goes on with a line per event, `logs` with a line per line.

pub(super) mod client;
pub(super) mod place;
pub(super) mod server;
pub(super) mod top;

/// Longest request.
pub(super) const MAX_REQUEST: usize = 64 << 10;
