//! `--watch`: what changes below a directory, for a reload while one develops. By inotify, so nothing is looked at where nothing happens.

use crate::error::{Error, Result};
use crate::sys::failed;
use crate::sys::poll::Epoll;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// An editor's save is several changes, and a checkout many: a reload comes when there was none for so long.
const QUIET: Duration = Duration::from_millis(100);
/// Until the next attempt while a reload is under way, or the cluster starts.
const AGAIN: Duration = Duration::from_millis(200);
/// Directories that have no source: those of packages, caches and builds.
const LEFT_OUT: [&str; 5] = ["node_modules", "__pycache__", "target", "venv", "dist"];

const CHANGES: AddWatchFlags = AddWatchFlags::IN_CLOSE_WRITE
    .union(AddWatchFlags::IN_CREATE)
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_MOVED_FROM)
    .union(AddWatchFlags::IN_MOVED_TO);

pub(super) struct Watched {
    inotify: Inotify,
    directories: HashMap<WatchDescriptor, PathBuf>,
    /// When to reload, and what changed first since the last time.
    due: Option<(Instant, PathBuf)>,
}

impl Watched {
    /// Files and directories, these with what is below.
    pub(super) fn new(paths: &[PathBuf], cwd: &Path, epoll: &Epoll, token: u64) -> Result<Watched> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).map_err(|e| failed("inotify_init1", e))?;
        epoll.add_tagged(inotify.as_fd(), token)?;
        let mut watched = Watched { inotify, directories: HashMap::new(), due: None };
        for path in paths {
            let path = cwd.join(path);
            let found = std::fs::metadata(&path).map_err(|e| {
                Error::new(crate::error::ErrorKind::NotFound, "what is to be watched is not there")
                    .with("watch", path.display())
                    .with("error", e)
            })?;
            if found.is_dir() {
                watched.add(&path)?;
            } else {
                watched.add_one(&path)?;
            }
        }
        Ok(watched)
    }

    fn add_one(&mut self, path: &Path) -> Result<()> {
        match self.inotify.add_watch(path, CHANGES) {
            Ok(watch) => drop(self.directories.insert(watch, path.to_owned())),
            // It is gone already, or not ours to see.
            Err(nix::errno::Errno::ENOENT | nix::errno::Errno::EACCES | nix::errno::Errno::ENOTDIR) => {}
            Err(nix::errno::Errno::ENOSPC) => {
                let e = failed("inotify_add_watch", nix::errno::Errno::ENOSPC).with("watch", path.display());
                return Err(e.with("watched", self.directories.len()).with("raise", "fs.inotify.max_user_watches"));
            }
            Err(e) => return Err(failed("inotify_add_watch", e).with("watch", path.display())),
        }
        Ok(())
    }

    /// A directory with those below; links are not followed.
    fn add(&mut self, root: &Path) -> Result<()> {
        let mut left = vec![root.to_owned()];
        while let Some(directory) = left.pop() {
            self.add_one(&directory)?;
            let Ok(entries) = std::fs::read_dir(&directory) else { continue };
            let below =
                entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()) && is_source(&entry.file_name()));
            left.extend(below.map(|entry| entry.path()));
        }
        Ok(())
    }

    /// Its fd is readable.
    pub(super) fn read(&mut self) {
        while let Ok(events) = self.inotify.read_events() {
            for event in events {
                if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                    self.directories.remove(&event.wd);
                    continue;
                }
                let directory = self.directories.get(&event.wd).cloned().unwrap_or_default();
                let path = match &event.name {
                    Some(name) if !is_source(name) => continue,
                    Some(name) => directory.join(name),
                    None => directory,
                };
                if event.mask.contains(AddWatchFlags::IN_ISDIR) {
                    // What is in it already has changed, too. Where there is no room for more watches, the others go on.
                    let _ = self.add(&path);
                }
                let first = self.due.take().map_or(path, |(_, first)| first);
                self.due = Some((Instant::now() + QUIET, first));
            }
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.due.as_ref().map(|(at, _)| *at)
    }

    /// What has changed, when it is time to reload.
    pub(super) fn take(&mut self) -> Option<PathBuf> {
        self.due.take_if(|(at, _)| *at <= Instant::now()).map(|(_, first)| first)
    }

    /// It could not be done now.
    pub(super) fn again(&mut self, first: PathBuf) {
        self.due.get_or_insert((Instant::now() + AGAIN, first));
    }
}

/// Nothing of an editor's, a cache's or a version control's.
fn is_source(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    let left_out = LEFT_OUT.iter().any(|other| *other == name);
    !left_out && !bytes.starts_with(b".") && !bytes.ends_with(b"~") && !bytes.ends_with(b".pyc") && !bytes.ends_with(b".swp")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn changed(watched: &mut Watched) -> Option<PathBuf> {
        let end = Instant::now() + Duration::from_secs(60);
        while Instant::now() < end {
            watched.read();
            if let Some(path) = watched.take() {
                return Some(path);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        None
    }

    #[test]
    fn a_change_of_source_is_seen_once_also_in_directories_that_come_later() {
        let root = std::env::temp_dir().join(format!("offloop-watch-{}", std::process::id()));
        fs::create_dir_all(root.join("src/deep")).expect("mkdir");
        fs::create_dir_all(root.join("node_modules/a")).expect("mkdir");
        fs::write(root.join("one.toml"), "1").expect("write");
        let epoll = Epoll::new().expect("epoll");
        let mut watched = Watched::new(&["src".into(), "one.toml".into()], &root, &epoll, 1).expect("watched");
        let quiet = |watched: &mut Watched| {
            watched.read();
            watched.deadline().is_none()
        };
        assert!(quiet(&mut watched));
        for path in ["src/.a.swp", "src/a~", "src/deep/.git", "other", "node_modules/a/x.js"] {
            fs::write(root.join(path), "x").expect(path);
        }
        assert!(quiet(&mut watched), "{:?}", watched.due);
        fs::write(root.join("src/deep/a.mjs"), "1").expect("write");
        fs::write(root.join("src/deep/b.mjs"), "1").expect("write");
        assert_eq!(changed(&mut watched), Some(root.join("src/deep/a.mjs")));
        assert!(quiet(&mut watched), "both are one change");
        fs::create_dir(root.join("src/new")).expect("mkdir");
        assert_eq!(changed(&mut watched), Some(root.join("src/new")));
        for change in [0, 1] {
            match change {
                0 => fs::write(root.join("src/new/c.mjs"), "1").expect("write"),
                _ => fs::remove_file(root.join("src/new/c.mjs")).expect("remove"),
            }
            assert_eq!(changed(&mut watched), Some(root.join("src/new/c.mjs")));
        }
        fs::write(root.join("one.toml"), "2").expect("write");
        assert_eq!(changed(&mut watched), Some(root.join("one.toml")));
        watched.again("x".into());
        assert!(watched.take().is_none() && watched.deadline().is_some(), "not at once");
        assert_eq!(changed(&mut watched), Some("x".into()));
        fs::remove_dir_all(root.join("src")).expect("remove");
        assert!(changed(&mut watched).is_some());
        let e = Watched::new(&["no such".into()], &root, &epoll, 2).map(drop).expect_err("not there");
        assert!(e.to_string().contains("no such"), "{e}");
        fs::remove_dir_all(&root).expect("clean");
    }
}
