//! Limits of control groups, version 1, version 2 and both at once.
//!
//! A limit binds at every level, so each file is read from the process's own group up to the root, and the tightest
//! level wins. A group that does not exist below the root is skipped: in a container without a cgroup namespace
//! `/proc/self/cgroup` names the host's path while the mount shows only the container's part of the tree.
//!
//! Formats: `Documentation/admin-guide/cgroup-v2.rst`, `Documentation/admin-guide/cgroup-v1/` in the Linux sources, and
//! `cgroups(7)`.

use std::fs;
use std::path::{Component, Path, PathBuf};

/// The control groups of this process: directories from its own group up to the root, per controller.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cgroup {
    unified: Vec<PathBuf>,
    cpu: Vec<PathBuf>,
    memory: Vec<PathBuf>,
}

/// Every directory from `mount/path` up to `mount`.
fn levels(mount: &Path, path: &str) -> Vec<PathBuf> {
    let mut dir = mount.to_path_buf();
    // A path with `..` is outside of this cgroup namespace: only the root is visible.
    if !Path::new(path).components().any(|c| c == Component::ParentDir) {
        dir.extend(Path::new(path).components().filter(|c| matches!(c, Component::Normal(_))));
    }
    dir.ancestors().take_while(|d| d.starts_with(mount)).map(Path::to_path_buf).collect()
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

impl Cgroup {
    /// The groups of this process.
    #[must_use]
    pub fn current() -> Cgroup {
        Cgroup::at(Path::new("/sys/fs/cgroup"), Path::new("/proc/self/cgroup"))
    }

    /// The groups that `proc_self_cgroup` names in the tree that is mounted at `root`. What is missing limits nothing.
    #[must_use]
    pub fn at(root: &Path, proc_self_cgroup: &Path) -> Cgroup {
        let mut found = Cgroup::default();
        for line in fs::read_to_string(proc_self_cgroup).unwrap_or_default().lines() {
            // hierarchy:controllers:path, where the path may contain colons
            let mut fields = line.splitn(3, ':');
            let (Some(hierarchy), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else { continue };
            if hierarchy == "0" && controllers.is_empty() {
                // Pure version 2 is mounted at the root, hybrid below it.
                let hybrid = root.join("unified");
                found.unified = levels(if hybrid.is_dir() { &hybrid } else { root }, path);
                continue;
            }
            // The mount is called like its controllers (`cpu,cpuacct`); distributions link or mount it by one name too.
            let mount = |name: &str| [root.join(controllers), root.join(name)].into_iter().find(|d| d.is_dir());
            for (name, dirs) in [("cpu", &mut found.cpu), ("memory", &mut found.memory)] {
                if controllers.split(',').any(|c| c == name)
                    && let Some(mount) = mount(name)
                {
                    *dirs = levels(&mount, path);
                }
            }
        }
        found
    }

    /// Cores that the quota allows, as a fraction; `None` without a quota.
    #[must_use]
    pub fn cpu_quota(&self) -> Option<f64> {
        let v2 = self.unified.iter().filter_map(|dir| {
            let text = fs::read_to_string(dir.join("cpu.max")).ok()?;
            let mut fields = text.split_whitespace();
            let quota: u64 = fields.next()?.parse().ok()?; // "max" is no number: no limit
            Some((quota, fields.next().map_or(Some(100_000), |p| p.parse().ok())?))
        });
        let v1 = self.cpu.iter().filter_map(|dir| {
            // -1 is no number of this type: no limit
            Some((number(&dir.join("cpu.cfs_quota_us"))?, number(&dir.join("cpu.cfs_period_us"))?))
        });
        v2.chain(v1)
            .filter(|(quota, period)| *quota > 0 && *period > 0)
            .map(|(quota, period)| quota as f64 / period as f64)
            .min_by(f64::total_cmp)
    }

    /// Each level that has a memory limit.
    fn memory_levels(&self) -> impl Iterator<Item = MemoryLevel<'_>> {
        fn level<'a>(dir: &'a Path, limit: &str, usage: &str, prefix: &'static str) -> Option<MemoryLevel<'a>> {
            let limit = number(&dir.join(limit))?;
            // Version 1 writes "no limit" as the largest multiple of the page size.
            let usage = (limit < 1 << 62).then(|| number(&dir.join(usage)))??;
            Some(MemoryLevel { dir, limit, usage, prefix })
        }
        let v2 = self.unified.iter().filter_map(|d| level(d, "memory.max", "memory.current", ""));
        let v1 = self.memory.iter().filter_map(|d| level(d, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"));
        v2.chain(v1)
    }

    /// The tightest memory limit in bytes; `None` without one.
    #[must_use]
    pub fn memory_limit(&self) -> Option<u64> {
        self.memory_levels().map(|l| l.limit).min()
    }

    /// Bytes that this process's own group uses, page cache included; `None` when no controller counts them.
    #[must_use]
    pub fn memory_current(&self) -> Option<u64> {
        let v2 = self.unified.iter().map(|d| d.join("memory.current"));
        let v1 = self.memory.iter().map(|d| d.join("memory.usage_in_bytes"));
        v2.chain(v1).find_map(|file| number(&file))
    }

    /// Processes of this process's own group, and of those below it, that the kernel killed because memory ran out; `None` where it does not
    /// count them (version 1 before Linux 4.13).
    #[must_use]
    pub fn oom_kills(&self) -> Option<u64> {
        let v2 = self.unified.iter().map(|d| d.join("memory.events"));
        let v1 = self.memory.iter().map(|d| d.join("memory.oom_control"));
        v2.chain(v1).find_map(|file| {
            let text = fs::read_to_string(file).ok()?;
            text.lines().find_map(|l| l.strip_prefix("oom_kill ")?.trim().parse().ok())
        })
    }

    /// Bytes that the group may take more before the kernel kills somebody; `None` without a limit.
    #[must_use]
    pub fn memory_available(&self) -> Option<u64> {
        self.memory_levels().map(|l| l.available()).min()
    }

    /// `bytes` more fit every limit. Reads less than [`Cgroup::memory_available`] where there is plenty.
    #[must_use]
    pub fn has_room_for(&self, bytes: u64) -> bool {
        self.memory_levels().all(|l| bytes <= l.limit.saturating_sub(l.usage) || bytes <= l.available())
    }
}

/// One group with a memory limit.
struct MemoryLevel<'a> {
    dir: &'a Path,
    limit: u64,
    usage: u64,
    /// Before the keys of `memory.stat` that count the groups below too.
    prefix: &'static str,
}

impl MemoryLevel<'_> {
    fn available(&self) -> u64 {
        // Page cache counts as used and is dropped before anything is killed.
        let cache = fs::read_to_string(self.dir.join("memory.stat"))
            .unwrap_or_default()
            .lines()
            .filter_map(|l| l.strip_prefix(self.prefix)?.split_once(' '))
            .filter(|(key, _)| ["inactive_file", "active_file", "slab_reclaimable"].contains(key))
            .filter_map(|(_, n)| n.trim().parse::<u64>().ok())
            .fold(0, u64::saturating_add);
        self.limit.saturating_sub(self.usage.saturating_sub(cache))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cgroup tree in a directory of its own, removed at the end.
    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str, files: &[(&str, &str)]) -> Tree {
            let root = std::env::temp_dir().join(format!("offloop-cgroup-{}-{name}", std::process::id()));
            for (path, text) in files {
                let path = root.join(path);
                fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
                fs::write(path, text).expect("write");
            }
            Tree(root)
        }

        fn cgroup(&self) -> Cgroup {
            Cgroup::at(&self.0.join("fs"), &self.0.join("proc"))
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn nothing_mounted_limits_nothing() {
        let c = Cgroup::at(Path::new("/nonexistent"), Path::new("/nonexistent"));
        assert_eq!((c.cpu_quota(), c.memory_limit(), c.memory_current(), c.memory_available()), (None, None, None, None));
    }

    #[test]
    fn version_2_takes_the_tightest_level() {
        let t = Tree::new(
            "v2",
            &[
                ("proc", "0::/a/b:c/d\n"),
                ("fs/a/cpu.max", "150000 100000\n"),
                ("fs/a/b:c/cpu.max", "max 100000\n"),
                ("fs/a/b:c/d/cpu.max", "800000 200000\n"),
                ("fs/a/memory.max", "1000000\n"),
                ("fs/a/memory.current", "900000\n"),
                ("fs/a/memory.stat", "anon 1\ninactive_file 200000\nactive_file 100000\nslab_reclaimable 7\nfile_mapped 5\n"),
                ("fs/a/b:c/memory.max", "max\n"),
                ("fs/a/b:c/memory.current", "800000\n"),
                ("fs/a/b:c/d/memory.max", "700000\n"),
                ("fs/a/b:c/d/memory.current", "10000\n"),
            ],
        );
        let c = t.cgroup();
        assert_eq!(c.cpu_quota(), Some(1.5));
        assert_eq!(c.memory_limit(), Some(700_000));
        assert_eq!(c.memory_current(), Some(10_000));
        assert_eq!(c.memory_available(), Some(1_000_000 - (900_000 - 300_007)));
        assert_eq!([100_000, 400_007, 400_008].map(|n| c.has_room_for(n)), [true, true, false]);
    }

    #[test]
    fn version_1_reads_both_ways_of_naming_a_mount() {
        let t = Tree::new(
            "v1",
            &[
                ("proc", "12:cpu,cpuacct:/pod/x\n7:memory:/pod\n1:name=systemd:/\n"),
                ("fs/cpu,cpuacct/pod/x/cpu.cfs_quota_us", "-1\n"),
                ("fs/cpu,cpuacct/pod/x/cpu.cfs_period_us", "100000\n"),
                ("fs/cpu,cpuacct/pod/cpu.cfs_quota_us", "25000\n"),
                ("fs/cpu,cpuacct/pod/cpu.cfs_period_us", "100000\n"),
                ("fs/memory/memory.limit_in_bytes", "9223372036854771712\n"),
                ("fs/memory/memory.usage_in_bytes", "5\n"),
                ("fs/memory/pod/memory.limit_in_bytes", "4096000\n"),
                ("fs/memory/pod/memory.usage_in_bytes", "4000000\n"),
                ("fs/memory/pod/memory.stat", "inactive_file 4000000\ntotal_inactive_file 1000000\n"),
            ],
        );
        let c = t.cgroup();
        assert_eq!(c.cpu_quota(), Some(0.25));
        assert_eq!((c.memory_limit(), c.memory_current(), c.memory_available()), (Some(4_096_000), Some(4_000_000), Some(1_096_000)));
    }

    #[test]
    fn a_hybrid_tree_is_read_in_both_versions() {
        let t = Tree::new(
            "hybrid",
            &[
                ("proc", "4:cpu:/j\n0::/j\n"),
                ("fs/cpu/j/cpu.cfs_quota_us", "300000\n"),
                ("fs/cpu/j/cpu.cfs_period_us", "100000\n"),
                ("fs/unified/j/memory.max", "64\n"),
                ("fs/unified/j/memory.current", "100\n"),
                ("fs/memory.max", "1\n"),
            ],
        );
        let c = t.cgroup();
        assert_eq!(c.cpu_quota(), Some(3.0));
        assert_eq!((c.memory_limit(), c.memory_available()), (Some(64), Some(0)));
    }

    #[test]
    fn a_container_that_sees_the_hosts_path_uses_its_own_root() {
        let t = Tree::new("container", &[("proc", "0::/docker/abc\n"), ("fs/cpu.max", "200000 100000\n")]);
        assert_eq!(t.cgroup().cpu_quota(), Some(2.0));
        let t = Tree::new("outside", &[("proc", "0::/../../x\n"), ("fs/cpu.max", "100000 100000\n"), ("fs/x/cpu.max", "1 100000\n")]);
        assert_eq!(t.cgroup().cpu_quota(), Some(1.0));
    }

    #[test]
    fn kills_for_want_of_memory_are_counted_by_the_own_group() {
        let events = "low 0\nhigh 3\nmax 9\noom 2\noom_kill 4\noom_group_kill 1\n";
        let t = Tree::new("oom-v2", &[("proc", "0::/a/b\n"), ("fs/a/memory.events", "oom_kill 7\n"), ("fs/a/b/memory.events", events)]);
        assert_eq!(t.cgroup().oom_kills(), Some(4));
        let control = "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n";
        let t = Tree::new("oom-v1", &[("proc", "7:memory:/pod\n"), ("fs/memory/pod/memory.oom_control", control)]);
        assert_eq!(t.cgroup().oom_kills(), Some(2));
        let t = Tree::new("oom-none", &[("proc", "0::/\n"), ("fs/memory.events", "oom 1\n")]);
        assert_eq!(t.cgroup().oom_kills(), None);
    }

    #[test]
    fn odd_files_limit_nothing() {
        let t = Tree::new(
            "odd",
            &[
                ("proc", "garbage\n0::\n5:cpu\n:::\n0::/x\n"),
                ("fs/x/cpu.max", "100000 0\n"),
                ("fs/cpu.max", "\n"),
                ("fs/x/memory.max", "-5\n"),
                ("fs/memory.max", "many\n"),
            ],
        );
        let c = t.cgroup();
        assert_eq!((c.cpu_quota(), c.memory_limit(), c.memory_available()), (None, None, None));
    }
}
