//! The `offloop` command. The binary of this crate and the commands of the npm and PyPI packages all call [`run`].

mod bench;
mod control;
mod doctor;
mod ring;
mod run;

use crate::error::{Error, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use serde_json::json;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;

/// Everything went well.
const SUCCESS: u8 = 0;
/// The command was understood and failed.
const FAILURE: u8 = 1;
/// The command was not understood.
const USAGE: u8 = 2;
/// No worker became ready.
const NOT_STARTED: u8 = 3;

/// Why a command ended early.
enum Stop {
    Failed(Error),
    /// The command was not understood, though each part of it was.
    Usage(Error),
    /// Nothing came up: why, and what to do about it, as further lines.
    NotStarted(Error, String),
    /// Its report says what failed.
    Told,
    /// It has said why, and this is its exit status.
    Ended(u8),
    /// Whoever reads the output has seen enough (`offloop … | head`), or its place is full.
    Output(io::Error),
}

impl From<Error> for Stop {
    fn from(e: Error) -> Stop {
        Stop::Failed(e)
    }
}

impl From<io::Error> for Stop {
    fn from(e: io::Error) -> Stop {
        Stop::Output(e)
    }
}

fn command() -> Command {
    let path = || Arg::new("path").value_name("PATH").required(true).value_parser(value_parser!(PathBuf));
    let json = || Arg::new("json").long("json").action(ArgAction::SetTrue).help("One JSON object a line");
    let stat = Command::new("stat").about("Show header, participants and positions").args([path(), json()]);
    let tail = Command::new("tail")
        .about("Show the rate of pushes and pops, line by line, until the ring is removed")
        .args([path(), json()])
        .arg(
            Arg::new("interval")
                .long("interval")
                .value_name("SECONDS")
                .default_value("1")
                .value_parser(ring::interval)
                .help("Seconds between two lines, 0.01 to 3600"),
        )
        .arg(
            Arg::new("count").short('n').long("count").value_name("LINES").value_parser(value_parser!(u64)).help("End after so many lines"),
        );
    let ring = Command::new("ring")
        .about("Look at a ring that was made with a path, without attaching to it")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands([stat, tail]);
    Command::new("offloop")
        .about("Runs servers on every core, and looks after what the offloop library shares between processes")
        .version(env!("CARGO_PKG_VERSION"))
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(run::command())
        .subcommands(control::client::commands())
        .subcommand(control::top::command())
        .subcommand(ring)
        .subcommand(bench::command())
        .subcommand(doctor::command())
        .subcommand(
            Command::new("completions")
                .about("Print what a shell completes this command by: source it, or put it where the shell looks")
                .arg(Arg::new("shell").value_name("SHELL").required(true).value_parser(["bash", "zsh", "fish"])),
        )
}

fn dispatch(matches: &ArgMatches, out: &mut dyn Write, err: &mut dyn Write) -> Result<(), Stop> {
    use control::client;
    match matches.subcommand() {
        Some(("run", args)) => run::run(args, err),
        Some(("ps", args)) => client::ps(args, out),
        Some(("reload", args)) => client::reload(args, out),
        Some(("scale", args)) => client::scale(args, out),
        Some(("stop", args)) => client::stop(args, out),
        Some(("events", args)) => client::events(args, out),
        Some(("logs", args)) => client::logs(args, out),
        Some(("metrics", args)) => client::metrics(args, out),
        Some(("top", args)) => control::top::top(args, out),
        Some(("doctor", args)) => doctor::run(args, out),
        Some(("completions", args)) => completions(args.get_one::<String>("shell").map_or("", String::as_str), out),
        Some(("ring", ring)) => match ring.subcommand() {
            Some(("stat", args)) => ring::stat(args, out),
            Some(("tail", args)) => ring::tail(args, out),
            _ => unreachable!("clap requires a known subcommand"),
        },
        Some(("bench", bench)) => match bench.subcommand() {
            Some(("http", args)) => bench::http(args, out),
            _ => unreachable!("clap requires a known subcommand"),
        },
        _ => unreachable!("clap requires a known subcommand"),
    }
}

fn completions(shell: &str, out: &mut dyn Write) -> Result<(), Stop> {
    use clap_complete::Shell;
    let shell = match shell {
        "zsh" => Shell::Zsh,
        "fish" => Shell::Fish,
        _ => Shell::Bash,
    };
    // By way of memory: it would end the process where it cannot write.
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut command(), "offloop", &mut text);
    Ok(out.write_all(&text)?)
}

/// Runs a command line, `args[0]` being the program's name, and returns its exit status: 0, or 1 when it failed, or 2 when it was
/// not understood; `run` has more. It blocks, writes to `out` and `err`, and never ends the process; `run` takes SIGHUP, SIGINT and SIGTERM of the calling
/// thread over meanwhile.
pub fn run(args: impl IntoIterator<Item = OsString>, out: &mut dyn Write, err: &mut dyn Write) -> u8 {
    let args: Vec<OsString> = args.into_iter().collect();
    let json = args.iter().take_while(|arg| *arg != "--").any(|arg| arg == "--json");
    let matches = match command().try_get_matches_from(args) {
        Ok(matches) => matches,
        Err(e) => {
            // A reader that is gone needs no text.
            if e.use_stderr() {
                if json {
                    let text = e.to_string();
                    tell_failed(ErrorKind::Invalid, text.trim_start_matches("error: ").trim_end(), USAGE, err);
                } else {
                    let _ = write!(err, "{e}");
                }
                return USAGE;
            }
            let _ = write!(out, "{e}");
            return SUCCESS;
        }
    };
    match dispatch(&matches, out, err).and_then(|()| Ok(out.flush()?)) {
        Ok(()) => SUCCESS,
        Err(stop) => report(stop, json, err),
    }
}

/// Says why a command has ended early, and gives its exit status.
fn report(stop: Stop, json: bool, err: &mut dyn Write) -> u8 {
    let (e, more, status) = match stop {
        Stop::Output(e) if e.kind() == io::ErrorKind::BrokenPipe => return SUCCESS,
        Stop::Told => return FAILURE,
        Stop::Ended(status) => return status,
        Stop::Usage(e) => (e, String::new(), USAGE),
        Stop::Failed(e) => (e, String::new(), FAILURE),
        Stop::NotStarted(e, more) => (e, more, NOT_STARTED),
        Stop::Output(e) => (Error::new(ErrorKind::Os, "output cannot be written").with("error", e), String::new(), FAILURE),
    };
    if json {
        tell_failed(e.kind(), &format!("{e}{more}"), status, err);
    } else {
        let _ = writeln!(err, "offloop: {e}{more}");
    }
    status
}

fn tell_failed(kind: ErrorKind, text: &str, status: u8, err: &mut dyn Write) {
    let _ = writeln!(err, "{}", json!({"event": "failed", "status": status, "error": {"code": kind.row().code, "text": text}}));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Exit status, output and errors of a command line.
    pub(super) fn offloop(args: &[&str]) -> (u8, String, String) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let status = run(std::iter::once("offloop").chain(args.iter().copied()).map(OsString::from), &mut out, &mut err);
        (status, String::from_utf8(out).expect("text"), String::from_utf8(err).expect("text"))
    }

    #[test]
    fn the_definition_of_the_command_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn what_is_asked_for_goes_to_the_output_and_mistakes_go_to_the_errors() {
        let (status, out, err) = offloop(&["--version"]);
        assert_eq!((status, out.as_str(), err.as_str()), (SUCCESS, concat!("offloop ", env!("CARGO_PKG_VERSION"), "\n"), ""));
        let (status, out, err) = offloop(&["ring", "tail", "--help"]);
        assert!(status == SUCCESS && out.contains("--interval <SECONDS>") && err.is_empty(), "{out}{err}");
        for (wrong, told) in [
            (&["rong"][..], "rong"),
            (&["ring"], "Usage: offloop ring"),
            (&["ring", "stat"], "<PATH>"),
            (&["ring", "tail", "x", "--interval", "0"], "interval"),
            (&["ring", "tail", "x", "--interval", "NaN"], "NaN"),
            (&["ring", "tail", "x", "--count", "-1"], "-1"),
        ] {
            let (status, out, err) = offloop(wrong);
            assert!(status == USAGE && out.is_empty() && err.contains(told), "{wrong:?}: {status} {out}{err}");
        }
    }

    #[test]
    fn completions_know_each_command_and_option() {
        for shell in ["bash", "zsh", "fish"] {
            let (status, out, err) = offloop(&["completions", shell]);
            assert!(status == SUCCESS && err.is_empty(), "{shell}: {err}");
            for word in ["run", "reload", "top", "interval", "metrics", "completions", "drain-timeout"] {
                assert!(out.contains(word), "{shell} does not know {word}");
            }
        }
        assert_eq!(offloop(&["completions", "tcsh"]).0, USAGE);
    }

    #[test]
    fn a_failure_is_json_where_that_is_asked_for() {
        for (wrong, status, code, told) in [
            (&["ring", "stat", "/no/such/ring", "--json"][..], FAILURE, "ERR_OFFLOOP_NOT_FOUND", "not found: "),
            (
                &["ring", "tail", "x", "--json", "--interval", "0"],
                USAGE,
                "ERR_OFFLOOP_INVALID",
                "invalid value '0' for '--interval <SECONDS>'",
            ),
            (&["reload", "--json", "no-such-cluster-of-the-tests"], FAILURE, "ERR_OFFLOOP_NOT_FOUND", "no cluster of this name runs"),
            (&["bench", "http", "http://127.0.0.1:1/", "--json", "--interval", "0.001"], USAGE, "ERR_OFFLOOP_INVALID", "interval"),
            (&["run", "--json"], USAGE, "ERR_OFFLOOP_INVALID", "<COMMAND>"),
            (&["run", "--json", "-w", "10000", "--", "x"], USAGE, "ERR_OFFLOOP_INVALID", "'--workers <N>': 10000 is outside 1 to 1024"),
        ] {
            let (ended, out, err) = offloop(wrong);
            let line: serde_json::Value = serde_json::from_str(&err).expect(&err);
            assert!(ended == status && out.is_empty() && err.ends_with("}\n"), "{wrong:?}: {ended} {out}{err}");
            assert_eq!(
                (&line["event"], &line["status"], &line["error"]["code"]),
                (&json!("failed"), &json!(status), &json!(code)),
                "{err}"
            );
            let text = line["error"]["text"].as_str().expect("text");
            assert!(text.contains(told) && !text.starts_with("error"), "{text}");
        }
        let (_, _, err) = offloop(&["run", "--no-such-option", "--", "x", "--json"]);
        assert!(!err.starts_with('{'), "what follows -- is the command's own: {err}");
    }

    #[test]
    fn a_reader_that_has_seen_enough_is_no_failure_and_a_full_disk_is_one() {
        struct Broken(io::ErrorKind);
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(self.0.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let folder = std::env::temp_dir().join(format!("offloop-cli-{}", std::process::id()));
        let ring = crate::ring::RingBuffer::builder(crate::ring::Kind::Spsc).path(&folder).create().expect("ring");
        let args = || ["offloop", "ring", "stat"].map(OsString::from).into_iter().chain([folder.clone().into_os_string()]);
        let mut err = Vec::new();
        assert_eq!(run(args(), &mut Broken(io::ErrorKind::BrokenPipe), &mut err), SUCCESS);
        assert!(err.is_empty());
        assert_eq!(run(args(), &mut Broken(io::ErrorKind::StorageFull), &mut err), FAILURE);
        assert!(String::from_utf8_lossy(&err).contains("output cannot be written"));
        ring.remove().expect("its name");
    }
}
