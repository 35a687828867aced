//! The terminal of a command: keys as they are pressed, and a screen of its own, for as long as the value lives.

use crate::error::{Error, Result};
use std::io::IsTerminal;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// The other screen, without a cursor; and back.
const ENTER: &[u8] = b"\x1b[?1049h\x1b[?25l\x1b[H\x1b[2J";
const LEAVE: &[u8] = b"\x1b[?25h\x1b[?1049l";

/// What a terminal without a size is taken to have: columns and rows.
const DEFAULT_SIZE: (usize, usize) = (80, 24);

/// Standard input and output, which are a terminal, as a screen. Dropped, all is as before.
#[derive(Debug)]
pub struct Screen {
    before: libc::termios,
}

/// Standard input and standard output are a terminal.
#[must_use]
pub fn is_there() -> bool {
    std::io::stdin().is_terminal() && std::io::stdout().is_terminal()
}

fn write(bytes: &[u8]) {
    // SAFETY: `bytes` are readable. A terminal that is gone has nothing to be put back.
    let _ = unsafe { libc::write(1, bytes.as_ptr().cast(), bytes.len()) };
}

impl Screen {
    /// Takes the terminal: keys come one by one and unseen, also those that would be signals.
    ///
    /// # Errors
    /// `Os` with `ENOTTY` where there is none.
    pub fn take() -> Result<Screen> {
        // SAFETY: plain data, all-zero is valid.
        let mut before: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: `before` is valid for writing.
        if unsafe { libc::tcgetattr(0, &raw mut before) } != 0 {
            return Err(Error::last_os("tcgetattr"));
        }
        let mut raw = before;
        raw.c_lflag &= !(libc::ICANON | libc::ECHO | libc::ISIG | libc::IEXTEN);
        raw.c_iflag &= !(libc::IXON | libc::ICRNL);
        // SAFETY: `raw` is valid for reading.
        if unsafe { libc::tcsetattr(0, libc::TCSAFLUSH, &raw const raw) } != 0 {
            return Err(Error::last_os("tcsetattr"));
        }
        write(ENTER);
        Ok(Screen { before })
    }

    /// Columns and rows.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        // SAFETY: plain data, all-zero is valid.
        let mut size: libc::winsize = unsafe { std::mem::zeroed() };
        // SAFETY: `size` is valid for writing, which this request does.
        let known = unsafe { libc::ioctl(1, libc::TIOCGWINSZ, &raw mut size) } == 0 && size.ws_col > 0 && size.ws_row > 0;
        if known { (size.ws_col.into(), size.ws_row.into()) } else { DEFAULT_SIZE }
    }

    /// The keys that were pressed, one at least: called once [`fd`](AsFd::as_fd) is readable. `None` when the terminal is gone.
    #[must_use]
    pub fn keys(&self) -> Option<Vec<u8>> {
        let mut bytes = [0; 64];
        // SAFETY: `bytes` is valid for writing.
        let n = unsafe { libc::read(self.as_fd().as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len()) };
        usize::try_from(n).ok().filter(|n| *n > 0).map(|n| bytes[..n].to_vec())
    }
}

impl AsFd for Screen {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: standard input was open when the screen was taken, and a command does not close it.
        unsafe { BorrowedFd::borrow_raw(0) }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        write(LEAVE);
        // SAFETY: `before` is valid for reading.
        unsafe { libc::tcsetattr(0, libc::TCSADRAIN, &raw const self.before) };
    }
}
