//! JSONPath (RFC 9535): evaluation over a [`Doc`].
//!
//! Numbers compare exactly when both are integers of 128 bits, otherwise as binary64. Of members with the same name a name
//! selector takes the last one, as JSON readers do; wildcards and filters see all of them.

use super::path::{Cmp, Expr, Operand, Query, Segment, Selector};
use super::tape::{Doc, Kind};
use crate::error::{Error, ErrorKind, Result};
use crate::ops::Control;
use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::cmp::Ordering;

/// Nodes visited between two looks at the token.
const STEPS: u32 = 1 << 14;
/// A compiled expression may take this much memory; more means no match, as for a broken one.
const REGEX_SIZE: usize = 1 << 20;

/// One expression, as written and compiled; `None` when it is no I-Regexp, which matches nothing (RFC 9535, 2.4.6).
type Compiled = (bool, Box<str>, Option<regex::Regex>);

pub(super) struct Selection<'a> {
    doc: Doc<'a>,
    control: &'a dyn Control,
    max_matches: usize,
    steps: Cell<u32>,
    regexes: &'a RefCell<Vec<Compiled>>,
}

/// Compiled expressions, kept over the documents of one call.
#[derive(Default)]
pub(super) struct Regexes(RefCell<Vec<Compiled>>);

/// A value in a comparison.
enum Val<'a> {
    Nothing,
    Node(u32),
    Null,
    Bool(bool),
    Number(&'a str),
    Count(usize),
    Str(&'a str),
}

/// A value whose type is known.
enum Typed<'a> {
    Nothing,
    Null,
    Bool(bool),
    Number(Num),
    Str(Cow<'a, [u8]>),
    Node(u32),
}

#[derive(Clone, Copy)]
enum Num {
    Int(i128),
    Float(f64),
}

impl Num {
    fn parse(text: &str) -> Num {
        match text.parse::<i128>() {
            Ok(i) => Num::Int(i),
            Err(_) => Num::Float(text.parse().unwrap_or(f64::NAN)),
        }
    }

    fn cmp(self, other: Num) -> Option<Ordering> {
        let float = |n: Num| match n {
            Num::Int(i) => i as f64,
            Num::Float(f) => f,
        };
        match (self, other) {
            (Num::Int(a), Num::Int(b)) => Some(a.cmp(&b)),
            (a, b) => float(a).partial_cmp(&float(b)),
        }
    }
}

impl<'a> Selection<'a> {
    pub(super) fn new(doc: Doc<'a>, control: &'a dyn Control, max_matches: usize, regexes: &'a Regexes) -> Selection<'a> {
        Selection { doc, control, max_matches, steps: Cell::new(0), regexes: &regexes.0 }
    }

    /// The query's nodelist over the whole document.
    pub(super) fn select(&self, query: &Query) -> Result<Vec<u32>> {
        self.nodes(query, 0)
    }

    /// Whether the filter holds for the whole document.
    pub(super) fn holds(&self, filter: &Expr) -> Result<bool> {
        self.test(filter, 0)
    }

    #[inline]
    fn step(&self) -> Result<()> {
        let n = self.steps.get() + 1;
        self.steps.set(n);
        if n.is_multiple_of(STEPS) { self.control.check() } else { Ok(()) }
    }

    fn push(&self, out: &mut Vec<u32>, node: u32) -> Result<()> {
        if out.len() == self.max_matches {
            return Err(Error::new(ErrorKind::TooLarge, "query selects too many nodes").with("max_matches", self.max_matches));
        }
        out.push(node);
        self.step()
    }

    fn nodes(&self, query: &Query, current: u32) -> Result<Vec<u32>> {
        let mut nodes = vec![if query.absolute { 0 } else { current }];
        for Segment { descend, selectors } in &query.segments {
            let mut next = Vec::new();
            for &node in &nodes {
                if *descend {
                    for below in node..self.doc.next(node) {
                        if !self.doc.is_key(below) {
                            self.apply_all(selectors, below, &mut next)?;
                        }
                        self.step()?;
                    }
                } else {
                    self.apply_all(selectors, node, &mut next)?;
                }
            }
            nodes = next;
        }
        Ok(nodes)
    }

    /// The one node of a singular query, without a list.
    fn singular(&self, query: &Query, current: u32) -> Result<Option<u32>> {
        let mut node = if query.absolute { 0 } else { current };
        for segment in &query.segments {
            let found = match &segment.selectors[0] {
                Selector::Name(name) => self.member(node, name)?,
                Selector::Index(i) => self.element(node, *i)?,
                _ => unreachable!("a singular query has names and indices only"),
            };
            match found {
                Some(next) => node = next,
                None => return Ok(None),
            }
        }
        Ok(Some(node))
    }

    fn apply_all(&self, selectors: &[Selector], node: u32, out: &mut Vec<u32>) -> Result<()> {
        selectors.iter().try_for_each(|s| self.apply(s, node, out))
    }

    fn member(&self, node: u32, name: &[u8]) -> Result<Option<u32>> {
        let mut found = None;
        if self.doc.kind(node) == Kind::Object {
            for (key, value) in self.doc.members(node) {
                self.step()?;
                if self.doc.string_is(key, name) {
                    found = Some(value);
                }
            }
        }
        Ok(found)
    }

    fn element(&self, node: u32, index: i64) -> Result<Option<u32>> {
        if self.doc.kind(node) != Kind::Array {
            return Ok(None);
        }
        let len = self.doc.count(node) as i64;
        let at = if index < 0 { index + len } else { index };
        if !(0..len).contains(&at) {
            return Ok(None);
        }
        for (i, element) in self.doc.elements(node).enumerate() {
            self.step()?;
            if i as i64 == at {
                return Ok(Some(element));
            }
        }
        Ok(None)
    }

    fn each_child(&self, node: u32, mut visit: impl FnMut(u32) -> Result<()>) -> Result<()> {
        match self.doc.kind(node) {
            Kind::Object => self.doc.members(node).try_for_each(|(_, value)| visit(value)),
            Kind::Array => self.doc.elements(node).try_for_each(visit),
            _ => Ok(()),
        }
    }

    fn apply(&self, selector: &Selector, node: u32, out: &mut Vec<u32>) -> Result<()> {
        match selector {
            Selector::Name(name) => self.member(node, name)?.map_or(Ok(()), |n| self.push(out, n)),
            Selector::Index(i) => self.element(node, *i)?.map_or(Ok(()), |n| self.push(out, n)),
            Selector::Wild => self.each_child(node, |child| self.push(out, child)),
            Selector::Filter(expr) => self.each_child(node, |child| {
                self.step()?;
                if self.test(expr, child)? { self.push(out, child) } else { Ok(()) }
            }),
            Selector::Slice(start, end, step) => self.slice(node, *start, *end, *step, out),
        }
    }

    /// RFC 9535, 2.3.4.2.2.
    fn slice(&self, node: u32, start: Option<i64>, end: Option<i64>, step: i64, out: &mut Vec<u32>) -> Result<()> {
        if self.doc.kind(node) != Kind::Array || step == 0 {
            return Ok(());
        }
        let len = self.doc.count(node) as i64;
        let normal = |i: i64| if i < 0 { len + i } else { i };
        let (lower, upper) = if step > 0 {
            (normal(start.unwrap_or(0)).clamp(0, len), normal(end.unwrap_or(len)).clamp(0, len))
        } else {
            (normal(end.unwrap_or(-len - 1)).clamp(-1, len - 1), normal(start.unwrap_or(len - 1)).clamp(-1, len - 1))
        };
        if step > 0 {
            for (i, element) in self.doc.elements(node).enumerate().take(upper as usize) {
                self.step()?;
                if i as i64 >= lower && (i as i64 - lower) % step == 0 {
                    self.push(out, element)?;
                }
            }
        } else {
            let mut elements = Vec::new();
            for element in self.doc.elements(node).take((upper + 1) as usize) {
                self.push(&mut elements, element)?;
            }
            let mut i = upper;
            while i > lower {
                self.push(out, elements[i as usize])?;
                i += step;
            }
        }
        Ok(())
    }

    fn test(&self, expr: &Expr, current: u32) -> Result<bool> {
        Ok(match expr {
            Expr::Or(all) => {
                for e in all {
                    if self.test(e, current)? {
                        return Ok(true);
                    }
                }
                false
            }
            Expr::And(all) => {
                for e in all {
                    if !self.test(e, current)? {
                        return Ok(false);
                    }
                }
                true
            }
            Expr::Not(e) => !self.test(e, current)?,
            Expr::Exists(q) if q.is_singular() => self.singular(q, current)?.is_some(),
            Expr::Exists(q) => !self.nodes(q, current)?.is_empty(),
            Expr::Compare(a, op, b) => {
                let (a, b) = (self.value(a, current)?, self.value(b, current)?);
                match op {
                    Cmp::Eq => self.equal(a, b)?,
                    Cmp::Ne => !self.equal(a, b)?,
                    Cmp::Lt => self.less(&a, &b),
                    Cmp::Gt => self.less(&b, &a),
                    Cmp::Le => self.less(&a, &b) || self.equal(a, b)?,
                    Cmp::Ge => self.less(&b, &a) || self.equal(a, b)?,
                }
            }
            Expr::Regex { whole, text, pattern } => {
                let (text, pattern) = (self.value(text, current)?, self.value(pattern, current)?);
                match (self.typed(&text), self.typed(&pattern)) {
                    (Typed::Str(text), Typed::Str(pattern)) => match (std::str::from_utf8(&text), std::str::from_utf8(&pattern)) {
                        (Ok(text), Ok(pattern)) => self.regex(*whole, pattern, text),
                        _ => false,
                    },
                    _ => false,
                }
            }
        })
    }

    fn regex(&self, whole: bool, pattern: &str, text: &str) -> bool {
        /// Patterns that come from documents may all differ; a few are kept.
        const KEPT: usize = 16;
        let mut regexes = self.regexes.borrow_mut();
        let at = regexes.iter().position(|(w, p, _)| *w == whole && **p == *pattern).unwrap_or_else(|| {
            if regexes.len() == KEPT {
                regexes.remove(0);
            }
            regexes.push((whole, pattern.into(), compile(whole, pattern)));
            regexes.len() - 1
        });
        regexes[at].2.as_ref().is_some_and(|r| r.is_match(text))
    }

    fn value<'v>(&self, operand: &'v Operand, current: u32) -> Result<Val<'v>> {
        let one = |node: Option<u32>| node.map_or(Val::Nothing, Val::Node);
        Ok(match operand {
            Operand::Null => Val::Null,
            Operand::Bool(b) => Val::Bool(*b),
            Operand::Number(text) => Val::Number(text),
            Operand::Str(s) => Val::Str(s),
            Operand::Singular(q) => one(self.singular(q, current)?),
            Operand::Count(q) => Val::Count(self.nodes(q, current)?.len()),
            Operand::Value(q) => match self.nodes(q, current)?[..] {
                [node] => Val::Node(node),
                _ => Val::Nothing,
            },
            Operand::Length(of) => match self.value(of, current)? {
                Val::Str(s) => Val::Count(s.chars().count()),
                Val::Node(n) => match self.doc.kind(n) {
                    Kind::Array | Kind::Object => Val::Count(self.doc.count(n)),
                    // Scalar values are counted; bytes that continue one are not.
                    Kind::Str => Val::Count(self.doc.string(n).iter().filter(|&&b| b & 0xC0 != 0x80).count()),
                    _ => Val::Nothing,
                },
                _ => Val::Nothing,
            },
        })
    }

    fn typed<'v>(&self, v: &Val<'v>) -> Typed<'v>
    where
        'a: 'v,
    {
        match v {
            Val::Nothing => Typed::Nothing,
            Val::Null => Typed::Null,
            Val::Bool(b) => Typed::Bool(*b),
            Val::Number(text) => Typed::Number(Num::parse(text)),
            Val::Count(n) => Typed::Number(Num::Int(*n as i128)),
            Val::Str(s) => Typed::Str(Cow::Borrowed(s.as_bytes())),
            Val::Node(n) => match self.doc.kind(*n) {
                Kind::Null => Typed::Null,
                Kind::True => Typed::Bool(true),
                Kind::False => Typed::Bool(false),
                Kind::Number => Typed::Number(Num::parse(std::str::from_utf8(self.doc.raw(*n)).expect("a number is ASCII"))),
                Kind::Str => Typed::Str(self.doc.string(*n)),
                Kind::Array | Kind::Object => Typed::Node(*n),
            },
        }
    }

    fn less(&self, a: &Val<'_>, b: &Val<'_>) -> bool {
        match (self.typed(a), self.typed(b)) {
            (Typed::Number(a), Typed::Number(b)) => a.cmp(b) == Some(Ordering::Less),
            (Typed::Str(a), Typed::Str(b)) => a < b,
            _ => false,
        }
    }

    /// Equality of two values; containers are compared with a stack of pairs, not by recursion.
    fn equal(&self, a: Val<'_>, b: Val<'_>) -> Result<bool> {
        let mut pairs = vec![(a, b)];
        while let Some((a, b)) = pairs.pop() {
            self.step()?;
            let same = match (self.typed(&a), self.typed(&b)) {
                (Typed::Nothing, Typed::Nothing) | (Typed::Null, Typed::Null) => true,
                (Typed::Bool(a), Typed::Bool(b)) => a == b,
                (Typed::Number(a), Typed::Number(b)) => a.cmp(b) == Some(Ordering::Equal),
                (Typed::Str(a), Typed::Str(b)) => a == b,
                (Typed::Node(a), Typed::Node(b)) if self.doc.kind(a) == self.doc.kind(b) && self.doc.count(a) == self.doc.count(b) => {
                    if self.doc.kind(a) == Kind::Array {
                        pairs.extend(self.doc.elements(a).zip(self.doc.elements(b)).map(|(a, b)| (Val::Node(a), Val::Node(b))));
                        true
                    } else {
                        let (a, b) = (self.sorted(a), self.sorted(b));
                        let same = a.iter().map(|m| &m.0).eq(b.iter().map(|m| &m.0));
                        pairs.extend(a.iter().zip(&b).map(|(a, b)| (Val::Node(a.1), Val::Node(b.1))));
                        same
                    }
                }
                _ => false,
            };
            if !same {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// An object's members by name; members of one name keep their order.
    fn sorted(&self, object: u32) -> Vec<(Cow<'a, [u8]>, u32)> {
        let mut members: Vec<_> = self.doc.members(object).map(|(key, value)| (self.doc.string(key), value)).collect();
        members.sort_by(|a, b| a.0.cmp(&b.0));
        members
    }

    /// Normalized paths (RFC 9535, 2.7) of nodes.
    pub(super) fn paths(&self, nodes: &[u32]) -> Result<Vec<Vec<u8>>> {
        // Parent, and name's node or index, of every node: one pass, so that long lists of nodes stay linear.
        let mut above: Vec<(u32, u32)> = vec![(u32::MAX, 0); self.doc.len()];
        for node in 0..self.doc.len() as u32 {
            self.step()?;
            if self.doc.is_key(node) {
                continue;
            }
            match self.doc.kind(node) {
                Kind::Object => self.doc.members(node).for_each(|(key, value)| above[value as usize] = (node, key)),
                Kind::Array => self.doc.elements(node).enumerate().for_each(|(i, e)| above[e as usize] = (node, i as u32)),
                _ => {}
            }
        }
        let mut out = Vec::with_capacity(nodes.len());
        let mut way = Vec::new();
        for &node in nodes {
            self.step()?;
            way.clear();
            let mut at = node;
            while at != 0 {
                way.push(above[at as usize]);
                at = above[at as usize].0;
            }
            let mut path = vec![b'$'];
            for &(parent, step) in way.iter().rev() {
                if self.doc.kind(parent) == Kind::Array {
                    path.extend_from_slice(format!("[{step}]").as_bytes());
                } else {
                    path.extend_from_slice(b"['");
                    normalized_name(&self.doc.string(step), &mut path);
                    path.extend_from_slice(b"']");
                }
            }
            out.push(path);
        }
        Ok(out)
    }
}

fn normalized_name(name: &[u8], out: &mut Vec<u8>) {
    for &b in name {
        match b {
            8 => out.extend_from_slice(b"\\b"),
            12 => out.extend_from_slice(b"\\f"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            b'\'' => out.extend_from_slice(b"\\'"),
            b'\\' => out.extend_from_slice(b"\\\\"),
            0..0x20 => out.extend_from_slice(format!("\\u{b:04x}").as_bytes()),
            _ => out.push(b),
        }
    }
}

/// An I-Regexp (RFC 9485) as the regex crate's dialect: a dot outside a class leaves out both line ends.
fn compile(whole: bool, pattern: &str) -> Option<regex::Regex> {
    let mut out = String::with_capacity(pattern.len() + 16);
    out.push_str(if whole { "^(?:" } else { "(?:" });
    let mut class = false;
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => {
                out.push(c);
                out.push(chars.next()?);
                continue;
            }
            '[' if !class => class = true,
            ']' => class = false,
            '.' if !class => {
                out.push_str("[^\\n\\r]");
                continue;
            }
            _ => {}
        }
        out.push(c);
    }
    out.push_str(if whole { ")$" } else { ")" });
    regex::RegexBuilder::new(&out).size_limit(REGEX_SIZE).build().ok()
}
