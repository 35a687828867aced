//! Commands on a schedule while the load runs, and the server that may be started for it.

use crate::error::{Error, Result};
use crate::sys::process::{Child, Exit, Spec, spawn};
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// How long a server has to end after `SIGTERM`, and a command after the end of the load, before it is killed.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// A command and when it runs.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Event {
    pub(super) command: String,
    /// From the beginning of the load, and again each time.
    pub(super) every: Duration,
}

/// How a command has ended.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Ended {
    Exit(Exit),
    NotStarted(String),
    /// It ran on when the load had ended, and was killed.
    Killed,
}

impl Ended {
    pub(super) fn went_well(&self) -> bool {
        matches!(self, Ended::Exit(Exit { code: Some(0), .. }))
    }
}

/// `exit 3`, `signal 9`.
pub(super) fn how(exit: Exit) -> String {
    match (exit.code, exit.signal) {
        (Some(code), _) => format!("exit {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown".to_owned(),
    }
}

/// One run of a command, and what the requests during it came to.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub(super) event: usize,
    pub(super) at: u64,
    /// `None` while it runs.
    pub(super) ended: Option<(u64, Ended)>,
    pub(super) requests: u64,
    pub(super) failed: u64,
    pub(super) raced: u64,
    /// The longest latency of a complete 2xx, in nanoseconds.
    pub(super) max: u64,
}

/// When commands ran: from the start of each to its end, and some time more in which its effects are seen.
#[derive(Debug)]
pub(super) struct Windows {
    settle: u64,
    active: usize,
    /// The end of the last window that is known.
    until: Option<u64>,
}

impl Windows {
    pub(super) fn new(settle: Duration) -> Windows {
        Windows { settle: settle.as_nanos() as u64, active: 0, until: None }
    }

    pub(super) fn begin(&mut self) {
        self.active += 1;
    }

    pub(super) fn end(&mut self, now: u64) {
        self.active -= 1;
        self.until = Some(now.saturating_add(self.settle));
    }

    /// Whether a request that began then, and ends now, has met a window.
    pub(super) fn met(&self, began: u64) -> bool {
        self.active > 0 || self.until.is_some_and(|until| began <= until)
    }

    /// No window is open, or will be unless a command is started.
    pub(super) fn are_over(&self, now: u64) -> bool {
        self.active == 0 && self.until.is_none_or(|until| until < now)
    }
}

/// A process whose output goes to the standard error, so that the standard output is the report's alone.
fn start(program: OsString, args: Vec<OsString>, input: Option<BorrowedFd<'_>>) -> Result<Child> {
    let errors = std::io::stderr();
    let mut spec = Spec::new(program);
    spec.args = args;
    spec.fds.push((errors.as_fd(), 1));
    spec.fds.extend(input.map(|fd| (fd, 0)));
    // Who interrupts the load with `kill -9` leaves nothing behind.
    spec.death_signal = Some(libc::SIGTERM);
    spawn(&spec)
}

/// Starts a shell command that reads nothing.
pub(super) fn run(command: &str) -> Result<Child> {
    let null = File::open("/dev/null").map_err(|e| Error::os("open(/dev/null)", e.raw_os_error().unwrap_or(0)))?;
    start("/bin/sh".into(), vec!["-c".into(), command.into()], Some(null.as_fd()))
}

/// The server that a load was told to start.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) child: Child,
}

impl Server {
    pub(super) fn start(command: &[OsString]) -> Result<Server> {
        let (program, args) = command.split_first().ok_or_else(|| Error::invalid("command is empty"))?;
        Ok(Server { child: start(program.clone(), args.to_vec(), None)? })
    }

    /// Ends it: `SIGTERM`, and `SIGKILL` when it has not ended by then. True: it had to be killed.
    pub(super) fn stop(&self, patience: Duration) -> Result<(bool, Exit)> {
        self.child.kill(libc::SIGTERM)?;
        if let Some(exit) = self.child.wait(Some(patience))? {
            return Ok((false, exit));
        }
        self.child.kill(libc::SIGKILL)?;
        let exit = self.child.wait(None)?.unwrap_or(Exit { code: None, signal: None, core_dumped: false });
        Ok((true, exit))
    }
}

impl Drop for Server {
    /// An error on the way leaves no server behind. One that has ended is not touched.
    fn drop(&mut self) {
        let _ = self.stop(PATIENCE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_meets_a_window_if_any_part_of_it_lies_inside() {
        let mut windows = Windows::new(Duration::from_nanos(10));
        assert!(!windows.met(0) && windows.are_over(0));
        windows.begin();
        assert!(windows.met(0) && !windows.are_over(5));
        windows.begin();
        windows.end(20);
        assert!(windows.met(0) && windows.met(25) && !windows.are_over(40), "the other one runs");
        windows.end(50);
        // What began inside, before or at the last moment of it; what began behind it.
        assert!(windows.met(3) && windows.met(60) && !windows.met(61));
        assert!(!windows.are_over(60) && windows.are_over(61));
    }

    #[test]
    fn a_command_goes_well_with_0_alone() {
        let ended = |command: &str| Ended::Exit(run(command).expect("sh").wait(None).expect("wait").expect("its end"));
        assert!(ended("read x; [ -z \"$x\" ]").went_well(), "it reads nothing");
        let Ended::Exit(three) = ended("exit 3") else { panic!() };
        let Ended::Exit(nine) = ended("kill -9 $$") else { panic!() };
        assert_eq!((how(three), how(nine)), ("exit 3".to_owned(), "signal 9".to_owned()));
        assert!(!Ended::Exit(three).went_well() && !Ended::Exit(nine).went_well() && !Ended::Killed.went_well());
    }

    #[test]
    fn a_server_is_ended_and_left_behind_by_nobody() {
        let server = Server::start(&["sleep".into(), "1000".into()]).expect("sleep");
        let (killed, exit) = server.stop(PATIENCE).expect("stop");
        assert_eq!((killed, how(exit)), (false, "signal 15".to_owned()));
        let server = Server::start(&["sleep".into(), "1000".into()]).expect("sleep");
        let pid = server.child.pid();
        drop(server);
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
        assert!(Server::start(&["/nowhere/at-all".into()]).is_err());
        // One that does not listen to SIGTERM.
        let sign = std::env::temp_dir().join(format!("offloop-deaf-{}", std::process::id()));
        let script = format!("trap '' TERM; : > {}; exec sleep 1000", sign.display());
        let server = Server::start(&["sh".into(), "-c".into(), script.into()]).expect("sh");
        while !sign.exists() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let (killed, exit) = server.stop(Duration::from_millis(50)).expect("stop");
        assert_eq!((killed, how(exit)), (true, "signal 9".to_owned()));
        std::fs::remove_file(sign).expect("its name");
    }
}
