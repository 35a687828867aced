//! JSON Pointer (RFC 6901): many pointers, one pass, no tree. Names are looked at only where a pointer leads; of members with
//! the same name the last one counts.

use super::scan::{Sink, unescape};
use crate::error::{Error, Result};
use crate::ops::Control;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Bytes of pointers between two looks at the token.
const LOOK_EVERY: usize = 16 << 10;
/// What a token costs besides its bytes, in the same currency.
const TOKEN_COST: usize = 64;

/// Pointers as a tree of tokens.
pub(super) struct Pointers {
    /// The root, and each step behind the one above it.
    steps: Vec<Step>,
    /// The step at which each pointer ends.
    ends: Vec<usize>,
}

#[derive(Default)]
struct Step {
    above: usize,
    below: BTreeMap<Vec<u8>, usize>,
}

impl Pointers {
    /// Parses pointers; `Invalid` names the broken one.
    pub(super) fn parse(pointers: &[&str], control: &dyn Control) -> Result<Pointers> {
        let mut steps = vec![Step::default()];
        let mut ends = Vec::with_capacity(pointers.len());
        let mut work = 0;
        for pointer in pointers {
            let broken = |why| {
                let shown: String = pointer.chars().take(200).collect();
                Error::invalid("not a JSON pointer").with("pointer", shown).with("why", why)
            };
            let mut at = 0;
            if !pointer.is_empty() {
                let rest = pointer.strip_prefix('/').ok_or_else(|| broken("it begins with neither / nor its end"))?;
                for token in rest.split('/') {
                    work += token.len() + TOKEN_COST;
                    if work >= LOOK_EVERY {
                        control.check()?;
                        work = 0;
                    }
                    let token = unescape_token(token).ok_or_else(|| broken("~ is followed by neither 0 nor 1"))?;
                    let new = steps.len();
                    let next = *steps[at].below.entry(token).or_insert(new);
                    if next == new {
                        steps.push(Step { above: at, below: BTreeMap::new() });
                    }
                    at = next;
                }
            }
            ends.push(at);
        }
        Ok(Pointers { steps, ends })
    }

    fn below(&self, step: usize, token: &[u8]) -> Option<usize> {
        self.steps[step].below.get(token).copied()
    }
}

fn unescape_token(token: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(token.len());
    let mut bytes = token.bytes();
    while let Some(b) = bytes.next() {
        out.push(match b {
            b'~' => match bytes.next()? {
                b'0' => b'~',
                b'1' => b'/',
                _ => return None,
            },
            b => b,
        });
    }
    Some(out)
}

/// An open container that some pointer leads into.
struct Live {
    step: usize,
    start: usize,
    object: bool,
    next_index: usize,
}

/// The sink that finds the values.
pub(super) struct Finder<'a> {
    text: &'a [u8],
    pointers: &'a Pointers,
    live: Vec<Live>,
    /// Containers open below the last live one.
    dead: usize,
    /// Where the value leads that comes next in a live object.
    named: Option<usize>,
    /// Start and end of the last value of each step.
    found: Vec<Option<(usize, usize)>>,
}

impl<'a> Finder<'a> {
    pub(super) fn new(text: &'a [u8], pointers: &'a Pointers) -> Finder<'a> {
        Finder { text, pointers, live: Vec::new(), dead: 0, named: None, found: vec![None; pointers.steps.len()] }
    }

    /// Per pointer: start and end of its value.
    pub(super) fn found(self) -> Vec<Option<(usize, usize)>> {
        let Finder { pointers, mut found, .. } = self;
        // What an earlier member of the same name held lies outside of the value that counts. Steps above come first.
        for (step, above) in pointers.steps.iter().map(|s| s.above).enumerate().skip(1) {
            let around = found[above];
            found[step] = found[step].filter(|(start, end)| around.is_some_and(|(from, to)| from <= *start && *end <= to));
        }
        pointers.ends.iter().map(|step| found[*step]).collect()
    }

    /// The step of the value that begins now.
    fn begin(&mut self) -> Option<usize> {
        match self.live.last_mut() {
            None => Some(0),
            Some(top) if top.object => self.named.take(),
            Some(top) => {
                let index = top.next_index;
                top.next_index += 1;
                let step = top.step;
                if self.pointers.steps[step].below.is_empty() {
                    return None;
                }
                let mut digits = [0; 20];
                self.pointers.below(step, decimal(index, &mut digits))
            }
        }
    }
}

fn decimal(mut n: usize, digits: &mut [u8; 20]) -> &[u8] {
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            return &digits[at..];
        }
    }
}

impl Sink for Finder<'_> {
    #[inline]
    fn open(&mut self, at: usize, object: bool) -> Result<()> {
        if self.dead > 0 {
            self.dead += 1;
            return Ok(());
        }
        match self.begin() {
            Some(step) => self.live.push(Live { step, start: at, object, next_index: 0 }),
            None => self.dead = 1,
        }
        Ok(())
    }

    #[inline]
    fn close(&mut self, at: usize) -> Result<()> {
        if self.dead > 0 {
            self.dead -= 1;
        } else {
            let Live { step, start, .. } = self.live.pop().expect("the scanner closes what it opened");
            self.found[step] = Some((start, at + 1));
        }
        Ok(())
    }

    #[inline]
    fn key(&mut self, start: usize, end: usize, escaped: bool) -> Result<()> {
        if self.dead > 0 {
            return Ok(());
        }
        let step = self.live.last().expect("a name stands in an object").step;
        let quoted = &self.text[start..end];
        let name = if escaped { Cow::Owned(unescape(quoted)) } else { Cow::Borrowed(&quoted[1..quoted.len() - 1]) };
        self.named = self.pointers.below(step, &name);
        Ok(())
    }

    #[inline]
    fn scalar(&mut self, start: usize, end: usize, _escaped: bool) -> Result<()> {
        if self.dead == 0
            && let Some(step) = self.begin()
        {
            self.found[step] = Some((start, end));
        }
        Ok(())
    }
}
