//! What a worker of a cluster is started with.

use crate::error::{Error, Result};
use crate::supervisor::{Launch, WorkerId};
use crate::sys::confine::Confine;
use crate::sys::fork::PrivateFd;
use crate::sys::process::{Spec, own_env};
use crate::wire::cluster::{ENV, FIRST_FD, format_env};
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::sync::Arc;

use super::listen::Socket;

const UNBUFFERED: &str = "PYTHONUNBUFFERED";

/// The program that workers run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Command {
    /// Program and arguments. `{fd}` in an argument is replaced by the number of the first listening socket, `{fd1}` by that of the second.
    pub args: Vec<OsString>,
    /// Variables beside this process's own; `None`: not that one.
    pub env: Vec<(OsString, Option<OsString>)>,
    /// Working directory; this process's.
    pub cwd: Option<PathBuf>,
}

impl Command {
    /// Checks what needs no process.
    ///
    /// # Errors
    /// `Invalid` without a program.
    pub fn check(&self) -> Result<()> {
        if self.args.first().is_none_or(|program| program.is_empty()) {
            return Err(Error::invalid("cluster has no program to run").with("exec", ""));
        }
        Ok(())
    }

    /// With this process's variables as they are now. They are read by who calls, and not when a worker starts: `setenv` of a host's own thread, which has them in other places, would be in its way.
    ///
    /// `is_read`: what it prints goes to a pipe, for which a Python interpreter would keep its lines to itself.
    pub(super) fn resolve(self, is_read: bool) -> Resolved {
        let mut env = own_env();
        if is_read && env.iter().all(|(name, _)| name != UNBUFFERED) {
            env.push((UNBUFFERED.into(), "1".into()));
        }
        env.retain(|(name, _)| self.env.iter().all(|(other, _)| other != name));
        env.extend(self.env.iter().filter_map(|(name, value)| Some((name.clone(), value.clone()?))));
        env.retain(|(name, _)| name.to_str().is_none_or(|name| !name.starts_with("LISTEN_")));
        Resolved { command: self, env }
    }
}

/// A command with its whole environment.
pub(super) struct Resolved {
    pub(super) command: Command,
    env: Vec<(OsString, OsString)>,
}

impl Resolved {
    /// For the worker `id`, which gets these sockets from [`FIRST_FD`] on, behind them its end of the gate, and what else has a name.
    pub(super) fn launch(
        &self,
        id: WorkerId,
        confine: Confine,
        sockets: &[Arc<Socket>],
        gate: OwnedFd,
        named: Vec<(&'static str, OwnedFd)>,
    ) -> Result<Launch> {
        let Command { args, cwd, .. } = &self.command;
        let mut args = args.iter().map(|arg| with_numbers(arg, sockets.len()));
        let mut spec = Spec::new(args.next().unwrap_or_default());
        spec.args = args.collect();
        spec.cwd.clone_from(cwd);
        spec.confine = confine;
        // Ctrl-C at a terminal is for the cluster, which drains its workers.
        spec.new_group = true;
        // What it has started and left behind would keep the sockets.
        spec.ends_group = true;
        let gate_number = FIRST_FD + sockets.len() as i32;
        let numbers: Vec<_> = named.iter().map(|(name, _)| *name).zip(gate_number + 1..).collect();
        let mut own = vec![(ENV, format_env(gate_number, sockets.len(), &numbers)), ("OFFLOOP_SLOT", id.slot.to_string())];
        if !sockets.is_empty() {
            own.push(("LISTEN_FDS", sockets.len().to_string()));
            own.push(("LISTEN_FDNAMES", sockets.iter().map(|s| s.bound.to_string().replace(':', "-")).collect::<Vec<_>>().join(":")));
            spec.pid_variable = Some("LISTEN_PID");
        }
        spec.env = Some(self.env.clone());
        let copies = sockets.iter().zip(FIRST_FD..).map(|(socket, number)| Ok((PrivateFd::open(|| socket.for_worker())?, number)));
        let mut fds = copies.collect::<Result<Vec<_>>>()?;
        fds.push((PrivateFd::new(gate), gate_number));
        fds.extend(named.into_iter().map(|(_, fd)| PrivateFd::new(fd)).zip(gate_number + 1..));
        Ok(Launch { spec, env: own.into_iter().map(|(name, value)| (name.into(), value.into())).collect(), fds })
    }
}

/// `{fd}` and `{fdN}` are numbers of sockets; anything else stays, also where there is no such socket.
fn with_numbers(arg: &OsStr, sockets: usize) -> OsString {
    let mut out = Vec::new();
    let mut rest = arg.as_bytes();
    while let Some(open) = rest.windows(3).position(|w| w == b"{fd") {
        let Some(close) = rest[open..].iter().position(|b| *b == b'}').map(|at| open + at) else { break };
        let digits = std::str::from_utf8(&rest[open + 3..close]).unwrap_or("x");
        let index = if digits.is_empty() { Some(0) } else { digits.parse::<usize>().ok() };
        out.extend_from_slice(&rest[..open]);
        match index.filter(|i| *i < sockets) {
            Some(index) => out.extend_from_slice((FIRST_FD as usize + index).to_string().as_bytes()),
            None => out.extend_from_slice(&rest[open..=close]),
        }
        rest = &rest[close + 1..];
    }
    out.extend_from_slice(rest);
    OsString::from_vec(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn python_prints_line_by_line_where_its_lines_are_read_unless_somebody_says_otherwise() {
        let of = |is_read, given: &[Option<&str>]| {
            let env = given.iter().map(|value| (UNBUFFERED.into(), value.map(Into::into))).collect();
            let resolved = Command { env, ..Command::default() }.resolve(is_read);
            resolved.env.into_iter().filter(|(name, _)| name == UNBUFFERED).map(|(_, value)| value).collect::<Vec<_>>()
        };
        let own: Vec<_> = std::env::var_os(UNBUFFERED).into_iter().collect();
        assert_eq!(of(false, &[]), own);
        assert_eq!(of(true, &[]), if own.is_empty() { vec![OsString::from("1")] } else { own });
        assert_eq!(of(true, &[Some("")]), [""]);
        assert!(of(true, &[None]).is_empty());
    }

    #[test]
    fn numbers_of_sockets_take_their_places() {
        let of = |arg: &str, n| with_numbers(arg.as_ref(), n).into_string().expect("text");
        assert_eq!(of("--fd={fd}", 1), "--fd=3");
        assert_eq!(of("fd://{fd},fd://{fd1}", 2), "fd://3,fd://4");
        for same in ["{fd2}", "{fdx}", "{fd", "{}", "plain", "{ fd}"] {
            assert_eq!(of(same, 2), same);
        }
        assert_eq!(of("{fd}", 0), "{fd}");
    }
}
