//! Words and files that the house does without.

use offloop_tests::{files, root, text};

#[test]
fn no_drawer_is_called_utils() {
    let bad: Vec<_> = files(root())
        .into_iter()
        .filter(|p| {
            let stem = p.file_stem().unwrap_or_default().to_string_lossy().to_lowercase();
            ["utils", "util", "helpers", "helper", "manager", "common", "misc"].contains(&stem.as_str())
        })
        .collect();
    assert!(bad.is_empty(), "name a file for the concept it holds: {bad:?}");
}

#[test]
fn a_library_prints_nothing() {
    let mut bad = Vec::new();
    for dir in ["core/src", "bindings-node/src", "bindings-python/src"] {
        for path in files(&root().join(dir)) {
            // The command is a program; it may print.
            let exempt = path.components().any(|c| c.as_os_str() == "cli") || path.ends_with("tests.rs");
            if exempt || path.extension().is_none_or(|e| e != "rs") {
                continue;
            }
            let code = text::rust_code(&std::fs::read_to_string(&path).expect("source"));
            for (i, line) in code.iter().enumerate() {
                for word in ["println!", "eprintln!", "print!(", "eprint!(", "dbg!", "todo!", "unimplemented!"] {
                    if line.contains(word) {
                        bad.push(format!("{}:{}: {word}", path.display(), i + 1));
                    }
                }
            }
        }
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

#[test]
fn atomics_come_through_their_door() {
    let mut bad = Vec::new();
    for path in files(&root().join("core/src")) {
        let exempt = path.components().any(|c| c.as_os_str() == "sync") || path.ends_with("tests.rs");
        if exempt || path.extension().is_none_or(|e| e != "rs") {
            continue;
        }
        let code = text::rust_code(&std::fs::read_to_string(&path).expect("source"));
        for (i, line) in code.iter().enumerate() {
            if line.contains("std::sync::atomic") || line.contains("core::sync::atomic") {
                bad.push(format!("{}:{}: use crate::sync::atomic, so that loom runs the real code", path.display(), i + 1));
            }
        }
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

#[test]
fn docs_do_not_say_simply() {
    let mut bad = Vec::new();
    let docs = files(&root().join("docs")).into_iter();
    let top = ["README.md", "CONTRIBUTING.md", "SECURITY.md"].map(|f| root().join(f)).into_iter();
    for path in docs.chain(top).filter(|p| p.extension().is_some_and(|e| e == "md")) {
        for (i, line) in std::fs::read_to_string(&path).expect("text").lines().enumerate() {
            let lower = line.to_lowercase();
            for word in lower.split(|c: char| !c.is_alphanumeric()) {
                if ["simply", "just", "easy", "easily", "obviously", "blazing", "blazingly"].contains(&word) {
                    bad.push(format!("{}:{}: {word}", path.display(), i + 1));
                }
            }
        }
    }
    assert!(bad.is_empty(), "a number or nothing:\n{}", bad.join("\n"));
}

/// Says which sources outgrow a page of thought; a warning, because some tables are long by nature.
#[test]
fn long_files_are_named() {
    for dir in ["core/src", "bindings-node", "bindings-python", "tests"] {
        for path in files(&root().join(dir)) {
            let source = path.extension().is_some_and(|e| ["rs", "ts", "js", "mjs", "py", "c"].iter().any(|x| e == *x));
            let lines = if source { std::fs::read_to_string(&path).map_or(0, |t| t.lines().count()) } else { 0 };
            if lines > 600 {
                println!("long: {} has {lines} lines", path.strip_prefix(root()).expect("below the root").display());
            }
        }
    }
}

#[test]
fn license_is_the_same_everywhere() {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).expect("Cargo.toml");
    assert!(manifest.contains("license = \"MIT OR Apache-2.0\""));
    let text = std::fs::read_to_string(root().join("LICENSE")).expect("LICENSE");
    assert!(text.contains("MIT License") && text.contains("Apache License"));
    for (file, need) in [("bindings-node/package.json", "\"MIT OR Apache-2.0\""), ("bindings-python/pyproject.toml", "MIT OR Apache-2.0")] {
        match std::fs::read_to_string(root().join(file)) {
            Ok(text) => assert!(text.contains(need), "{file} names another licence"),
            Err(e) => println!("skipped {file}: {e}"),
        }
    }
}
