//! The fork rule: in a forked child pools are empty and start again, inherited tasks and shared buffers refuse with
//! `Forked`, and nothing that the child does reaches the parent.

use offloop::pool::{OnFull, SubmitOptions, Work};
use offloop::{ErrorKind, ThreadPool, TransferBuffer, Value};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Runs `body` in a forked child; its result is the child's exit code.
#[allow(clippy::disallowed_methods, reason = "what a forked child sees is tested")]
fn in_child(body: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the child calls only offloop, whose promise after fork is what is tested, and then `_exit`.
    match unsafe { libc::fork() } {
        -1 => panic!("fork: {}", std::io::Error::last_os_error()),
        0 => {
            let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_or(99);
            // SAFETY: ends the child without running the parent's destructors or test harness.
            unsafe { libc::_exit(code) }
        }
        pid => {
            let mut status = 0;
            // SAFETY: our own child, a valid out pointer.
            assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
            if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { -libc::WTERMSIG(status) }
        }
    }
}

fn work(n: i64) -> Work {
    Work::call(move |_| Ok(Value::Int(n)))
}

#[test]
fn forks_under_load_leave_the_child_working_and_the_parent_unharmed() {
    let forks: usize = std::env::var("OFFLOOP_FORKS").ok().and_then(|v| v.parse().ok()).unwrap_or(100);
    let pool = ThreadPool::builder().max_workers(2).name("fork").build().expect("pool");
    let shared = TransferBuffer::alloc_shared(4096).expect("buffer");
    let stop = Arc::new(AtomicBool::new(false));
    let load = {
        let (pool, stop) = (pool.clone(), stop.clone());
        std::thread::spawn(move || {
            let mut n = 0u64;
            while !stop.load(Ordering::Relaxed) {
                let tasks: Vec<_> = (0..50)
                    .map(|i| pool.submit(work(i), SubmitOptions { on_full: OnFull::Wait(None), ..Default::default() }).expect("submit"))
                    .collect();
                for (i, t) in tasks.iter().enumerate() {
                    assert_eq!(t.wait(None).expect("value").as_int(), Some(i as i64));
                    n += 1;
                }
            }
            n
        })
    };
    for round in 0..forks {
        let inherited = pool
            .submit(
                Work::call(|_| {
                    std::thread::sleep(std::time::Duration::from_millis(1));
                    Ok(Value::Int(1))
                }),
                SubmitOptions::default(),
            )
            .expect("submit");
        let code = in_child(|| {
            // Whatever the parent was doing: no lock of it may be touched here.
            let ended = !inherited.is_running() && inherited.is_done() && inherited.wait_slice(std::time::Duration::ZERO);
            let (told, heard) = std::sync::mpsc::channel();
            inherited.on_done(move |task| told.send(task.wait(None)).expect("the child listens"));
            // What it came to before the fork, or nothing.
            match heard.recv().expect("a callback of a task that is done is called") {
                Ok(_) if ended => {}
                Err(e) if ended && e.kind() == ErrorKind::Forked => {}
                _ => return 1,
            }
            if inherited.wait(None).err().map(|e| e.kind()) != Some(ErrorKind::Forked) {
                return 9;
            }
            if inherited.cancel() {
                return 2;
            }
            if shared.to_vec().map_err(|e| e.kind()) != Err(ErrorKind::Forked) {
                return 3;
            }
            if pool.stats().submitted != 0 {
                return 4;
            }
            let Ok(t) = pool.submit(work(round as i64), SubmitOptions::default()) else { return 5 };
            if t.wait(None).ok().and_then(|v| v.as_int()) != Some(round as i64) {
                return 6;
            }
            if ThreadPool::default_pool()
                .and_then(|p| p.submit_op("noop", vec![], &Value::Nil, SubmitOptions::default())?.wait(None))
                .is_err()
            {
                return 7;
            }
            if pool.shutdown(None).is_err() { 8 } else { 0 }
        });
        assert_eq!(code, 0, "round {round}");
        assert_eq!(inherited.wait(None).expect("the parent's task").as_int(), Some(1));
    }
    stop.store(true, Ordering::Relaxed);
    assert!(load.join().expect("load") > 0);
    pool.shutdown(None).expect("shutdown");
    let s = pool.stats();
    assert_eq!(s.submitted, s.completed);
}
