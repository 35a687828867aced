//! The service manager above this process: what it is told (`sd_notify(3)`, for `Type=notify` and `WatchdogSec=`), and the sockets that it has given
//! (`sd_listen_fds(3)`).

use crate::sys::{clock, net};
use crate::wire::cluster::FIRST_FD;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

/// What of all this is not the workers' business; [`Command`](crate::cluster::Command) sees to `LISTEN_FDS` and its like.
pub(super) const OWN: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// Whom this process was started by, if that wants to hear of it.
pub(super) struct Manager {
    socket: Option<UnixDatagram>,
    /// How often it wants to hear that this process lives.
    watchdog: Option<Duration>,
    due: Instant,
}

impl Manager {
    /// From the environment: without `NOTIFY_SOCKET`, or where that leads nowhere, nobody is told.
    pub(super) fn find(var: impl Fn(&str) -> Option<OsString>) -> Manager {
        let socket = var("NOTIFY_SOCKET").and_then(|path| {
            let address = match path.as_bytes() {
                [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
                _ => SocketAddr::from_pathname(&path),
            };
            let socket = UnixDatagram::unbound().ok()?;
            socket.connect_addr(&address.ok()?).ok()?;
            // Who does not read holds up nobody.
            socket.set_nonblocking(true).ok()?;
            Some(socket)
        });
        let number = |name: &str| var(name)?.to_str()?.parse::<u64>().ok();
        let is_ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        // Twice as often as is looked at.
        let watchdog = number("WATCHDOG_USEC").filter(|usec| *usec > 0 && is_ours).map(|usec| Duration::from_micros(usec) / 2);
        Manager { watchdog: watchdog.filter(|_| socket.is_some()), socket, due: Instant::now() }
    }

    pub(super) fn tell(&self, state: &str) {
        if let Some(socket) = &self.socket {
            let _ = socket.send(state.as_bytes());
        }
    }

    /// A reload has begun; `READY=1` says that it is over.
    pub(super) fn tell_reloading(&self) {
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={}", clock::monotonic_ns() / 1000));
    }

    /// When [`beat`](Self::beat) is to be called at the latest.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.watchdog.map(|_| self.due)
    }

    /// Says that this process lives, if that is due.
    pub(super) fn beat(&mut self) {
        let now = Instant::now();
        if let Some(every) = self.watchdog.filter(|_| now >= self.due) {
            self.due = now + every;
            self.tell("WATCHDOG=1");
        }
    }
}

/// The sockets that were given to this process, in their order.
pub(super) fn sockets(var: impl Fn(&str) -> Option<OsString>) -> Vec<OwnedFd> {
    let number = |name: &str| var(name)?.to_str()?.parse::<u32>().ok();
    let count = number("LISTEN_FDS").filter(|_| number("LISTEN_PID") == Some(std::process::id())).unwrap_or(0);
    let given = (FIRST_FD..).take(count as usize).take_while(|fd| net::close_on_exec(*fd));
    // SAFETY: it is open, as was seen, and was inherited for this purpose.
    given.map(|fd| unsafe { net::take_over(fd) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> impl Fn(&str) -> Option<OsString> {
        let own: Vec<(String, OsString)> = pairs.iter().map(|(name, value)| ((*name).to_owned(), value.into())).collect();
        move |name| own.iter().find(|(other, _)| other == name).map(|(_, value)| value.clone())
    }

    #[test]
    fn a_manager_hears_what_it_is_told_and_that_this_process_lives() {
        let name = format!("offloop-manager-{}", std::process::id());
        let theirs = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).expect("name")).expect("bound");
        let mut manager = Manager::find(of(&[("NOTIFY_SOCKET", &format!("@{name}")), ("WATCHDOG_USEC", "200000")]));
        let hears = || {
            let mut bytes = [0; 256];
            let len = theirs.recv(&mut bytes).expect("told");
            String::from_utf8_lossy(&bytes[..len]).into_owned()
        };
        manager.tell("READY=1");
        assert_eq!(hears(), "READY=1");
        manager.tell_reloading();
        assert!(hears().starts_with("RELOADING=1\nMONOTONIC_USEC="));
        assert!(manager.deadline().is_some());
        manager.beat();
        assert_eq!(hears(), "WATCHDOG=1");
        let due = manager.deadline().expect("a watchdog");
        manager.beat();
        assert_eq!(manager.deadline(), Some(due), "not due yet");
    }

    #[test]
    fn nobody_is_told_where_there_is_none() {
        for env in [&[][..], &[("NOTIFY_SOCKET", "/no/such/socket")], &[("NOTIFY_SOCKET", "")], &[("WATCHDOG_USEC", "1000")]] {
            let mut manager = Manager::find(of(env));
            manager.tell("READY=1");
            manager.beat();
            assert!(manager.socket.is_none() && manager.deadline().is_none(), "{env:?}");
        }
        let other = [("LISTEN_FDS", "2"), ("LISTEN_PID", "1")];
        assert!(sockets(of(&other)).is_empty() && sockets(of(&[])).is_empty());
    }
}
