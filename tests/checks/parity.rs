//! The four faces have the same concepts. `tests/parity.toml` is the table; both directions are checked against the public names.

use offloop_tests::{files, root, text};
use std::collections::BTreeSet;

/// One face: the text in which its public names stand, and the names that must have a row.
struct Face {
    lang: &'static str,
    text: String,
    public: BTreeSet<String>,
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(root().join(path)).ok()
}

fn ident(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

fn rust() -> Option<Face> {
    let lib = read("core/src/lib.rs")?;
    let mut public = BTreeSet::new();
    for line in text::rust_code(&lib) {
        if let Some((_, names)) = line.trim().strip_prefix("pub use ").and_then(|rest| rest.trim_end_matches(';').split_once("::")) {
            public.extend(names.trim_matches(['{', '}']).split(',').map(|n| n.trim().to_owned()));
        }
    }
    let sources = files(&root().join("core/src")).into_iter().filter(|p| p.extension().is_some_and(|e| e == "rs"));
    let text: String =
        sources.flat_map(|p| text::rust_code(&std::fs::read_to_string(p).expect("source"))).filter(|l| l.contains("pub ")).collect();
    Some(Face { lang: "rust", text: text + &lib, public })
}

fn c() -> Option<Face> {
    let text = read("include/offloop.h")?;
    let code: String = text.lines().filter(|l| !l.trim_start().starts_with(['*', '/'])).collect::<Vec<_>>().join("\n");
    // A function's name stands directly before its parameters; a function pointer's stands behind `(*`.
    let public = code
        .match_indices("offloop_")
        .map(|(at, _)| &code[at..])
        .map(ident)
        .filter(|n| code.contains(&format!(" {n}(")) || code.contains(&format!("*{n}(")));
    // What a plugin exports and what its first line calls are the plugin's, not the library's.
    Some(Face { lang: "c", public: public.filter(|n| n != "offloop_plugin").collect(), text })
}

fn node() -> Option<Face> {
    let text = read("bindings-node/lib/index.d.ts")?;
    let mut public = BTreeSet::new();
    for line in text.lines() {
        let Some(rest) = line.strip_prefix("export ") else { continue };
        let mut words = rest.split_whitespace().skip_while(|w| ["declare", "abstract"].contains(w));
        if ["class", "function", "const", "interface", "type"].contains(&words.next().unwrap_or_default()) {
            public.extend(words.next().map(ident).filter(|n| !n.is_empty()));
        }
    }
    Some(Face { lang: "node", text, public })
}

fn python() -> Option<Face> {
    let init = read("bindings-python/python/offloop/__init__.py")?;
    let all = init.split("__all__ = [").nth(1)?.split(']').next()?;
    let public = all.split(',').map(|n| n.trim().trim_matches('"').to_owned()).filter(|n| !n.is_empty()).collect();
    let sources = files(&root().join("bindings-python/python/offloop"));
    let sources = sources.into_iter().filter(|p| p.extension().is_some_and(|e| e == "py" || e == "pyi"));
    Some(Face { lang: "python", text: sources.filter_map(|p| std::fs::read_to_string(p).ok()).collect(), public })
}

fn has_word(text: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| !text[..at].ends_with(part) && !text[at + word.len()..].starts_with(part))
}

fn fits(pattern: &str, name: &str) -> bool {
    match (pattern.strip_suffix('*'), pattern.strip_prefix('*')) {
        (Some(prefix), _) => name.starts_with(prefix),
        (_, Some(suffix)) => name.ends_with(suffix),
        _ => pattern.split('.').next() == Some(name),
    }
}

#[test]
fn every_concept_has_a_name_or_a_reason_in_every_face() {
    let table: toml::Table = read("tests/parity.toml").expect("tests/parity.toml").parse().expect("TOML");
    let concepts = table["concept"].as_array().expect("a list of concepts");
    let mut wrong = Vec::new();
    for (lang, face) in [("rust", rust()), ("c", c()), ("node", node()), ("python", python())] {
        let mut known: Vec<&str> = Vec::new();
        let Some(face) = face else {
            println!("skipped {lang}: its public interface is not in the tree");
            continue;
        };
        for concept in concepts {
            let name = concept["name"].as_str().expect("a name");
            let entry = concept.get(lang).and_then(toml::Value::as_str).unwrap_or_default();
            if entry.strip_prefix("- ").is_some_and(|reason| !reason.is_empty()) {
                continue;
            }
            if entry.is_empty() {
                wrong.push(format!("{name}: {lang} has neither a name nor a reason"));
            }
            for word in entry.split(' ').filter(|w| !w.is_empty()) {
                known.push(word);
                let segments = word.split('.').filter(|s| !s.contains('*'));
                for segment in segments.filter(|s| !has_word(&face.text, s)) {
                    wrong.push(format!("{name}: {lang} has no public `{segment}` ({word})"));
                }
            }
        }
        for name in &face.public {
            if !known.iter().any(|pattern| fits(pattern, name)) {
                wrong.push(format!("{}: `{name}` is public and has no row in tests/parity.toml", face.lang));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn patterns_fit_names() {
    assert!(fits("offloop_value_*", "offloop_value_new_int") && fits("*Error", "OsError") && fits("ThreadPool.run", "ThreadPool"));
    assert!(!fits("offloop_cq_*", "offloop_pool_new") && !fits("Task", "TaskX"));
    assert!(has_word("pub fn run(", "run") && !has_word("pub fn runner(", "run"));
}
