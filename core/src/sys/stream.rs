//! Stream sockets of a client, TCP and unix: non-blocking, close-on-exec, never a `SIGPIPE`.

use super::{poll, socket};
use crate::error::{Error, Result};
use std::mem::{MaybeUninit, size_of};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Whom to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// TCP, v4 or v6.
    Tcp(SocketAddr),
    /// A unix socket's path.
    Unix(PathBuf),
}

/// What became of a connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connect {
    /// Under way or done: the first [`send`] or [`receive`] that does not say [`Moved::Later`] tells which.
    Begun,
    /// The listener's queue is full, and nothing tells when it is not: try again later. Unix sockets only.
    Full,
    /// Refused, with this errno.
    Failed(i32),
}

/// What became of a send or a receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// So many bytes, at least one.
    Bytes(usize),
    /// None now; the fd becomes ready later.
    Later,
    /// The other end sends nothing more.
    End,
    /// The connection is lost, or never came to be, with this errno.
    Failed(i32),
}

/// A socket for a connection to `peer`. A TCP one sends each piece at once (`TCP_NODELAY`).
///
/// # Errors
/// `Os` with `EMFILE`, `ENFILE`, `ENOBUFS`, `ENOMEM` or, without that family, `EAFNOSUPPORT`.
pub fn open(peer: &Peer) -> Result<OwnedFd> {
    let family = match peer {
        Peer::Tcp(SocketAddr::V4(_)) => libc::AF_INET,
        Peer::Tcp(SocketAddr::V6(_)) => libc::AF_INET6,
        Peer::Unix(_) => libc::AF_UNIX,
    };
    // SAFETY: a plain call.
    let fd = unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0) };
    if fd < 0 {
        return Err(Error::last_os("socket"));
    }
    // SAFETY: the kernel just gave us this fd, nobody else owns it.
    let fd = poll::above_stdio(unsafe { OwnedFd::from_raw_fd(fd) })?;
    if family != libc::AF_UNIX {
        set(fd.as_fd(), libc::IPPROTO_TCP, libc::TCP_NODELAY, 1);
    }
    Ok(fd)
}

/// Keeps the receive buffer about `bytes` long, so that an other end that is not read from soon has to wait. Before [`connect`].
pub fn keep_small(fd: BorrowedFd<'_>, bytes: i32) {
    set(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, bytes);
}

/// An option that is a wish: a kernel that refuses it changes times, not what is moved.
fn set(fd: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int, value: libc::c_int) {
    // SAFETY: `value` is readable for the call.
    unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), size_of::<libc::c_int>() as libc::socklen_t) };
}

/// Refuses a path that no socket can have.
///
/// # Errors
/// `TooLarge` for more bytes than an address has room for, `Invalid` for a NUL byte.
pub fn check_path(path: &Path) -> Result<()> {
    socket::address(path).map(drop)
}

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// Begins to connect.
#[must_use]
pub fn connect(fd: BorrowedFd<'_>, peer: &Peer) -> Connect {
    let begin = |address: *const libc::sockaddr, len: libc::socklen_t| {
        // SAFETY: `address` has `len` readable bytes, as each call below sees to.
        if unsafe { libc::connect(fd.as_raw_fd(), address, len) } == 0 {
            return Connect::Begun;
        }
        match errno() {
            libc::EINPROGRESS | libc::EINTR => Connect::Begun,
            libc::EAGAIN => Connect::Full,
            other => Connect::Failed(other),
        }
    };
    match peer {
        Peer::Tcp(SocketAddr::V4(to)) => {
            let address = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: to.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(to.ip().octets()) },
                sin_zero: [0; 8],
            };
            begin((&raw const address).cast(), size_of_val(&address) as libc::socklen_t)
        }
        Peer::Tcp(SocketAddr::V6(to)) => {
            let address = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: to.port().to_be(),
                sin6_flowinfo: to.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: to.ip().octets() },
                sin6_scope_id: to.scope_id(),
            };
            begin((&raw const address).cast(), size_of_val(&address) as libc::socklen_t)
        }
        Peer::Unix(path) => match socket::address(path) {
            Ok((address, len)) => begin((&raw const address).cast(), len),
            Err(_) => Connect::Failed(libc::ENAMETOOLONG),
        },
    }
}

/// Hands bytes to the kernel, as many as it takes. `bytes` is not empty.
#[must_use]
pub fn send(fd: BorrowedFd<'_>, bytes: &[u8]) -> Moved {
    loop {
        // SAFETY: `bytes` is readable.
        let n = unsafe { libc::send(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) };
        match usize::try_from(n) {
            Ok(0) => return Moved::Later,
            Ok(n) => return Moved::Bytes(n),
            Err(_) => match errno() {
                libc::EINTR => {}
                libc::EAGAIN => return Moved::Later,
                other => return Moved::Failed(other),
            },
        }
    }
}

/// Takes what has come, as much as `bytes` holds; it is not empty.
#[must_use]
pub fn receive(fd: BorrowedFd<'_>, bytes: &mut [u8]) -> Moved {
    loop {
        // SAFETY: `bytes` is writable.
        let n = unsafe { libc::recv(fd.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), libc::MSG_DONTWAIT) };
        match usize::try_from(n) {
            Ok(0) => return Moved::End,
            Ok(n) => return Moved::Bytes(n),
            Err(_) => match errno() {
                libc::EINTR => {}
                libc::EAGAIN => return Moved::Later,
                other => return Moved::Failed(other),
            },
        }
    }
}

/// Whether somebody accepts connections at `peer`, found out by making one, which is closed at once. Waits at most `timeout`.
///
/// # Errors
/// `Os` when there is no fd for it.
pub fn accepts(peer: &Peer, timeout: Duration) -> Result<bool> {
    let fd = open(peer)?;
    match connect(fd.as_fd(), peer) {
        // The queue of somebody who does accept.
        Connect::Full => return Ok(true),
        Connect::Failed(_) => return Ok(false),
        Connect::Begun => {}
    }
    let mut entry = [poll::writable(fd.as_raw_fd())];
    poll::wait_readable(&mut entry, Some(timeout));
    let mut error = MaybeUninit::<libc::c_int>::zeroed();
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `error` has `len` writable bytes.
    let rc = unsafe { libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ERROR, error.as_mut_ptr().cast(), &raw mut len) };
    // SAFETY: zero is valid, and the call filled it.
    Ok(rc == 0 && unsafe { error.assume_init() } == 0 && poll::is_ready(&entry[0]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;

    /// Sleeps until the socket has something to say.
    fn ready(fd: &OwnedFd) {
        poll::wait_readable(&mut [poll::readable(fd.as_raw_fd())], None);
    }

    fn opened(peer: &Peer) -> OwnedFd {
        let fd = open(peer).expect("socket");
        assert_eq!(connect(fd.as_fd(), peer), Connect::Begun);
        fd
    }

    #[test]
    fn bytes_go_both_ways_and_the_end_is_seen_over_tcp_and_unix() {
        let path = std::env::temp_dir().join(format!("offloop-stream-{}", std::process::id()));
        let unix = UnixListener::bind(&path).expect("bind");
        let mut peers = vec![Peer::Unix(path.clone())];
        let tcp: Vec<_> = ["127.0.0.1:0", "[::1]:0"].iter().filter_map(|a| TcpListener::bind(a).ok()).collect();
        peers.extend(tcp.iter().map(|l| Peer::Tcp(l.local_addr().expect("address"))));
        assert!(peers.len() > 1, "no loopback");
        for (i, peer) in peers.iter().enumerate() {
            assert!(accepts(peer, Duration::from_secs(10)).expect("probe"));
            let fd = opened(peer);
            let mut byte = [0; 16];
            let accept = || -> Box<dyn ReadWrite> {
                if i == 0 { Box::new(unix.accept().expect("accept").0) } else { Box::new(tcp[i - 1].accept().expect("accept").0) }
            };
            drop(accept()); // the probe
            let mut server = accept();
            assert_eq!(receive(fd.as_fd(), &mut byte), Moved::Later);
            poll::wait_readable(&mut [poll::writable(fd.as_raw_fd())], None);
            assert_eq!(send(fd.as_fd(), b"ping"), Moved::Bytes(4));
            server.read_exact(&mut byte[..4]).expect("read");
            server.write_all(b"pong!").expect("write");
            ready(&fd);
            assert_eq!((receive(fd.as_fd(), &mut byte), &byte[..5]), (Moved::Bytes(5), &b"pong!"[..]));
            drop(server);
            ready(&fd);
            assert_eq!(receive(fd.as_fd(), &mut byte), Moved::End);
        }
        std::fs::remove_file(path).expect("its name");
    }

    trait ReadWrite: Read + Write {}
    impl<T: Read + Write> ReadWrite for T {}

    #[test]
    fn nobody_there_is_told_by_errno() {
        let free = TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("address");
        let peer = Peer::Tcp(free);
        assert!(!accepts(&peer, Duration::from_secs(10)).expect("probe"));
        let fd = opened(&peer);
        ready(&fd);
        assert_eq!(send(fd.as_fd(), b"x"), Moved::Failed(libc::ECONNREFUSED));
        let nowhere = Peer::Unix("/nowhere/at-all".into());
        assert_eq!(connect(open(&nowhere).expect("socket").as_fd(), &nowhere), Connect::Failed(libc::ENOENT));
        assert!(!accepts(&nowhere, Duration::ZERO).expect("probe"));
        let long = PathBuf::from("x".repeat(108));
        assert!(check_path(&long).is_err() && check_path(Path::new(&"x".repeat(107))).is_ok() && check_path(Path::new("a\0b")).is_err());
        assert_eq!(connect(open(&nowhere).expect("socket").as_fd(), &Peer::Unix(long)), Connect::Failed(libc::ENAMETOOLONG));
    }

    #[test]
    fn a_small_buffer_holds_up_who_sends() {
        let (listener, big) = (TcpListener::bind("127.0.0.1:0").expect("bind"), vec![0; 64 << 20]);
        let peer = Peer::Tcp(listener.local_addr().expect("address"));
        let mut taken = [0; 2];
        for (small, taken) in [true, false].into_iter().zip(&mut taken) {
            let fd = open(&peer).expect("socket");
            if small {
                keep_small(fd.as_fd(), 4096);
            }
            assert_eq!(connect(fd.as_fd(), &peer), Connect::Begun);
            let (server, _) = listener.accept().expect("accept");
            server.set_nonblocking(true).expect("non-blocking");
            // What the kernel takes at once lies in one of the two buffers.
            let Moved::Bytes(n) = send(server.as_fd(), &big) else { panic!("nothing was taken") };
            *taken = n;
        }
        assert!(taken[0] < taken[1], "{taken:?}");
    }

    #[test]
    fn a_reset_is_no_end() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let fd = opened(&Peer::Tcp(listener.local_addr().expect("address")));
        let (server, _) = listener.accept().expect("accept");
        poll::wait_readable(&mut [poll::writable(fd.as_raw_fd())], None);
        assert_eq!(send(fd.as_fd(), b"unread"), Moved::Bytes(6));
        // Closing with something unread resets.
        ready(&OwnedFd::from(server));
        ready(&fd);
        assert_eq!(receive(fd.as_fd(), &mut [0; 4]), Moved::Failed(libc::ECONNRESET));
    }
}
