//! A strict RFC 8259 scanner: one pass, no recursion, no tree. It reports what it sees to a [`Sink`].
//!
//! Strings are searched eight bytes at a time (the "has a byte less than / equal to" tests of Bit Twiddling Hacks), and
//! UTF-8 is checked in windows that the scanner reads next, while they are in cache.

use crate::error::{Error, ErrorKind, Result};
use crate::ops::Control;
use crate::ops::place::corrupt_at;

/// Bytes between two looks at the token; also the window of the UTF-8 check.
pub(super) const WINDOW: usize = 256 << 10;

/// Receives the parts of a document, in order. Offsets are byte offsets in the input, ends are exclusive.
pub(super) trait Sink {
    /// `{` or `[` at `at`.
    fn open(&mut self, at: usize, object: bool) -> Result<()> {
        let _ = (at, object);
        Ok(())
    }
    /// `}` or `]` at `at`.
    fn close(&mut self, at: usize) -> Result<()> {
        let _ = at;
        Ok(())
    }
    /// A member name, quotes included; `escaped` when it has a backslash.
    fn key(&mut self, start: usize, end: usize, escaped: bool) -> Result<()> {
        let _ = (start, end, escaped);
        Ok(())
    }
    /// A string (quotes included), number, `true`, `false` or `null`.
    fn scalar(&mut self, start: usize, end: usize, escaped: bool) -> Result<()> {
        let _ = (start, end, escaped);
        Ok(())
    }
    /// White space between tokens.
    fn gap(&mut self, start: usize, end: usize) {
        let _ = (start, end);
    }
}

/// Looks at nothing: plain validation.
pub(super) struct Ignore;
impl Sink for Ignore {}

/// A token for texts shorter than one window, whose caller looks at the real one between them.
pub(super) struct Short;
impl Control for Short {
    fn check(&self) -> Result<()> {
        Ok(())
    }
}

/// What a scan accepts.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    pub(super) max_depth: usize,
    pub(super) allow_bom: bool,
    pub(super) allow_lone_surrogates: bool,
}

/// Why a scan ended early. The place is turned into line and column by whoever knows the whole text.
#[derive(Debug)]
pub(super) enum Stop {
    /// The text is not JSON.
    Bad { at: usize, what: &'static str },
    /// Nesting is over the limit.
    Deep { at: usize, max_depth: usize },
    /// Cancelled, or an error of the sink.
    Err(Error),
}

impl From<Error> for Stop {
    fn from(e: Error) -> Stop {
        Stop::Err(e)
    }
}

impl Stop {
    /// The error, for an input that is the whole text.
    pub(super) fn into_error(self, text: &[u8]) -> Error {
        match self {
            Stop::Bad { at, what } => corrupt_at(text, at, what),
            Stop::Deep { at, max_depth } => {
                Error::new(ErrorKind::TooLarge, "json is nested too deeply").with("max_depth", max_depth).with("offset", at)
            }
            Stop::Err(e) => e,
        }
    }
}

/// Scans one document. On `Ok` the input is one RFC 8259 text in valid UTF-8.
pub(super) fn scan<S: Sink>(input: &[u8], limits: Limits, control: &dyn Control, sink: &mut S) -> Result<(), Stop> {
    Scanner { input, pos: 0, utf8_done: 0, limits, control, depth: 0, kinds: Vec::new(), sink }.document()
}

struct Scanner<'a, S> {
    input: &'a [u8],
    pos: usize,
    /// Everything before is valid UTF-8; reaching it means: look at the token and check the next window.
    utf8_done: usize,
    limits: Limits,
    control: &'a dyn Control,
    depth: usize,
    /// One bit per open container, 1 for an object.
    kinds: Vec<u64>,
    sink: &'a mut S,
}

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGH: u64 = 0x8080_8080_8080_8080;

/// High bits of the bytes that end a run of plain string text: `"`, `\`, below 0x20. Bits above the lowest one may be
/// false (a borrow); the lowest one is exact.
#[inline(always)]
fn string_stops(w: u64) -> u64 {
    let quote = w ^ (ONES * b'"' as u64);
    let back = w ^ (ONES * b'\\' as u64);
    (w.wrapping_sub(ONES * 0x20) & !w | quote.wrapping_sub(ONES) & !quote | back.wrapping_sub(ONES) & !back) & HIGH
}

#[inline(always)]
fn word(input: &[u8], at: usize) -> Option<u64> {
    input.get(at..at + 8).map(|b| u64::from_le_bytes(b.try_into().expect("eight bytes")))
}

fn bad<T>(at: usize, what: &'static str) -> Result<T, Stop> {
    Err(Stop::Bad { at, what })
}

impl<S: Sink> Scanner<'_, S> {
    fn document(mut self) -> Result<(), Stop> {
        if self.input.starts_with(b"\xEF\xBB\xBF") {
            if !self.limits.allow_bom {
                return bad(0, "json begins with a byte order mark");
            }
            self.pos = 3;
            self.utf8_done = 3;
            self.sink.gap(0, 3);
        }
        self.tick()?;
        self.skip_space()?;
        if self.pos == self.input.len() {
            return bad(self.pos, "json text is empty");
        }
        self.values()?;
        while self.utf8_done < self.input.len() {
            self.tick()?;
        }
        Ok(())
    }

    /// The token, and the next window of UTF-8.
    #[cold]
    fn tick(&mut self) -> Result<(), Stop> {
        self.control.check()?;
        let from = self.utf8_done;
        let to = self.input.len().min(self.pos.max(from) + WINDOW);
        match std::str::from_utf8(&self.input[from..to]) {
            Ok(_) => self.utf8_done = to,
            // A character may lie across the end of the window.
            Err(e) if e.error_len().is_none() && to < self.input.len() => self.utf8_done = from + e.valid_up_to(),
            Err(e) => return bad(from + e.valid_up_to(), "json is not valid utf-8"),
        }
        Ok(())
    }

    #[inline(always)]
    fn pace(&mut self) -> Result<(), Stop> {
        if self.pos >= self.utf8_done && self.utf8_done < self.input.len() { self.tick() } else { Ok(()) }
    }

    #[inline(always)]
    fn peek(&self) -> Option<u8> {
        self.input.get(self.pos).copied()
    }

    #[inline(always)]
    fn skip_space(&mut self) -> Result<(), Stop> {
        match self.peek() {
            Some(b) if b > b' ' => Ok(()),
            _ => self.skip_space_slow(),
        }
    }

    #[inline(never)]
    fn skip_space_slow(&mut self) -> Result<(), Stop> {
        let start = self.pos;
        loop {
            while word(self.input, self.pos) == Some(ONES * b' ' as u64) {
                self.pos += 8;
                self.pace()?;
            }
            match self.peek() {
                Some(b' ' | b'\n' | b'\r' | b'\t') => self.pos += 1,
                _ => break,
            }
            self.pace()?;
        }
        if self.pos > start {
            self.sink.gap(start, self.pos);
        }
        Ok(())
    }

    fn in_object(&self) -> bool {
        let d = self.depth - 1;
        self.kinds[d / 64] >> (d % 64) & 1 == 1
    }

    #[inline]
    fn open(&mut self, object: bool) -> Result<(), Stop> {
        if self.depth == self.limits.max_depth {
            return Err(Stop::Deep { at: self.pos, max_depth: self.limits.max_depth });
        }
        let (word, bit) = (self.depth / 64, self.depth % 64);
        if word == self.kinds.len() {
            self.kinds.push(0);
        }
        self.kinds[word] = self.kinds[word] & !(1 << bit) | (object as u64) << bit;
        self.depth += 1;
        self.sink.open(self.pos, object)?;
        self.pos += 1;
        Ok(())
    }

    #[inline]
    fn close(&mut self) -> Result<(), Stop> {
        self.sink.close(self.pos)?;
        self.pos += 1;
        self.depth -= 1;
        Ok(())
    }

    /// The loop over values; the stack is `kinds`.
    fn values(&mut self) -> Result<(), Stop> {
        loop {
            self.pace()?;
            let start = self.pos;
            match self.peek() {
                Some(b'"') => {
                    let escaped = self.string()?;
                    self.sink.scalar(start, self.pos, escaped)?;
                }
                Some(b'-' | b'0'..=b'9') => {
                    self.number()?;
                    self.sink.scalar(start, self.pos, false)?;
                }
                Some(b'{') => {
                    self.open(true)?;
                    self.skip_space()?;
                    if self.peek() != Some(b'}') {
                        self.name()?;
                        continue;
                    }
                    self.close()?;
                }
                Some(b'[') => {
                    self.open(false)?;
                    self.skip_space()?;
                    if self.peek() != Some(b']') {
                        continue;
                    }
                    self.close()?;
                }
                Some(b't') => self.literal(b"true")?,
                Some(b'f') => self.literal(b"false")?,
                Some(b'n') => self.literal(b"null")?,
                Some(_) => return bad(start, "json value expected"),
                None => return bad(start, "json text ends early"),
            }
            // A value has ended: close what it closes, up to the next value.
            loop {
                self.skip_space()?;
                if self.depth == 0 {
                    return if self.pos == self.input.len() { Ok(()) } else { bad(self.pos, "text after the json value") };
                }
                match (self.peek(), self.in_object()) {
                    (Some(b','), object) => {
                        self.pos += 1;
                        self.skip_space()?;
                        if object {
                            self.name()?;
                        }
                        break;
                    }
                    (Some(b'}'), true) | (Some(b']'), false) => self.close()?,
                    (Some(_), true) => return bad(self.pos, "comma or closing brace expected"),
                    (Some(_), false) => return bad(self.pos, "comma or closing bracket expected"),
                    (None, _) => return bad(self.pos, "json text ends early"),
                }
            }
        }
    }

    /// A member name and its colon.
    #[inline]
    fn name(&mut self) -> Result<(), Stop> {
        let start = self.pos;
        match self.peek() {
            Some(b'"') => {}
            Some(_) => return bad(start, "member name expected"),
            None => return bad(start, "json text ends early"),
        }
        let escaped = self.string()?;
        self.sink.key(start, self.pos, escaped)?;
        self.skip_space()?;
        match self.peek() {
            Some(b':') => self.pos += 1,
            Some(_) => return bad(self.pos, "colon expected"),
            None => return bad(self.pos, "json text ends early"),
        }
        self.skip_space()
    }

    /// A string, from its opening quote; says whether it holds an escape.
    #[inline]
    fn string(&mut self) -> Result<bool, Stop> {
        let mut escaped = false;
        self.pos += 1;
        loop {
            while let Some(w) = word(self.input, self.pos) {
                let stops = string_stops(w);
                if stops != 0 {
                    self.pos += (stops.trailing_zeros() / 8) as usize;
                    break;
                }
                self.pos += 8;
                self.pace()?;
            }
            match self.peek() {
                Some(b'"') => {
                    self.pos += 1;
                    return Ok(escaped);
                }
                Some(b'\\') => {
                    escaped = true;
                    self.escape()?;
                    self.pace()?;
                }
                Some(0..0x20) => return bad(self.pos, "control character in a string"),
                // Only near the end of the input, where no whole word is left.
                Some(_) => self.pos += 1,
                None => return bad(self.pos, "string without an end"),
            }
        }
    }

    fn hex4(&self, at: usize) -> Option<u16> {
        let digits = self.input.get(at..at + 4)?;
        digits.iter().try_fold(0u16, |n, &d| Some(n << 4 | (d as char).to_digit(16)? as u16))
    }

    fn escape(&mut self) -> Result<(), Stop> {
        let at = self.pos;
        match self.input.get(at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.pos += 2,
            Some(b'u') => {
                let Some(unit) = self.hex4(at + 2) else { return bad(at, "four hex digits expected after \\u") };
                self.pos += 6;
                if !self.limits.allow_lone_surrogates && (0xD800..0xE000).contains(&unit) {
                    let low = (self.input.get(at + 6..at + 8) == Some(b"\\u")).then(|| self.hex4(at + 8)).flatten();
                    match low {
                        Some(0xDC00..0xE000) if unit < 0xDC00 => self.pos += 6,
                        _ => return bad(at, "lone surrogate in a string"),
                    }
                }
            }
            Some(_) => return bad(at, "unknown escape in a string"),
            None => return bad(at, "string without an end"),
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), Stop> {
        let start = self.pos;
        while let Some(b'0'..=b'9') = self.peek() {
            self.pos += 1;
            self.pace()?;
        }
        if self.pos > start { Ok(()) } else { bad(start, "digit expected in a number") }
    }

    #[inline]
    fn number(&mut self) -> Result<(), Stop> {
        if self.peek() == Some(b'-') {
            self.pos += 1;
        }
        if self.peek() == Some(b'0') {
            self.pos += 1;
            if let Some(b'0'..=b'9') = self.peek() {
                return bad(self.pos - 1, "number with a leading zero");
            }
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.pos += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.pos += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.pos += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    #[inline]
    fn literal(&mut self, text: &'static [u8]) -> Result<(), Stop> {
        let start = self.pos;
        if !self.input[start..].starts_with(text) {
            return bad(start, "json value expected");
        }
        self.pos += text.len();
        self.sink.scalar(start, self.pos, false)?;
        Ok(())
    }
}

/// The text of a scanned string without quotes and escapes. A lone surrogate becomes its three-byte generalised form,
/// which equals no UTF-8 text and sorts where its code point does.
pub(super) fn unescape(quoted: &[u8]) -> Vec<u8> {
    let inner = &quoted[1..quoted.len() - 1];
    let mut out = Vec::with_capacity(inner.len());
    let mut at = 0;
    let unit = |at: usize| -> Option<u32> {
        if inner.get(at..at + 2) != Some(b"\\u") {
            return None;
        }
        inner.get(at + 2..at + 6)?.iter().try_fold(0, |n, &d| Some(n << 4 | (d as char).to_digit(16)?))
    };
    while at < inner.len() {
        let Some(run) = inner[at..].iter().position(|&b| b == b'\\') else {
            out.extend_from_slice(&inner[at..]);
            break;
        };
        out.extend_from_slice(&inner[at..at + run]);
        at += run;
        if let Some(high) = unit(at) {
            at += 6;
            let mut point = high;
            if let (0xD800..0xDC00, Some(low @ 0xDC00..0xE000)) = (high, unit(at)) {
                point = 0x1_0000 + ((high - 0xD800) << 10) + (low - 0xDC00);
                at += 6;
            }
            match char::from_u32(point) {
                Some(c) => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
                None => out.extend_from_slice(&[0xE0 | (point >> 12) as u8, 0x80 | (point >> 6 & 0x3F) as u8, 0x80 | (point & 0x3F) as u8]),
            }
            continue;
        }
        out.push(match inner[at + 1] {
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            other => other,
        });
        at += 2;
    }
    out
}
