//! The same document with other white space, and the check for duplicate names. Strings and numbers keep their bytes.

use super::scan::{Sink, unescape};
use crate::error::{Error, ErrorKind, Result};
use crate::ops::place::corrupt_at;
use std::borrow::Cow;
use std::collections::HashSet;

#[cold]
fn no_room(output: usize) -> Error {
    Error::new(ErrorKind::TooLarge, "output does not fit in memory").with("output", output)
}

/// Leaves out white space.
pub(super) struct Minify<'a> {
    pub(super) text: &'a [u8],
    pub(super) out: Vec<u8>,
    /// Where the run of text that is not yet copied begins.
    pub(super) run: usize,
}

impl<'a> Minify<'a> {
    /// With room for the longest output, which is the input.
    pub(super) fn new(text: &'a [u8]) -> Result<Minify<'a>> {
        let mut out = Vec::new();
        out.try_reserve_exact(text.len()).map_err(|_| no_room(text.len()))?;
        Ok(Minify { text, out, run: 0 })
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        self.out.extend_from_slice(&self.text[self.run..]);
        self.out
    }
}

impl Sink for Minify<'_> {
    fn gap(&mut self, start: usize, end: usize) {
        self.out.extend_from_slice(&self.text[self.run..start]);
        self.run = end;
    }
}

/// One value per line, indented.
pub(super) struct Format<'a> {
    pub(super) text: &'a [u8],
    pub(super) out: Vec<u8>,
    pub(super) indent: &'a [u8],
    pub(super) max_output: usize,
    depth: usize,
    /// Nothing stands in the innermost container yet.
    fresh: bool,
    after_name: bool,
}

impl<'a> Format<'a> {
    pub(super) fn new(text: &'a [u8], indent: &'a [u8], max_output: usize) -> Format<'a> {
        // A guess: without room for it the output grows as it comes.
        let mut out = Vec::new();
        let _ = out.try_reserve_exact(text.len().saturating_mul(2).min(max_output));
        Format { text, out, indent, max_output, depth: 0, fresh: false, after_name: false }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if self.out.len() + bytes.len() > self.max_output {
            return Err(Error::new(ErrorKind::TooLarge, "formatted json is over the limit").with("max_output", self.max_output));
        }
        self.out.try_reserve(bytes.len()).map_err(|_| no_room(self.out.len() + bytes.len()))?;
        self.out.extend_from_slice(bytes);
        Ok(())
    }

    fn line(&mut self) -> Result<()> {
        self.write(b"\n")?;
        for _ in 0..self.depth {
            self.write(self.indent)?;
        }
        Ok(())
    }

    /// What stands before a name or a value.
    fn lead(&mut self) -> Result<()> {
        if std::mem::take(&mut self.after_name) || self.depth == 0 {
            return Ok(());
        }
        if !std::mem::take(&mut self.fresh) {
            self.write(b",")?;
        }
        self.line()
    }
}

impl Sink for Format<'_> {
    fn open(&mut self, at: usize, _object: bool) -> Result<()> {
        self.lead()?;
        self.write(&[self.text[at]])?;
        self.depth += 1;
        self.fresh = true;
        Ok(())
    }
    fn close(&mut self, at: usize) -> Result<()> {
        self.depth -= 1;
        if !std::mem::take(&mut self.fresh) {
            self.line()?;
        }
        self.write(&[self.text[at]])
    }
    fn key(&mut self, start: usize, end: usize, _escaped: bool) -> Result<()> {
        self.lead()?;
        self.write(&self.text[start..end])?;
        self.after_name = true;
        self.write(b": ")
    }
    fn scalar(&mut self, start: usize, end: usize, _escaped: bool) -> Result<()> {
        self.lead()?;
        self.write(&self.text[start..end])
    }
}

/// Refuses an object that has a name twice.
pub(super) struct UniqueNames<'a> {
    text: &'a [u8],
    open: Vec<Option<HashSet<Cow<'a, [u8]>>>>,
}

impl<'a> UniqueNames<'a> {
    pub(super) fn new(text: &'a [u8]) -> UniqueNames<'a> {
        UniqueNames { text, open: Vec::new() }
    }
}

impl Sink for UniqueNames<'_> {
    fn open(&mut self, _at: usize, object: bool) -> Result<()> {
        self.open.push(object.then(HashSet::new));
        Ok(())
    }
    fn close(&mut self, _at: usize) -> Result<()> {
        self.open.pop();
        Ok(())
    }
    fn key(&mut self, start: usize, end: usize, escaped: bool) -> Result<()> {
        let quoted = &self.text[start..end];
        let name = if escaped { Cow::Owned(unescape(quoted)) } else { Cow::Borrowed(&quoted[1..quoted.len() - 1]) };
        let names = self.open.last_mut().and_then(Option::as_mut).expect("a name stands in an object");
        if names.insert(name) { Ok(()) } else { Err(corrupt_at(self.text, start, "member name is given twice")) }
    }
}
