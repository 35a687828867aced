//! Processes that others have left behind: the kernel makes them children of process 1 of the pid namespace, or of a subreaper
//! (`PR_SET_CHILD_SUBREAPER`), and nobody else can reap them.
//!
//! They become children of that process's first thread. What another thread has started is that thread's child, so a wait of the first thread
//! alone (`__WNOTHREAD`) takes no status away from whoever waits for a process of its own.

/// Orphans become children of the calling thread.
#[must_use]
pub fn come_here() -> bool {
    let mut subreaper: libc::c_int = 0;
    // SAFETY: plain queries, and one with a valid out pointer.
    unsafe {
        libc::prctl(libc::PR_GET_CHILD_SUBREAPER, &raw mut subreaper);
        libc::gettid() == libc::getpid() && (libc::getpid() == 1 || subreaper != 0)
    }
}

/// Reaps the children of the calling thread that have ended, without waiting: where [`come_here`] is true and the thread starts none
/// itself these are orphans. How many there were.
pub fn reap() -> usize {
    let mut reaped = 0;
    // SAFETY: a plain call that stores nothing.
    while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG | libc::__WNOTHREAD) } > 0 {
        reaped += 1;
    }
    reaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::poll;
    use crate::sys::process::{Spec, spawn};
    use std::os::fd::AsRawFd;
    use std::time::Duration;

    #[test]
    fn children_of_another_thread_are_not_taken_away() {
        let start = || {
            let mut spec = Spec::new("/bin/sh");
            spec.args = vec!["-c".into(), "exit 7".into()];
            spawn(&spec).expect("started")
        };
        let theirs = std::thread::scope(|scope| {
            let (send, made) = std::sync::mpsc::channel();
            let (over, wait) = std::sync::mpsc::channel::<()>();
            scope.spawn(move || {
                send.send(start()).expect("heard");
                // Its children pass to another thread when it ends.
                let _ = wait.recv();
            });
            let theirs = made.recv().expect("made");
            let ours = start();
            for child in [&theirs, &ours] {
                let mut entry = [poll::readable(child.exit_fd().as_raw_fd())];
                poll::wait_readable(&mut entry, Some(Duration::from_secs(60)));
                assert!(poll::is_ready(&entry[0]), "it has ended");
            }
            assert_eq!((reap(), reap()), (1, 0), "its own alone");
            let exit = theirs.wait(Some(Duration::from_secs(60))).expect("not taken away").expect("ended");
            drop(over);
            exit
        });
        assert_eq!(theirs.code, Some(7));
        assert!(!come_here(), "this is no first thread");
    }
}
