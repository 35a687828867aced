//! The repository's own rules. Each check names the file and line that break one.

#![allow(clippy::print_stdout, reason = "a check says what it skipped")]

mod generated;
mod layers;
mod parity;
mod words;
