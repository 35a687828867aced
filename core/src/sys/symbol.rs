//! Functions that the host's program brings along, and that this library is not linked with.

use std::ffi::{CStr, c_void};
use std::ptr::NonNull;

/// Where the program, or a library that it has loaded for all, has `name`; `None` where nobody has it.
#[must_use]
pub fn find(name: &CStr) -> Option<NonNull<c_void>> {
    // SAFETY: a look-up by a text that ends.
    NonNull::new(unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_program_has_is_found() {
        assert!(find(c"getpid").is_some());
        assert_eq!(find(c"offloop_has_no_such_function"), None);
    }
}
