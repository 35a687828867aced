//! What became of the requests: counts by kind of failure and by behaviour, latencies during events and apart from them, first examples. Pure:
//! times are nanoseconds since the run began.

use super::target::Behaviour;
use crate::metrics::{Histogram, Totals};
use std::collections::HashMap;

/// Examples that are kept of one kind of failure.
const EXAMPLES: usize = 3;
/// Values of the counted field that are told apart.
const MAX_VALUES: usize = 10_000;

/// How a request failed. What is none of these was a complete 2xx.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    Refused,
    Unreachable,
    Reset,
    Closed,
    Timeout,
    Truncated,
    Malformed,
    Status,
    Body,
    Local,
}

impl Failure {
    pub(super) const ALL: [Failure; 10] = [
        Failure::Refused,
        Failure::Unreachable,
        Failure::Reset,
        Failure::Closed,
        Failure::Timeout,
        Failure::Truncated,
        Failure::Malformed,
        Failure::Status,
        Failure::Body,
        Failure::Local,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Failure::Refused => "refused",
            Failure::Unreachable => "unreachable",
            Failure::Reset => "reset",
            Failure::Closed => "closed",
            Failure::Timeout => "timeout",
            Failure::Truncated => "truncated",
            Failure::Malformed => "malformed",
            Failure::Status => "status",
            Failure::Body => "body",
            Failure::Local => "local",
        }
    }
}

/// A request that has ended.
#[derive(Debug)]
pub(super) struct Done<'a> {
    pub(super) behaviour: Behaviour,
    pub(super) began: u64,
    pub(super) ended: u64,
    /// What counts as its latency.
    pub(super) latency: u64,
    /// Requests that its connection had carried before.
    pub(super) reused: u64,
    /// How long its connection had carried nothing.
    pub(super) idle: u64,
    /// How it failed, and what is known of it.
    pub(super) failure: Option<(Failure, &'a str)>,
    /// It failed because its connection, idle beyond the limit, was closed when it was sent.
    pub(super) raced: bool,
    /// It ran while an event did.
    pub(super) event: Option<usize>,
}

/// A failed request that is shown.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Example {
    pub(super) failure: Failure,
    pub(super) raced: bool,
    pub(super) behaviour: Behaviour,
    pub(super) at: u64,
    pub(super) took: u64,
    pub(super) reused: u64,
    pub(super) idle: u64,
    pub(super) event: Option<usize>,
    pub(super) detail: String,
}

/// Requests of one behaviour.
#[derive(Clone, Debug, Default)]
pub(super) struct Class {
    pub(super) requests: u64,
    pub(super) failures: [u64; Failure::ALL.len()],
    pub(super) raced: u64,
    /// Of complete 2xx alone: apart from events, during them.
    pub(super) steady: Totals,
    pub(super) during: Totals,
}

impl Class {
    pub(super) fn failed(&self) -> u64 {
        self.failures.iter().sum()
    }

    /// Of all complete 2xx.
    pub(super) fn latency(&self) -> Histogram {
        let mut all = self.steady.clone();
        all.merge(&self.during);
        all.histogram()
    }

    fn add(&mut self, other: &Class) {
        self.requests += other.requests;
        self.raced += other.raced;
        self.failures.iter_mut().zip(other.failures).for_each(|(mine, theirs)| *mine += theirs);
        self.steady.merge(&other.steady);
        self.during.merge(&other.during);
    }
}

/// Who answered, by the value of a field.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Answers {
    pub(super) requests: u64,
    /// Connections whose first answer it was.
    pub(super) connections: u64,
}

/// Since the last look.
#[derive(Debug, Default)]
pub(super) struct Recent {
    pub(super) requests: u64,
    pub(super) failed: u64,
    pub(super) raced: u64,
    pub(super) latency: Totals,
}

/// Everything that is counted.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// In the order of [`Behaviour::ALL`].
    pub(super) classes: [Class; 4],
    pub(super) examples: Vec<Example>,
    shown: [[usize; 2]; Failure::ALL.len()],
    pub(super) connections: u64,
    /// Connections that the other end closed while they carried nothing.
    pub(super) closed_idle: u64,
    pub(super) received: u64,
    pub(super) answers: HashMap<Box<[u8]>, Answers>,
    /// Answers with a value beyond [`MAX_VALUES`].
    pub(super) other_answers: u64,
    pub(super) recent: Recent,
}

impl Tally {
    pub(super) fn count(&mut self, done: &Done<'_>) {
        let class = &mut self.classes[done.behaviour as usize];
        class.requests += 1;
        self.recent.requests += 1;
        let Some((failure, detail)) = done.failure else {
            if done.event.is_some() { &mut class.during } else { &mut class.steady }.record(done.latency);
            self.recent.latency.record(done.latency);
            return;
        };
        if done.raced {
            class.raced += 1;
            self.recent.raced += 1;
        } else {
            class.failures[failure as usize] += 1;
            self.recent.failed += 1;
        }
        let shown = &mut self.shown[failure as usize][usize::from(done.raced)];
        if *shown < EXAMPLES {
            *shown += 1;
            self.examples.push(Example {
                failure,
                raced: done.raced,
                behaviour: done.behaviour,
                at: done.began,
                took: done.ended - done.began,
                reused: done.reused,
                idle: done.idle,
                event: done.event,
                detail: detail.to_owned(),
            });
        }
    }

    /// An answer came from whoever `value` names; the first of its connection?
    pub(super) fn answered(&mut self, value: &[u8], first: bool) {
        // Looked up before it is copied: nearly every value is known.
        if let Some(known) = self.answers.get_mut(value) {
            known.requests += 1;
            known.connections += u64::from(first);
        } else if self.answers.len() < MAX_VALUES {
            self.answers.insert(value.into(), Answers { requests: 1, connections: u64::from(first) });
        } else {
            self.other_answers += 1;
        }
    }

    pub(super) fn all(&self) -> Class {
        let mut all = Class::default();
        self.classes.iter().for_each(|class| all.add(class));
        all
    }

    /// The most and the least of what each value has got, as a ratio; `None` with nobody, infinite where one has got nothing.
    pub(super) fn balance(&self, of: fn(&Answers) -> u64) -> Option<f64> {
        let counts = self.answers.values().map(of);
        Some(counts.clone().max()? as f64 / counts.min()? as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(failure: Option<(Failure, &str)>) -> Done<'_> {
        Done { behaviour: Behaviour::Keep, began: 5, ended: 9, latency: 4, reused: 2, idle: 1, failure, raced: false, event: None }
    }

    #[test]
    fn each_request_is_counted_once_and_in_one_place() {
        let mut tally = Tally::default();
        tally.count(&done(None));
        tally.count(&Done { event: Some(0), latency: 8, ..done(None) });
        for (i, failure) in Failure::ALL.into_iter().enumerate() {
            for _ in 0..=i {
                tally.count(&done(Some((failure, "detail"))));
            }
        }
        tally.count(&Done { raced: true, behaviour: Behaviour::New, ..done(Some((Failure::Reset, "late"))) });
        let all = tally.all();
        assert_eq!((all.requests, all.failed(), all.raced), (2 + 55 + 1, 55, 1));
        assert_eq!(all.failures, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
        assert_eq!((tally.classes[0].requests, tally.classes[1].requests), (1, 57));
        assert_eq!((all.steady.histogram().count, all.during.histogram().max_ns, all.latency().count), (1, 8, 2));
        assert_eq!(
            (tally.recent.requests, tally.recent.failed, tally.recent.raced, tally.recent.latency.histogram().count),
            (58, 55, 1, 2)
        );
        // Three of each kind at most, and the raced one for itself.
        assert_eq!(tally.examples.len(), 1 + 2 + 8 * 3 + 1);
        let last = tally.examples.last().expect("an example");
        assert!(last.raced && last.detail == "late" && last.at == 5 && last.took == 4 && last.reused == 2);
    }

    #[test]
    fn answers_are_counted_by_value_and_balance_is_most_against_least() {
        let mut tally = Tally::default();
        assert_eq!(tally.balance(|a| a.requests), None);
        for (value, first) in [("a", true), ("a", false), ("b", true), ("a", false)] {
            tally.answered(value.as_bytes(), first);
        }
        assert_eq!(tally.answers[b"a".as_slice()], Answers { requests: 3, connections: 1 });
        assert_eq!((tally.balance(|a| a.requests), tally.balance(|a| a.connections)), (Some(3.0), Some(1.0)));
        tally.answered(b"c", false);
        assert_eq!(tally.balance(|a| a.connections), Some(f64::INFINITY));
        for i in 0..MAX_VALUES {
            tally.answered(format!("value {i}").as_bytes(), true);
        }
        assert_eq!((tally.answers.len(), tally.other_answers), (MAX_VALUES, 3));
    }
}
