//! A seccomp policy denies each newer system call in turn: the operation that uses it works by its fallback.
#![expect(clippy::unwrap_used, reason = "a test may")]

use offloop::supervisor::{Event, Supervisor, Zygote};
use offloop::sys::probe::{Call, probes};
use offloop::sys::process::{Exit, Spec, spawn};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

const CALLS: [Call; 6] =
    [Call::MemfdNoexecSeal, Call::ClonePidfd, Call::PidfdOpen, Call::PidfdSendSignal, Call::WaitPidfd, Call::CloseRangeCloexec];

/// `(number, argument and the bits or the value that make it the newer call)`
fn matcher(call: Call) -> (i64, Option<(u32, Match)>) {
    match call {
        Call::MemfdNoexecSeal => (libc::SYS_memfd_create, Some((1, Match::Bits(8)))),
        Call::ClonePidfd => (libc::SYS_clone, Some((0, Match::Bits(libc::CLONE_PIDFD as u32)))),
        Call::PidfdOpen => (libc::SYS_pidfd_open, None),
        Call::PidfdSendSignal => (libc::SYS_pidfd_send_signal, None),
        Call::WaitPidfd => (libc::SYS_waitid, Some((0, Match::Equals(libc::P_PIDFD)))),
        Call::CloseRangeCloexec => (libc::SYS_close_range, None),
    }
}

enum Match {
    Bits(u32),
    Equals(u32),
}

/// Denies `calls` with `errno` in every thread of this process and in its children.
fn deny(calls: &[Call], errno: i32) {
    let op = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let jump = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter { code: (libc::BPF_JMP | libc::BPF_K | code) as u16, jt, jf, k };
    let load = |offset: u32| op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset);
    let refuse = op(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | errno as u32);
    let mut program = Vec::new();
    for call in calls {
        // `seccomp_data`: number at 0, arguments from 16, 8 bytes each, low half first.
        let (number, argument) = matcher(*call);
        program.push(load(0));
        match argument {
            None => program.extend([jump(libc::BPF_JEQ, number as u32, 0, 1), refuse]),
            Some((n, Match::Bits(bits))) => {
                program.extend([jump(libc::BPF_JEQ, number as u32, 0, 3), load(16 + 8 * n), jump(libc::BPF_JSET, bits, 0, 1), refuse]);
            }
            Some((n, Match::Equals(value))) => {
                program.extend([jump(libc::BPF_JEQ, number as u32, 0, 3), load(16 + 8 * n), jump(libc::BPF_JEQ, value, 0, 1), refuse]);
            }
        }
    }
    program.push(op(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW));
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: a valid filter program that outlives the calls.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let rc = libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_TSYNC, &raw const program);
        assert_eq!(rc, 0, "{}", std::io::Error::last_os_error());
    }
}

fn denied(calls: &[Call], errno: i32) {
    let list: Vec<String> = calls.iter().map(|c| (*c as usize).to_string()).collect();
    let out = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["works_without_the_denied_calls", "--exact", "--ignored", "--nocapture"])
        .env("OFFLOOP_TEST_DENY", format!("{errno}:{}", list.join(",")))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success() && text.contains("1 passed"), "{calls:?} {errno}: {text}{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn each_newer_call_may_be_denied() {
    for errno in [libc::EPERM, libc::ENOSYS, libc::EINVAL] {
        for call in CALLS {
            // The probe of this one tells "no such flag" from "denied" by EINVAL; no kernel of the floor lacks the flag.
            if (call, errno) != (Call::ClonePidfd, libc::EINVAL) {
                denied(&[call], errno);
            }
        }
    }
}

#[test]
fn all_newer_calls_may_be_denied() {
    denied(&CALLS, libc::EPERM);
    denied(&CALLS, libc::ENOSYS);
}

#[test]
fn nothing_denied_is_the_same_test() {
    denied(&[], libc::EPERM);
}

#[test]
#[ignore = "runs in a process of its own, under a filter"]
fn works_without_the_denied_calls() {
    let Ok(what) = std::env::var("OFFLOOP_TEST_DENY") else { return };
    let (errno, list) = what.split_once(':').unwrap();
    let list: Vec<Call> = list.split(',').filter(|c| !c.is_empty()).map(|c| CALLS[c.parse::<usize>().unwrap()]).collect();
    // What this kernel lacks stays unavailable.
    let lacking: Vec<Call> = (list.is_empty()).then(probes).into_iter().flatten().filter(|p| !p.available).map(|p| p.call).collect();
    deny(&list, errno.parse().unwrap());

    // A shared buffer: made, written, attached by fd, sealed.
    let a = offloop::TransferBuffer::alloc_shared(100_000).unwrap();
    drop(a);

    // A process: runs, gets only its fds, exits with its code, can be killed and waited for.
    // SAFETY: duplicates without close-on-exec, as a careless library does.
    let careless = unsafe { OwnedFd::from_raw_fd(libc::fcntl(2, libc::F_DUPFD, 200)) };
    let mut spec = Spec::new("sh");
    let script = format!("[ ! -e /proc/self/fd/{} ] && [ -e /proc/self/fd/9 ] && exit 7", careless.as_raw_fd());
    spec.args = vec!["-c".into(), script.into()];
    spec.fds = vec![(careless.as_fd(), 9)];
    let child = spawn(&spec).unwrap();
    assert_eq!(child.wait(None).unwrap(), Some(Exit { code: Some(7), signal: None, core_dumped: false }));

    let mut spec = Spec::new("sleep");
    spec.args = vec!["1000".into()];
    let child = spawn(&spec).unwrap();
    assert_eq!(child.try_wait().unwrap(), None);
    assert_eq!(child.wait(Some(Duration::from_millis(1))).unwrap(), None);
    child.kill(libc::SIGKILL).unwrap();
    let mut p = libc::pollfd { fd: child.exit_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid pollfd.
    assert_eq!(unsafe { libc::poll(&raw mut p, 1, -1) }, 1);
    assert_eq!(child.wait(None).unwrap(), Some(Exit { code: None, signal: Some(libc::SIGKILL), core_dumped: false }));
    assert!(spawn(&Spec::new("/nonexistent/x")).is_err());

    // Workers that are no children of this process are watched by pidfds alone: without them there is no zygote.
    let (send, events) = std::sync::mpsc::channel();
    let supervisor = Supervisor::builder()
        .workers(0)
        .on_event(move |event| {
            let _ = send.send(event.clone());
        })
        .zygote(|| Ok(Zygote { launch: Spec::new("cat").into(), setup: b"setup".to_vec() }))
        .build(|_| Ok(Spec::new("cat").into()))
        .unwrap();
    let needed = [Call::PidfdOpen, Call::PidfdSendSignal, Call::WaitPidfd];
    let first = events.recv().unwrap();
    let refused = matches!(&first, Event::ZygoteRefused { text } if text.contains("pidfds"));
    assert_eq!(refused, needed.iter().any(|c| list.contains(c) || lacking.contains(c)), "{first:?}");
    supervisor.stop_now().unwrap();
    supervisor.wait_stopped(None).unwrap();

    let both = [Call::ClonePidfd, Call::PidfdOpen].iter().all(|c| list.contains(c));
    assert_eq!(child.pidfd().is_none(), both);
    for p in probes() {
        if list.contains(&p.call) {
            assert!(!p.available, "{} is denied", p.name);
        } else if list.is_empty() {
            assert_eq!(p.available, !lacking.contains(&p.call), "{}", p.name);
        }
    }
}
