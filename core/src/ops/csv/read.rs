//! RFC 4180 text as records: where pieces may be cut, and where each field lies.
//!
//! A line ends with LF, CRLF or CR. Quoting is strict: a quote stands only around a whole field (doubled inside), so outside
//! of errors "inside quotes" is the parity of the quotes before. That lets blocks count their quotes in parallel, and a cut
//! be found inside a block without reading from the start.

use crate::error::{Error, ErrorKind, Result};
use crate::ops::place::{corrupt_at, line_and_column};
use crate::ops::{Control, OpCtx};
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::lock;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Mutex;

/// How the text is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dialect {
    pub(super) delimiter: u8,
    pub(super) quote: Option<u8>,
    /// Takes the meaning from the byte after it. A doubled quote works beside it.
    pub(super) escape: Option<u8>,
    /// Lines that begin with it are left out.
    pub(super) comment: Option<u8>,
}

/// What a record with the wrong number of fields does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ragged {
    Fail,
    Fill,
    Skip,
}

/// Limits and habits of one read.
pub(super) struct Rules {
    pub(super) ragged: Ragged,
    pub(super) max_record: usize,
    /// Most bytes of places for fields that are not in the text.
    pub(super) max_filled: usize,
}

const PLAIN: u8 = 0;
const DELIMITER: u8 = 1;
const LINE_END: u8 = 2;
const QUOTE: u8 = 3;
const ESCAPE: u8 = 4;

const QUOTED: u32 = 1 << 31;
const ESCAPED: u32 = 1 << 30;

/// Where a field lies in its piece, quotes left out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field {
    start: u32,
    len: u32,
}

impl Field {
    const MISSING: Field = Field { start: 0, len: 0 };

    #[inline(always)]
    pub(super) fn is_quoted(self) -> bool {
        self.len & QUOTED != 0
    }

    pub(super) fn start(self) -> usize {
        self.start as usize
    }

    /// The field's text in its piece.
    #[inline(always)]
    pub(super) fn text<'a>(self, piece: &'a [u8], dialect: &Dialect) -> Cow<'a, [u8]> {
        let start = self.start as usize;
        let raw = &piece[start..start + (self.len & !(QUOTED | ESCAPED)) as usize];
        if self.len & ESCAPED == 0 { Cow::Borrowed(raw) } else { Cow::Owned(dialect.unescape(raw, self.is_quoted())) }
    }
}

impl Dialect {
    pub(super) fn classes(&self) -> [u8; 256] {
        let mut classes = [PLAIN; 256];
        classes[b'\n' as usize] = LINE_END;
        classes[b'\r' as usize] = LINE_END;
        classes[self.delimiter as usize] = DELIMITER;
        if let Some(q) = self.quote {
            classes[q as usize] = QUOTE;
        }
        if let Some(e) = self.escape {
            classes[e as usize] = ESCAPE;
        }
        classes
    }

    fn unescape(&self, raw: &[u8], quoted: bool) -> Vec<u8> {
        let mut out = Vec::with_capacity(raw.len());
        let mut at = 0;
        while at < raw.len() {
            // An escape takes the next byte as it is; so does the first half of a doubled quote.
            if Some(raw[at]) == self.escape || (quoted && Some(raw[at]) == self.quote) {
                at += 1;
            }
            out.extend(raw.get(at));
            at += 1;
        }
        out
    }
}

/// Reads records of one piece.
pub(super) struct Reader<'a> {
    whole: &'a [u8],
    piece: &'a [u8],
    /// Where the piece begins in the whole text.
    base: usize,
    dialect: Dialect,
    classes: [u8; 256],
    max_record: usize,
    pos: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(whole: &'a [u8], range: Range<usize>, dialect: Dialect, max_record: usize) -> Reader<'a> {
        let (piece, base) = (&whole[range.clone()], range.start);
        Reader { whole, piece, base, dialect, classes: dialect.classes(), max_record, pos: 0 }
    }

    pub(super) fn pos(&self) -> usize {
        self.base + self.pos
    }

    fn corrupt(&self, at: usize, what: &'static str) -> Error {
        corrupt_at(self.whole, self.base + at, what)
    }

    /// Appends the fields of the next record; `None` at the end, else where the record begins. Blank lines are no records.
    #[inline]
    fn record(&mut self, fields: &mut Vec<Field>) -> Result<Option<usize>> {
        let text = self.piece;
        loop {
            match text.get(self.pos) {
                None => return Ok(None),
                Some(b'\n' | b'\r') => self.pos += 1,
                Some(&b) if Some(b) == self.dialect.comment => {
                    let end = text[self.pos..].iter().position(|&b| b == b'\n' || b == b'\r');
                    self.pos = end.map_or(text.len(), |i| self.pos + i);
                }
                Some(_) => break,
            }
        }
        let begin = self.pos;
        // A record within its limit ends before this; 32 bits hold every offset up to it.
        let stop = text.len().min(begin.saturating_add(self.max_record).saturating_add(1)).min(u32::MAX as usize);
        let mut at = begin;
        loop {
            let (start, len);
            let mut flags = 0;
            if at < stop && self.classes[text[at] as usize] == QUOTE {
                start = at + 1;
                at = start;
                flags = QUOTED;
                loop {
                    while at < stop && self.classes[text[at] as usize] < QUOTE {
                        at += 1;
                    }
                    if at >= stop {
                        return Err(if stop == text.len() {
                            self.corrupt(start - 1, "quoted field without an end")
                        } else {
                            self.too_long(begin)
                        });
                    }
                    let doubled = self.classes[text[at] as usize] == QUOTE && text.get(at + 1) == Some(&text[at]);
                    if doubled || self.classes[text[at] as usize] == ESCAPE {
                        flags |= ESCAPED;
                        at += 2;
                        continue;
                    }
                    break;
                }
                len = at - start;
                at += 1;
                if at < stop && !matches!(self.classes[text[at] as usize], DELIMITER | LINE_END) {
                    return Err(self.corrupt(at, "text after a closing quote"));
                }
            } else {
                start = at;
                loop {
                    while at < stop && self.classes[text[at] as usize] == PLAIN {
                        at += 1;
                    }
                    match text[..stop].get(at).map(|&b| self.classes[b as usize]) {
                        Some(QUOTE) => return Err(self.corrupt(at, "quote inside an unquoted field")),
                        Some(ESCAPE) => {
                            flags |= ESCAPED;
                            at = (at + 2).min(text.len());
                        }
                        _ => break,
                    }
                }
                len = at - start;
            }
            if at - begin > self.max_record || at > u32::MAX as usize {
                return Err(self.too_long(begin));
            }
            fields.push(Field { start: start as u32, len: len as u32 | flags });
            match text.get(at) {
                Some(b'\n' | b'\r') => {
                    // The second half of CRLF is skipped as a blank line by the next record.
                    self.pos = at + 1;
                    return Ok(Some(begin));
                }
                Some(_) => at += 1,
                None => {
                    self.pos = at;
                    return Ok(Some(begin));
                }
            }
        }
    }

    fn too_long(&self, begin: usize) -> Error {
        let (line, _) = line_and_column(self.whole, self.base + begin);
        Error::new(ErrorKind::TooLarge, "record is over the limit").with("max_record", self.max_record).with("line", line)
    }

    /// The next record alone: the header.
    pub(super) fn one(&mut self) -> Result<Vec<Field>> {
        let mut fields = Vec::new();
        self.record(&mut fields)?;
        Ok(fields)
    }

    /// Every record, `columns` fields each. `filled` counts the bytes of fields that are not in the text.
    pub(super) fn all(&mut self, columns: usize, rules: &Rules, filled: &AtomicUsize, control: &dyn Control) -> Result<Vec<Field>> {
        let mut fields = Vec::with_capacity(self.piece.len() / 6);
        let mut checked = 0;
        loop {
            if self.pos - checked >= 1 << 18 {
                control.check()?;
                checked = self.pos;
            }
            let before = fields.len();
            let Some(begin) = self.record(&mut fields)? else { return Ok(fields) };
            let got = fields.len() - before;
            if got == columns {
                continue;
            }
            match rules.ragged {
                Ragged::Skip => fields.truncate(before),
                Ragged::Fill if got < columns => {
                    let more = (columns - got) * size_of::<Field>();
                    if filled.fetch_add(more, Ordering::Relaxed) + more > rules.max_filled {
                        return Err(
                            Error::new(ErrorKind::TooLarge, "missing fields are over the limit").with("max_output", rules.max_filled)
                        );
                    }
                    fields.resize(before + columns, Field::MISSING);
                }
                _ => {
                    let (line, _) = line_and_column(self.whole, self.base + begin);
                    return Err(Error::new(ErrorKind::Corrupt, "record has the wrong number of fields")
                        .with("line", line)
                        .with("fields", got)
                        .with("columns", columns));
                }
            }
        }
    }
}

/// Cuts `text[from..]` into pieces of about `size` bytes that begin and end at records. The cuts depend on the text alone,
/// never on how many threads there are.
pub(super) fn split(
    ctx: &OpCtx<'_>,
    text: &[u8],
    from: usize,
    dialect: Dialect,
    size: usize,
    max_record: usize,
) -> Result<Vec<Range<usize>>> {
    let blocks = (text.len() - from).div_ceil(size);
    if blocks <= 1 {
        return Ok(std::iter::once(from..text.len()).filter(|r| !r.is_empty()).collect());
    }
    let mut cuts = vec![from];
    if dialect.escape.is_some() || dialect.comment.is_some() {
        // Escapes and comments hide quotes from the parity: read the records in order. What is broken is reported by the
        // piece that holds it.
        let mut reader = Reader::new(text, from..text.len(), dialect, max_record);
        let (mut fields, mut checked) = (Vec::new(), from);
        while let Ok(Some(_)) = reader.record(&mut fields) {
            fields.clear();
            if reader.pos() - cuts[cuts.len() - 1] >= size {
                cuts.push(reader.pos());
            }
            if reader.pos() - checked >= 1 << 18 {
                checked = reader.pos();
                ctx.check()?;
            }
        }
    } else {
        let block = |i: usize| from + i * size..(from + (i + 1) * size).min(text.len());
        let odd: Vec<Mutex<bool>> = (0..blocks).map(|_| Mutex::new(false)).collect();
        if let Some(quote) = dialect.quote {
            ctx.parallel(blocks, &|i| {
                *lock(&odd[i]) = text[block(i)].iter().filter(|&&b| b == quote).count() % 2 == 1;
                Ok(())
            })?;
        }
        let mut inside = false;
        for (i, odd) in odd.iter().enumerate() {
            if i > 0
                && let Some(cut) = first_cut(text, block(i), dialect.quote, inside)
            {
                cuts.push(cut);
            }
            inside ^= *lock(odd);
        }
    }
    cuts.push(text.len());
    Ok(cuts.windows(2).map(|w| w[0]..w[1]).filter(|r| !r.is_empty()).collect())
}

/// The place after the first line end in `block` that is outside quotes. A cut inside CRLF is one as well: the LF is then a
/// blank line of the next piece.
fn first_cut(text: &[u8], block: Range<usize>, quote: Option<u8>, mut inside: bool) -> Option<usize> {
    for at in block {
        let b = text[at];
        if Some(b) == quote {
            inside = !inside;
        } else if (b == b'\n' || b == b'\r') && !inside {
            return Some(at + 1);
        }
    }
    None
}
