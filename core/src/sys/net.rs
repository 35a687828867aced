//! Sockets that listen: TCP of both versions, and unix streams. Close-on-exec and non-blocking, as their loops want them.

use super::failed;
use super::socket::own;
use crate::error::{Error, Result};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, UnixAddr, bind, getsockname, getsockopt, listen, setsockopt, socket,
    sockopt,
};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Where a socket listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bound {
    /// TCP.
    Tcp(SocketAddr),
    /// A unix socket; `None` where it has no path.
    Unix(Option<PathBuf>),
}

fn backlog(len: i32) -> Backlog {
    Backlog::new(len.clamp(0, libc::SOMAXCONN)).unwrap_or(Backlog::MAXCONN)
}

fn open(family: AddressFamily) -> Result<OwnedFd> {
    let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None).map_err(|e| failed("socket", e))?;
    own(fd.into_raw_fd(), "socket")
}

/// Listens at `address`; port 0 is one that the system chooses. `only_v6`: an address of version 6 takes no connection of version 4.
/// What is accepted has `TCP_NODELAY`, which it inherits.
///
/// # Errors
/// `Os` with `EADDRINUSE`, `EACCES`, `EADDRNOTAVAIL`, `EAFNOSUPPORT`, `EMFILE`.
pub fn listen_tcp(address: SocketAddr, queue: i32, only_v6: bool) -> Result<OwnedFd> {
    let fd = bind_tcp(address, only_v6, false)?;
    listen(&fd, backlog(queue)).map_err(|e| failed("listen", e))?;
    Ok(fd)
}

/// As [`listen_tcp`], beside others at the same address, among which the kernel spreads connections (`SO_REUSEPORT`).
///
/// # Errors
/// Those of [`listen_tcp`].
pub fn listen_beside(address: SocketAddr, queue: i32, only_v6: bool) -> Result<OwnedFd> {
    let fd = bind_tcp(address, only_v6, true)?;
    listen(&fd, backlog(queue)).map_err(|e| failed("listen", e))?;
    Ok(fd)
}

/// Keeps `address` for those that [`listen_beside`] it, and takes no connection.
///
/// # Errors
/// Those of [`listen_tcp`].
pub fn reserve_tcp(address: SocketAddr, only_v6: bool) -> Result<OwnedFd> {
    bind_tcp(address, only_v6, true)
}

fn bind_tcp(address: SocketAddr, only_v6: bool, beside: bool) -> Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = open(family)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true).map_err(|e| failed("setsockopt", e))?;
    if beside {
        setsockopt(&fd, sockopt::ReusePort, &true).map_err(|e| failed("setsockopt", e))?;
    }
    if address.is_ipv6() {
        setsockopt(&fd, sockopt::Ipv6V6Only, &only_v6).map_err(|e| failed("setsockopt", e))?;
    }
    setsockopt(&fd, sockopt::TcpNoDelay, &true).map_err(|e| failed("setsockopt", e))?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address)).map_err(|e| failed("bind", e))?;
    Ok(fd)
}

/// A connection that waits with a socket that is closed moves to another that listens beside it; else it is lost (`net.ipv4.tcp_migrate_req`).
#[must_use]
pub fn waiting_connections_move() -> bool {
    std::fs::read_to_string("/proc/sys/net/ipv4/tcp_migrate_req").is_ok_and(|text| text.trim() == "1")
}

/// Listens at `path`. What is there already is replaced if it is a socket that nobody listens at; what is no socket stays, and the error says so.
///
/// # Errors
/// `Os` with `EADDRINUSE`, `EACCES`, `ENOENT`; `Invalid` for a path that no socket can have.
pub fn listen_unix(path: &Path, queue: i32) -> Result<OwnedFd> {
    let address = UnixAddr::new(path).map_err(|_| Error::invalid("no socket can have this path").with("path", path.display()))?;
    let fd = open(AddressFamily::Unix)?;
    // Between bind and listen it would look as if it were left over, and what is left over goes once.
    let _turn = turn(path);
    let mut bound = bind(fd.as_raw_fd(), &address);
    if bound == Err(nix::errno::Errno::EADDRINUSE) && is_left_over(path, &address) {
        let _ = std::fs::remove_file(path);
        bound = bind(fd.as_raw_fd(), &address);
    }
    bound.map_err(|e| if is_other(path) { failed("bind", e).with("found", OTHER) } else { failed("bind", e) })?;
    listen(&fd, backlog(queue)).map_err(|e| failed("listen", e))?;
    Ok(fd)
}

/// What an error says of a path where [`is_other`] holds.
pub const OTHER: &str = "something that is no socket";

/// There is something that is no socket, which is nobody's to replace.
#[must_use]
pub fn is_other(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|m| !m.file_type().is_socket())
}

/// A lock of the directory of `path`, by which processes take turns; none where that cannot be had.
fn turn(path: &Path) -> Option<std::fs::File> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let dir = std::fs::File::open(dir).ok()?;
    // Anybody may have it locked, for as long as he likes.
    for _ in 0..100 {
        match dir.try_lock() {
            Ok(()) => return Some(dir),
            Err(std::fs::TryLockError::WouldBlock) => std::thread::sleep(std::time::Duration::from_millis(10)),
            Err(std::fs::TryLockError::Error(_)) => return None,
        }
    }
    None
}

/// A socket that refuses connections: its process is gone.
fn is_left_over(path: &Path, address: &UnixAddr) -> bool {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
    let refuses = || {
        open(AddressFamily::Unix).is_ok_and(|fd| nix::sys::socket::connect(fd.as_raw_fd(), address) == Err(nix::errno::Errno::ECONNREFUSED))
    };
    is_socket && refuses()
}

/// Device and inode of the file at `path`, by which its maker knows it again.
#[must_use]
pub fn file_at(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

/// A copy of an fd of this process, close-on-exec, that stays when its owner closes his.
///
/// # Errors
/// `Invalid` for a number that is no open fd, `Os` with `EMFILE`.
pub fn copy(fd: RawFd) -> Result<OwnedFd> {
    // SAFETY: a plain call; a number that is not open gives EBADF.
    let new = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    match Error::last_os("fcntl(F_DUPFD_CLOEXEC)") {
        // SAFETY: the kernel just gave us this fd.
        _ if new >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(new) }),
        e if e.errno().is_some_and(|(errno, _)| errno == libc::EBADF) => Err(Error::invalid("fd is not open")),
        e => Err(e),
    }
}

/// Where a socket that this process was given listens.
///
/// # Errors
/// `Invalid` when it is not one, or of another kind.
pub fn bound(fd: BorrowedFd<'_>) -> Result<Bound> {
    let refuse = |what| Error::invalid("fd is no socket that listens").with("is", what);
    match getsockopt(&fd, sockopt::AcceptConn) {
        Ok(true) => {}
        Ok(false) => return Err(refuse("a socket that does not listen")),
        Err(_) => return Err(refuse("not a socket")),
    }
    local(fd)
}

/// Where the connection was accepted that this fd is, as far as it is one: of any other fd, and of a socket that listens, `None`.
#[must_use]
pub fn accepted_at(fd: BorrowedFd<'_>) -> Option<Bound> {
    if getsockopt(&fd, sockopt::AcceptConn) == Ok(false) { local(fd).ok() } else { None }
}

/// Makes a socket that was inherited as those of [`listen_tcp`]: close-on-exec, non-blocking, and of what it accepts nothing waits for more to send.
///
/// # Errors
/// `Os` with `EBADF`.
pub fn prepare(fd: BorrowedFd<'_>) -> Result<()> {
    close_on_exec(fd.as_raw_fd());
    let flags = fcntl(fd, FcntlArg::F_GETFL).map(OFlag::from_bits_retain).map_err(|e| failed("fcntl(F_GETFL)", e))?;
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map_err(|e| failed("fcntl(F_SETFL)", e))?;
    // A unix socket has no such option.
    let _ = setsockopt(&fd, sockopt::TcpNoDelay, &true);
    Ok(())
}

/// Where a socket is bound.
///
/// # Errors
/// `Invalid` when it is of another family, `Os`.
pub fn local(fd: BorrowedFd<'_>) -> Result<Bound> {
    let address: SockaddrStorage = getsockname(fd.as_raw_fd()).map_err(|e| failed("getsockname", e))?;
    if let Some(v4) = address.as_sockaddr_in() {
        return Ok(Bound::Tcp(SocketAddr::V4((*v4).into())));
    }
    if let Some(v6) = address.as_sockaddr_in6() {
        return Ok(Bound::Tcp(SocketAddr::V6((*v6).into())));
    }
    match address.as_unix_addr() {
        Some(unix) => Ok(Bound::Unix(unix.path().map(Path::to_path_buf))),
        None => Err(Error::invalid("fd is a socket of another family").with("fd", fd.as_raw_fd())),
    }
}

/// Errors of `accept` with which the connection waits on.
const WAITS_ON: [i32; 4] = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];
/// Those with which there will never be one.
const NO_LISTENER: [i32; 4] = [libc::EINVAL, libc::EBADF, libc::ENOTSOCK, libc::EOPNOTSUPP];

/// Takes a connection that waits, and the address of its other end, which a unix socket has not; `None` while there is none. Close-on-exec and
/// non-blocking.
///
/// # Errors
/// `Os` with `EMFILE`, `ENFILE`, `ENOBUFS` or `ENOMEM`: then the connection waits on; with `EINVAL`, `EBADF`, `ENOTSOCK` or `EOPNOTSUPP`: nobody listens there (any more).
pub fn accept(fd: BorrowedFd<'_>) -> Result<Option<(OwnedFd, Option<IpAddr>)>> {
    loop {
        // SAFETY: plain data, all-zero is valid.
        let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
        let mut len = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        // SAFETY: `storage` has `len` writable bytes.
        let new =
            unsafe { libc::accept4(fd.as_raw_fd(), (&raw mut storage).cast(), &raw mut len, libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) };
        if new >= 0 {
            return Ok(Some((own(new, "accept4")?, address_of(&storage))));
        }
        match Error::last_os("accept4") {
            e if e.errno().is_some_and(|(errno, _)| errno == libc::EAGAIN) => return Ok(None),
            e if e.errno().is_some_and(|(errno, _)| WAITS_ON.contains(&errno) || NO_LISTENER.contains(&errno)) => return Err(e),
            // Of a connection that has failed already; accept(2) names a dozen. It is no longer in the queue.
            _ => {}
        }
    }
}

/// TCP connections that wait to be accepted from a socket; `None` for one of another kind, and one that does not listen.
#[must_use]
pub fn waiting(fd: BorrowedFd<'_>) -> Option<u64> {
    const LISTENS: u8 = 10;
    // SAFETY: plain data, all-zero is valid.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut len = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: `info` has `len` writable bytes.
    let rc = unsafe { libc::getsockopt(fd.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut info).cast(), &raw mut len) };
    // Of a socket that listens it is the length of its queue.
    (rc == 0 && info.tcpi_state == LISTENS).then_some(info.tcpi_unacked.into())
}

fn address_of(storage: &libc::sockaddr_storage) -> Option<IpAddr> {
    let at = std::ptr::from_ref(storage);
    match i32::from(storage.ss_family) {
        // SAFETY: the family says which of the structures it is; each is shorter than the storage and no more aligned.
        libc::AF_INET => Some(IpAddr::from(unsafe { (*at.cast::<libc::sockaddr_in>()).sin_addr.s_addr }.to_ne_bytes())),
        // SAFETY: as above.
        libc::AF_INET6 => Some(IpAddr::from(unsafe { (*at.cast::<libc::sockaddr_in6>()).sin6_addr.s6_addr })),
        _ => None,
    }
}

/// Keeps an inherited fd from the programs that this process starts. True if it is there.
pub fn close_on_exec(fd: i32) -> bool {
    // SAFETY: a plain call; a number that is not open gives EBADF.
    unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) == 0 }
}

/// Takes over an inherited fd.
///
/// # Safety
/// It is open, and nobody else owns it.
#[must_use]
pub unsafe fn take_over(fd: i32) -> OwnedFd {
    // SAFETY: the caller says so.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
