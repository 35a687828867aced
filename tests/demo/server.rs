//! The servers: started as a user would start them, ended with the demo.

use offloop_tests::{root, target_dir};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A host language.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    /// `node:http`.
    Node,
    /// `asyncio`.
    Python,
    /// `poll(2)`.
    C,
}

impl Host {
    /// In the order of the table.
    pub(crate) const ALL: [Host; 3] = [Host::Node, Host::Python, Host::C];

    /// On the command line.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Host::Node => "node",
            Host::Python => "python",
            Host::C => "c",
        }
    }

    /// In the table.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Host::Node => "Node.js",
            Host::Python => "Python",
            Host::C => "C",
        }
    }

    fn command(self) -> Command {
        let demo = root().join("tests/demo");
        let with = |program: &Path, script: &str| {
            let mut command = Command::new(program);
            command.arg(demo.join(script));
            command
        };
        match self {
            Host::Node => with(Path::new("node"), "server.mjs"),
            Host::Python => with(&root().join(".venv/bin/python"), "server.py"),
            Host::C => Command::new(target_dir().join("demo/server-c")),
        }
    }
}

/// A running server.
pub(crate) struct Server {
    child: Child,
    /// Where it listens.
    pub(crate) addr: SocketAddr,
}

impl Server {
    /// Starts a server and waits until it has said its port.
    pub(crate) fn start(host: Host, mode: &str, input: &Path) -> Result<Server, String> {
        let mut command = host.command();
        let shown = format!("{command:?}");
        let mut child = command.arg(mode).arg(input).stdout(Stdio::piped()).spawn().map_err(|e| format!("{shown}: {e}"))?;
        let mut line = String::new();
        let stdout = child.stdout.take().expect("asked to be piped");
        BufReader::new(stdout).read_line(&mut line).map_err(|e| format!("{shown}: {e}"))?;
        let Ok(port) = line.trim().parse::<u16>() else {
            let status = child.wait().map_or_else(|e| e.to_string(), |s| s.to_string());
            return Err(format!("{shown} says no port but {line:?}, and ended with {status}"));
        };
        Ok(Server { child, addr: SocketAddr::from(([127, 0, 0, 1], port)) })
    }

    /// CPU time of the server, all its threads.
    pub(crate) fn cpu(&self) -> Duration {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        // The command's name may contain spaces; fields are counted behind its closing parenthesis. 12 and 13 are utime and stime.
        let fields: Vec<u64> =
            text.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().map(|f| f.parse().unwrap_or(0)).collect();
        let ticks = fields.get(11).unwrap_or(&0) + fields.get(12).unwrap_or(&0);
        // SAFETY: a plain query.
        let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
        Duration::from_secs_f64(ticks as f64 / per_second as f64)
    }

    /// Ends it.
    pub(crate) fn stop(&mut self) {
        // It may have ended by itself; it is gone after this.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}
