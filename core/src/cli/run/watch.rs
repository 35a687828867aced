//! `--watch`: what changes below a directory, for a reload while one develops. By inotify, so nothing is looked at where nothing happens.
//!
//! A file is saved by a write in place, or by a rename over it; a directory comes anew from a checkout. So what is named is found by its name, in the directory that it is in, or in the
//! nearest one that is there.

use crate::error::{Error, ErrorKind, Result};
use crate::sys::failed;
use crate::sys::poll::Epoll;
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// An editor's save is several changes, and a checkout many: a reload comes when there was none for so long.
const QUIET: Duration = Duration::from_millis(100);
/// Until the next attempt while a reload is under way, or the cluster starts.
const AGAIN: Duration = Duration::from_millis(200);
/// Reloads in a row because of changes that came while workers started or ended: whoever made them will make the next one, too.
const IN_A_ROW: u32 = 5;
/// Paths that are kept of one change, and of those that workers make themselves.
const KEPT: usize = 16;
const KEPT_OWN: usize = 1024;
/// Attempts to find what comes and goes while it is looked for.
const ATTEMPTS: usize = 8;
/// Directories that have no source: those of packages, caches and builds.
const LEFT_OUT: [&str; 5] = ["node_modules", "__pycache__", "target", "venv", "dist"];
/// Endings of what programs write as they run, and editors as one edits.
const WRITTEN: [&str; 10] = ["log", "pid", "sock", "tmp", "db", "sqlite", "out", "pyc", "swp", "swx"];

const CHANGES: AddWatchFlags = AddWatchFlags::IN_CLOSE_WRITE
    .union(AddWatchFlags::IN_CREATE)
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_MOVED_FROM)
    .union(AddWatchFlags::IN_MOVED_TO)
    .union(AddWatchFlags::IN_MOVE_SELF);
const COMES: AddWatchFlags = AddWatchFlags::IN_CREATE.union(AddWatchFlags::IN_MOVED_TO);
const GOES: AddWatchFlags = AddWatchFlags::IN_DELETE.union(AddWatchFlags::IN_MOVED_FROM);

/// A directory that is looked at.
struct Directory {
    path: PathBuf,
    /// All sources in it.
    all: bool,
    /// These in any case: what was named, or where it will be.
    names: Vec<OsString>,
}

/// What has happened since the last reload.
struct Change {
    /// When to reload.
    at: Instant,
    paths: Vec<PathBuf>,
    /// All of it while workers started or ended.
    busy: bool,
}

/// What a change leads to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Due {
    Reload(PathBuf),
    /// Nothing: the workers write this one themselves whenever they start or end.
    Own(PathBuf),
}

pub(super) struct Watched {
    inotify: Inotify,
    /// What was named, and where links of these names lead.
    roots: Vec<PathBuf>,
    real: Vec<PathBuf>,
    /// What the command writes itself.
    log: Option<PathBuf>,
    directories: HashMap<WatchDescriptor, Directory>,
    change: Option<Change>,
    /// Reloads in a row for changes that came while workers started or ended, and how many may be.
    row: u32,
    limit: u32,
    /// What the workers write at such a time.
    own: HashSet<PathBuf>,
}

impl Watched {
    /// Files and directories, these with what is below; but for `log`, and the files that it is followed by.
    pub(super) fn new(paths: &[PathBuf], log: Option<&Path>, cwd: &Path, epoll: &Epoll, token: u64) -> Result<Watched> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).map_err(|e| failed("inotify_init1", e))?;
        epoll.add_tagged(inotify.as_fd(), token)?;
        let mut roots = Vec::new();
        for path in paths {
            let path = cwd.join(path);
            let real = path.canonicalize().map_err(|e| {
                Error::new(ErrorKind::NotFound, "what is to be watched is not there").with("watch", path.display()).with("error", e)
            })?;
            // One that ends in `..` has no name.
            roots.push(if path.file_name().is_some() { path.components().collect() } else { real });
        }
        let log = log.and_then(|log| std::path::absolute(log).ok());
        let (real, directories, own) = (Vec::new(), HashMap::new(), HashSet::new());
        let mut watched = Watched { inotify, roots, real, log, directories, change: None, row: 0, limit: IN_A_ROW, own };
        watched.find()?;
        Ok(watched)
    }

    /// Looks for what was named, and watches it, and where it is to come if it is not there.
    fn find(&mut self) -> Result<()> {
        let real: Vec<PathBuf> = self.roots.iter().filter_map(|root| root.canonicalize().ok().filter(|real| real != root)).collect();
        let left: Vec<PathBuf> = std::mem::replace(&mut self.real, real).into_iter().filter(|old| !self.real.contains(old)).collect();
        for old in &left {
            self.forget(old);
        }
        for root in self.roots.iter().chain(&self.real).cloned().collect::<Vec<_>>() {
            for _ in 0..ATTEMPTS {
                if self.find_one(&root)? {
                    break;
                }
            }
        }
        Ok(())
    }

    /// False: something has come meanwhile.
    fn find_one(&mut self, root: &Path) -> Result<bool> {
        let mut below = root;
        let is_whole = loop {
            let (Some(parent), Some(name)) = (below.parent(), below.file_name()) else { break true };
            if self.add_one(parent, false, Some(name))? {
                break below == root || !below.exists();
            }
            below = parent;
        };
        if root.is_dir() {
            self.add(root)?;
        }
        Ok(is_whole)
    }

    /// False: it is gone already, or not ours to see.
    fn add_one(&mut self, path: &Path, all: bool, name: Option<&OsStr>) -> Result<bool> {
        match self.inotify.add_watch(path, CHANGES | AddWatchFlags::IN_ONLYDIR) {
            Ok(watch) => {
                let new = || Directory { path: path.to_owned(), all: false, names: Vec::new() };
                let directory = self.directories.entry(watch).or_insert_with(new);
                directory.all |= all;
                directory
                    .names
                    .extend(name.filter(|name| directory.names.iter().all(|other| other.as_os_str() != *name)).map(OsStr::to_owned));
                Ok(true)
            }
            Err(Errno::ENOENT | Errno::EACCES | Errno::ENOTDIR) => Ok(false),
            Err(Errno::ENOSPC) => {
                let e = failed("inotify_add_watch", Errno::ENOSPC).with("watch", path.display());
                Err(e.with("watched", self.directories.len()).with("raise", "fs.inotify.max_user_watches"))
            }
            Err(e) => Err(failed("inotify_add_watch", e).with("watch", path.display())),
        }
    }

    /// A directory with those below; links are not followed.
    fn add(&mut self, root: &Path) -> Result<()> {
        let mut left = vec![root.to_owned()];
        while let Some(directory) = left.pop() {
            self.add_one(&directory, true, None)?;
            let Ok(entries) = std::fs::read_dir(&directory) else { continue };
            let below =
                entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()) && is_source(&entry.file_name()));
            left.extend(below.map(|entry| entry.path()));
        }
        Ok(())
    }

    /// A directory is gone from there, with those below. Whether something that was named was to be found there.
    fn forget(&mut self, path: &Path) -> bool {
        let gone: Vec<_> = self.directories.iter().filter(|(_, d)| d.path.starts_with(path)).map(|(watch, _)| *watch).collect();
        let mut named = false;
        for watch in gone {
            // One that was deleted has none any more.
            let _ = self.inotify.rm_watch(watch);
            named |= self.directories.remove(&watch).is_some_and(|directory| !directory.names.is_empty());
        }
        named
    }

    /// Its fd is readable. `busy`: workers start or end, or have just done so.
    pub(super) fn read(&mut self, busy: bool) {
        while let Ok(events) = self.inotify.read_events() {
            for event in events {
                self.heard(&event, busy);
            }
        }
    }

    fn heard(&mut self, event: &InotifyEvent, busy: bool) {
        // Where there is no room for more watches, the others go on.
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            let _ = self.find();
            self.roots.first().cloned().into_iter().for_each(|root| self.note(root, busy));
            return;
        }
        let Some(directory) = self.directories.get(&event.wd) else { return };
        let Some(name) = &event.name else {
            let path = directory.path.clone();
            let lost = if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                self.directories.remove(&event.wd).is_some_and(|directory| !directory.names.is_empty())
            } else {
                event.mask.contains(AddWatchFlags::IN_MOVE_SELF) && self.forget(&path)
            };
            if lost {
                let _ = self.find();
            }
            return;
        };
        let (named, counts) = (directory.names.contains(name), directory.all && is_source(name));
        if !named && !counts {
            return;
        }
        let path = directory.path.join(name);
        let is_directory = event.mask.contains(AddWatchFlags::IN_ISDIR);
        // A link that was replaced leads elsewhere.
        let is_other = event.mask.intersects(GOES) && is_directory || event.mask.intersects(GOES | COMES) && named;
        let lost = is_other && self.forget(&path);
        if named || lost {
            let _ = self.find();
        }
        if counts && is_directory {
            // What is in it already has changed, too.
            let _ = self.add(&path);
        }
        let mut all = self.roots.iter().chain(&self.real);
        let has_come = |root: &PathBuf| event.mask.intersects(COMES) && root.starts_with(&path) && root.exists();
        if counts || all.any(|root| *root == path || has_come(root)) {
            self.note(path, busy);
        }
    }

    fn note(&mut self, path: PathBuf, busy: bool) {
        if self.is_log(&path) || (busy && self.own.contains(&path)) {
            return;
        }
        let change = self.change.get_or_insert_with(|| Change { at: Instant::now(), paths: Vec::new(), busy: true });
        change.at = Instant::now() + QUIET;
        change.busy &= busy;
        if change.paths.len() < KEPT && !change.paths.contains(&path) {
            change.paths.push(path);
        }
    }

    /// It, or an older one.
    fn is_log(&self, path: &Path) -> bool {
        let Some(log) = &self.log else { return false };
        let rest = path.as_os_str().as_bytes().strip_prefix(log.as_os_str().as_bytes());
        rest.is_some_and(|rest| rest.is_empty() || rest.strip_prefix(b".").is_some_and(|n| n.iter().all(u8::is_ascii_digit)))
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.change.as_ref().map(|change| change.at)
    }

    /// What to do, when it is time; [`done`](Self::done) or [`again`](Self::again) is to follow a reload.
    pub(super) fn due(&mut self) -> Option<Due> {
        let change = self.change.as_ref().filter(|change| change.at <= Instant::now())?;
        let first = change.paths.first().cloned().unwrap_or_default();
        if !change.busy || self.row < self.limit {
            return Some(Due::Reload(first));
        }
        // Another one is taken up again; but once more only, or files with other names each time would have no end.
        self.limit = 2 * IN_A_ROW;
        if self.own.len() >= KEPT_OWN {
            self.own.clear();
        }
        self.own.extend(self.change.take().into_iter().flat_map(|change| change.paths));
        Some(Due::Own(first))
    }

    /// It is what runs next.
    pub(super) fn done(&mut self) {
        let is_busy = self.change.take().is_some_and(|change| change.busy);
        (self.row, self.limit) = if is_busy { (self.row + 1, self.limit) } else { (0, IN_A_ROW) };
    }

    /// It could not be done now.
    pub(super) fn again(&mut self) {
        self.change.iter_mut().for_each(|change| change.at = Instant::now() + AGAIN);
    }
}

/// Nothing of an editor's, a cache's or a version control's, and nothing that programs write as they run.
fn is_source(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    let left_out = LEFT_OUT.iter().any(|other| *other == name);
    !left_out && !bytes.starts_with(b".") && !bytes.starts_with(b"#") && !bytes.ends_with(b"~") && !is_written(bytes)
}

/// By the ending; what comes after it may be a number, or a word after a hyphen: `a.log.1`, `a.sqlite3-wal`.
fn is_written(name: &[u8]) -> bool {
    let mut endings = name.split(|b| *b == b'.').skip(1).collect::<Vec<_>>().into_iter().rev();
    let word = endings.find_map(|ending| {
        let word = ending.split(|b| *b == b'-').next().unwrap_or_default();
        let word = &word[..word.iter().rposition(|b| !b.is_ascii_digit()).map_or(0, |last| last + 1)];
        (!word.is_empty()).then_some(word)
    });
    word.is_some_and(|word| WRITTEN.iter().any(|other| other.as_bytes() == word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// What leads to a reload; nothing within the time that a change takes to be taken up is `None`.
    fn due(watched: &mut Watched, busy: bool) -> Option<Due> {
        let end = Instant::now() + Duration::from_secs(60);
        while Instant::now() < end {
            watched.read(busy);
            if let Some(due) = watched.due() {
                return Some(due);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        None
    }

    fn changed(watched: &mut Watched) -> Option<PathBuf> {
        let due = due(watched, false);
        watched.done();
        match due {
            Some(Due::Reload(path)) => Some(path),
            _ => None,
        }
    }

    fn quiet(watched: &mut Watched) -> bool {
        watched.read(false);
        watched.deadline().is_none()
    }

    struct Place {
        root: PathBuf,
        epoll: Epoll,
    }

    impl Place {
        fn new(name: &str) -> Place {
            let root = std::env::temp_dir().join(format!("offloop-watch-{name}-{}", std::process::id()));
            fs::create_dir_all(root.join("src/deep")).expect("mkdir");
            fs::create_dir_all(root.join("node_modules/a")).expect("mkdir");
            fs::write(root.join("one.toml"), "1").expect("write");
            Place { root, epoll: Epoll::new().expect("epoll") }
        }

        fn watch(&self, paths: &[&str]) -> Watched {
            let paths: Vec<PathBuf> = paths.iter().map(PathBuf::from).collect();
            Watched::new(&paths, Some(&self.root.join("src/said.txt")), &self.root, &self.epoll, 1).expect("watched")
        }

        fn write(&self, path: &str) -> PathBuf {
            fs::write(self.root.join(path), "x").expect(path);
            self.root.join(path)
        }

        fn rename(&self, from: &str, to: &str) -> PathBuf {
            fs::rename(self.root.join(from), self.root.join(to)).expect(from);
            self.root.join(to)
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.root);
        }
    }

    #[test]
    fn a_change_of_source_is_seen_once_also_in_directories_that_come_later() {
        let place = Place::new("once");
        let root = &place.root;
        let mut watched = place.watch(&["src", "one.toml"]);
        assert!(quiet(&mut watched));
        for path in ["src/.a.swp", "src/a~", "src/deep/.git", "other", "node_modules/a/x.js", "src/said.txt", "src/said.txt.1"] {
            place.write(path);
        }
        for path in
            ["a.log", "a.log.12", "a.log.2024-01-31", "x.pid", "x.sock", "a.db", "a.sqlite3", "a.sqlite3-wal", "b.db-journal", "#a#"]
        {
            place.write(&format!("src/{path}"));
        }
        assert!(quiet(&mut watched), "{:?}", watched.change.map(|change| change.paths));
        for path in ["log", "db.mjs", "a.db.py", "v2.txt", "said.txt", "a.log.txt", "package-lock.json", "v.1"] {
            assert!(is_source(path.as_ref()), "{path}");
        }
        let first = place.write("src/deep/a.mjs");
        place.write("src/deep/b.mjs");
        assert_eq!(changed(&mut watched), Some(first));
        assert!(quiet(&mut watched), "both are one change");
        fs::create_dir(root.join("src/new")).expect("mkdir");
        assert_eq!(changed(&mut watched), Some(root.join("src/new")));
        for change in [0, 1] {
            match change {
                0 => drop(place.write("src/new/c.mjs")),
                _ => fs::remove_file(root.join("src/new/c.mjs")).expect("remove"),
            }
            assert_eq!(changed(&mut watched), Some(root.join("src/new/c.mjs")));
        }
        let one = place.write("one.toml");
        assert_eq!(due(&mut watched, false), Some(Due::Reload(one.clone())));
        watched.again();
        assert!(watched.due().is_none() && watched.deadline().is_some(), "not at once");
        assert_eq!(changed(&mut watched), Some(one));
        let e = Watched::new(&["no such".into()], None, root, &place.epoll, 2).map(drop).expect_err("not there");
        assert!(e.to_string().contains("no such"), "{e}");
    }

    #[test]
    fn what_was_named_is_found_again_when_it_was_replaced() {
        let place = Place::new("again");
        let root = &place.root;
        let mut watched = place.watch(&["one.toml", "src"]);
        for _ in 0..2 {
            place.write("new");
            let one = place.rename("new", "one.toml");
            assert_eq!(changed(&mut watched), Some(one.clone()), "saved by a rename");
            place.write("one.toml");
            assert_eq!(changed(&mut watched), Some(one), "written in place after that");
        }
        for _ in 0..2 {
            fs::remove_dir_all(root.join("src")).expect("remove");
            assert!(changed(&mut watched).is_some());
            fs::create_dir_all(root.join("src/deep")).expect("mkdir");
            assert_eq!(changed(&mut watched), Some(root.join("src")));
            let file = place.write("src/deep/a.mjs");
            assert_eq!(changed(&mut watched), Some(file), "in one that is new");
        }
        // All that leads there.
        let far = place.root.join("far/away");
        fs::create_dir_all(&far).expect("mkdir");
        place.write("far/away/x.mjs");
        let mut watched = place.watch(&["far/away", "far/away/x.mjs"]);
        fs::remove_dir_all(root.join("far")).expect("remove");
        assert!(changed(&mut watched).is_some());
        fs::create_dir_all(root.join("far")).expect("mkdir");
        assert!(quiet(&mut watched), "it is not there yet");
        fs::create_dir_all(&far).expect("mkdir");
        assert_eq!(changed(&mut watched), Some(far));
        let file = place.write("far/away/x.mjs");
        assert_eq!(changed(&mut watched), Some(file));
        assert!(quiet(&mut watched));
    }

    #[test]
    fn a_directory_that_was_moved_away_is_not_watched_any_more() {
        let place = Place::new("moved");
        let mut watched = place.watch(&["src"]);
        place.rename("src/deep", "outside");
        assert!(changed(&mut watched).is_some());
        place.write("outside/a.mjs");
        assert!(quiet(&mut watched));
        place.rename("outside", "src/other");
        assert!(changed(&mut watched).is_some());
        let file = place.write("src/other/a.mjs");
        assert_eq!(changed(&mut watched), Some(file));
        place.rename("src/other", "src/last");
        assert!(changed(&mut watched).is_some());
        let file = place.write("src/last/a.mjs");
        assert_eq!(changed(&mut watched), Some(file), "by its new name");
        place.rename("src", "src2");
        assert!(changed(&mut watched).is_some());
        place.write("src2/a.mjs");
        assert!(quiet(&mut watched));
        fs::create_dir(place.root.join("src")).expect("mkdir");
        assert!(changed(&mut watched).is_some());
        let file = place.write("src/a.mjs");
        assert_eq!(changed(&mut watched), Some(file));
        assert!(watched.directories.len() <= 2, "what is gone is not kept");
    }

    #[test]
    fn a_link_is_followed_to_where_it_leads_now() {
        let place = Place::new("link");
        for release in ["one", "two"] {
            fs::create_dir(place.root.join(release)).expect("mkdir");
        }
        let link = |to: &str| {
            std::os::unix::fs::symlink(to, place.root.join("new")).expect("link");
            place.rename("new", "current")
        };
        let current = link("one");
        let mut watched = place.watch(&["current"]);
        place.write("one/a.mjs");
        assert!(changed(&mut watched).is_some());
        link("two");
        assert_eq!(changed(&mut watched), Some(current));
        place.write("two/a.mjs");
        assert!(changed(&mut watched).is_some());
        place.write("one/a.mjs");
        assert!(quiet(&mut watched));
    }

    #[test]
    fn what_workers_write_whenever_they_start_ends_in_no_loop() {
        let place = Place::new("own");
        let mut watched = place.watch(&["src"]);
        let own = place.write("src/last-start.json");
        for _ in 0..IN_A_ROW {
            assert_eq!(due(&mut watched, true), Some(Due::Reload(own.clone())));
            watched.done();
            place.write("src/last-start.json");
        }
        assert_eq!(due(&mut watched, true), Some(Due::Own(own.clone())));
        place.write("src/last-start.json");
        watched.read(true);
        assert!(watched.deadline().is_none(), "it is known");
        // A person's change, and what the workers do because of it.
        let source = place.write("src/a.mjs");
        assert_eq!(changed(&mut watched), Some(source));
        place.write("src/last-start.json");
        watched.read(true);
        assert!(watched.deadline().is_none(), "still");
        place.write("src/last-start.json");
        assert_eq!(changed(&mut watched), Some(own), "nobody starts: somebody else has written it");
        // With another name each time.
        for n in 0..3 * IN_A_ROW {
            let path = place.write(&format!("src/{n}.json"));
            let is_own = n == IN_A_ROW || n > 2 * IN_A_ROW;
            assert_eq!(due(&mut watched, true), Some(if is_own { Due::Own(path) } else { Due::Reload(path) }), "{n}");
            if !is_own {
                watched.done();
            }
        }
    }
}
