//! NDJSON: filters and projects lines, in parallel over pieces that end at line ends.

use super::path::Expr;
use super::pointer::{Finder, Pointers};
use super::scan::{self, Ignore, Limits, Short, Stop, WINDOW};
use super::select::{Regexes, Selection};
use super::tape::Tape;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::place::line_and_column;
use crate::ops::{Control, OpCtx};
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::lock;
use std::sync::Mutex;

/// What becomes of a line that passes.
pub(super) enum Project {
    /// The line itself.
    Whole,
    /// One pointer's value.
    Value(Pointers),
    /// An object with these names (as JSON text) and pointers.
    Object(Vec<Vec<u8>>, Pointers),
}

pub(super) struct Filter {
    pub(super) keep: Option<Expr>,
    pub(super) project: Project,
    pub(super) skip_bad: bool,
    pub(super) limits: Limits,
    pub(super) max_line: usize,
    pub(super) max_output: usize,
    pub(super) max_matches: usize,
    /// Lines wanted.
    pub(super) limit: usize,
    /// Bytes of one piece.
    pub(super) piece: usize,
}

#[derive(Default)]
struct Piece {
    out: Vec<u8>,
    /// Where each line that passed ends in `out`; empty when there is no limit on lines.
    ends: Vec<usize>,
    failed: Option<Error>,
}

/// Runs the filter over `text`.
pub(super) fn run(ctx: &OpCtx<'_>, text: &[u8], filter: &Filter) -> Result<Vec<u8>> {
    let pieces = split(text, filter.piece);
    let mut out = Vec::new();
    let mut lines = 0;
    // A round of pieces at a time: bounded memory beside the output, and an early end when enough lines were found.
    for (round, group) in pieces.chunks((ctx.width() * 8).max(8)).enumerate() {
        let done: Vec<Mutex<Piece>> = group.iter().map(|_| Mutex::default()).collect();
        let first_bad = AtomicUsize::new(usize::MAX);
        ctx.parallel(group.len(), &|i| {
            // The first bad line decides, wherever the pieces ran: only pieces before it still matter.
            if i > first_bad.load(Ordering::Relaxed) {
                return Ok(());
            }
            let mut piece = Piece::default();
            if let Err(e) = work(ctx, text, group[i].clone(), filter, &mut piece) {
                if matches!(e.kind(), ErrorKind::Cancelled | ErrorKind::Timeout) {
                    return Err(e);
                }
                piece.failed = Some(e);
                first_bad.fetch_min(i, Ordering::Relaxed);
            }
            *lock(&done[i]) = piece;
            Ok(())
        })?;
        for piece in done {
            let piece = piece.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
            let wanted = filter.limit - lines;
            let take = if piece.ends.len() >= wanted { piece.ends[wanted - 1] } else { piece.out.len() };
            if out.len() + take > filter.max_output {
                return Err(Error::new(ErrorKind::TooLarge, "output is over the limit").with("max_output", filter.max_output));
            }
            out.extend_from_slice(&piece.out[..take]);
            lines += piece.ends.len().min(wanted);
            if lines == filter.limit {
                return Ok(out);
            }
            if let Some(e) = piece.failed {
                return Err(e);
            }
        }
        let last = round * (ctx.width() * 8).max(8) + group.len();
        ctx.progress(crate::Value::Float(pieces.get(last).map_or(1.0, |p| p.start as f64 / text.len() as f64)));
    }
    Ok(out)
}

/// Pieces of about `size` bytes that end after a line end.
fn split(text: &[u8], size: usize) -> Vec<std::ops::Range<usize>> {
    let mut out = Vec::new();
    let mut start = 0;
    while start < text.len() {
        let from = (start + size - 1).min(text.len());
        let end = text[from..].iter().position(|&b| b == b'\n').map_or(text.len(), |i| from + i + 1);
        out.push(start..end);
        start = end;
    }
    out
}

fn work(ctx: &OpCtx<'_>, text: &[u8], range: std::ops::Range<usize>, filter: &Filter, piece: &mut Piece) -> Result<()> {
    let control = ctx.control();
    let mut tape = Tape::default();
    let regexes = Regexes::default();
    let mut at = range.start;
    let counted = filter.limit != usize::MAX;
    let mut checked = at;
    while at < range.end {
        if at - checked >= WINDOW {
            control.check()?;
            checked = at;
        }
        let end = text[at..range.end].iter().position(|&b| b == b'\n').map_or(range.end, |i| at + i);
        let (start, line) = (at, text[at..end].trim_ascii());
        at = end + 1;
        if line.is_empty() {
            continue;
        }
        let offset = start + (line.as_ptr() as usize - text[start..end].as_ptr() as usize);
        let place = |e: Error, at: usize| {
            let (line, column) = line_and_column(text, at);
            e.with("offset", at).with("line", line).with("column", column)
        };
        if line.len() > filter.max_line {
            let e = Error::new(ErrorKind::TooLarge, "line is over the limit").with("bytes", line.len()).with("max_line", filter.max_line);
            return Err(place(e, offset));
        }
        // A byte order mark can only begin the text.
        let limits = Limits { allow_bom: filter.limits.allow_bom && offset == 0, ..filter.limits };
        match one(ctx, line, filter, limits, &mut tape, &regexes, &mut piece.out) {
            Ok(passed) => {
                if passed && counted {
                    piece.ends.push(piece.out.len());
                    if piece.ends.len() == filter.limit {
                        return Ok(());
                    }
                }
            }
            Err(Stop::Bad { .. }) if filter.skip_bad => {}
            Err(Stop::Bad { at, what }) => return Err(place(Error::new(ErrorKind::Corrupt, what), offset + at)),
            Err(Stop::Deep { at, max_depth }) => {
                let e = Error::new(ErrorKind::TooLarge, "json is nested too deeply").with("max_depth", max_depth);
                return Err(place(e, offset + at));
            }
            Err(Stop::Err(e)) => return Err(e),
        }
        if piece.out.len() > filter.max_output {
            return Err(Error::new(ErrorKind::TooLarge, "output is over the limit").with("max_output", filter.max_output));
        }
    }
    Ok(())
}

/// One line; says whether it passed.
fn one(
    ctx: &OpCtx<'_>,
    line: &[u8],
    filter: &Filter,
    limits: Limits,
    tape: &mut Tape,
    regexes: &Regexes,
    out: &mut Vec<u8>,
) -> Result<bool, Stop> {
    let control: &dyn Control = if line.len() < WINDOW { &Short } else { ctx.control() };
    if let Some(keep) = &filter.keep {
        let doc = tape.read(line, limits, control)?;
        if !Selection::new(doc, ctx.control(), filter.max_matches, regexes).holds(keep)? {
            return Ok(false);
        }
    }
    let find = |pointers: &Pointers| -> Result<Vec<Option<(usize, usize)>>, Stop> {
        let mut finder = Finder::new(line, pointers);
        scan::scan(line, limits, control, &mut finder)?;
        Ok(finder.found())
    };
    let text = |span: &Option<(usize, usize)>| span.map_or(&b"null"[..], |(a, b)| &line[a..b]);
    match &filter.project {
        Project::Whole => {
            if filter.keep.is_none() {
                scan::scan(line, limits, control, &mut Ignore)?;
            }
            out.extend_from_slice(line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(line));
        }
        Project::Value(pointers) => out.extend_from_slice(text(&find(pointers)?[0])),
        Project::Object(names, pointers) => {
            for (i, (name, span)) in names.iter().zip(&find(pointers)?).enumerate() {
                out.push(if i == 0 { b'{' } else { b',' });
                out.extend_from_slice(name);
                out.push(b':');
                out.extend_from_slice(text(span));
            }
            out.push(b'}');
        }
    }
    out.push(b'\n');
    Ok(true)
}
