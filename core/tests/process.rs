//! Child processes: what reaches them, how they end, and every way in which they do not start.
#![expect(clippy::unwrap_used, reason = "a test may")]

use offloop::ErrorKind;
use offloop::sys::process::{Exit, Spec, spawn};
use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

fn pipe() -> (OwnedFd, OwnedFd) {
    let mut fds = [0; 2];
    // SAFETY: two writable ints; the fds are new and ours.
    unsafe {
        assert_eq!(libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC), 0);
        (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1]))
    }
}

fn sh(script: &str) -> Spec<'static> {
    let mut spec = Spec::new("/bin/sh");
    spec.args = vec!["-c".into(), script.into(), "sh".into()];
    spec
}

/// What `spec` writes to fd 1, and how it ends.
fn output(spec: Spec<'_>) -> (String, Exit) {
    let (read, write) = pipe();
    let mut spec = spec; // with the shorter lifetime of `write`
    spec.fds.push((write.as_fd(), 1));
    let child = spawn(&spec).unwrap();
    drop(spec);
    drop(write);
    let mut text = String::new();
    fs::File::from(read).read_to_string(&mut text).unwrap();
    (text, child.wait(None).unwrap().unwrap())
}

const OK: Exit = Exit { code: Some(0), signal: None, core_dumped: false };

fn killed_by(signal: i32) -> Exit {
    Exit { code: None, signal: Some(signal), core_dumped: false }
}

struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Dir {
        let dir = std::env::temp_dir().join(format!("offloop-process-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Dir(dir.canonicalize().unwrap())
    }

    fn file(&self, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs an ignored test of this file in a process of its own: it changes process-wide state.
fn isolated(test: &str) {
    let out =
        std::process::Command::new(std::env::current_exe().unwrap()).args([test, "--exact", "--ignored", "--nocapture"]).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn arguments_environment_and_directory_reach_the_child() {
    let dir = Dir::new("env");
    let mut spec = sh("printf '%s|%s|%s|%s' \"$1\" \"$OFFLOOP_X\" \"$HOME\" \"$PWD\"; exit 3");
    spec.args.push("a b\u{e9}".into());
    spec.env = Some(vec![("OFFLOOP_X".into(), "x=y".into())]);
    spec.cwd = Some(dir.0.clone());
    let (text, exit) = output(spec);
    assert_eq!(text, format!("a b\u{e9}|x=y||{}", dir.0.display()));
    assert_eq!(exit, Exit { code: Some(3), signal: None, core_dumped: false });
}

#[test]
fn the_environment_is_inherited_by_default() {
    let (text, _) = output(sh("printf %s \"$PATH\""));
    assert_eq!(OsString::from(text), std::env::var_os("PATH").unwrap());
}

#[test]
fn a_name_is_looked_for_in_the_childs_path() {
    let dir = Dir::new("path");
    dir.file("offloop-tool", "#!/bin/sh\necho found\n", 0o755);
    let other = Dir::new("path-other");
    other.file("offloop-tool", "not executable", 0o644);
    let mut spec = Spec::new("offloop-tool");
    spec.env = Some(vec![("PATH".into(), format!("/nonexistent:{}:{}", other.0.display(), dir.0.display()).into())]);
    assert_eq!(output(spec.clone()), ("found\n".into(), OK));
    spec.env = Some(vec![("PATH".into(), other.0.clone().into())]);
    let e = spawn(&spec).unwrap_err();
    assert_eq!((e.kind(), e.to_string().contains("Permission denied")), (ErrorKind::StartFailed, true), "{e}");
}

#[test]
fn fds_may_swap_their_numbers() {
    let ((ra, wa), (rb, wb)) = (pipe(), pipe());
    let (a, b) = (wa.as_raw_fd(), wb.as_raw_fd());
    // Some shells take single digits only after `>&`: go through /proc.
    let mut spec = sh(&format!("echo to-a > /proc/self/fd/{b}; echo to-b > /proc/self/fd/{a}"));
    spec.fds = vec![(wa.as_fd(), b), (wb.as_fd(), a)];
    let child = spawn(&spec).unwrap();
    assert_eq!(child.wait(None).unwrap().unwrap(), OK);
    drop(spec);
    drop((wa, wb));
    let read = |fd: OwnedFd| std::io::read_to_string(fs::File::from(fd)).unwrap();
    assert_eq!((read(ra), read(rb)), ("to-a\n".into(), "to-b\n".into()));
}

#[test]
fn no_other_fd_reaches_the_child() {
    let (read, write) = pipe();
    // SAFETY: a plain duplicate without close-on-exec, as a careless C library makes it.
    let careless = unsafe { OwnedFd::from_raw_fd(libc::fcntl(read.as_raw_fd(), libc::F_DUPFD, 50)) };
    // SAFETY: as above.
    let high = unsafe { OwnedFd::from_raw_fd(libc::fcntl(read.as_raw_fd(), libc::F_DUPFD, 900)) };
    // The shell's own fd on the directory is gone when it tests for the link.
    let mut spec = sh("for f in /proc/$$/fd/*; do [ -L $f ] && echo ${f##*/}; done; exit 0");
    spec.fds = vec![(write.as_fd(), 77), (write.as_fd(), 5)];
    let (text, exit) = output(spec);
    let mut got: Vec<u32> = text.lines().map(|l| l.parse().unwrap()).collect();
    got.sort_unstable();
    drop((careless, high));
    assert_eq!((got, exit), (vec![0, 1, 2, 5, 77], OK));
}

#[test]
fn standard_streams_reach_the_child_though_they_are_close_on_exec_here() {
    for fd in [0, 2] {
        // SAFETY: plain calls; children of other tests have them as well.
        unsafe {
            if libc::fcntl(fd, libc::F_GETFD) < 0 {
                libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
            }
            assert_eq!(libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC), 0);
        }
    }
    let (text, _) = output(sh("for n in 0 1 2; do [ -e /proc/$$/fd/$n ] && printf %s $n; done"));
    assert_eq!(text, "012");
}

#[test]
fn the_child_begins_with_default_signals() {
    // Rust's runtime ignores SIGPIPE in this process.
    let (text, _) = output(sh("grep -E '^Sig(Ign|Blk)' /proc/self/status"));
    for line in text.lines() {
        let (name, mask) = line.split_once(":\t").unwrap();
        let mask = u64::from_str_radix(mask, 16).unwrap();
        assert_eq!(mask & (1 << (libc::SIGPIPE - 1)), 0, "{line}");
        assert!(name == "SigIgn" || mask == 0, "{line}");
    }
    assert_eq!(text.lines().count(), 2);
}

#[test]
fn a_killed_child_names_its_signal() {
    let child = spawn(&sh("exec sleep 1000")).unwrap();
    assert_eq!(child.try_wait().unwrap(), None);
    assert_eq!(child.wait(Some(Duration::from_millis(1))).unwrap(), None);
    child.kill(libc::SIGKILL).unwrap();
    assert_eq!(child.wait(None).unwrap(), Some(killed_by(libc::SIGKILL)));
    assert_eq!(child.try_wait().unwrap(), Some(killed_by(libc::SIGKILL)), "the answer stays");
    child.kill(libc::SIGKILL).unwrap();
}

#[test]
fn a_child_that_exits_at_once_is_seen() {
    for _ in 0..50 {
        let child = spawn(&Spec::new("true")).unwrap();
        let mut p = libc::pollfd { fd: child.exit_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd.
        assert_eq!(unsafe { libc::poll(&raw mut p, 1, -1) }, 1);
        assert_eq!(child.try_wait().unwrap(), Some(OK));
    }
}

#[test]
fn a_bad_signal_is_an_error_of_the_system() {
    let child = spawn(&sh("exec sleep 1000")).unwrap();
    assert_eq!(child.kill(9999).unwrap_err().errno().unwrap().0, libc::EINVAL);
    child.kill(libc::SIGTERM).unwrap();
    assert_eq!(child.wait(None).unwrap(), Some(killed_by(libc::SIGTERM)));
}

#[test]
fn what_cannot_start_says_why() {
    let dir = Dir::new("fail");
    let plain = dir.file("plain", "data", 0o644);
    let orphan = dir.file("orphan", "#!/nonexistent/interpreter\n", 0o755);
    let noise = dir.file("noise", "\u{1}\u{2}", 0o755);
    let mut no_dir = sh("true");
    no_dir.cwd = Some("/nonexistent/dir".into());
    let mut twice = sh("true");
    let null = fs::File::open("/dev/null").unwrap();
    twice.fds = vec![(null.as_fd(), 4), (null.as_fd(), 4)];
    let mut negative = sh("true");
    negative.fds = vec![(null.as_fd(), -1)];
    let mut high = sh("true");
    high.fds = vec![(null.as_fd(), i32::MAX)];
    let mut odd_env = sh("true");
    odd_env.env = Some(vec![("A=B".into(), "c".into())]);
    let mut nul = sh("true");
    nul.args.push("a\0b".into());
    let mut signal = sh("true");
    signal.death_signal = Some(9999);
    let cases = [
        (Spec::new("/nonexistent/program"), ErrorKind::NotFound, "program=/nonexistent/program"),
        (Spec::new("offloop-no-such-program"), ErrorKind::NotFound, "no such program"),
        (Spec::new(plain.clone()), ErrorKind::StartFailed, "Permission denied"),
        (Spec::new(plain.join("below")), ErrorKind::NotFound, "no such program"),
        (Spec::new(dir.0.clone()), ErrorKind::StartFailed, "Permission denied"),
        (Spec::new(orphan), ErrorKind::StartFailed, "interpreter"),
        (Spec::new(noise), ErrorKind::StartFailed, "Exec format error"),
        (no_dir, ErrorKind::NotFound, "cwd=/nonexistent/dir"),
        (twice, ErrorKind::Invalid, "number=4"),
        (negative, ErrorKind::Invalid, "number=-1"),
        (high, ErrorKind::StartFailed, "step=dup2"),
        (odd_env, ErrorKind::Invalid, "name=A=B"),
        (nul, ErrorKind::Invalid, "NUL"),
        (signal, ErrorKind::StartFailed, "step=prctl(PR_SET_PDEATHSIG)"),
        (Spec::new(""), ErrorKind::Invalid, "empty"),
    ];
    for (spec, kind, text) in cases {
        let e = spawn(&spec).unwrap_err();
        assert_eq!(e.kind(), kind, "{e}");
        assert!(e.to_string().contains(text), "{e}");
    }
}

#[test]
fn the_death_signal_follows_the_thread_that_started_it() {
    let child = std::thread::spawn(|| {
        let mut spec = sh("exec sleep 1000");
        spec.death_signal = Some(libc::SIGKILL);
        spawn(&spec).unwrap()
    })
    .join()
    .unwrap();
    assert_eq!(child.wait(None).unwrap(), Some(killed_by(libc::SIGKILL)));
}

#[test]
fn group_and_niceness_are_set() {
    let mut spec = sh("cat /proc/$$/stat");
    spec.new_group = true;
    spec.confine.nice = 5;
    let (read, write) = pipe();
    spec.fds.push((write.as_fd(), 1));
    let child = spawn(&spec).unwrap();
    drop(spec);
    drop(write);
    let text = std::io::read_to_string(fs::File::from(read)).unwrap();
    assert_eq!(child.wait(None).unwrap(), Some(OK));
    // After "pid (comm) ": state ppid pgrp …; niceness is field 19 of the whole.
    let fields: Vec<i64> = text.rsplit_once(") ").unwrap().1.split_whitespace().skip(1).take(16).map(|f| f.parse().unwrap()).collect();
    assert_eq!(fields[1], i64::from(child.pid()));
    // SAFETY: a plain query.
    let own = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    assert_eq!(fields[15], i64::from((own + 5).min(19)));
}

/// The kernel keeps the status of a process that somebody else has reaped, from Linux 6.15 on.
fn keeps_exits() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut parts = release.split(['.', '-']).map(|p| p.parse::<u32>().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= (6, 15)
}

#[test]
fn a_child_that_another_part_of_the_program_reaped_is_gone() {
    let of_status = |code, signal| Exit { code, signal, core_dumped: false };
    for (script, exit) in [("exit 42", of_status(Some(42), None)), ("kill -9 $$", of_status(None, Some(9)))] {
        let child = spawn(&sh(script)).unwrap();
        let mut status = 0;
        // SAFETY: `status` is a valid out pointer.
        assert_eq!(unsafe { libc::waitpid(child.pid(), &raw mut status, 0) }, child.pid());
        child.kill(libc::SIGTERM).unwrap();
        let unknown = Exit { code: None, signal: None, core_dumped: false };
        assert_eq!(child.wait(None).unwrap(), Some(if keeps_exits() { exit } else { unknown }));
    }
}

#[test]
#[allow(clippy::disallowed_methods, reason = "what a forked child may do is tested")]
fn a_forked_process_does_not_touch_its_parents_children() {
    let child = spawn(&sh("exec sleep 1000")).unwrap();
    // SAFETY: the child makes two calls that allocate at most and leaves by `_exit`.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let kinds = [child.kill(libc::SIGKILL).err().map(|e| e.kind()), child.try_wait().err().map(|e| e.kind())];
        // SAFETY: ends the process without the parent's destructors.
        unsafe { libc::_exit(i32::from(kinds != [Some(ErrorKind::Forked); 2])) };
    }
    let mut status = 0;
    // SAFETY: `status` is a valid out pointer.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert_eq!((status, child.try_wait().unwrap()), (0, None));
    child.kill(libc::SIGKILL).unwrap();
    child.wait(None).unwrap();
}

#[test]
fn neither_success_nor_failure_leaves_anything_behind() {
    isolated("leaves_nothing_behind");
}

#[test]
#[ignore = "runs in a process of its own"]
fn leaves_nothing_behind() {
    let fds = || fs::read_dir("/proc/self/fd").unwrap().count();
    let _ = spawn(&Spec::new("true")).unwrap().wait(None).unwrap();
    let before = fds();
    for _ in 0..100 {
        assert_eq!(spawn(&Spec::new("true")).unwrap().wait(None).unwrap(), Some(OK));
        spawn(&Spec::new("/nonexistent")).unwrap_err();
    }
    assert_eq!(fds(), before);
    // SAFETY: asks for any child without taking it.
    let rc = unsafe { libc::waitid(libc::P_ALL, 0, std::ptr::null_mut(), libc::WEXITED | libc::WNOHANG | libc::WNOWAIT) };
    assert_eq!((rc, std::io::Error::last_os_error().raw_os_error()), (-1, Some(libc::ECHILD)));
}

#[test]
fn without_a_free_fd_nothing_is_started_and_metrics_still_work() {
    isolated("with_no_free_fd");
}

#[test]
#[ignore = "runs in a process of its own"]
fn with_no_free_fd() {
    use offloop::metrics::{Counter, PoolMetrics};
    use offloop::sys::eventfd::EventFd;
    let free = fs::File::open("/dev/null").unwrap().as_raw_fd();
    let old = libc::rlimit { rlim_cur: free as u64, rlim_max: 1024 };
    // SAFETY: a valid rlimit. No fd below the limit is free now.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const old) }, 0);
    assert_eq!(spawn(&Spec::new("/bin/true")).unwrap_err().errno(), Some((libc::EMFILE, "clone")));
    assert_eq!(EventFd::new().unwrap_err().errno(), Some((libc::EMFILE, "eventfd")));
    assert_eq!(offloop::TransferBuffer::alloc_shared(1).unwrap_err().errno(), Some((libc::EMFILE, "memfd_create")));
    let m = PoolMetrics::create("thread", "no fd", 2);
    m.writer(0).count(Counter::Completed, 1);
    assert_eq!((m.fd(), m.snapshot().get(Counter::Completed)), (None, 1));
    // Neither fd nor address space: still no failure.
    let tight = libc::rlimit { rlim_cur: 1, rlim_max: libc::RLIM_INFINITY };
    let mut all = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: valid rlimits.
    unsafe {
        libc::getrlimit(libc::RLIMIT_AS, &raw mut all);
        assert_eq!(libc::setrlimit(libc::RLIMIT_AS, &raw const tight), 0);
    }
    let m = PoolMetrics::create("thread", "no address space", 2);
    m.writer(1).run(7);
    // SAFETY: a valid rlimit.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const all) }, 0);
    assert_eq!(m.snapshot().run.max_ns, 7);
}

#[test]
fn a_small_file_size_limit_is_an_error_and_not_a_signal() {
    isolated("with_a_small_file_size_limit");
}

#[test]
#[ignore = "runs in a process of its own"]
fn with_a_small_file_size_limit() {
    use offloop::metrics::PoolMetrics;
    let small = libc::rlimit { rlim_cur: 8192, rlim_max: 8192 };
    // SAFETY: a valid rlimit. Going over it would end this process by SIGXFSZ.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const small) }, 0);
    assert_eq!(offloop::TransferBuffer::alloc_shared(8193).unwrap_err().errno().unwrap().0, libc::EFBIG);
    assert_eq!(offloop::TransferBuffer::alloc_shared(8192).unwrap().len(), 8192);
    assert_eq!(PoolMetrics::create("thread", "small", 1).fd(), None);
}
