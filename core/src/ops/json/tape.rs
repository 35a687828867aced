//! A document as a flat list of nodes over its own text: what queries walk. 16 bytes per value, in document order, so that
//! "all descendants of a node" is a range and nothing recurses.

use super::scan::{self, Limits, Sink, Stop};
use crate::error::{Error, ErrorKind, Result};
use crate::ops::Control;
use std::borrow::Cow;

/// Set in `Node::count` of a member name.
const KEY: u32 = 1 << 31;
/// Set in `Node::count` of a string with escapes.
const ESCAPED: u32 = 1 << 30;

#[derive(Clone, Copy, Debug)]
struct Node {
    start: u32,
    end: u32,
    /// The node after this one and all below it.
    next: u32,
    /// Children (members count once); flags for strings.
    count: u32,
}

/// Nodes of one document, root first. A member is its name's node followed by its value's node.
#[derive(Debug, Default)]
pub(super) struct Tape {
    nodes: Vec<Node>,
    open: Vec<u32>,
}

impl Sink for Tape {
    #[inline]
    fn open(&mut self, at: usize, _object: bool) -> Result<()> {
        self.child();
        self.open.push(self.nodes.len() as u32);
        self.push(at, at, 0);
        Ok(())
    }
    #[inline]
    fn close(&mut self, at: usize) -> Result<()> {
        let i = self.open.pop().expect("the scanner closes what it opened") as usize;
        self.nodes[i].end = at as u32 + 1;
        self.nodes[i].next = self.nodes.len() as u32;
        Ok(())
    }
    #[inline]
    fn key(&mut self, start: usize, end: usize, escaped: bool) -> Result<()> {
        self.push(start, end, KEY | if escaped { ESCAPED } else { 0 });
        Ok(())
    }
    #[inline]
    fn scalar(&mut self, start: usize, end: usize, escaped: bool) -> Result<()> {
        self.child();
        self.push(start, end, if escaped { ESCAPED } else { 0 });
        Ok(())
    }
}

impl Tape {
    fn child(&mut self) {
        if let Some(&parent) = self.open.last() {
            self.nodes[parent as usize].count += 1;
        }
    }

    fn push(&mut self, start: usize, end: usize, count: u32) {
        let next = self.nodes.len() as u32 + 1;
        self.nodes.push(Node { start: start as u32, end: end as u32, next, count });
    }

    /// Reads one document, reusing the memory of the one before.
    pub(super) fn read<'a>(&'a mut self, text: &'a [u8], limits: Limits, control: &dyn Control) -> Result<Doc<'a>, Stop> {
        // Offsets are 32 bits and counts 30, which this bound keeps.
        const MAX: usize = 1 << 30;
        if text.len() > MAX {
            return Err(Error::new(ErrorKind::TooLarge, "json is too large for a query").with("bytes", text.len()).with("max", MAX).into());
        }
        self.nodes.clear();
        self.open.clear();
        scan::scan(text, limits, control, self)?;
        Ok(Doc { text, nodes: &self.nodes })
    }
}

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Object,
    Array,
    Str,
    Number,
    True,
    False,
    Null,
}

/// A read document.
#[derive(Clone, Copy)]
pub(super) struct Doc<'a> {
    text: &'a [u8],
    nodes: &'a [Node],
}

impl<'a> Doc<'a> {
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(super) fn kind(&self, i: u32) -> Kind {
        match self.text[self.nodes[i as usize].start as usize] {
            b'{' => Kind::Object,
            b'[' => Kind::Array,
            b'"' => Kind::Str,
            b't' => Kind::True,
            b'f' => Kind::False,
            b'n' => Kind::Null,
            _ => Kind::Number,
        }
    }

    /// The node's own text.
    pub(super) fn raw(&self, i: u32) -> &'a [u8] {
        let n = &self.nodes[i as usize];
        &self.text[n.start as usize..n.end as usize]
    }

    /// The text of a string or name.
    pub(super) fn string(&self, i: u32) -> Cow<'a, [u8]> {
        let raw = self.raw(i);
        if self.nodes[i as usize].count & ESCAPED == 0 { Cow::Borrowed(&raw[1..raw.len() - 1]) } else { Cow::Owned(scan::unescape(raw)) }
    }

    pub(super) fn string_is(&self, i: u32, text: &[u8]) -> bool {
        let n = &self.nodes[i as usize];
        if n.count & ESCAPED == 0 {
            (n.end - n.start) as usize == text.len() + 2 && &self.text[n.start as usize + 1..n.end as usize - 1] == text
        } else {
            *self.string(i) == *text
        }
    }

    pub(super) fn is_key(&self, i: u32) -> bool {
        self.nodes[i as usize].count & KEY != 0
    }

    /// The node after this one's whole subtree.
    pub(super) fn next(&self, i: u32) -> u32 {
        self.nodes[i as usize].next
    }

    /// Children of an object or array.
    pub(super) fn count(&self, i: u32) -> usize {
        self.nodes[i as usize].count as usize
    }

    /// Name and value nodes of an object's members, in document order.
    pub(super) fn members(self, i: u32) -> impl Iterator<Item = (u32, u32)> + 'a {
        let end = self.next(i);
        let mut at = i + 1;
        std::iter::from_fn(move || {
            (at < end).then(|| {
                let key = at;
                at = self.next(key + 1);
                (key, key + 1)
            })
        })
    }

    /// Elements of an array, in order.
    pub(super) fn elements(self, i: u32) -> impl Iterator<Item = u32> + 'a {
        let end = self.next(i);
        let mut at = i + 1;
        std::iter::from_fn(move || {
            (at < end).then(|| {
                let element = at;
                at = self.next(element);
                element
            })
        })
    }
}
