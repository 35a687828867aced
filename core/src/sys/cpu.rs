//! How many cores this process may use.

use super::cgroup::Cgroup;

/// The cores that the scheduler may put this thread on; `None` when the kernel does not say.
pub(super) fn affinity() -> Option<Vec<usize>> {
    // 1024 CPUs first; the kernel answers EINVAL when it has more.
    let mut words = 1024 / 64;
    while words <= 1 << 16 {
        let mut mask = vec![0u64; words];
        // SAFETY: `mask` has `words * 8` writable bytes.
        let got = unsafe { libc::syscall(libc::SYS_sched_getaffinity, 0, words * 8, mask.as_mut_ptr()) };
        if got > 0 {
            return Some((0..words * 64).filter(|core| mask[core / 64] >> (core % 64) & 1 == 1).collect());
        }
        if std::io::Error::last_os_error().raw_os_error() != Some(libc::EINVAL) {
            return None;
        }
        words *= 2;
    }
    None
}

/// The mask of one of these cores, the `nth` counted round; empty where there are none.
pub(super) fn mask_of_one(cores: &[usize], nth: usize) -> Vec<u64> {
    let Some(core) = cores.get(nth % cores.len().max(1)) else { return Vec::new() };
    let mut mask = vec![0; core / 64 + 1];
    mask[core / 64] = 1 << (core % 64);
    mask
}

/// Cores that this process may use: its affinity mask, bounded by the CPU quota of its control groups rounded up. At
/// least 1. Reads `/proc` and `/sys`, so ask once and keep the answer.
#[must_use]
pub fn usable_cores() -> usize {
    usable_cores_in(&Cgroup::current())
}

/// As [`usable_cores`] with the quota of `cgroup`.
#[must_use]
pub fn usable_cores_in(cgroup: &Cgroup) -> usize {
    let cores = affinity().map_or(1, |cores| cores.len());
    let quota = cgroup.cpu_quota().map_or(usize::MAX, |q| q.ceil() as usize);
    cores.min(quota).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn without_a_quota_the_affinity_counts() {
        assert_eq!(usable_cores_in(&Cgroup::default()), affinity().expect("mask").len());
    }

    #[test]
    fn a_quota_is_rounded_up_and_never_0() {
        let root = std::env::temp_dir().join(format!("offloop-cpu-{}", std::process::id()));
        fs::create_dir_all(&root).expect("mkdir");
        fs::write(root.join("proc"), "0::/\n").expect("write");
        let all = affinity().expect("mask").len();
        for (max, want) in [("1 100000", 1), ("100001 100000", 2.min(all)), ("max 100000", all), ("99999900000 100000", all)] {
            fs::write(root.join("cpu.max"), max).expect("write");
            assert_eq!(usable_cores_in(&Cgroup::at(&root, &root.join("proc"))), want, "{max}");
        }
        fs::remove_dir_all(&root).expect("rm");
    }

    #[test]
    fn a_narrowed_affinity_is_seen() {
        std::thread::spawn(|| {
            let mut mask = vec![0u64; 16];
            // SAFETY: 128 writable bytes.
            assert!(unsafe { libc::syscall(libc::SYS_sched_getaffinity, 0, 128, mask.as_mut_ptr()) } > 0);
            let first = mask.iter().position(|w| *w != 0).expect("a core");
            let bit = mask[first] & mask[first].wrapping_neg();
            mask.fill(0);
            mask[first] = bit;
            // SAFETY: 128 readable bytes; only this thread is bound.
            assert_eq!(unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, 128, mask.as_ptr()) }, 0);
            assert_eq!(usable_cores_in(&Cgroup::default()), 1);
        })
        .join()
        .expect("join");
    }
}
