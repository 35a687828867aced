//! Where a cluster listens: addresses as text, and the sockets, which are bound once and stay until the cluster ends.

use crate::error::{Error, Result};
use crate::sync::lock;
use crate::sys::fork::{self, PrivateFd};
use crate::sys::net::{self, Bound};
use crate::sys::poll;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex};

/// Connections that wait to be accepted, where nothing else is said; the system's own limit (`net.core.somaxconn`) may be lower.
pub const QUEUE: i32 = 4096;
/// Sockets of one cluster, at most.
pub const MAX_SOCKETS: usize = 256;

/// Where to listen. As text: `3000` or `:3000` (every address, of version 6 and 4), `127.0.0.1:3000`, `[::1]:3000`, `localhost:3000` (the first address that
/// the name has is not looked up: `localhost` is 127.0.0.1), `unix:/path` or `/path`, `fd:3`. Port 0 is one that the system chooses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// Every address of this machine.
    Any(u16),
    /// One address.
    Tcp(SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
    /// A stream socket that this process has already and that listens, by its number. The cluster makes a copy when it starts, and the fd stays its owner's; both are made non-blocking, which is the
    /// socket's own. Its address and queue stay as they are, also with [`Balance::Reuseport`](super::Balance::Reuseport).
    Fd(RawFd),
}

impl Address {
    /// The system chooses the port.
    pub(super) fn is_any_port(&self) -> bool {
        match self {
            Address::Any(port) => *port == 0,
            Address::Tcp(address) => address.port() == 0,
            Address::Unix(_) | Address::Fd(_) => false,
        }
    }

    /// Of a socket. One of every address, of either version, is [`Any`](Address::Any).
    pub(super) fn of(bound: Bound) -> Address {
        match bound {
            Bound::Tcp(SocketAddr::V6(v6)) if v6.ip().is_unspecified() => Address::Any(v6.port()),
            Bound::Tcp(address) => Address::Tcp(address),
            Bound::Unix(path) => Address::Unix(path.unwrap_or_default()),
        }
    }
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Address> {
        let wrong = || Error::invalid("not an address to listen at: PORT, HOST:PORT, unix:PATH or fd:NUMBER").with("listen", text);
        if let Some(path) = text.strip_prefix("unix:").or_else(|| text.starts_with('/').then_some(text)) {
            return if path.is_empty() { Err(wrong()) } else { Ok(Address::Unix(path.into())) };
        }
        if let Some(number) = text.strip_prefix("fd:") {
            return number.parse().ok().filter(|fd| *fd >= 0).map(Address::Fd).ok_or_else(wrong);
        }
        let text = text.strip_prefix("tcp:").unwrap_or(text);
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Address::Tcp(address));
        }
        let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
        let port = port.parse().map_err(|_| wrong())?;
        match host {
            "" | "*" => Ok(Address::Any(port)),
            "localhost" => Ok(Address::Tcp((Ipv4Addr::LOCALHOST, port).into())),
            _ => host.parse::<IpAddr>().map(|ip| Address::Tcp((ip, port).into())).map_err(|_| wrong()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Any(port) => write!(f, ":{port}"),
            Address::Tcp(address) => address.fmt(f),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Fd(fd) => write!(f, "fd:{fd}"),
        }
    }
}

/// One socket.
#[derive(Debug)]
pub(super) struct Socket {
    /// What was asked for, and how many the worker had of it.
    asked: Address,
    nth: u32,
    /// Where it is.
    pub(super) bound: Address,
    /// What listens; or, with [`Balance::Reuseport`](super::Balance::Reuseport), what keeps the address for those that do. A child that the host forks would go on to listen.
    pub(super) fd: PrivateFd,
    queue: i32,
    /// Each worker has one of its own.
    each: bool,
    /// Device and inode of a unix socket that this process has made.
    file: Option<(u64, u64)>,
    epoch: u64,
}

impl Socket {
    pub(super) fn open(asked: &Address, nth: u32, queue: i32, each: bool) -> Result<Socket> {
        let tcp = |address, only_v6| if each { net::reserve_tcp(address, only_v6) } else { net::listen_tcp(address, queue, only_v6) };
        let fd = match asked {
            Address::Any(port) => match tcp((Ipv6Addr::UNSPECIFIED, *port).into(), false) {
                // This machine has no version 6.
                Err(e) if e.errno().is_some_and(|(errno, _)| matches!(errno, libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) => {
                    tcp((Ipv4Addr::UNSPECIFIED, *port).into(), true)
                }
                other => other,
            },
            Address::Tcp(address) => tcp(*address, true),
            Address::Unix(path) => net::listen_unix(path, queue),
            Address::Fd(fd) => return net::copy(*fd).and_then(Socket::adopted).map_err(|e| e.with("listen", asked)),
        }
        .map_err(|e| e.with("listen", asked))?;
        let bound = match (net::local(fd.as_fd())?, asked) {
            (Bound::Tcp(address), Address::Any(_)) => Address::Any(address.port()),
            (Bound::Tcp(address), _) => Address::Tcp(address),
            (Bound::Unix(_), _) => asked.clone(),
        };
        let file = if let Address::Unix(path) = asked { net::file_at(path) } else { None };
        Ok(Socket { asked: asked.clone(), nth, bound, fd: PrivateFd::new(fd), queue, each, file, epoch: fork::epoch() })
    }

    /// One that this process was given, and that listens.
    fn adopted(fd: OwnedFd) -> Result<Socket> {
        let bound = match net::bound(fd.as_fd())? {
            // Whoever asks for every address means it, whatever version it is of.
            Bound::Tcp(at) if at.ip().is_unspecified() => Address::Any(at.port()),
            Bound::Tcp(at) => Address::Tcp(at),
            Bound::Unix(Some(path)) => Address::Unix(path),
            Bound::Unix(None) => return Err(Error::invalid("unix socket has no path")),
        };
        net::prepare(fd.as_fd())?;
        Ok(Socket {
            asked: bound.clone(),
            nth: 0,
            bound,
            fd: PrivateFd::new(fd),
            queue: QUEUE,
            each: false,
            file: None,
            epoch: fork::epoch(),
        })
    }

    /// What a worker gets: the socket that all share, or one of its own. Of a unix socket there is one.
    pub(super) fn for_worker(&self) -> Result<OwnedFd> {
        match net::local(self.fd.as_fd())? {
            Bound::Tcp(at) if self.each => {
                net::listen_beside(at, self.queue, !matches!(self.asked, Address::Any(_))).map_err(|e| e.with("listen", &self.bound))
            }
            _ => poll::duplicate(self.fd.as_fd()),
        }
    }

    /// Whoever asks for `address`, and has so many of it, means this one.
    fn is_for(&self, address: &Address, nth: u32) -> bool {
        if nth != self.nth {
            return false;
        }
        let port = |a: &Address| match a {
            Address::Any(port) => Some(*port),
            Address::Tcp(address) => Some(address.port()),
            Address::Unix(_) | Address::Fd(_) => None,
        };
        // A port of every address is that port of each.
        let whole = matches!(self.bound, Address::Any(_)) && port(&self.bound) == port(address);
        &self.asked == address || &self.bound == address || whole
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Only the file that was made here: another may have taken its place.
        if let (Address::Unix(path), Some(_)) = (&self.asked, self.file)
            && fork::is_current(self.epoch)
            && net::file_at(path) == self.file
        {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// All sockets of a cluster.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    all: Mutex<Vec<Arc<Socket>>>,
    /// Each worker has sockets of its own.
    each: bool,
}

impl Sockets {
    pub(super) fn new(each: bool) -> Sockets {
        Sockets { all: Mutex::default(), each }
    }

    /// The socket that listens at `address`; a new one if there is none yet.
    pub(super) fn at(&self, address: &Address, nth: u32, queue: i32) -> Result<Arc<Socket>> {
        let mut all = lock(&self.all);
        if let Some(found) = all.iter().find(|s| s.is_for(address, nth)) {
            return Ok(Arc::clone(found));
        }
        if all.len() == MAX_SOCKETS {
            return Err(Error::new(crate::error::ErrorKind::Full, "cluster has too many listening sockets").with("max", MAX_SOCKETS));
        }
        let socket = Arc::new(Socket::open(address, nth, queue, self.each)?);
        all.push(Arc::clone(&socket));
        Ok(socket)
    }

    /// That of the option `listen` with this index: those are asked for first.
    pub(super) fn nth(&self, index: i32) -> Result<Arc<Socket>> {
        let all = lock(&self.all);
        let found = usize::try_from(index).ok().and_then(|index| all.get(index)).map(Arc::clone);
        found.ok_or_else(|| Error::invalid("cluster has no such socket").with("index", index).with("sockets", all.len()))
    }

    /// A socket that this process was given.
    pub(super) fn adopt(&self, fd: OwnedFd) -> Result<Arc<Socket>> {
        let socket = Arc::new(Socket::adopted(fd)?);
        lock(&self.all).push(Arc::clone(&socket));
        Ok(socket)
    }

    /// Where they are, in the order in which they were asked for.
    pub(super) fn addresses(&self) -> Vec<Address> {
        lock(&self.all).iter().map(|s| s.bound.clone()).collect()
    }

    /// Connections that wait to be accepted; `None` where no socket says so.
    pub(super) fn waiting(&self) -> Option<u64> {
        let all = lock(&self.all);
        all.iter().filter_map(|socket| net::waiting(socket.fd.as_fd())).reduce(|a, b| a + b)
    }

    /// Nobody listens any more, as far as this process goes.
    pub(super) fn close(&self) {
        lock(&self.all).clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn addresses_are_read_and_shown() {
        for (text, shown) in [
            ("3000", ":3000"),
            (":0", ":0"),
            ("*:80", ":80"),
            ("127.0.0.1:3000", "127.0.0.1:3000"),
            ("localhost:3000", "127.0.0.1:3000"),
            ("[::1]:3000", "[::1]:3000"),
            ("tcp:10.0.0.1:80", "10.0.0.1:80"),
            ("/run/app.sock", "unix:/run/app.sock"),
            ("unix:app.sock", "unix:app.sock"),
            ("fd:3", "fd:3"),
        ] {
            let address: Address = text.parse().expect(text);
            assert_eq!(address.to_string(), shown);
            assert_eq!(shown.parse::<Address>().expect(shown), address);
        }
        for bad in ["", ":", "x", "unix:", "1.2.3.4", "1.2.3.4:x", "example.org:80", "::1:80:", "65536", "-1", "fd:", "fd:-1", "fd:x"] {
            let e = bad.parse::<Address>().expect_err(bad);
            assert!(e.to_string().contains(&format!("listen={bad}")), "{e}");
        }
    }

    #[test]
    fn one_socket_serves_all_who_mean_it() {
        let sockets = Sockets::default();
        let first = sockets.at(&Address::Any(0), 0, QUEUE).expect("bound");
        let Address::Any(port) = first.bound else { panic!("{:?}", first.bound) };
        assert_ne!(port, 0);
        for same in [Address::Any(0), Address::Any(port), Address::Tcp((Ipv4Addr::LOCALHOST, port).into())] {
            assert!(Arc::ptr_eq(&first, &sockets.at(&same, 0, QUEUE).expect("found")), "{same}");
        }
        let second = sockets.at(&Address::Any(0), 1, QUEUE).expect("bound");
        assert_ne!(second.bound, first.bound, "the second of a port of the system's choice");
        let e = sockets.at(&first.bound, 1, QUEUE).expect_err("in use");
        assert!(e.errno().is_some_and(|(errno, _)| errno == libc::EADDRINUSE), "{e}");
        let other = sockets.at(&Address::Tcp((Ipv4Addr::LOCALHOST, 0).into()), 0, QUEUE).expect("bound");
        assert!(!Arc::ptr_eq(&first, &other));
        assert_eq!(sockets.addresses(), [first.bound.clone(), second.bound.clone(), other.bound.clone()]);
        let e = Sockets::default().at(&other.bound, 0, QUEUE).expect_err("in use");
        assert!(e.errno().is_some_and(|(errno, _)| errno == libc::EADDRINUSE) && e.to_string().contains(&other.bound.to_string()), "{e}");
    }

    #[test]
    fn a_unix_socket_replaces_one_that_is_left_over_and_leaves_nothing() {
        let dir = std::env::temp_dir().join(format!("offloop-listen-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("directory");
        let at = Address::Unix(dir.join("a.sock"));
        let Address::Unix(path) = &at else { unreachable!() };
        // Left over by a process that died.
        drop(std::os::unix::net::UnixListener::bind(path).expect("bind"));
        assert!(path.exists());
        let sockets = Sockets::default();
        sockets.at(&at, 0, QUEUE).expect("replaced");
        let e = Sockets::default().at(&at, 0, QUEUE).expect_err("somebody listens");
        assert!(e.errno().is_some_and(|(errno, _)| errno == libc::EADDRINUSE), "{e}");
        sockets.close();
        assert!(!path.exists());
        // What is no socket stays.
        std::fs::write(path, "mine").expect("write");
        assert!(Sockets::default().at(&at, 0, QUEUE).is_err() && path.exists());
        std::fs::remove_dir_all(&dir).expect("clean");
    }

    #[test]
    fn a_socket_of_this_process_is_taken_as_a_copy_and_what_is_none_is_named() {
        let own = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        let (fd, at) = (own.as_raw_fd(), own.local_addr().expect("address"));
        let sockets = Sockets::default();
        let taken = sockets.at(&Address::Fd(fd), 0, QUEUE).expect("taken");
        assert_eq!(taken.bound, Address::Tcp(at));
        assert!(Arc::ptr_eq(&taken, &sockets.at(&Address::Tcp(at), 0, QUEUE).expect("found")), "by its address");
        sockets.close();
        drop(taken);
        std::net::TcpStream::connect(at).expect("its owner's listens on");
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").expect("bound");
        let file = std::fs::File::open("/dev/null").expect("opened");
        let closed = RawFd::MAX;
        for (fd, is) in
            [(closed, "fd is not open"), (file.as_raw_fd(), "is=not a socket"), (udp.as_raw_fd(), "is=a socket that does not listen")]
        {
            let e = sockets.at(&Address::Fd(fd), 0, QUEUE).expect_err(is);
            assert!(e.kind() == crate::error::ErrorKind::Invalid && e.to_string().contains(is), "{e}");
            assert!(e.to_string().contains(&format!("listen=fd:{fd}")), "{e}");
        }
    }
}
