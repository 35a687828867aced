//! The `json` family: checks, rewrites, extracts and filters JSON (RFC 8259) without building values of a host.
//!
//! ```text
//!  scan ─┬─ rewrite   validate (unique names), minify, format
//!        ├─ pointer   RFC 6901, one pass
//!        └─ tape ── select (path)   RFC 9535; lines: NDJSON
//! ```
//!
//! Nothing here recurses over a document, so depth is a number to check and not a stack to overflow. Numbers and strings
//! are never converted on the way out: what comes out is the input's own bytes.

mod lines;
mod path;
mod pointer;
mod rewrite;
mod scan;
mod select;
mod tape;
#[cfg(test)]
mod tests;

use crate::buffer::Bytes;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::{Cancellable, Inputs, OpCtx, OpDef, ParamDef, ParamDefault, ParamType, Params, Returns};
use crate::value::Value;
use scan::{Ignore, Limits};

const MAX_DEPTH: ParamDef = ParamDef {
    name: "max_depth",
    ty: ParamType::Int { min: 0, max: 10_000_000 },
    default: ParamDefault::Int(1024),
    about: "Most objects and arrays inside each other; more is TooLarge. 0 admits only a string, number, true, false or null.",
};
const ALLOW_BOM: ParamDef = ParamDef {
    name: "allow_bom",
    ty: ParamType::Bool,
    default: ParamDefault::Bool(false),
    about: "Skips a UTF-8 byte order mark at the start instead of refusing it as Corrupt.",
};
const MAX_OUTPUT: ParamDef = ParamDef {
    name: "max_output",
    ty: ParamType::Int { min: 0, max: i64::MAX },
    default: ParamDefault::Int(1 << 30),
    about: "Most bytes of the result; more is TooLarge. Default 1 GiB.",
};
const MAX_MATCHES: ParamDef = ParamDef {
    name: "max_matches",
    ty: ParamType::Int { min: 1, max: 1 << 32 },
    default: ParamDefault::Int(10_000_000),
    about: "Most nodes in any list that the query makes on its way; more is TooLarge.",
};

/// The ops of this family.
pub(super) const OPS: &[OpDef] = &[
    OpDef {
        name: "json.validate",
        about: "Checks that the input is one JSON text as RFC 8259 defines it, in UTF-8, and returns true. Otherwise it raises Corrupt with \
                the byte offset, line and column, or, with `fail: false`, returns false. Numbers may have any size; nothing is built.",
        inputs: Inputs::One,
        params: &[
            MAX_DEPTH,
            ALLOW_BOM,
            ParamDef {
                name: "fail",
                ty: ParamType::Bool,
                default: ParamDefault::Bool(true),
                about: "Raises Corrupt for a text that is not JSON; false returns false instead. Limits and cancellation always raise.",
            },
            ParamDef {
                name: "unique_names",
                ty: ParamType::Bool,
                default: ParamDefault::Bool(false),
                about: "Refuses an object that has a member name twice, compared after unescaping.",
            },
            ParamDef {
                name: "lone_surrogates",
                ty: ParamType::Bool,
                default: ParamDefault::Bool(true),
                about: "Accepts an escape such as \\ud800 without its other half, as the grammar and JavaScript do; false refuses it.",
            },
        ],
        returns: Returns::Bool,
        cancellable: Cancellable::Always,
        run: validate,
    },
    OpDef {
        name: "json.minify",
        about: "Removes the white space between tokens. Strings and numbers keep their bytes, member order and duplicates stay. The input is \
                checked as by json.validate.",
        inputs: Inputs::One,
        params: &[MAX_DEPTH, ALLOW_BOM],
        returns: Returns::Bytes,
        cancellable: Cancellable::Always,
        run: minify,
    },
    OpDef {
        name: "json.format",
        about: "Writes one member or element per line, indented, as JSON.stringify and json.dumps do; empty objects and arrays stay on one \
                line. Strings and numbers keep their bytes. The input is checked as by json.validate.",
        inputs: Inputs::One,
        params: &[
            ParamDef { name: "indent", ty: ParamType::Int { min: 0, max: 16 }, default: ParamDefault::Int(2), about: "Spaces per level." },
            ParamDef {
                name: "tabs",
                ty: ParamType::Bool,
                default: ParamDefault::Bool(false),
                about: "Indents by one tab per level instead.",
            },
            MAX_DEPTH,
            ALLOW_BOM,
            MAX_OUTPUT,
        ],
        returns: Returns::Bytes,
        cancellable: Cancellable::Always,
        run: format,
    },
    OpDef {
        name: "json.pointer",
        about: "Finds the values that JSON Pointers (RFC 6901) name, all in one pass without building a tree, and returns the JSON text of \
                each in the order of the pointers, nil where there is none. Of members with one name the last counts. The whole input is checked.",
        inputs: Inputs::One,
        params: &[
            ParamDef {
                name: "pointers",
                ty: ParamType::StrList,
                default: ParamDefault::Required,
                about: "Pointers such as /items/0/name; the empty text names the whole document.",
            },
            ParamDef {
                name: "missing",
                ty: ParamType::Enum(&["nil", "fail"]),
                default: ParamDefault::Str("nil"),
                about: "What a pointer to nothing does: nil in its place, or NotFound for the call.",
            },
            MAX_DEPTH,
            ALLOW_BOM,
            MAX_OUTPUT,
        ],
        returns: Returns::Value("(Uint8Array | null)[]", "list[bytes | None]"),
        cancellable: Cancellable::Always,
        run: pointer,
    },
    OpDef {
        name: "json.query",
        about: "Runs a JSONPath query (RFC 9535, with its functions length, count, match, search and value) and returns a JSON array of what \
                it selects; values keep their bytes. The input is checked and at most 1 GiB; up to 16 bytes of memory per value are used on the way.",
        inputs: Inputs::One,
        params: &[
            ParamDef {
                name: "path",
                ty: ParamType::Str,
                default: ParamDefault::Required,
                about: "The query, such as $.items[?@.price < 10].name; Invalid with the place when it is not well-formed.",
            },
            ParamDef {
                name: "select",
                ty: ParamType::Enum(&["values", "paths", "nodes"]),
                default: ParamDefault::Str("values"),
                about: "What the array holds: values, normalized paths such as \"$['items'][0]\", or objects with both as path and value.",
            },
            MAX_DEPTH,
            ALLOW_BOM,
            MAX_MATCHES,
            MAX_OUTPUT,
        ],
        returns: Returns::Bytes,
        cancellable: Cancellable::Always,
        run: query,
    },
    OpDef {
        name: "json.filter_lines",
        about: "Keeps the lines of NDJSON (one JSON text per line) for which a JSONPath filter expression holds, and optionally cuts each down \
                to the values that JSON Pointers name. Lines keep their order and end with a newline; blank lines are left out. Pieces of the \
                input are worked on in parallel.",
        inputs: Inputs::One,
        params: &[
            ParamDef {
                name: "where",
                ty: ParamType::Str,
                default: ParamDefault::Absent,
                about: "Filter expression of RFC 9535, in which @ and $ are the line's value: @.status >= 500 && match(@.path, '/api/.*'). \
                        Without it every line passes.",
            },
            ParamDef {
                name: "project",
                ty: ParamType::Any("string | Record<string, string>", "str | Mapping[str, str]"),
                default: ParamDefault::Absent,
                about: "A JSON Pointer, to write its value in place of the line, or a map from names to pointers, to write an object; a \
                        missing value is null. Without it the line itself is written.",
            },
            ParamDef {
                name: "bad_lines",
                ty: ParamType::Enum(&["fail", "skip"]),
                default: ParamDefault::Str("fail"),
                about: "What a line that is not JSON does: Corrupt with its line number and column, or nothing.",
            },
            ParamDef {
                name: "limit",
                ty: ParamType::Int { min: 1, max: i64::MAX },
                default: ParamDefault::Absent,
                about: "Stops after so many lines have passed; what comes later is not looked at.",
            },
            ParamDef {
                name: "max_line",
                ty: ParamType::Int { min: 1, max: 1 << 30 },
                default: ParamDefault::Int(16 << 20),
                about: "Most bytes of one line; more is TooLarge. Default 16 MiB.",
            },
            MAX_DEPTH,
            ALLOW_BOM,
            MAX_MATCHES,
            MAX_OUTPUT,
        ],
        returns: Returns::Bytes,
        cancellable: Cancellable::Always,
        run: filter_lines,
    },
];

fn limits(params: &Params) -> Limits {
    Limits { max_depth: params.int("max_depth") as usize, allow_bom: params.bool("allow_bom"), allow_lone_surrogates: true }
}

fn validate(ctx: &mut OpCtx<'_>) -> Result<Value> {
    let (text, params) = (ctx.input(), ctx.params());
    let limits = Limits { allow_lone_surrogates: params.bool("lone_surrogates"), ..limits(params) };
    let done = if params.bool("unique_names") {
        scan::scan(text, limits, ctx.control(), &mut rewrite::UniqueNames::new(text))
    } else {
        scan::scan(text, limits, ctx.control(), &mut Ignore)
    };
    match done.map_err(|stop| stop.into_error(text)) {
        Ok(()) => Ok(Value::Bool(true)),
        Err(e) if e.kind() == ErrorKind::Corrupt && !params.bool("fail") => Ok(Value::Bool(false)),
        Err(e) => Err(e),
    }
}

fn minify(ctx: &mut OpCtx<'_>) -> Result<Value> {
    let text = ctx.input();
    let mut sink = rewrite::Minify::new(text)?;
    scan::scan(text, limits(ctx.params()), ctx.control(), &mut sink).map_err(|stop| stop.into_error(text))?;
    Ok(sink.finish().into())
}

fn format(ctx: &mut OpCtx<'_>) -> Result<Value> {
    let (text, params) = (ctx.input(), ctx.params());
    let spaces = [b' '; 16];
    let indent = if params.bool("tabs") { &b"\t"[..] } else { &spaces[..params.int("indent") as usize] };
    let mut sink = rewrite::Format::new(text, indent, params.int("max_output") as usize);
    scan::scan(text, limits(params), ctx.control(), &mut sink).map_err(|stop| stop.into_error(text))?;
    Ok(sink.out.into())
}

fn pointer(ctx: &mut OpCtx<'_>) -> Result<Value> {
    let (text, params) = (ctx.input(), ctx.params());
    let names = params.str_list("pointers");
    let pointers = pointer::Pointers::parse(&names, ctx.control())?;
    let mut finder = pointer::Finder::new(text, &pointers);
    scan::scan(text, limits(params), ctx.control(), &mut finder).map_err(|stop| stop.into_error(text))?;
    let found = finder.found();
    if params.str("missing") == "fail"
        && let Some(at) = found.iter().position(Option::is_none)
    {
        return Err(Error::new(ErrorKind::NotFound, "json pointer leads to nothing").with("pointer", names[at]));
    }
    // Pointers to one large value copy it once each, so the sum has no bound but this.
    let max_output = params.int("max_output") as u64;
    let bytes: u64 = found.iter().flatten().map(|(a, b)| (b - a) as u64).fold(0, u64::saturating_add);
    if bytes > max_output {
        return Err(Error::new(ErrorKind::TooLarge, "output is over the limit").with("bytes", bytes).with("max_output", max_output));
    }
    let value = |span: Option<(usize, usize)>| {
        ctx.check()?;
        Ok(span.map_or(Value::Nil, |(a, b)| Value::Bytes(Bytes::from(&text[a..b]))))
    };
    Ok(Value::Array(found.into_iter().map(value).collect::<Result<_>>()?))
}

fn query(ctx: &mut OpCtx<'_>) -> Result<Value> {
    let (text, params) = (ctx.input(), ctx.params());
    let query = path::query(params.str("path"))?;
    let max_output = params.int("max_output") as usize;
    let mut tape = tape::Tape::default();
    let doc = tape.read(text, limits(params), ctx.control()).map_err(|stop| stop.into_error(text))?;
    let regexes = select::Regexes::default();
    let selection = select::Selection::new(doc, ctx.control(), params.int("max_matches") as usize, &regexes);
    let nodes = selection.select(&query)?;
    let what = params.str("select");
    let paths = if what == "values" { Vec::new() } else { selection.paths(&nodes)? };
    let mut out = vec![b'['];
    let mut checked = 0;
    for (i, &node) in nodes.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        match what {
            "values" => out.extend_from_slice(doc.raw(node)),
            "paths" => string(&paths[i], &mut out),
            _ => {
                out.extend_from_slice(b"{\"path\":");
                string(&paths[i], &mut out);
                out.extend_from_slice(b",\"value\":");
                out.extend_from_slice(doc.raw(node));
                out.push(b'}');
            }
        }
        if out.len() >= max_output {
            return Err(Error::new(ErrorKind::TooLarge, "output is over the limit").with("max_output", max_output));
        }
        if out.len() - checked >= 1 << 20 || i % 4096 == 0 {
            ctx.check()?;
            checked = out.len();
        }
    }
    out.push(b']');
    Ok(out.into())
}

fn filter_lines(ctx: &mut OpCtx<'_>) -> Result<Value> {
    let params = ctx.params();
    let project = match params.any("project") {
        None => lines::Project::Whole,
        Some(Value::Str(pointer)) => lines::Project::Value(pointer::Pointers::parse(&[pointer], ctx.control())?),
        Some(Value::Map(pairs)) if !pairs.is_empty() => {
            let (mut names, mut pointers) = (Vec::new(), Vec::new());
            for (name, pointer) in pairs {
                let (Some(name), Some(pointer)) = (name.as_str(), pointer.as_str()) else {
                    let got = if name.as_str().is_none() { name.type_name() } else { pointer.type_name() };
                    return Err(Error::invalid("project maps names to JSON pointers").with("got", got));
                };
                let mut text = Vec::new();
                string(name.as_bytes(), &mut text);
                names.push(text);
                pointers.push(pointer);
            }
            lines::Project::Object(names, pointer::Pointers::parse(&pointers, ctx.control())?)
        }
        Some(other) => {
            return Err(Error::invalid("project is neither a JSON pointer nor a map of some").with("got", other.type_name()));
        }
    };
    let filter = lines::Filter {
        keep: params.opt_str("where").map(path::filter).transpose()?,
        project,
        skip_bad: params.str("bad_lines") == "skip",
        limits: limits(params),
        max_line: params.int("max_line") as usize,
        max_output: params.int("max_output") as usize,
        max_matches: params.int("max_matches") as usize,
        limit: params.opt_int("limit").map_or(usize::MAX, |n| n as usize),
        piece: 1 << 20,
    };
    Ok(lines::run(ctx, ctx.input(), &filter)?.into())
}

/// `text` as a JSON string. A lone surrogate in its generalised form becomes its escape again.
fn string(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    let mut at = 0;
    while let Some(&b) = text.get(at) {
        match b {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            0..0x20 => out.extend_from_slice(format!("\\u{b:04x}").as_bytes()),
            0xED if text.get(at + 1).is_some_and(|&b| b >= 0xA0) => {
                let point = 0xD000 | (text[at + 1] as u32 & 0x3F) << 6 | text[at + 2] as u32 & 0x3F;
                out.extend_from_slice(format!("\\u{point:04x}").as_bytes());
                at += 2;
            }
            _ => out.push(b),
        }
        at += 1;
    }
    out.push(b'"');
}
