//! Native ops: one table, one file per family.
//!
//! An op is a name, a table of options, and a function `(&mut OpCtx) -> Result<Value>`. The table (`OPS`) is where
//! TypeScript types, Python stubs and `docs/ops.md` come from, and where options are checked before an op runs.

mod ctx;
mod params;
#[cfg(any(feature = "json", feature = "csv"))]
mod place;

#[cfg(all(test, any(feature = "csv", feature = "json")))]
pub(crate) mod testing;

#[cfg(feature = "compress")]
mod compress;
#[cfg(feature = "csv")]
mod csv;
#[cfg(feature = "hash")]
mod hash;
#[cfg(feature = "image")]
mod image;
#[cfg(feature = "json")]
mod json;
#[cfg(feature = "password")]
mod password;

pub use ctx::{Control, OpCtx, Splitter};
pub use params::{Default as ParamDefault, ParamDef, ParamType, Params};

use crate::error::{Error, ErrorKind, Result};
use crate::sys::fork::ForkCell;
use crate::value::Value;
use std::collections::HashMap;

/// How many inputs an op takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inputs {
    /// None.
    None,
    /// Exactly one.
    One,
    /// From the first to the second number of inputs.
    Range(usize, usize),
}

/// What an op returns, for types and docs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Returns {
    /// Bytes.
    Bytes,
    /// Text.
    Str,
    /// Bytes, or text when option `encoding` asks for another word than `bytes`: an overload in typed faces.
    Encoded,
    /// A boolean.
    Bool,
    /// An integer.
    Int,
    /// A value tree with a documented shape: TypeScript type, Python type.
    Value(&'static str, &'static str),
}

/// When an op that runs sees that it was cancelled. The caller has its outcome at once in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancellable {
    /// At least every 1 MiB or 5 ms of work.
    Always,
    /// As `Always`, but not during the stages that the text names.
    Except(&'static str),
    /// Not before it ends.
    Never,
}

impl Cancellable {
    /// What is to be said about it beside "at least every 1 MiB or 5 ms of work".
    #[must_use]
    pub const fn exception(self) -> Option<&'static str> {
        match self {
            Cancellable::Always => None,
            Cancellable::Except(stages) => Some(stages),
            Cancellable::Never => Some("while it runs"),
        }
    }
}

/// The function of an op.
pub type OpRun = fn(&mut OpCtx<'_>) -> Result<Value>;

/// One native op.
#[derive(Clone, Copy, Debug)]
pub struct OpDef {
    /// `sha256`, `image.thumbnail`: lower snake case, at most one dot.
    pub name: &'static str,
    /// One sentence, third person.
    pub about: &'static str,
    /// Inputs.
    pub inputs: Inputs,
    /// Options.
    pub params: &'static [ParamDef],
    /// Result.
    pub returns: Returns,
    /// When it sees cancellation.
    pub cancellable: Cancellable,
    /// The function.
    pub run: OpRun,
}

/// Does nothing: measures what a task costs, and lets a test hold a worker. Not a family.
const NOOP: OpDef = OpDef {
    name: "noop",
    about: "Returns its input, after an optional pause; measures what a task costs.",
    inputs: Inputs::Range(0, 1),
    params: &[
        ParamDef {
            name: "sleep_ms",
            ty: ParamType::Float { min: 0.0, max: 3.6e6 },
            default: ParamDefault::Float(0.0),
            about: "Pause in milliseconds; ends early when the task is cancelled.",
        },
        ParamDef {
            name: "ignore_cancel",
            ty: ParamType::Bool,
            default: ParamDefault::Bool(false),
            about: "Sleeps on when cancelled, as a badly behaved op does.",
        },
        ParamDef {
            name: "panic",
            ty: ParamType::Bool,
            default: ParamDefault::Bool(false),
            about: "Panics, to show that the pool survives.",
        },
    ],
    returns: Returns::Bytes,
    cancellable: Cancellable::Always,
    run: noop,
};

fn noop(ctx: &mut OpCtx<'_>) -> Result<Value> {
    if ctx.params().bool("panic") {
        panic!("op noop was asked to panic");
    }
    let sleep_ms = ctx.params().float("sleep_ms");
    if sleep_ms > 0.0 {
        let ignore = ctx.params().bool("ignore_cancel");
        let end = std::time::Instant::now() + std::time::Duration::from_secs_f64(sleep_ms / 1e3);
        while let Some(left) = end.checked_duration_since(std::time::Instant::now()) {
            std::thread::sleep(left.min(std::time::Duration::from_millis(1)));
            if !ignore {
                ctx.check()?;
            }
        }
    }
    Ok(ctx.take_input(0).map_or_else(|| Value::Bytes(crate::buffer::Bytes::default()), Value::Bytes))
}

/// Every family's name and table, in the order of the docs.
const FAMILIES: &[(&str, &[OpDef])] = &[
    ("pool", &[NOOP]),
    #[cfg(feature = "hash")]
    ("hash", hash::OPS),
    #[cfg(feature = "password")]
    ("password", password::OPS),
    #[cfg(feature = "compress")]
    ("compress", compress::OPS),
    #[cfg(feature = "image")]
    ("image", image::OPS),
    #[cfg(feature = "json")]
    ("json", json::OPS),
    #[cfg(feature = "csv")]
    ("csv", csv::OPS),
];

/// The families of this build, in the order of the docs.
pub fn families() -> impl Iterator<Item = (&'static str, &'static [OpDef])> {
    FAMILIES.iter().copied()
}

/// Every built-in op of this build.
pub fn all() -> impl Iterator<Item = &'static OpDef> {
    FAMILIES.iter().flat_map(|(_, ops)| ops.iter())
}

/// The op of that name.
///
/// # Errors
/// `NotFound`, naming the op and the nearest names.
pub fn find(name: &str) -> Result<&'static OpDef> {
    lookup(name).ok_or_else(|| not_found(name, all().map(|o| o.name)))
}

/// The op of that name, by one hash: every submit asks.
pub(crate) fn lookup(name: &str) -> Option<&'static OpDef> {
    static INDEX: ForkCell<HashMap<&'static str, &'static OpDef>> = ForkCell::new();
    INDEX.get(|| all().map(|op| (op.name, op)).collect()).get(name).copied()
}

/// `NotFound` for `name`, with what else there is.
pub(crate) fn not_found<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Error {
    let family = name.split('.').next().unwrap_or(name);
    let mut all: Vec<&str> = known.collect();
    let near: Vec<&str> = all.iter().copied().filter(|n| n.starts_with(family) || (family.len() >= 3 && n.contains(family))).collect();
    if !near.is_empty() {
        all = near;
    }
    let shown: String = name.chars().take(80).collect();
    Error::new(ErrorKind::NotFound, "no op of that name").with("op", shown).with("known", all.join(" "))
}

/// Checks how many inputs an op was given.
pub(crate) fn check_inputs(op: &str, want: Inputs, got: usize) -> Result<()> {
    let (min, max) = match want {
        Inputs::None => (0, 0),
        Inputs::One => (1, 1),
        Inputs::Range(min, max) => (min, max),
    };
    if got < min || got > max {
        return Err(Error::invalid("wrong number of inputs").with("op", op).with("inputs", got).with("min", min).with("max", max));
    }
    Ok(())
}

/// Runs an op on this thread, unbounded in time and without splitting: the inline form, for tests and comparisons.
///
/// # Errors
/// `NotFound`, `Invalid` options, and the op's own.
pub fn run_inline(name: &str, inputs: Vec<crate::buffer::Bytes>, params: &Value) -> Result<Value> {
    let op = find(name)?;
    check_inputs(op.name, op.inputs, inputs.len())?;
    let params = Params::check(op.name, op.params, params)?;
    (op.run)(&mut OpCtx::inline(inputs, &params))
}
