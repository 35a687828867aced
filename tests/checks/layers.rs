//! Imports only go downwards: a module of `core` may name its own row's entry and the rows above it in this table.

use offloop_tests::{files, root, text};
use std::collections::HashMap;

/// Lowest first; modules of one row never import each other. `value` sits above `buffer` because a value may hold a buffer.
const LAYERS: &[&[&str]] = &[
    &["error", "sync"],
    &["sys", "wire"],
    &["metrics", "shared"],
    &["buffer"],
    &["value"],
    &["ring"],
    &["codec", "ops"],
    &["channel"],
    &["abi", "supervisor"],
    &["cluster", "pool"],
    &["capi", "cli"],
    &["bin"],
];

/// `(row above all others)`: the crate root re-exports, so `crate::Error` counts as the module it comes from.
fn reexports(lib: &str) -> HashMap<String, String> {
    let mut out = HashMap::new();
    for line in text::rust_code(lib) {
        let Some(rest) = line.trim().strip_prefix("pub use ") else { continue };
        let Some((module, names)) = rest.trim_end_matches(';').split_once("::") else { continue };
        for name in names.trim_matches(['{', '}']).split(',') {
            out.insert(name.trim().to_owned(), module.to_owned());
        }
    }
    out
}

/// The first segments behind every `crate::` of a line: `crate::{error::Error, sys}` gives both.
fn imports(code: &str) -> Vec<String> {
    let ident = |s: &str| s.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut out = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') && !code[..at].ends_with('$') {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        if let Some(list) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut item = String::new();
            for c in list.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => out.push(ident(std::mem::take(&mut item).trim())),
                    _ => {}
                }
                if c != ',' || depth > 0 {
                    item.push(c);
                }
            }
            out.push(ident(item.trim()));
        } else {
            out.push(ident(rest));
        }
    }
    out.retain(|s| !s.is_empty());
    out
}

fn row(module: &str) -> Option<usize> {
    LAYERS.iter().position(|row| row.contains(&module))
}

fn upward(module: &str, code: &str, reexports: &HashMap<String, String>) -> Vec<String> {
    let own = row(module);
    let mut out = Vec::new();
    for name in imports(code) {
        let name = reexports.get(&name).cloned().unwrap_or(name);
        if name == module {
            continue;
        }
        // A lower-case name that the table does not have is a module that nobody placed; a macro is neither.
        match (own, row(&name)) {
            (Some(own), Some(other)) if other >= own => out.push(name),
            (Some(_), None) if !code.contains(&format!("crate::{name}!")) => out.push(name),
            _ => {}
        }
    }
    out
}

#[test]
fn imports_only_go_downwards() {
    let src = root().join("core/src");
    let lib = std::fs::read_to_string(src.join("lib.rs")).expect("core/src/lib.rs");
    let reexports = reexports(&lib);
    let mut wrong = Vec::new();
    for path in files(&src) {
        let local = path.strip_prefix(&src).expect("below src");
        let first = local.iter().next().expect("not empty").to_string_lossy().trim_end_matches(".rs").to_owned();
        if path.extension().is_none_or(|e| e != "rs") || first == "lib" || local.to_string_lossy().contains("tests") {
            continue;
        }
        if row(&first).is_none() {
            wrong.push(format!("core/src/{}: module `{first}` has no row in LAYERS", local.display()));
            continue;
        }
        // A `use` may span lines: it is read up to its semicolon.
        let mut statement = String::new();
        let mut started = 0;
        for (i, line) in text::rust_code(&std::fs::read_to_string(&path).expect("source")).iter().enumerate() {
            let is_use =
                statement.is_empty() && line.trim_start().trim_start_matches("pub ").trim_start_matches("pub(crate) ").starts_with("use ");
            if statement.is_empty() {
                started = i + 1;
            }
            if (is_use || !statement.is_empty()) && !line.contains(';') {
                statement.push_str(line.trim());
                continue;
            }
            let code = std::mem::take(&mut statement) + line;
            wrong.extend(upward(&first, &code, &reexports).iter().map(|name| {
                format!("core/src/{}:{started}: `{first}` imports `{name}`, which is not below it: {}", local.display(), code.trim())
            }));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn upward_imports_are_seen() {
    let none = HashMap::from([("Error".to_owned(), "error".to_owned())]);
    assert_eq!(upward("buffer", "use crate::pool::Task;", &none), ["pool"]);
    assert_eq!(upward("sys", "use crate::{error::{Error, Result}, ops};", &none), ["ops"]);
    assert_eq!(upward("sys", "let x: crate::Error = y;", &none), Vec::<String>::new());
    assert_eq!(upward("sys", "use crate::wire::Header;", &none), ["wire"]);
    assert_eq!(upward("pool", "use crate::nowhere::X;", &none), ["nowhere"]);
}
