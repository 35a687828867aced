//! A machine that has no thread for a moment: what the library accepted meanwhile ends all the same.
//!
//! The tests replace `pthread_create`, and so have a process of their own. Each runs in a child, because the threads of a
//! process outlive a test.

use offloop::pool::{Deliver, SubmitOptions, Work};
use offloop::{Error, ErrorKind, ThreadPool, Value};
use std::ffi::{c_int, c_void};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

static DENY: AtomicBool = AtomicBool::new(false);

type Create = unsafe extern "C" fn(*mut c_void, *const c_void, *const c_void, *mut c_void) -> c_int;

/// Takes the place of libc's: fails while `DENY` is set.
#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_create(thread: *mut c_void, attr: *const c_void, f: *const c_void, arg: *mut c_void) -> c_int {
    if DENY.load(Ordering::SeqCst) {
        return libc::EAGAIN;
    }
    // SAFETY: a plain look-up; the symbol is libc's function of this type, which gets what the caller gave.
    unsafe {
        let real = libc::dlsym(libc::RTLD_NEXT, c"pthread_create".as_ptr());
        assert!(!real.is_null(), "libc has threads");
        std::mem::transmute::<*mut c_void, Create>(real)(thread, attr, f, arg)
    }
}

/// Runs `f` in a process of its own.
fn alone(test: &str, f: fn()) {
    if std::env::var_os("OFFLOOP_TEST_ALONE").is_some() {
        return f();
    }
    let exe = std::env::current_exe().expect("exe");
    let child = Command::new(exe).args([test, "--exact", "--nocapture"]).env("OFFLOOP_TEST_ALONE", "1").output().expect("child");
    assert!(child.status.success(), "{}{}", String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
}

fn seven() -> Work {
    Work::call(|_| Ok(Value::Int(7)))
}

const LONG: Duration = Duration::from_secs(60);

#[test]
fn a_submit_without_the_thread_for_deadlines_is_refused_and_the_next_one_tries_again() {
    alone("a_submit_without_the_thread_for_deadlines_is_refused_and_the_next_one_tries_again", || {
        let pool = ThreadPool::builder().max_workers(1).build().expect("pool");
        DENY.store(true, Ordering::SeqCst);
        let refused = |e: Error| assert_eq!((e.kind(), e.errno()), (ErrorKind::Os, Some((libc::EAGAIN, "pthread_create"))));
        refused(pool.submit(seven(), SubmitOptions::default()).expect_err("no thread").into());
        refused(pool.submit_many(vec![seven()], &SubmitOptions::default()).expect_err("no thread").into());
        refused(pool.close_within(None, Box::new(|| ())).expect_err("no thread"));
        assert_eq!(pool.stats().submitted, 0);
        DENY.store(false, Ordering::SeqCst);
        let task = pool.submit(seven(), SubmitOptions::default()).expect("there are threads again");
        assert_eq!(task.wait(Some(LONG)).expect("value").as_int(), Some(7));
    });
}

#[test]
fn deadlines_of_tasks_accepted_without_threads_come() {
    alone("deadlines_of_tasks_accepted_without_threads_come", || {
        let pool = ThreadPool::builder().max_workers(1).build().expect("pool");
        pool.submit(seven(), SubmitOptions::default()).expect("submit").wait(Some(LONG)).expect("the worker runs");
        DENY.store(true, Ordering::SeqCst);
        let until_cancelled = Work::call(|ctx| {
            loop {
                ctx.check()?;
                std::thread::yield_now();
            }
        });
        let limit = SubmitOptions { timeout: Some(Duration::from_millis(50)), ..SubmitOptions::default() };
        let task = pool.submit(until_cancelled, limit).expect("submit");
        let e = task.wait(Some(LONG)).expect_err("ran too long").to_string();
        assert!(e.contains("the task ran too long"), "{e}");
    });
}

#[test]
fn a_callback_without_a_thread_comes_when_there_is_one() {
    alone("a_callback_without_a_thread_comes_when_there_is_one", || {
        let pool = ThreadPool::builder().max_workers(1).build().expect("pool");
        pool.submit(seven(), SubmitOptions::default()).expect("submit").wait(Some(LONG)).expect("the worker runs");
        DENY.store(true, Ordering::SeqCst);
        let (tx, rx) = mpsc::channel();
        let closed = tx.clone();
        let deliver = Deliver::Callback(Box::new(move |r| tx.send(r.is_ok()).expect("test waits")));
        let task = pool.submit(seven(), SubmitOptions { deliver, ..SubmitOptions::default() }).expect("submit");
        drop(task);
        pool.close_within(None, Box::new(move || closed.send(true).expect("test waits"))).expect("close");
        assert!(pool.wait_closed(Some(LONG)));
        assert!(rx.try_recv().is_err(), "no thread may have called it");
        DENY.store(false, Ordering::SeqCst);
        assert_eq!([(); 2].map(|()| rx.recv_timeout(LONG).expect("called")), [true, true]);
    });
}
