//! What the kernel lets a child have and do: the cores that it runs on, whose it is, its limits, and how willingly it is killed for want of memory.

use super::{cpu, failed, files};
use crate::error::{Error, Result};
use std::collections::BTreeSet;
use std::ffi::CString;
use std::ptr;

/// Of a limit: none.
pub const UNLIMITED: u64 = libc::RLIM_INFINITY;

/// The kernel's limits that may be set, by the names that `prlimit(1)` has for them.
const RESOURCES: [(&str, libc::__rlimit_resource_t); 10] = [
    ("as", libc::RLIMIT_AS),
    ("core", libc::RLIMIT_CORE),
    ("cpu", libc::RLIMIT_CPU),
    ("data", libc::RLIMIT_DATA),
    ("fsize", libc::RLIMIT_FSIZE),
    ("memlock", libc::RLIMIT_MEMLOCK),
    ("nofile", libc::RLIMIT_NOFILE),
    ("nproc", libc::RLIMIT_NPROC),
    ("rss", libc::RLIMIT_RSS),
    ("stack", libc::RLIMIT_STACK),
];

/// Everything that is not said is as it is of the parent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Confine {
    /// Added to the niceness; a lower one takes privileges.
    pub nice: i32,
    /// The only core that it runs on: that one of the usable ones, counted round.
    pub cpu: Option<usize>,
    /// Whose it is. It has no supplementary groups then. Another user or group than the parent's takes privileges.
    pub uid: Option<u32>,
    /// Its group; without it that of the parent.
    pub gid: Option<u32>,
    /// Soft and hard limits by name: `as`, `core`, `cpu`, `data`, `fsize`, `memlock`, `nofile`, `nproc`, `rss`, `stack`, in the kernel's units (bytes, seconds, numbers); [`UNLIMITED`]: none.
    /// To raise a hard limit takes privileges.
    pub limits: Vec<(String, u64)>,
    /// `oom_score_adj`, −1,000 to 1,000: how much rather than others it is killed when memory runs out. A lower one than the parent's takes privileges.
    pub oom_score: Option<i32>,
}

/// What the child itself applies: nothing of it allocates.
#[derive(Debug, Default)]
pub(super) struct Prepared {
    nice: i32,
    cpus: Vec<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    limits: Vec<(libc::__rlimit_resource_t, libc::rlimit)>,
    oom_score: Option<CString>,
}

impl Confine {
    /// Checks what needs no process.
    ///
    /// # Errors
    /// `Invalid`, naming the option, its value and the limits.
    pub fn check(&self) -> Result<()> {
        for (name, _) in &self.limits {
            resource(name)?;
        }
        if let Some(n) = self.oom_score.filter(|n| !(-1000..=1000).contains(n)) {
            let e = Error::invalid("option is out of range").with("option", "oom_score").with("value", n);
            return Err(e.with("min", -1000).with("max", 1000));
        }
        for (option, id) in [("uid", self.uid), ("gid", self.gid)] {
            // −1 is "no change" to the kernel.
            if id == Some(u32::MAX) {
                return Err(Error::invalid("option is out of range")
                    .with("option", option)
                    .with("value", u32::MAX)
                    .with("max", u32::MAX - 1));
            }
        }
        Ok(())
    }

    pub(super) fn prepare(&self) -> Result<Prepared> {
        self.check()?;
        let limits = self.limits.iter().map(|(name, n)| Ok((resource(name)?, libc::rlimit { rlim_cur: *n, rlim_max: *n })));
        let cpus = match (self.cpu, cpu::affinity()) {
            (Some(nth), Some(all)) => cpu::mask_of_one(&all, nth),
            _ => Vec::new(),
        };
        let oom_score = self.oom_score.map(|n| CString::new(n.to_string()).expect("digits"));
        let former = files::for_children().map(|limit| (libc::RLIMIT_NOFILE, limit));
        // One that is said comes later, and counts.
        let limits = former.map(Ok).into_iter().chain(limits).collect::<Result<_>>()?;
        Ok(Prepared { nice: self.nice, cpus, uid: self.uid, gid: self.gid, limits, oom_score })
    }
}

/// Puts all threads of a process on the core of this number, as [`Confine::cpu`] does. What the kernel refuses stays where it is.
pub(crate) fn pin(pid: i32, nth: usize) {
    let Some(all) = cpu::affinity() else { return };
    let mask = cpu::mask_of_one(&all, nth);
    let mut seen = BTreeSet::new();
    // Once more for those that one had started before it was put there.
    while let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) {
        let ids = tasks.flatten().filter_map(|task| task.file_name().to_str()?.parse::<libc::pid_t>().ok());
        let fresh: Vec<libc::pid_t> = ids.filter(|id| seen.insert(*id)).collect();
        if fresh.is_empty() {
            return;
        }
        for id in fresh {
            // SAFETY: the mask has as many readable bytes as are said.
            unsafe { libc::syscall(libc::SYS_sched_setaffinity, id, mask.len() * 8, mask.as_ptr()) };
        }
    }
}

fn resource(name: &str) -> Result<libc::__rlimit_resource_t> {
    RESOURCES.iter().find(|(known, _)| *known == name).map(|(_, resource)| *resource).ok_or_else(|| {
        let names = RESOURCES.map(|(known, _)| known).join(" ");
        Error::invalid("there is no such limit").with("limit", name).with("want", names)
    })
}

impl Prepared {
    /// Applies all; the name of the step that failed, with errno set. Allocates nothing, cannot panic.
    ///
    /// # Safety
    /// In a child that has not exec'ed yet, which may share its memory with its parent: system calls themselves, because libc's functions for ids would change those of the parent's threads.
    pub(super) unsafe fn apply(&self) -> std::result::Result<(), &'static str> {
        // SAFETY: system calls with pointers into `self`.
        unsafe {
            if self.nice != 0 {
                *libc::__errno_location() = 0;
                let now = libc::getpriority(libc::PRIO_PROCESS, 0);
                if libc::setpriority(libc::PRIO_PROCESS, 0, now.saturating_add(self.nice).clamp(-20, 19)) != 0 {
                    return Err("setpriority");
                }
            }
            if let Some(text) = &self.oom_score {
                let fd = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
                let len = text.as_bytes().len();
                if fd < 0 || libc::write(fd, text.as_ptr().cast(), len) != len as isize {
                    return Err("write(/proc/self/oom_score_adj)");
                }
                libc::close(fd);
            }
            if !self.cpus.is_empty() && libc::syscall(libc::SYS_sched_setaffinity, 0, self.cpus.len() * 8, self.cpus.as_ptr()) < 0 {
                return Err("sched_setaffinity");
            }
            for (resource, limit) in &self.limits {
                if libc::syscall(libc::SYS_prlimit64, 0, *resource, &raw const *limit, ptr::null_mut::<libc::rlimit>()) != 0 {
                    return Err("prlimit");
                }
            }
            self.become_other()
        }
    }

    /// # Safety
    /// As [`apply`](Self::apply).
    unsafe fn become_other(&self) -> std::result::Result<(), &'static str> {
        if self.uid.is_none() && self.gid.is_none() {
            return Ok(());
        }
        // SAFETY: system calls without memory.
        unsafe {
            let same = self.uid.is_none_or(|uid| uid == libc::geteuid()) && self.gid.is_none_or(|gid| gid == libc::getegid());
            if libc::syscall(libc::SYS_setgroups, 0, ptr::null::<libc::gid_t>()) != 0 && !same {
                return Err("setgroups");
            }
            if let Some(gid) = self.gid
                && libc::syscall(libc::SYS_setresgid, gid, gid, gid) != 0
            {
                return Err("setresgid");
            }
            if let Some(uid) = self.uid
                && libc::syscall(libc::SYS_setresuid, uid, uid, uid) != 0
            {
                return Err("setresuid");
            }
        }
        Ok(())
    }
}

/// A limit as people write it: `nofile=1024`, `core=unlimited`.
///
/// # Errors
/// `Invalid` for what is none.
pub fn parse_limit(text: &str) -> Result<(String, u64)> {
    let wrong = || Error::invalid("not a limit: NAME=NUMBER or NAME=unlimited").with("limit", text);
    let (name, number) = text.split_once('=').ok_or_else(wrong)?;
    resource(name)?;
    let number = if number == "unlimited" { UNLIMITED } else { number.parse().map_err(|_| wrong())? };
    Ok((name.to_owned(), number))
}

/// A user and a group, each by name or number: `www-data`, `www-data:adm`, `33:33`. Without a group it is the user's own.
///
/// # Errors
/// `NotFound` for one that the system does not know; `Os`.
pub fn parse_user(text: &str) -> Result<(u32, u32)> {
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    let found = match user.parse::<u32>() {
        Ok(uid) => nix::unistd::User::from_uid(uid.into())
            .map_err(|e| failed("getpwuid", e))?
            .map(|u| (u.uid.as_raw(), u.gid.as_raw()))
            .or(Some((uid, uid))),
        Err(_) => nix::unistd::User::from_name(user).map_err(|e| failed("getpwnam", e))?.map(|u| (u.uid.as_raw(), u.gid.as_raw())),
    };
    let unknown = |what: &'static str, name: &str| {
        Error::new(crate::error::ErrorKind::NotFound, "the system knows no such user or group").with(what, name)
    };
    let (uid, own) = found.ok_or_else(|| unknown("user", user))?;
    let gid = match group {
        None => own,
        Some(group) => match group.parse::<u32>() {
            Ok(gid) => gid,
            Err(_) => nix::unistd::Group::from_name(group)
                .map_err(|e| failed("getgrnam", e))?
                .ok_or_else(|| unknown("group", group))?
                .gid
                .as_raw(),
        },
    };
    Ok((uid, gid))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process::{Spec, spawn};
    use std::os::fd::AsFd;

    /// What a shell prints that is confined so.
    fn says(confine: Confine, script: &str) -> Result<String> {
        let (read, write) = std::io::pipe().expect("pipe");
        let mut spec = Spec::new("/bin/sh");
        spec.args = vec!["-c".into(), script.into()];
        spec.fds = vec![(write.as_fd(), 1)];
        spec.confine = confine;
        let child = spawn(&spec)?;
        drop(spec);
        drop(write);
        let text = std::io::read_to_string(read).expect("its output");
        child.wait(None)?;
        Ok(text.trim().to_owned())
    }

    #[test]
    fn a_child_has_what_it_was_given() {
        let limits = vec![("nofile".to_owned(), 77), ("core".to_owned(), 0)];
        let confine = Confine { nice: 3, limits, oom_score: Some(500), ..Confine::default() };
        let script = "ulimit -Sn; ulimit -Hn; ulimit -c; cat /proc/self/oom_score_adj; nice";
        // SAFETY: a plain query.
        let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) } + 3;
        assert_eq!(says(confine, script).expect("started"), format!("77\n77\n0\n500\n{nice}"));
        for nth in 0..3 {
            let all = cpu::affinity().expect("cores");
            let script = "grep Cpus_allowed_list /proc/self/status";
            let seen = says(Confine { cpu: Some(nth), ..Confine::default() }, script).expect("started");
            let one: usize = seen.split_whitespace().last().expect("a core").parse().expect("one core");
            assert_eq!(one, all[nth % all.len()]);
        }
    }

    #[test]
    fn a_child_may_be_somebody_elses() {
        // SAFETY: plain queries.
        let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
        let script = "id -u; id -g; id -G";
        let same = Confine { uid: Some(uid), gid: Some(gid), ..Confine::default() };
        assert!(says(same, script).expect("started").starts_with(&format!("{uid}\n{gid}\n")));
        let other = Confine { uid: Some(65_534), gid: Some(65_533), ..Confine::default() };
        if uid == 0 {
            assert_eq!(says(other, script).expect("started"), "65534\n65533\n65533");
        } else {
            let e = says(other, script).expect_err("not allowed");
            assert!(e.to_string().contains("setgroups") && e.to_string().contains("program=/bin/sh"), "{e}");
        }
        // The parent is who it was.
        // SAFETY: plain queries.
        assert_eq!(unsafe { (libc::geteuid(), libc::getegid()) }, (uid, gid));
    }

    #[test]
    fn texts_are_read() {
        assert_eq!(parse_limit("nofile=1024").expect("limit"), ("nofile".to_owned(), 1024));
        assert_eq!(parse_limit("core=unlimited").expect("limit").1, UNLIMITED);
        for bad in ["nofile", "nofile=", "nofile=-1", "nofile=many", "files=3", "=3"] {
            assert!(parse_limit(bad).expect_err(bad).to_string().contains("limit="), "{bad}");
        }
        assert_eq!(parse_user("root").expect("user"), (0, 0));
        assert_eq!(parse_user("0:root").expect("user"), (0, 0));
        assert_eq!(parse_user("4000000:17").expect("numbers"), (4_000_000, 17));
        for bad in ["nobody-of-this-name", "root:no-such-group", ""] {
            assert!(parse_user(bad).is_err(), "{bad}");
        }
        for (bad, name) in [
            (Confine { oom_score: Some(1001), ..Confine::default() }, "oom_score"),
            (Confine { uid: Some(u32::MAX), ..Confine::default() }, "uid"),
            (Confine { limits: vec![("files".into(), 1)], ..Confine::default() }, "limit=files"),
        ] {
            assert!(bad.check().expect_err(name).to_string().contains(name));
        }
    }
}
