//! JSON Pointer (RFC 6901): many pointers, one pass, no tree. Names are looked at only where a pointer leads; of members with
//! the same name the last one counts.

use super::scan::{Sink, unescape};
use crate::error::{Error, Result};
use std::borrow::Cow;

/// Pointers as a tree of tokens.
pub(super) struct Pointers {
    steps: Vec<Step>,
    targets: usize,
}

#[derive(Default)]
struct Step {
    /// Sorted by token.
    below: Vec<(Vec<u8>, usize)>,
    /// Which pointers end here.
    targets: Vec<usize>,
}

impl Pointers {
    /// Parses pointers; `Invalid` names the broken one.
    pub(super) fn parse(pointers: &[&str]) -> Result<Pointers> {
        let mut steps = vec![Step::default()];
        for (target, pointer) in pointers.iter().enumerate() {
            let broken = |why| {
                let shown: String = pointer.chars().take(200).collect();
                Error::invalid("not a JSON pointer").with("pointer", shown).with("why", why)
            };
            let mut at = 0;
            if !pointer.is_empty() {
                let rest = pointer.strip_prefix('/').ok_or_else(|| broken("it begins with neither / nor its end"))?;
                for token in rest.split('/') {
                    let token = unescape_token(token).ok_or_else(|| broken("~ is followed by neither 0 nor 1"))?;
                    at = match steps[at].below.binary_search_by(|(t, _)| t.cmp(&token)) {
                        Ok(i) => steps[at].below[i].1,
                        Err(i) => {
                            let new = steps.len();
                            steps.push(Step::default());
                            steps[at].below.insert(i, (token, new));
                            new
                        }
                    };
                }
            }
            steps[at].targets.push(target);
        }
        Ok(Pointers { steps, targets: pointers.len() })
    }

    fn below(&self, step: usize, token: &[u8]) -> Option<usize> {
        let below = &self.steps[step].below;
        below.binary_search_by(|(t, _)| t.as_slice().cmp(token)).ok().map(|i| below[i].1)
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
    /// Start and end of each pointer's value.
    found: Vec<Option<(usize, usize)>>,
}

impl<'a> Finder<'a> {
    pub(super) fn new(text: &'a [u8], pointers: &'a Pointers) -> Finder<'a> {
        Finder { text, pointers, live: Vec::new(), dead: 0, named: None, found: vec![None; pointers.targets] }
    }

    /// Per pointer: start and end of its value.
    pub(super) fn found(self) -> Vec<Option<(usize, usize)>> {
        self.found
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

    fn record(&mut self, step: usize, start: usize, end: usize) {
        for &target in &self.pointers.steps[step].targets {
            self.found[target] = Some((start, end));
        }
    }

    /// Forgets what an earlier member of the same name held.
    fn forget(&mut self, step: usize) {
        let mut todo = vec![step];
        while let Some(step) = todo.pop() {
            for &target in &self.pointers.steps[step].targets {
                self.found[target] = None;
            }
            todo.extend(self.pointers.steps[step].below.iter().map(|b| b.1));
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
            self.record(step, start, at + 1);
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
        if let Some(step) = self.named {
            self.forget(step);
        }
        Ok(())
    }

    #[inline]
    fn scalar(&mut self, start: usize, end: usize, _escaped: bool) -> Result<()> {
        if self.dead == 0
            && let Some(step) = self.begin()
        {
            self.record(step, start, end);
        }
        Ok(())
    }
}
