//! Drivers: one process per actor, one line in, one line out.

use crate::inherit::inherit;
use crate::{root, target_dir};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{BorrowedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Instant;

/// The languages, in the order of every table.
pub const LANGS: &[&str] = &["rust", "c", "node", "python"];

/// How to start a language's driver, or why it cannot be started here.
///
/// # Errors
/// The reason, with what would make it start.
pub fn command(lang: &str) -> Result<Command, String> {
    program(lang, &Program { rust: "driver", c: "conformance/driver-c", scripts: "tests/drivers/driver" })
}

/// A program that stands in the tree once per language.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// The binary, by its name.
    pub rust: &'static str,
    /// The binary, below the target directory.
    pub c: &'static str,
    /// The scripts, without `.mjs` and `.py`.
    pub scripts: &'static str,
}

/// How to start a language's `program`, or why it cannot be started here.
///
/// # Errors
/// The reason, with what would make it start.
pub fn program(lang: &str, program: &Program) -> Result<Command, String> {
    let script = |ending: &str| root().join(format!("{}.{ending}", program.scripts));
    let need = |path: PathBuf, cure: &str| {
        if path.exists() { Ok(path) } else { Err(format!("{} is not there; run `{cure}`", path.display())) }
    };
    match lang {
        "rust" => Ok(Command::new(need(target_dir().join("release").join(program.rust), "make core")?)),
        "c" => Ok(Command::new(need(target_dir().join(program.c), "make c-programs")?)),
        "node" => {
            need(root().join("bindings-node/lib/index.mjs"), "make node")?;
            let mut command = Command::new("node");
            command.arg(script("mjs"));
            Ok(command)
        }
        "python" => {
            need(root().join("bindings-python/python/offloop"), "make python")?;
            let mut command = Command::new(need(root().join(".venv/bin/python"), "make python")?);
            command.arg(script("py"));
            Ok(command)
        }
        other => Err(format!("no driver speaks {other}")),
    }
}

/// What a pool starts for each worker that is to be a driver's functions: the file that has them, and the whole command.
///
/// # Errors
/// As [`command`].
pub fn worker(lang: &str) -> Result<(String, Vec<String>), String> {
    let driver = command(lang)?;
    let program = driver.get_program().to_string_lossy().into_owned();
    let path = |name: &str| root().join(name).to_string_lossy().into_owned();
    Ok(match lang {
        "node" => {
            let file = path("tests/drivers/worker.mjs");
            (file.clone(), vec![program, path("bindings-node/lib/worker-main.cjs"), format!("file://{file}")])
        }
        "python" => {
            let file = path("tests/drivers/worker.py");
            (file.clone(), vec![program, "-m".to_owned(), "offloop.worker".to_owned(), file])
        }
        _ => (program.clone(), vec![program, "worker".to_owned()]),
    })
}

/// What a cluster starts for each worker that is to be a driver's: the whole command, to which the driver adds what the worker is to do.
///
/// # Errors
/// As [`command`].
pub fn member(lang: &str) -> Result<Vec<String>, String> {
    let program = command(lang)?.get_program().to_string_lossy().into_owned();
    let path = |name: &str| root().join(name).to_string_lossy().into_owned();
    Ok(match lang {
        "node" => vec![program, "--require".to_owned(), path("bindings-node/lib/register.cjs"), path("tests/drivers/member.mjs")],
        "python" => vec![program, path("tests/drivers/member.py")],
        _ => vec![program, "member".to_owned()],
    })
}

/// The number of the first fd that a driver inherits.
pub const FIRST_FD: RawFd = 100;

/// A running driver.
pub struct Driver {
    lang: String,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    next: u64,
    early: HashMap<u64, String>,
    /// What `hello` said it can do.
    pub caps: Vec<String>,
}

impl Driver {
    /// Starts a driver, with `fds` from [`FIRST_FD`] on and names of rings and channels below `names`, and greets it.
    ///
    /// # Errors
    /// The reason in words.
    pub fn start(lang: &str, fds: &[BorrowedFd<'_>], names: &Path, deadline: Instant) -> Result<Driver, String> {
        let mut command = command(lang)?;
        inherit(&mut command, fds, FIRST_FD).map_err(|e| format!("fds of a ring: {e}"))?;
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .env("XDG_RUNTIME_DIR", names)
            .env("VIRTUAL_ENV", root().join(".venv"))
            .current_dir(root())
            .spawn()
            .map_err(|e| format!("{lang} driver does not start: {e}"))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().expect("stdout was asked to be piped");
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        let mut driver = Driver { lang: lang.to_owned(), child, stdin, lines, next: 1, early: HashMap::new(), caps: Vec::new() };
        let hello = driver.call("hello", deadline)?;
        let field = |key: &str| hello.split(' ').find_map(|t| t.strip_prefix(key)).unwrap_or_default().to_owned();
        if field("lang=") != lang {
            return Err(format!("{lang} driver answers hello with {hello:?}"));
        }
        driver.caps = field("caps=").split(',').map(str::to_owned).collect();
        Ok(driver)
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a line and returns its number.
    ///
    /// # Errors
    /// When the driver is gone.
    pub fn send(&mut self, line: &str) -> Result<u64, String> {
        let id = self.next;
        self.next += 1;
        let stdin = self.stdin.as_mut().ok_or_else(|| format!("{} driver was killed", self.lang))?;
        writeln!(stdin, "{id} {line}").map_err(|e| format!("{} driver is gone at {line:?}: {e}", self.lang))?;
        Ok(id)
    }

    /// The reply of that number, without it.
    ///
    /// # Errors
    /// When the driver ended, or the watchdog barks.
    pub fn reply(&mut self, id: u64, deadline: Instant) -> Result<String, String> {
        loop {
            if let Some(reply) = self.early.remove(&id) {
                return Ok(reply);
            }
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    let parsed = line.split_once(' ').and_then(|(id, rest)| Some((id.parse().ok()?, rest.to_owned())));
                    let (id, rest) = parsed.ok_or_else(|| format!("{} driver says {line:?}, which is no reply", self.lang))?;
                    self.early.insert(id, rest);
                }
                Err(RecvTimeoutError::Timeout) => return Err(format!("{} driver does not answer; the watchdog ended it", self.lang)),
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.child.wait().map_or_else(|e| e.to_string(), |s| s.to_string());
                    return Err(format!("{} driver ended: {status}", self.lang));
                }
            }
        }
    }

    /// Sends a line and waits for its reply.
    ///
    /// # Errors
    /// As [`Driver::send`] and [`Driver::reply`].
    pub fn call(&mut self, line: &str, deadline: Instant) -> Result<String, String> {
        let id = self.send(line)?;
        self.reply(id, deadline)
    }

    /// Ends the driver by SIGKILL.
    pub fn kill(&mut self) {
        // It may have ended by itself; either way it is gone after this.
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Not before: the end of its input would let it leave in peace.
        self.stdin = None;
    }

    /// Closes the driver's input; it must end by itself, without an error.
    ///
    /// # Errors
    /// When it ends otherwise, or not.
    pub fn finish(mut self, deadline: Instant) -> Result<(), String> {
        if self.stdin.take().is_none() {
            return Ok(());
        }
        // Its output closes when it ends: wait for that, bounded by the watchdog, then reap.
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => return Err(format!("{} driver does not end when its input closes", self.lang)),
            }
        }
        let status = self.child.wait().map_err(|e| format!("{} driver: {e}", self.lang))?;
        if status.success() { Ok(()) } else { Err(format!("{} driver ended with {status}", self.lang)) }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.kill();
    }
}
