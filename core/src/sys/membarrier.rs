//! A memory barrier on every core that runs a process which agreed to it, instead of one in the path of each of its stores (membarrier(2)).

use crate::sync::atomic::{Ordering, compiler_fence};
use std::sync::OnceLock;

// `libc` has these for Android only.
const GLOBAL_EXPEDITED: libc::c_int = 1 << 1;
const REGISTER_GLOBAL_EXPEDITED: libc::c_int = 1 << 2;

fn call(command: libc::c_int) -> bool {
    // SAFETY: takes no pointers.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
}

/// Agrees, for this process and children that it forks. False where the system has no such call (Linux before 4.16, a seccomp policy).
pub fn agree() -> bool {
    static AGREED: OnceLock<bool> = OnceLock::new();
    *AGREED.get_or_init(|| call(REGISTER_GLOBAL_EXPEDITED))
}

/// A full barrier in every thread of every process that agreed: what such a thread stored before it, the caller sees after it, and
/// what the caller stored before it, such a thread sees after it. On their side a [`compiler_fence`] keeps the order. False where there is no such call.
pub fn everywhere() -> bool {
    compiler_fence(Ordering::SeqCst);
    let done = call(GLOBAL_EXPEDITED);
    compiler_fence(Ordering::SeqCst);
    done
}
