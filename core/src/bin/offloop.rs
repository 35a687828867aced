//! The `offloop` command.

use std::io::{stderr, stdout};
use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(offloop::cli::run(std::env::args_os(), &mut stdout().lock(), &mut stderr()))
}
