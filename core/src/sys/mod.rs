//! The only door to the operating system. Linux 5.10 is the floor; newer calls are probed once and have fallbacks.

pub mod clock;
pub mod eventfd;
pub mod fork;
pub mod futex;
pub mod mem;
pub mod words;
pub mod cpu;
pub mod thread;
