//! Unix sockets that keep datagrams and order (`SOCK_SEQPACKET`), carry fds and say when the other end is gone.
//!
//! Every socket here is non-blocking and close-on-exec; who waits, polls.

use super::poll;
use crate::error::{Error, ErrorKind, Result};
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

/// Most fds that one datagram carries: the kernel's own limit (`SCM_MAX_FD`).
pub const MAX_FDS: usize = 253;

const KIND: libc::c_int = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;

/// What became of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It is with the kernel, fds and all.
    Whole,
    /// The other end has to read first.
    Full,
    /// There is no other end any more.
    Gone,
}

/// What [`peek`] found.
#[derive(Debug)]
pub enum Received {
    /// A datagram of so many bytes, and its fds.
    Datagram(usize, Vec<OwnedFd>),
    /// Nothing yet.
    Nothing,
    /// Nothing, and the other end is gone.
    End,
}

/// Who made the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// In this process's pid namespace; 0 where that does not reach.
    pub pid: u32,
    /// Effective, when the socket was connected.
    pub uid: u32,
}

/// This process's effective user.
#[must_use]
pub fn own_uid() -> u32 {
    // SAFETY: a plain query.
    unsafe { libc::geteuid() }
}

pub(super) fn own(fd: RawFd, call: &'static str) -> Result<OwnedFd> {
    if fd < 0 {
        return Err(Error::last_os(call));
    }
    // SAFETY: the kernel just gave us this fd, nobody else owns it.
    super::poll::above_stdio(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn last_errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// Two ends that are connected.
///
/// # Errors
/// `Os` with `EMFILE`, `ENFILE` or `ENOMEM`.
pub fn pair() -> Result<(OwnedFd, OwnedFd)> {
    let mut ends = [-1; 2];
    // SAFETY: `ends` has room for two fds.
    if unsafe { libc::socketpair(libc::AF_UNIX, KIND, 0, ends.as_mut_ptr()) } != 0 {
        return Err(Error::last_os("socketpair"));
    }
    // Both are owned before either can fail.
    let [first, second] = ends.map(|fd| own(fd, "socketpair"));
    Ok((first?, second?))
}

fn option<T>(fd: BorrowedFd<'_>, name: libc::c_int) -> Result<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` has `len` writable bytes.
    let rc = unsafe { libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, name, value.as_mut_ptr().cast(), &raw mut len) };
    if rc != 0 || len as usize != size_of::<T>() {
        return Err(Error::last_os("getsockopt"));
    }
    // SAFETY: the call filled it; callers ask for plain data, for which all-zero is valid too.
    Ok(unsafe { value.assume_init() })
}

/// Refuses what is not a connected end of the kind that this module makes.
///
/// # Errors
/// `Invalid`.
pub fn check_kind(fd: BorrowedFd<'_>) -> Result<()> {
    let refuse = |what| Error::invalid("fd is not an end of a channel").with("fd", fd.as_raw_fd()).with("is", what);
    let domain = option::<libc::c_int>(fd, libc::SO_DOMAIN).map_err(|_| refuse("not a socket"))?;
    let kind = option::<libc::c_int>(fd, libc::SO_TYPE).map_err(|_| refuse("not a socket"))?;
    let listens = option::<libc::c_int>(fd, libc::SO_ACCEPTCONN).map_err(|_| refuse("not a socket"))?;
    match (domain, kind, listens) {
        (libc::AF_UNIX, libc::SOCK_SEQPACKET, 0) => Ok(()),
        (libc::AF_UNIX, libc::SOCK_SEQPACKET, _) => Err(refuse("a listening socket")),
        _ => Err(refuse("a socket of another kind")),
    }
}

/// Makes a socket that this process inherited what sockets of this module are: close-on-exec and non-blocking.
///
/// # Errors
/// `Os`.
pub fn adopt(fd: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: plain calls on an fd that the caller owns.
    let done = unsafe {
        let flags = libc::fcntl(fd.as_raw_fd(), libc::F_GETFL);
        flags >= 0
            && libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) == 0
            && libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) == 0
    };
    if done { Ok(()) } else { Err(Error::last_os("fcntl")) }
}

/// Who connected, as the kernel says.
///
/// # Errors
/// `Os`.
pub fn peer(fd: BorrowedFd<'_>) -> Result<Credentials> {
    let cred = option::<libc::ucred>(fd, libc::SO_PEERCRED)?;
    Ok(Credentials { pid: u32::try_from(cred.pid).unwrap_or(0), uid: cred.uid })
}

/// Room for the control message of [`MAX_FDS`] fds, aligned as its header must be.
#[repr(C, align(8))]
struct Control([u8; 1056]);

const _: () = {
    // SAFETY: a plain computation.
    assert!(unsafe { libc::CMSG_SPACE((MAX_FDS * size_of::<RawFd>()) as u32) } as usize <= size_of::<Control>());
};

/// Sends one datagram, whole or not at all.
///
/// # Errors
/// `TooLarge` for more than [`MAX_FDS`] fds; `Os`: `ETOOMANYREFS` when the user has too many fds on the way, `EBADF`.
pub fn send(to: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<Sent> {
    if fds.len() > MAX_FDS {
        return Err(Error::new(ErrorKind::TooLarge, "too many fds for one message").with("fds", fds.len()).with("max_fds", MAX_FDS));
    }
    let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut control = Control([0; 1056]);
    // SAFETY: plain data, all-zero is valid.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    if !fds.is_empty() {
        let len = (size_of_val(fds)) as u32;
        message.msg_control = control.0.as_mut_ptr().cast();
        // SAFETY: a plain computation.
        message.msg_controllen = unsafe { libc::CMSG_SPACE(len) } as usize;
        // SAFETY: the control buffer has room for one header and `fds`, see `Control`; a `BorrowedFd` is a `RawFd` in memory.
        unsafe {
            let head = libc::CMSG_FIRSTHDR(&raw const message);
            (*head).cmsg_level = libc::SOL_SOCKET;
            (*head).cmsg_type = libc::SCM_RIGHTS;
            (*head).cmsg_len = libc::CMSG_LEN(len) as usize;
            std::ptr::copy_nonoverlapping(fds.as_ptr().cast::<u8>(), libc::CMSG_DATA(head), len as usize);
        }
    }
    loop {
        // SAFETY: `message` and what it points to live for the call.
        let n = unsafe { libc::sendmsg(to.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) };
        if n >= 0 {
            return Ok(Sent::Whole);
        }
        match last_errno() {
            libc::EINTR => {}
            libc::EAGAIN | libc::ENOBUFS => return Ok(Sent::Full),
            libc::EPIPE | libc::ECONNRESET | libc::ENOTCONN => return Ok(Sent::Gone),
            _ => return Err(Error::last_os("sendmsg").with("fds", fds.len())),
        }
    }
}

/// Looks at the next datagram, which stays the next: its fds are duplicates. Bytes that do not fit `bytes` are cut.
///
/// # Errors
/// `Os` with `EMFILE` when this process has no room for all of its fds; those that came are closed, and the next call finds them again.
pub fn peek(from: BorrowedFd<'_>, bytes: &mut [u8]) -> Result<Received> {
    let (received, is_cut) = next(from, bytes, libc::MSG_PEEK)?;
    match received {
        Received::Datagram(_, fds) if is_cut => Err(Error::os("recvmsg", libc::EMFILE).with("fds_received", fds.len())),
        received => Ok(received),
    }
}

/// Takes the next datagram, which no other reader gets then. Bytes that do not fit `bytes` are cut, and fds that this process has no room for are lost.
///
/// # Errors
/// `Os`.
pub fn receive(from: BorrowedFd<'_>, bytes: &mut [u8]) -> Result<Received> {
    next(from, bytes, 0).map(|(received, _)| received)
}

/// The next datagram, and whether there was no room for all of its fds.
fn next(from: BorrowedFd<'_>, bytes: &mut [u8], how: libc::c_int) -> Result<(Received, bool)> {
    let mut iov = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let mut control = Control([0; 1056]);
    // SAFETY: plain data, all-zero is valid.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = size_of::<Control>();
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC | how;
    // SAFETY: `message` and what it points to live for the call and are writable.
    let n = retry(|| unsafe { libc::recvmsg(from.as_raw_fd(), &raw mut message, flags) });
    let len = match usize::try_from(n) {
        Ok(len) => len,
        Err(_) => return nothing().map(|received| (received, false)),
    };
    let mut fds = Vec::new();
    // SAFETY: the kernel wrote `message` and the control buffer; the macros stay inside of it.
    unsafe {
        let mut head = libc::CMSG_FIRSTHDR(&raw const message);
        while !head.is_null() {
            if (*head).cmsg_level == libc::SOL_SOCKET && (*head).cmsg_type == libc::SCM_RIGHTS {
                let count = ((*head).cmsg_len - libc::CMSG_LEN(0) as usize) / size_of::<RawFd>();
                let at = libc::CMSG_DATA(head).cast::<RawFd>();
                fds.extend((0..count).map(|i| OwnedFd::from_raw_fd(at.add(i).read_unaligned())));
            }
            head = libc::CMSG_NXTHDR(&raw const message, head);
        }
    }
    // The control buffer holds every fd that a datagram can carry, so only the table of fds can have been too small.
    let is_cut = message.msg_flags & libc::MSG_CTRUNC != 0;
    // An empty datagram is never sent.
    if len == 0 && fds.is_empty() && !is_cut {
        return Ok((Received::End, false));
    }
    Ok((Received::Datagram(len, fds), is_cut))
}

/// Drops the next datagram, and the fds in it.
pub fn skip(from: BorrowedFd<'_>) {
    // SAFETY: no byte is written.
    retry(|| unsafe { libc::recv(from.as_raw_fd(), std::ptr::null_mut(), 0, libc::MSG_DONTWAIT) });
}

/// Calls again after a signal, and after a reset: an end that closes with unread datagrams makes the first call of the other one fail, and
/// what was sent before that is found by the next.
fn retry(mut call: impl FnMut() -> isize) -> isize {
    let mut was_reset = false;
    loop {
        let n = call();
        let errno = if n < 0 { last_errno() } else { 0 };
        let reset = errno == libc::ECONNRESET && !was_reset;
        was_reset |= reset;
        if errno != libc::EINTR && !reset {
            return n;
        }
    }
}

fn nothing() -> Result<Received> {
    match last_errno() {
        libc::EAGAIN => Ok(Received::Nothing),
        libc::ECONNRESET | libc::ENOTCONN => Ok(Received::End),
        _ => Err(Error::last_os("recvmsg")),
    }
}

/// Ends the connection for both ends. What was sent can still be received.
pub fn hang_up(fd: BorrowedFd<'_>) {
    // SAFETY: a plain call.
    unsafe { libc::shutdown(fd.as_raw_fd(), libc::SHUT_RDWR) };
}

/// The other end is gone, or one of the two hung up.
#[must_use]
pub fn is_hung_up(fd: BorrowedFd<'_>) -> bool {
    let mut entry = [libc::pollfd { fd: fd.as_raw_fd(), events: 0, revents: 0 }];
    poll::wait_readable(&mut entry, Some(Duration::ZERO));
    poll::is_ready(&entry[0])
}

/// A unix socket's address.
pub(super) fn address(path: &Path) -> Result<(libc::sockaddr_un, libc::socklen_t)> {
    // SAFETY: plain data, all-zero is valid.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let bytes = path.as_os_str().as_bytes();
    // One byte for the NUL.
    let max = address.sun_path.len() - 1;
    if bytes.len() > max {
        return Err(Error::new(ErrorKind::TooLarge, "path is too long for a socket")
            .with("path", path.display())
            .with("len", bytes.len())
            .with("max", max));
    }
    if bytes.contains(&0) {
        return Err(Error::invalid("path contains a NUL byte").with("path", path.display()));
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    Ok((address, (std::mem::offset_of!(libc::sockaddr_un, sun_path) + bytes.len() + 1) as libc::socklen_t))
}

/// One that is neither connected nor listens yet.
///
/// # Errors
/// `Os` with `EMFILE`, `ENFILE` or `ENOMEM`.
pub fn socket() -> Result<OwnedFd> {
    // SAFETY: a plain call.
    own(unsafe { libc::socket(libc::AF_UNIX, KIND, 0) }, "socket")
}

/// Makes a new socket listen at `path`, which does not exist yet; open to this user alone from the first moment.
///
/// # Errors
/// `TooLarge` for a path that no socket can have; `Exists`; `Os`.
pub fn listen(fd: BorrowedFd<'_>, path: &Path) -> Result<()> {
    let (address, len) = address(path)?;
    // The mode of the socket is the mode of its name.
    // SAFETY: a plain call.
    if unsafe { libc::fchmod(fd.as_raw_fd(), 0o600) } != 0 {
        return Err(Error::last_os("fchmod"));
    }
    // SAFETY: `address` has `len` readable bytes.
    if unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) } != 0 {
        return Err(match last_errno() {
            libc::EADDRINUSE => Error::new(ErrorKind::Exists, "a file of that name is there already").with("path", path.display()),
            _ => Error::last_os("bind").with("path", path.display()),
        });
    }
    // SAFETY: a plain call.
    if unsafe { libc::listen(fd.as_raw_fd(), libc::SOMAXCONN) } != 0 {
        return Err(Error::last_os("listen").with("path", path.display()));
    }
    Ok(())
}

/// Takes a connection that waits; `None` while there is none.
///
/// # Errors
/// `Os` with `EMFILE`, `ENFILE` or `ENOMEM`.
pub fn accept(fd: BorrowedFd<'_>) -> Result<Option<OwnedFd>> {
    loop {
        // SAFETY: no address is asked for.
        let new =
            unsafe { libc::accept4(fd.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) };
        if new >= 0 {
            return own(new, "accept4").map(Some);
        }
        match last_errno() {
            libc::EINTR | libc::ECONNABORTED => {}
            libc::EAGAIN => return Ok(None),
            _ => return Err(Error::last_os("accept4")),
        }
    }
}

/// Connects a new socket to who listens at `path`; false while its queue of connections is full.
///
/// # Errors
/// `NotFound` when nobody listens there, `TooLarge` for a path that no socket can have, `Os`.
pub fn connect(fd: BorrowedFd<'_>, path: &Path) -> Result<bool> {
    let (address, len) = address(path)?;
    // SAFETY: `address` has `len` readable bytes.
    if unsafe { libc::connect(fd.as_raw_fd(), (&raw const address).cast(), len) } == 0 {
        return Ok(true);
    }
    match last_errno() {
        libc::EAGAIN => Ok(false),
        libc::ENOENT | libc::ECONNREFUSED | libc::EPROTOTYPE | libc::ENOTSOCK => {
            Err(Error::new(ErrorKind::NotFound, "nobody listens for channels at that path").with("path", path.display()))
        }
        _ => Err(Error::last_os("connect").with("path", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_datagram_is_seen_twice_and_then_gone() {
        let (a, b) = pair().expect("pair");
        let null = std::fs::File::open("/dev/null").expect("open");
        assert_eq!(send(a.as_fd(), b"hello", &[null.as_fd(), null.as_fd()]).expect("send"), Sent::Whole);
        for _ in 0..2 {
            let mut bytes = [0; 8];
            let Received::Datagram(5, fds) = peek(b.as_fd(), &mut bytes).expect("peek") else { panic!("no datagram") };
            assert_eq!((&bytes[..5], fds.len()), (&b"hello"[..], 2));
        }
        skip(b.as_fd());
        assert!(matches!(peek(b.as_fd(), &mut [0; 8]).expect("peek"), Received::Nothing));
        assert!(!is_hung_up(b.as_fd()));
        drop(a);
        assert!(is_hung_up(b.as_fd()));
        assert!(matches!(peek(b.as_fd(), &mut [0; 8]).expect("peek"), Received::End));
        assert_eq!(send(b.as_fd(), b"x", &[]).expect("send"), Sent::Gone);
    }

    #[test]
    fn a_datagram_has_one_reader_even_after_the_end() {
        let (a, b) = pair().expect("pair");
        let copy = poll::duplicate(b.as_fd()).expect("duplicate");
        send(a.as_fd(), b"first", &[a.as_fd()]).expect("send");
        send(a.as_fd(), b"second", &[]).expect("send");
        assert!(matches!(receive(copy.as_fd(), &mut [0; 8]).expect("receive"), Received::Datagram(5, fds) if fds.len() == 1));
        assert!(matches!(receive(b.as_fd(), &mut [0; 8]).expect("receive"), Received::Datagram(6, _)));
        assert!(matches!(receive(b.as_fd(), &mut [0; 8]).expect("receive"), Received::Nothing));
        // What is not read when one hangs up can still be taken back.
        send(a.as_fd(), b"third", &[]).expect("send");
        send(b.as_fd(), b"answer", &[]).expect("send");
        hang_up(b.as_fd());
        drop(b);
        assert!(matches!(receive(copy.as_fd(), &mut [0; 8]).expect("receive"), Received::Datagram(5, _)));
        assert!(matches!(receive(a.as_fd(), &mut [0; 8]).expect("receive"), Received::Datagram(6, _)));
        assert!(matches!(receive(a.as_fd(), &mut [0; 8]).expect("receive"), Received::End));
        assert_eq!(send(a.as_fd(), b"x", &[]).expect("send"), Sent::Gone);
    }

    #[test]
    fn what_was_sent_before_the_end_is_received() {
        let (a, b) = pair().expect("pair");
        send(a.as_fd(), b"first", &[]).expect("send");
        send(a.as_fd(), b"last", &[]).expect("send");
        hang_up(a.as_fd());
        assert!(matches!(peek(b.as_fd(), &mut [0; 8]).expect("peek"), Received::Datagram(5, _)));
        // One that closes with something unread resets the connection.
        let (a, b) = pair().expect("pair");
        send(b.as_fd(), b"unread", &[]).expect("send");
        send(a.as_fd(), b"first", &[]).expect("send");
        send(a.as_fd(), b"last", &[]).expect("send");
        drop(a);
        skip(b.as_fd());
        assert!(matches!(peek(b.as_fd(), &mut [0; 8]).expect("peek"), Received::Datagram(4, _)));
        skip(b.as_fd());
        assert!(matches!(peek(b.as_fd(), &mut [0; 8]).expect("peek"), Received::End));
    }
}
