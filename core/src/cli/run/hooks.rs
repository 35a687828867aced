//! What makes an unmodified server a worker: a preload for Node.js, a directory on the module path for Python. Neither does anything in a program that no
//! cluster has started, and both take themselves out of the environment, so that what a worker starts knows nothing of them.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// Where the packages' launchers say that their hooks are.
const NODE: &str = "OFFLOOP_NODE_PRELOAD";
const PYTHON: &str = "OFFLOOP_PYTHON_HOOKS";

/// The hooks that were found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Hooks {
    /// The file that Node.js is to load first.
    pub(super) node: Option<PathBuf>,
    /// The directory with a `sitecustomize`.
    pub(super) python: Option<PathBuf>,
}

impl Hooks {
    /// Looks where the launcher says, beside this binary, and beside the server's own program.
    pub(super) fn find(program: &OsStr, cwd: &Path) -> Hooks {
        let exe = std::env::current_exe().and_then(|exe| exe.canonicalize()).unwrap_or_default();
        let named = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.exists());
        Hooks {
            node: named(NODE).or_else(|| node_near(&exe, cwd)),
            python: named(PYTHON)
                .or_else(|| python_near(&exe, &resolved(program, cwd), std::env::var_os("VIRTUAL_ENV").map(PathBuf::from))),
        }
    }

    /// The program will be a worker that says itself when it is ready.
    pub(super) fn reach(&self, program: &OsStr, cwd: &Path) -> bool {
        match language(&resolved(program, cwd)) {
            Some(Language::Node) => self.node.is_some(),
            Some(Language::Python) => self.python.is_some(),
            None => false,
        }
    }

    /// The variables of a worker, beside or in place of those in `env`, which go before this process's own.
    pub(super) fn env(&self, env: &[(OsString, Option<OsString>)]) -> Vec<(OsString, Option<OsString>)> {
        let given = |name: &str| {
            let own = env.iter().rfind(|(other, _)| other == name).map(|(_, value)| value.clone());
            own.unwrap_or_else(|| std::env::var_os(name)).filter(|value| !value.is_empty())
        };
        let mut out = env.to_vec();
        let mut set = |name: &str, value: OsString| {
            out.retain(|(other, _)| other != name);
            out.push((name.into(), Some(value)));
        };
        if let Some(file) = &self.node {
            set("NODE_OPTIONS", joined(given("NODE_OPTIONS"), b" ", &preload(file)));
        }
        if let Some(directory) = &self.python {
            // First: it takes itself away and loads what would have come.
            let rest = given("PYTHONPATH");
            set(
                "PYTHONPATH",
                match rest {
                    Some(rest) => joined(Some(directory.clone().into_os_string()), b":", &rest),
                    None => directory.clone().into_os_string(),
                },
            );
        }
        out
    }
}

fn joined(first: Option<OsString>, between: &[u8], second: &OsStr) -> OsString {
    match first {
        Some(first) => OsString::from_vec([first.as_bytes(), between, second.as_bytes()].concat()),
        None => second.to_owned(),
    }
}

/// As `NODE_OPTIONS` quotes. lib/register.cjs takes away this very text.
fn preload(file: &Path) -> OsString {
    let mut out = b"--require \"".to_vec();
    for byte in file.as_os_str().as_bytes() {
        if matches!(byte, b'"' | b'\\') {
            out.push(b'\\');
        }
        out.push(*byte);
    }
    out.push(b'"');
    OsString::from_vec(out)
}

const REGISTER: &str = "lib/register.cjs";

/// The package beside the platform package that this binary belongs to, or the one that programs in `cwd` would load.
fn node_near(exe: &Path, cwd: &Path) -> Option<PathBuf> {
    let beside = exe.parent().and_then(Path::parent).map(|modules| modules.join("offloop").join(REGISTER));
    let above = cwd.ancestors().map(|at| at.join("node_modules/offloop").join(REGISTER));
    beside.into_iter().chain(above).find(|path| path.is_file())
}

/// The package that this binary belongs to, or the one of the environment that the program is in.
fn python_near(exe: &Path, program: &Path, environment: Option<PathBuf>) -> Option<PathBuf> {
    let own = exe.parent().and_then(Path::parent).map(|package| package.join("_site"));
    let prefixes = program.parent().and_then(Path::parent).map(Path::to_path_buf).into_iter().chain(environment);
    let site = |prefix: PathBuf| {
        let versions = std::fs::read_dir(prefix.join("lib")).into_iter().flatten().flatten();
        let mut found: Vec<PathBuf> = versions
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("python3"))
            .map(|entry| entry.path().join("site-packages/offloop/_site"))
            .collect();
        found.sort();
        found
    };
    own.into_iter().chain(prefixes.flat_map(site)).find(|path| path.join("sitecustomize.py").is_file())
}

/// The program is one of Node.js or Python, or a script for either, so that its hook, if there is one, says when it is ready.
fn language(file: &Path) -> Option<Language> {
    use std::io::Read;
    let by_name = |name: &str| {
        if name.starts_with("python") { Some(Language::Python) } else { (name == "node" || name == "nodejs").then_some(Language::Node) }
    };
    if let Some(found) = file.file_name().and_then(OsStr::to_str).and_then(by_name) {
        return Some(found);
    }
    let mut head = [0; 256];
    let n = std::fs::File::open(file).and_then(|mut file| file.read(&mut head)).unwrap_or(0);
    let text = String::from_utf8_lossy(&head[..n]);
    let line = text.strip_prefix("#!")?.lines().next()?.to_owned();
    line.split_whitespace().filter_map(|word| word.rsplit('/').next()).find_map(by_name)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Language {
    Node,
    Python,
}

/// The program's file, as far as it is found; its links are not followed, since an environment's interpreter is one.
fn resolved(program: &OsStr, cwd: &Path) -> PathBuf {
    if program.as_bytes().contains(&b'/') {
        return cwd.join(program);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| cwd.join(dir).join(program)).find(|file| file.is_file()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of<'a>(env: &'a [(OsString, Option<OsString>)], name: &str) -> Option<&'a str> {
        env.iter().find(|(other, _)| other == name).and_then(|(_, value)| value.as_ref()?.to_str())
    }

    #[test]
    fn hooks_go_beside_what_the_user_has_there() {
        let hooks = Hooks { node: Some("/a \"b\\/register.cjs".into()), python: Some("/site".into()) };
        let user = [
            ("NODE_OPTIONS".into(), Some("--no-warnings".into())),
            ("PYTHONPATH".into(), Some("/own".into())),
            ("X".into(), Some("1".into())),
        ];
        let env = hooks.env(&user);
        assert_eq!(of(&env, "NODE_OPTIONS"), Some(r#"--no-warnings --require "/a \"b\\/register.cjs""#));
        assert_eq!((of(&env, "PYTHONPATH"), of(&env, "X"), env.len()), (Some("/site:/own"), Some("1"), 3));
        let env = hooks.env(&[("NODE_OPTIONS".into(), None), ("PYTHONPATH".into(), None)]);
        assert_eq!((of(&env, "PYTHONPATH"), env.len()), (Some("/site"), 2));
        assert!(of(&env, "NODE_OPTIONS").is_some_and(|text| text.starts_with("--require ")));
        assert_eq!(Hooks::default().env(&user), user);
    }

    #[test]
    fn hooks_are_found_beside_the_binary_and_beside_the_program() {
        let dir = std::env::temp_dir().join(format!("offloop-hooks-{}", std::process::id()));
        let file = |path: &str| {
            let path = dir.join(path);
            std::fs::create_dir_all(path.parent().expect("below")).expect("directory");
            std::fs::write(&path, "").expect("write");
            path
        };
        let register = file("app/node_modules/offloop/lib/register.cjs");
        let nowhere = Path::new("/nowhere/bin/offloop");
        assert_eq!(node_near(&dir.join("app/node_modules/offloop-linux-x64-gnu/offloop"), Path::new("/")), Some(register.clone()));
        assert_eq!(node_near(nowhere, &dir.join("app/src/deep")), Some(register));
        assert_eq!(node_near(nowhere, &dir), None);
        let site = file("venv/lib/python3.11/site-packages/offloop/_site/sitecustomize.py");
        let site = site.parent().map(Path::to_path_buf);
        assert_eq!(python_near(nowhere, &dir.join("venv/bin/uvicorn"), None), site);
        assert_eq!(python_near(nowhere, Path::new("/usr/bin/python3"), Some(dir.join("venv"))), site);
        assert_eq!(python_near(&dir.join("venv/lib/python3.11/site-packages/offloop/_bin/offloop"), Path::new(""), None), site);
        assert_eq!(python_near(nowhere, Path::new("/nowhere/bin/python"), None), None);
        for (name, text, found) in [
            ("venv/bin/python3.12", "", Some(Language::Python)),
            ("bin/node", "", Some(Language::Node)),
            ("venv/bin/uvicorn", "#!/venv/bin/python3 -s\nimport re\n", Some(Language::Python)),
            ("bin/next", "#!/usr/bin/env node\n", Some(Language::Node)),
            ("bin/run.sh", "#!/bin/sh\nexec python app.py\n", None),
            ("bin/nodes", "\x7fELF", None),
        ] {
            let path = file(name);
            std::fs::write(&path, text).expect("write");
            assert_eq!(language(&path), found, "{name}");
        }
        std::fs::remove_dir_all(&dir).expect("clean");
    }
}
