//! Where the sockets of the clusters are: a directory that is the user's alone.

use crate::error::{Error, ErrorKind, Result};
use std::fs::{DirBuilder, symlink_metadata};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Longest name.
const MAX_NAME: usize = 64;
const SUFFIX: &str = ".sock";

/// A name that is a file's name and nothing else: letters, digits, `.`, `_` and `-`, no dot or dash first.
pub(in crate::cli) fn name(text: &str) -> std::result::Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if text.is_empty() || text.len() > MAX_NAME || text.starts_with(['.', '-']) || !text.chars().all(plain) {
        return Err(format!("{text:?} is no name: 1 to {MAX_NAME} of letters, digits, '.', '_' and '-', no '.' or '-' first"));
    }
    Ok(text.to_owned())
}

/// What a name can be made of a text.
pub(in crate::cli) fn name_of(text: &str) -> String {
    let plain: String =
        text.chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' }).take(MAX_NAME - 8).collect();
    let plain = plain.trim_start_matches(['.', '-']);
    if plain.is_empty() { "cluster".to_owned() } else { plain.to_owned() }
}

fn user() -> u32 {
    // SAFETY: a plain query.
    unsafe { libc::geteuid() }
}

fn os(call: &'static str, path: &Path, e: &std::io::Error) -> Error {
    Error::os(call, e.raw_os_error().unwrap_or(0)).with("path", path.display())
}

/// `$XDG_RUNTIME_DIR/offloop`, or `/tmp/offloop-<user id>` where there is none.
fn directory_of(runtime: Option<&Path>) -> PathBuf {
    match runtime {
        Some(runtime) if runtime.is_absolute() => runtime.join("offloop"),
        _ => PathBuf::from(format!("/tmp/offloop-{}", user())),
    }
}

fn directory() -> PathBuf {
    directory_of(std::env::var_os("XDG_RUNTIME_DIR").as_deref().map(Path::new))
}

/// What is at the path of a control socket is none: it is not ours to remove.
pub(super) fn taken(path: &Path) -> Error {
    Error::invalid("what is at the path of the control socket is no socket: remove it, or choose another --name")
        .with("path", path.display())
}

/// The directory, which is made if it is not there.
///
/// # Errors
/// `Invalid` when it is somebody else's, or open to others; `Os`.
fn make(directory: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(os("mkdir", directory, &e)),
        _ => {}
    }
    check(directory)
}

/// Nobody else can put anything there.
fn check(directory: &Path) -> Result<()> {
    let found = symlink_metadata(directory).map_err(|e| os("stat", directory, &e))?;
    let refuse = |what| Error::invalid(what).with("path", directory.display()).with("owner", found.uid());
    if !found.is_dir() {
        return Err(refuse("what should be a directory of the user's own is none"));
    }
    if found.uid() != user() || found.mode() & 0o077 != 0 {
        let error = refuse("directory of the control sockets is not the user's alone");
        return Err(error.with("mode", format_args!("{:o}", found.mode() & 0o7777)).with("want", "700"));
    }
    Ok(())
}

/// The directory, which sockets can be made in.
///
/// # Errors
/// As [`to_make`].
pub(in crate::cli) fn ready() -> Result<PathBuf> {
    let directory = directory();
    make(&directory)?;
    Ok(directory)
}

/// The socket of a name, for whoever makes it.
pub(super) fn to_make(name: &str) -> Result<PathBuf> {
    Ok(ready()?.join(format!("{name}{SUFFIX}")))
}

/// The socket of a name, for whoever connects.
pub(super) fn to_find(name: &str) -> Result<PathBuf> {
    let directory = directory();
    let path = directory.join(format!("{name}{SUFFIX}"));
    if symlink_metadata(&path).is_err() {
        return Err(Error::new(ErrorKind::NotFound, "no cluster of this name runs; offloop ps shows those that do")
            .with("name", name)
            .with("path", path.display()));
    }
    check(&directory)?;
    Ok(path)
}

/// The names that have a socket, in order.
pub(super) fn all() -> Result<Vec<String>> {
    let directory = directory();
    let Ok(entries) = std::fs::read_dir(&directory) else { return Ok(Vec::new()) };
    check(&directory)?;
    let names = entries.flatten().filter_map(|e| e.file_name().to_str()?.strip_suffix(SUFFIX).map(str::to_owned));
    let mut names: Vec<String> = names.filter(|text| name(text).is_ok()).collect();
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn names_are_names_of_files_and_nothing_else() {
        for good in ["web", "web-2", "a.b_c", "W"] {
            assert_eq!(name(good).as_deref(), Ok(good));
        }
        let long = "x".repeat(65);
        for bad in ["", ".", "..", ".web", "-w", "a/b", "../a", "a b", "ü", "a\0b", &long] {
            assert!(name(bad).is_err(), "{bad:?}");
            assert!(name(&name_of(bad)).is_ok(), "{bad:?} becomes {:?}", name_of(bad));
        }
    }

    #[test]
    fn the_directory_is_the_users_alone() {
        assert_eq!(directory_of(Some(Path::new("/run/user/7"))), Path::new("/run/user/7/offloop"));
        let own = format!("/tmp/offloop-{}", user());
        assert_eq!((directory_of(None), directory_of(Some(Path::new("here")))), (own.clone().into(), own.into()));
        let dir = std::env::temp_dir().join(format!("offloop-place-{}", std::process::id()));
        make(&dir).expect("made");
        make(&dir).expect("found");
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o750)).expect("chmod");
        let e = make(&dir).expect_err("open to others");
        assert!(e.to_string().contains("mode=750, want=700"), "{e}");
        std::fs::remove_dir(&dir).expect("clean");
        std::os::unix::fs::symlink("/tmp", &dir).expect("link");
        assert!(make(&dir).expect_err("a link").to_string().contains("is none"));
        std::fs::remove_file(&dir).expect("clean");
    }
}
