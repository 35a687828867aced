//! `offloop.toml`: what `offloop run` is told by a file, under the names of its options.

use crate::error::{Error, ErrorKind, Result, distance};
use clap::{ArgAction, ArgMatches};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// What is read where nobody names a file.
const NAME: &str = "offloop.toml";

/// The file that is to be read, if one is.
pub(super) fn find(args: &ArgMatches) -> Option<PathBuf> {
    args.get_one::<PathBuf>("config").cloned().or_else(|| Some(PathBuf::from(NAME)).filter(|path| path.is_file()))
}

/// What a file says, as if it had been said by arguments.
///
/// # Errors
/// `NotFound` for a file that is not there; `Invalid` with the file, and for a key that is unknown with the nearest one.
pub(super) fn read(path: &Path) -> Result<ArgMatches> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| Error::new(ErrorKind::NotFound, "file cannot be read").with("config", path.display()).with("error", e))?;
    let wrong = |what: String| Error::invalid(what).with("config", path.display());
    let table = text.parse::<Table>().map_err(|e| wrong(e.message().to_owned()))?;
    let arguments = arguments(&table).map_err(wrong)?;
    super::command().no_binary_name(true).try_get_matches_from(arguments).map_err(|e| {
        let text = e.to_string();
        wrong(text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned())
    })
}

fn arguments(table: &Table) -> std::result::Result<Vec<OsString>, String> {
    let definition = super::command();
    let known: Vec<_> = definition.get_arguments().filter(|arg| arg.get_id() != "config" && arg.get_id() != "help").collect();
    let mut out = Vec::new();
    let mut command = Vec::new();
    for (key, value) in table {
        let Some(arg) = known.iter().find(|arg| arg.get_id() == key.as_str()) else {
            let nearest = known.iter().map(|arg| arg.get_id().as_str()).min_by_key(|name| distance(name, key)).unwrap_or_default();
            return Err(format!("there is no option {key}; the nearest is {nearest}"));
        };
        let values = match value {
            Value::Array(list) => list.iter().map(|one| text(key, one)).collect::<std::result::Result<Vec<_>, _>>()?,
            Value::Table(pairs) if key == "env" => pairs
                .iter()
                .map(|(name, one)| Ok(format!("{name}={}", text(key, one)?)))
                .collect::<std::result::Result<Vec<_>, String>>()?,
            one => vec![text(key, one)?],
        };
        if key == "command" {
            command = values;
        } else if matches!(arg.get_action(), ArgAction::SetTrue) {
            out.extend((values == ["true"]).then(|| format!("--{key}").into()));
        } else if values.len() > 1 && !matches!(arg.get_action(), ArgAction::Append) {
            return Err(format!("option {key} has one value, not {}", values.len()));
        } else {
            out.extend(values.into_iter().map(|value| OsString::from(format!("--{key}={value}"))));
        }
    }
    if !command.is_empty() {
        out.push("--".into());
        out.extend(command.into_iter().map(OsString::from));
    }
    Ok(out)
}

fn text(key: &str, value: &Value) -> std::result::Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Integer(n) => Ok(n.to_string()),
        Value::Float(n) => Ok(n.to_string()),
        Value::Boolean(b) => Ok(b.to_string()),
        other => Err(format!("option {key} is a text, a number or a list of them, not {}", other.type_str())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> std::result::Result<Vec<String>, String> {
        let table = text.parse::<Table>().expect(text);
        arguments(&table).map(|list| list.into_iter().map(|arg| arg.into_string().expect("text")).collect())
    }

    #[test]
    fn keys_are_the_options_and_an_unknown_one_is_told_the_nearest() {
        let text = "workers = 4\nlisten = [\"3000\", \"unix:/run/a\"]\nready-after = 0.5\njson = true\ncommand = [\"node\", \"a.js\"]\n[env]\nA = \"b\"\nN = 1\n";
        let got = of(text).expect("known");
        let (options, command) = got.split_at(got.len() - 3);
        assert_eq!(command, ["--", "node", "a.js"]);
        let mut sorted = options.to_vec();
        // Keys have no order; what one says several times has.
        sorted.sort_by(|a, b| a.split('=').next().cmp(&b.split('=').next()));
        let want = ["--env=A=b", "--env=N=1", "--json", "--listen=3000", "--listen=unix:/run/a", "--ready-after=0.5", "--workers=4"];
        assert_eq!(sorted, want);
        assert_eq!(of("json = false").expect("known"), Vec::<String>::new());
        for (wrong, told) in [
            ("wrokers = 1", "there is no option wrokers; the nearest is workers"),
            ("listn = 1", "the nearest is listen"),
            ("drain_timeout = 1", "the nearest is drain-timeout"),
            ("config = \"x\"", "there is no option config"),
            ("workers = [1, 2]", "option workers has one value, not 2"),
            ("name = { a = 1 }", "option name is a text, a number or a list of them, not table"),
            ("listen = [[1]]", "not array"),
        ] {
            let e = of(wrong).expect_err(wrong);
            assert!(e.contains(told), "{e}");
        }
    }
}
