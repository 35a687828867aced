//! The registry of generated files: each is a path and the function that writes it. `make bless` rewrites all of them,
//! `make check` fails when one differs from what its function gives.

use offloop::error::ERROR_TABLE;
use offloop::ops::{self, Cancellable, Inputs, OpDef, ParamDef, ParamDefault, ParamType, Returns};
use std::fmt::Write as _;

/// One generated file.
#[derive(Clone, Copy, Debug)]
pub struct Generated {
    /// Where it lies, from the root.
    pub path: &'static str,
    /// Its whole text.
    pub text: fn() -> String,
}

/// Every generated file.
pub const ALL: &[Generated] =
    &[Generated { path: "docs/ops.md", text: ops_md }, Generated { path: "tests/vectors/errors.json", text: errors_json }];

/// The error table as a vector that every face's own tests load.
fn errors_json() -> String {
    let mut out = String::from(
        "{\n  \"_comment\": \"written by `make bless` from core/src/error.rs; a status is never renumbered\",\n  \"errors\": [\n",
    );
    for (i, row) in ERROR_TABLE.iter().enumerate() {
        let comma = if i + 1 == ERROR_TABLE.len() { "" } else { "," };
        let _ = writeln!(
            out,
            "    {{ \"kind\": \"{}\", \"status\": {}, \"code\": \"{}\", \"text\": \"{}\", \"python\": \"{}\", \"python_base\": \"{}\", \"retry\": \"{}\" }}{comma}",
            row.name,
            row.status,
            row.code,
            row.text,
            row.python,
            row.python_base,
            row.retry.as_str()
        );
    }
    out.push_str("  ]\n}\n");
    out
}

fn ops_md() -> String {
    let mut out = String::from(
        "# Native ops\n\n<!-- written by `make bless` from the op tables in core/src/ops; edit those -->\n\n\
         An op is called by name on a pool (`pool.run('sha256', data)`), or through its typed wrapper (`ops.sha256(data)`), which uses the\n\
         default pool. Option names are `snake_case` in Rust, C and Python and `camelCase` in Node.js. An unknown option, a wrong type or a value out\n\
         of range is `Invalid` and names the op, the option, the value and the limits.\n\n\
         An output that does not fit in memory is `TooLarge` from the compression ops, `json.minify` and `json.format`. Other memory that the\n\
         system refuses to an op (working memory of a library, trees of JSON, columns of CSV) may end the process: bound the inputs.\n",
    );
    for (name, ops) in ops::families().filter(|(_, ops)| !ops.is_empty()) {
        let _ = write!(out, "\n## {name}\n");
        for op in ops {
            op_md(&mut out, op);
        }
    }
    out
}

fn op_md(out: &mut String, op: &OpDef) {
    let _ = write!(out, "\n### `{}`\n\n{}\n\n", op.name, op.about);
    let inputs = match op.inputs {
        Inputs::None => "none".to_owned(),
        Inputs::One => "one".to_owned(),
        Inputs::Range(0, 1) => "none or one".to_owned(),
        Inputs::Range(min, usize::MAX) => format!("{min} or more"),
        Inputs::Range(min, max) => format!("{min} to {max}"),
    };
    let returns = match op.returns {
        Returns::Bytes => "bytes".to_owned(),
        Returns::Str => "text".to_owned(),
        Returns::Encoded => "bytes, or text in the `encoding` asked for".to_owned(),
        Returns::Bool => "a boolean".to_owned(),
        Returns::Int => "an integer".to_owned(),
        Returns::Value(ts, python) if ts == python => format!("`{ts}`"),
        Returns::Value(ts, python) => format!("`{ts}` (Node.js), `{python}` (Python)"),
    };
    let stops = match op.cancellable {
        Cancellable::Always => "at least every 1 MiB or 5 ms of work".to_owned(),
        Cancellable::Except(stages) => format!("at least every 1 MiB or 5 ms of work, but not {stages}"),
        Cancellable::Never => "not before it ends".to_owned(),
    };
    let _ = writeln!(out, "Inputs: {inputs}. Returns {returns}. Sees cancellation {stops}.");
    if op.params.is_empty() {
        return;
    }
    out.push_str("\n| Option | Type | Default | |\n|---|---|---|---|\n");
    for p in op.params {
        let _ = writeln!(out, "| `{}` | {} | {} | {} |", p.name, type_md(p), default_md(p), p.about.replace('|', "\\|"));
    }
}

fn type_md(p: &ParamDef) -> String {
    match p.ty {
        ParamType::Bool => "bool".to_owned(),
        ParamType::Int { min, max } => format!("int, {} to {}", int_md(min), int_md(max)),
        ParamType::Float { min, max } => format!("number, {min} to {max}"),
        ParamType::Str => "text".to_owned(),
        ParamType::Enum(words) => words.iter().map(|w| format!("`{w}`")).collect::<Vec<_>>().join(", "),
        ParamType::Bytes => "bytes".to_owned(),
        ParamType::StrList => "list of texts".to_owned(),
        ParamType::Any(ts, python) if ts == python => format!("`{}`", ts.replace('|', "\\|")),
        ParamType::Any(ts, python) => format!("`{}` (Node.js), `{}` (Python)", ts.replace('|', "\\|"), python.replace('|', "\\|")),
    }
}

/// Large limits read better with a unit: 268435456 → 256 Mi.
fn int_md(n: i64) -> String {
    for (unit, size) in [("Ti", 1i64 << 40), ("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)] {
        if n >= size && n % size == 0 {
            return format!("{} {unit}", n / size);
        }
    }
    if n == i64::MAX {
        "2⁶³−1".to_owned()
    } else if n == i64::MIN {
        "−2⁶³".to_owned()
    } else {
        n.to_string()
    }
}

fn default_md(p: &ParamDef) -> String {
    match p.default {
        ParamDefault::Required => "required".to_owned(),
        ParamDefault::Absent => "none".to_owned(),
        ParamDefault::Bool(b) => b.to_string(),
        ParamDefault::Int(i) => int_md(i),
        ParamDefault::Float(f) => f.to_string(),
        ParamDefault::Str(s) => format!("`{s}`"),
    }
}
