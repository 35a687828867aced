//! The metrics of other processes, summed with those of this one.

use super::Reader;
use super::export::prometheus;
use super::pool::{PoolMetrics, Sums};
use crate::wire::metrics::REGION_NAME;
use std::collections::{HashMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// Sums the pools of processes of the same user, by kind and name. What it has seen once keeps counting when its process or its pool is gone: a counter never runs backwards. A pool that
/// came and went between two looks is not in the sums.
#[derive(Debug, Default)]
pub struct Collector {
    /// By process id and inode of the region.
    regions: HashMap<(i32, u64), Reader>,
    /// Of regions whose pool is gone.
    past: Vec<(String, String, Sums)>,
}

impl Collector {
    /// Looks for pools of these processes, and takes all others as gone. A process that may not be looked into has none.
    pub fn look(&mut self, pids: &[i32]) {
        let mut found = HashSet::new();
        for pid in pids {
            for (inode, path) in regions(*pid) {
                let known = self.regions.contains_key(&(*pid, inode));
                if !known {
                    // One that a parent has left behind is counted there.
                    let reader = Reader::open(path).ok().filter(|reader| i32::try_from(reader.header().pid) == Ok(*pid));
                    let Some(reader) = reader else { continue };
                    self.regions.insert((*pid, inode), reader);
                }
                found.insert((*pid, inode));
            }
        }
        let gone: Vec<_> = self.regions.keys().filter(|key| !found.contains(key)).copied().collect();
        for reader in gone.iter().filter_map(|key| self.regions.remove(key)) {
            let sums = reader.sums();
            let header = reader.header();
            match self.past.iter_mut().find(|(kind, name, _)| (kind, name) == (&header.kind, &header.name)) {
                Some((_, _, past)) => past.merge(&sums),
                None => self.past.push((header.kind.clone(), header.name.clone(), sums)),
            }
        }
    }

    /// As [`export`](super::export) of this process's pools in Prometheus text, with those of the others in the sums, and without gauges: a pool writes those when its own process asks.
    #[must_use]
    pub fn export(&self) -> String {
        let own = PoolMetrics::live();
        let others = self.regions.values().map(|reader| (reader.header().kind.as_str(), reader.header().name.as_str(), reader.sums()));
        let mut all: Vec<_> = own.iter().map(|pool| (pool.kind(), pool.name(), pool.sums())).chain(others).collect();
        // In the same order each time.
        all.sort_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)));
        all.extend(self.past.iter().map(|(kind, name, sums)| (kind.as_str(), name.as_str(), sums.clone())));
        prometheus(&all, false)
    }
}

/// Inode and path of each region that a process has open.
fn regions(pid: i32) -> Vec<(u64, PathBuf)> {
    let Ok(fds) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    let name = format!("/memfd:{} (deleted)", REGION_NAME.to_string_lossy());
    let is_region = |path: &PathBuf| std::fs::read_link(path).is_ok_and(|target| target.as_os_str() == name.as_str());
    let paths = fds.flatten().map(|entry| entry.path()).filter(is_region);
    paths.filter_map(|path| Some((std::fs::metadata(&path).ok()?.ino(), path))).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Counter;
    use super::*;

    #[test]
    fn what_was_seen_once_keeps_counting_when_it_is_gone() {
        let pid = i32::try_from(std::process::id()).expect("a pid");
        let name = "collected";
        let row = |text: &str, metric: &str| {
            let line = text.lines().find(|line| line.starts_with(&format!("{metric}{{pool=\"{name}\"")))?;
            line.rsplit(' ').next()?.parse::<u64>().ok()
        };
        let mut collector = Collector::default();
        let pool = PoolMetrics::create("test", name, 1);
        pool.add(Counter::Completed, 5);
        collector.look(&[pid]);
        // Once as this process's own pool, and once as that of another one.
        let counts = |collector: &Collector| row(&collector.export(), Counter::Completed.metric());
        assert_eq!(counts(&collector), Some(10));
        collector.look(&[pid, pid]);
        assert_eq!(counts(&collector), Some(10), "the same region is the same pool");
        pool.add(Counter::Completed, 1);
        drop(pool);
        collector.look(&[pid, i32::MAX]);
        assert_eq!(counts(&collector), Some(6), "with what it had counted at its end");
        let next = PoolMetrics::create("test", name, 1);
        next.add(Counter::Completed, 1);
        collector.look(&[pid]);
        drop(next);
        assert_eq!(counts(&collector), Some(7));
        collector.look(&[]);
        assert_eq!(counts(&collector), Some(7), "its process is gone");
        assert_eq!(collector.regions.len(), 0);
    }
}
