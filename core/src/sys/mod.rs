//! The only door to the operating system. Linux 5.10 is the floor; newer calls are probed once and have fallbacks.

#[cfg(not(target_os = "linux"))]
compile_error!("offloop needs Linux 5.10 or newer with glibc 2.31 or newer; other systems are not supported yet");
#[cfg(all(target_os = "linux", not(all(target_pointer_width = "64", target_endian = "little"))))]
compile_error!("offloop needs a 64-bit little-endian target");

pub mod cgroup;
pub mod clients;
pub mod clock;
pub mod confine;
pub mod cpu;
pub mod eventfd;
pub mod failpoint;
pub mod fifo;
pub mod files;
pub mod fork;
pub mod futex;
pub mod mem;
pub mod membarrier;
pub mod net;
pub mod ofd;
pub mod orphans;
pub mod pidfd;
pub mod pipe;
pub mod poll;
pub mod probe;
pub mod process;
pub mod signals;
pub mod socket;
pub mod stream;
pub mod symbol;
pub mod terminal;
pub mod thread;
pub mod watch;
pub mod words;

/// What a call of `nix` has failed with.
pub(crate) fn failed(call: &'static str, errno: nix::errno::Errno) -> crate::error::Error {
    crate::error::Error::os(call, errno as i32)
}
