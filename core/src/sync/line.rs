//! Cache lines.

use std::ops::Deref;

/// Keeps what several threads write apart from its neighbours: two lines, because they are fetched in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Line<T>(pub(crate) T);

impl<T> Deref for Line<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

/// Bytes that travel between cores together.
pub(crate) const LEN: usize = 64;

/// Says that this core is about to write the line at `at`, so that it has it when it does. Whoever writes what another core looked at last
/// waits for it otherwise, and with it for every later store. Only a hint: any address will do.
#[inline(always)]
pub(crate) fn will_write(at: *const u8) {
    // SAFETY: a prefetch neither faults nor changes what anybody sees.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    unsafe {
        // The intrinsic for it becomes a plain prefetch unless the whole program is built for newer processors; where the instruction is not
        // known it does nothing.
        std::arch::asm!("prefetchw [{}]", in(reg) at, options(nostack, preserves_flags, readonly));
    }
    // SAFETY: as above.
    #[cfg(all(target_arch = "aarch64", not(miri)))]
    unsafe {
        std::arch::asm!("prfm pstl1keep, [{}]", in(reg) at, options(nostack, preserves_flags, readonly));
    }
    #[cfg(any(miri, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
    let _ = at;
}
