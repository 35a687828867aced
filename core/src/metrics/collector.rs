//! The metrics of other processes, summed with those of this one.

use super::Reader;
use super::export::prometheus;
use super::pool::{PoolMetrics, Sums};
use crate::wire::metrics::{Header, REGION_NAME};
use std::collections::{HashMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// Names that have rows of their own. Those that come later share one row, so that the text is bounded whatever pools are called.
const MAX_NAMES: usize = 128;
/// Kind and name of that row. No pool is of this kind.
const OTHER: &str = "other";

/// What has one row: the pools of one kind and name.
#[derive(Debug)]
struct Named {
    kind: String,
    name: String,
    /// Of regions whose pool is gone.
    past: Sums,
}

impl Named {
    fn new(kind: &str, name: &str) -> Named {
        Named { kind: kind.to_owned(), name: name.to_owned(), past: Sums::new() }
    }

    fn is(&self, header: &Header) -> bool {
        (&self.kind, &self.name) == (&header.kind, &header.name)
    }
}

/// Sums the pools of this process and of others of the same user, by kind and name. What it has seen once keeps counting when its process or its pool is gone: a counter never runs
/// backwards. A pool that came and went between two looks is not in the sums. The first 128 names have rows of their own, for good; all others are one row with the name and kind `other`.
#[derive(Debug, Default)]
pub struct Collector {
    /// By process id and inode of the region.
    regions: HashMap<(i32, u64), Reader>,
    /// In the order in which they were seen: which row a pool counts in never changes.
    names: Vec<Named>,
    /// Of the regions without a row of their own whose pool is gone.
    other: Option<Sums>,
}

impl Collector {
    /// Looks for pools of this process and of these, and takes all others as gone. What it cannot look into now, for want of a file descriptor, is as it was.
    pub fn look(&mut self, pids: &[i32]) {
        let mut found = HashSet::new();
        let own = i32::try_from(std::process::id()).unwrap_or(0);
        // Held until they are open: their fds are theirs as long as they live.
        let pools = PoolMetrics::live();
        for path in pools.iter().filter_map(|pool| pool.fd()).map(|fd| PathBuf::from(format!("/proc/self/fd/{fd}"))) {
            if let Ok(file) = std::fs::metadata(&path) {
                self.see((own, file.ino()), path, &mut found);
            }
        }
        for pid in pids.iter().filter(|pid| **pid != own) {
            match regions(*pid) {
                Some(regions) => regions.into_iter().for_each(|(inode, path)| self.see((*pid, inode), path, &mut found)),
                None => found.extend(self.regions.keys().filter(|key| key.0 == *pid)),
            }
        }
        let gone: Vec<_> = self.regions.keys().filter(|key| !found.contains(key)).copied().collect();
        for reader in gone.iter().filter_map(|key| self.regions.remove(key)) {
            let past = match self.names.iter_mut().find(|named| named.is(reader.header())) {
                Some(named) => &mut named.past,
                None => self.other.get_or_insert_with(Sums::new),
            };
            past.merge(&reader.sums());
        }
    }

    /// A region that is there, by process id and inode.
    fn see(&mut self, key: (i32, u64), path: PathBuf, found: &mut HashSet<(i32, u64)>) {
        if !self.regions.contains_key(&key) {
            // One that a parent has left behind is counted there.
            let reader = Reader::open(path).ok().filter(|reader| i32::try_from(reader.header().pid) == Ok(key.0));
            let Some(reader) = reader else { return };
            let header = reader.header();
            if self.names.len() < MAX_NAMES && !self.names.iter().any(|named| named.is(header)) {
                self.names.push(Named::new(&header.kind, &header.name));
            }
            self.regions.insert(key, reader);
        }
        found.insert(key);
    }

    /// What was found in Prometheus text, as of [`export`](super::export), and without gauges: a pool writes those when its own process asks.
    #[must_use]
    pub fn export(&self) -> String {
        let mut all: Vec<_> = self.names.iter().map(|named| (named.kind.as_str(), named.name.as_str(), named.past.clone())).collect();
        let mut other = self.other.clone();
        for reader in self.regions.values() {
            match self.names.iter().position(|named| named.is(reader.header())) {
                Some(at) => all[at].2.merge(&reader.sums()),
                None => other.get_or_insert_with(Sums::new).merge(&reader.sums()),
            }
        }
        // In the same order each time.
        all.sort_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)));
        all.extend(other.map(|sums| (OTHER, OTHER, sums)));
        prometheus(&all, false)
    }
}

/// Inode and path of each region that a process has open; `None` when that cannot be told now. A process that has ended has none.
fn regions(pid: i32) -> Option<Vec<(u64, PathBuf)>> {
    let is_over = |e: &std::io::Error| matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESRCH));
    let fds = match std::fs::read_dir(format!("/proc/{pid}/fd")) {
        Ok(fds) => fds,
        Err(e) if is_over(&e) => return Some(Vec::new()),
        Err(_) => return None,
    };
    let name = format!("/memfd:{} (deleted)", REGION_NAME.to_string_lossy());
    let mut found = Vec::new();
    for entry in fds {
        let look = |path: &PathBuf| {
            let is_region = std::fs::read_link(path)?.as_os_str() == name.as_str();
            if is_region { std::fs::metadata(path).map(|file| Some(file.ino())) } else { Ok(None) }
        };
        let path = match entry {
            Ok(entry) => entry.path(),
            Err(e) if is_over(&e) => continue,
            Err(_) => return None,
        };
        match look(&path) {
            Ok(inode) => found.extend(inode.map(|inode| (inode, path))),
            // It was closed meanwhile.
            Err(e) if is_over(&e) => {}
            Err(_) => return None,
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::super::Counter;
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Command, Stdio};

    /// Names of pools, and what they have completed.
    fn rows(collector: &Collector) -> HashMap<String, u64> {
        let before = format!("{}{{pool=\"", Counter::Completed.metric());
        let text = collector.export();
        let row = |line: &str| {
            let rest = line.strip_prefix(&before)?;
            Some((rest.split('"').next()?.to_owned(), rest.rsplit(' ').next()?.parse().ok()?))
        };
        text.lines().filter_map(row).collect()
    }

    #[test]
    fn what_was_seen_once_keeps_counting_when_it_is_gone() {
        let own = i32::try_from(std::process::id()).expect("a pid");
        let name = "collected";
        let counts = |collector: &Collector| rows(collector).get(name).copied();
        let _looking = crate::sync::lock(&crate::metrics::tests::LOOKING);
        let mut collector = Collector::default();
        let pool = PoolMetrics::create("test", name, 1);
        pool.add(Counter::Completed, 5);
        collector.look(&[]);
        assert_eq!(counts(&collector), Some(5));
        collector.look(&[own, own]);
        assert_eq!(counts(&collector), Some(5), "the same region is the same pool");
        pool.add(Counter::Completed, 1);
        drop(pool);
        assert_eq!(counts(&collector), Some(6), "nobody has looked since");
        collector.look(&[i32::MAX]);
        assert_eq!(counts(&collector), Some(6), "with what it had counted at its end");
        let next = PoolMetrics::create("test", name, 1);
        next.add(Counter::Completed, 1);
        collector.look(&[]);
        drop(next);
        assert_eq!(counts(&collector), Some(7));
        collector.look(&[]);
        assert_eq!(counts(&collector), Some(7));
        assert!(!collector.regions.values().any(|reader| reader.header().name == name));
    }

    /// A process that has a pool with five tasks, until its input ends.
    #[test]
    fn process_with_a_pool() {
        if std::env::var_os(POOL).is_none() {
            return;
        }
        let pool = PoolMetrics::create("test", POOL, 1);
        pool.add(Counter::Completed, 5);
        // Whole, whatever the harness has printed before.
        std::io::stdout().write_all(format!("\n{POOL}\n").as_bytes()).expect("a pipe");
        let _ = std::io::stdin().read_line(&mut String::new());
    }

    const POOL: &str = "pool-of-another-process";

    fn test(name: &str, env: &str) -> Command {
        let mut command = Command::new(std::env::current_exe().expect("this test"));
        command.args(["--exact", &format!("metrics::collector::tests::{name}"), "--nocapture"]).env(env, "1");
        command
    }

    const ALONE: &str = "offloop-collector-alone";

    #[test]
    fn what_cannot_be_looked_into_is_as_it_was() {
        // It takes all fds from its process.
        if std::env::var_os(ALONE).is_none() {
            let ended = test("what_cannot_be_looked_into_is_as_it_was", ALONE).output().expect("it runs");
            assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stdout));
            return;
        }
        let mut other = test("process_with_a_pool", POOL).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a process");
        let said = BufReader::new(other.stdout.take().expect("piped"));
        assert!(said.lines().any(|line| line.is_ok_and(|line| line == POOL)), "it has its pool");
        let pid = i32::try_from(other.id()).expect("a pid");
        let counts = |collector: &Collector| rows(collector).get(POOL).copied();
        let _looking = crate::sync::lock(&crate::metrics::tests::LOOKING);
        let mut collector = Collector::default();
        collector.look(&[pid]);
        assert_eq!(counts(&collector), Some(5));
        let limit = |soft: libc::rlim_t, hard| {
            // SAFETY: the structure is valid.
            assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &libc::rlimit { rlim_cur: soft, rlim_max: hard }) }, 0);
        };
        let mut before = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the structure is valid.
        assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut before) }, 0);
        limit(0, before.rlim_max);
        collector.look(&[pid]);
        limit(before.rlim_cur, before.rlim_max);
        assert_eq!(counts(&collector), Some(5), "it lives");
        collector.look(&[pid]);
        assert_eq!(counts(&collector), Some(5), "and counts once");
        drop(other.stdin.take());
        other.wait().expect("it ends");
        collector.look(&[pid]);
        assert_eq!(counts(&collector), Some(5));
        assert!(!collector.regions.keys().any(|key| key.0 == pid));
    }

    #[test]
    fn names_beyond_a_limit_share_a_row_and_lose_nothing() {
        let _looking = crate::sync::lock(&crate::metrics::tests::LOOKING);
        let mut collector = Collector::default();
        let mut last = 0;
        let all = |collector: &Collector| {
            let rows = rows(collector);
            let ours = rows.iter().filter(|(name, _)| name.starts_with("many-") || *name == OTHER);
            (ours.map(|(_, n)| n).sum::<u64>(), collector.export().len())
        };
        let mut length = 0;
        for n in 0..3 * MAX_NAMES {
            let pool = PoolMetrics::create("test", &format!("many-{n}"), 1);
            pool.add(Counter::Completed, 1);
            collector.look(&[]);
            let (sum, len) = all(&collector);
            assert!(sum > last, "{sum} after {last}");
            (last, length) = (sum, if n == 2 * MAX_NAMES { len } else { length });
        }
        collector.look(&[]);
        assert!(collector.names.len() <= MAX_NAMES);
        let (sum, len) = all(&collector);
        assert!(sum >= 3 * MAX_NAMES as u64 && len < length + 1000, "{sum} {len} {length}");
        // One that comes again counts where it has counted.
        let again = |n: usize| {
            let pool = PoolMetrics::create("test", &format!("many-{n}"), 1);
            pool.add(Counter::Completed, 1);
            pool
        };
        let (first, late) = (again(0), again(3 * MAX_NAMES - 1));
        collector.look(&[]);
        // Of other tests' pools, too.
        assert!(all(&collector).0 >= sum + 2);
        drop((first, late));
        collector.look(&[]);
        assert!(all(&collector).0 >= sum + 2);
        assert!(
            collector
                .names
                .iter()
                .filter(|named| named.name == "many-0")
                .all(|named| named.past.counters[Counter::Completed as usize] == 2)
        );
    }
}
