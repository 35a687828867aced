//! Cross-language conformance, repository checks, the demo and the benchmarks: what they share.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "these are command-line programs")]

pub mod crc32;
pub mod driver;
pub mod generated;
pub mod inherit;
pub mod load;
pub mod row;
pub mod scenario;
pub mod spread;
pub mod text;

use std::path::{Path, PathBuf};

/// The repository's root.
#[must_use]
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the root")
}

/// The cargo target directory that this program was built in.
#[must_use]
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Every file below `dir` that git would keep, in a stable order: build products and installed packages are left out.
#[must_use]
pub fn files(dir: &Path) -> Vec<PathBuf> {
    const SKIP: &[&str] =
        &["target", "node_modules", ".venv", ".git", "__pycache__", "build", ".pytest_cache", ".mypy_cache", ".ruff_cache"];
    let mut found = Vec::new();
    let mut open = vec![dir.to_path_buf()];
    while let Some(at) = open.pop() {
        let Ok(entries) = std::fs::read_dir(&at) else { continue };
        for entry in entries.flatten() {
            let path = entry.path();
            let name = entry.file_name();
            if SKIP.iter().any(|s| name == *s) || name.to_string_lossy().starts_with("target-") {
                continue;
            }
            if path.is_dir() { open.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}
