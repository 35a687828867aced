//! A worker's page as each side sees it. The other side may write anything at any time: each word is loaded once, and judged.

use super::event::{Load, WorkerId};
use crate::error::{Error, ErrorKind, Result};
use crate::sync::mapped::{AtomicU32, AtomicU64, Ordering};
use crate::sys::mem;
use crate::wire::supervisor::{ACTIVE, DRAIN, FIXED_LEN, Header, LATE_HALF_NS, MAJOR, MAX_STACK, MAX_TEXT, MINOR, PAGE_LEN, state, word};
use memmap2::MmapRaw;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

/// The mapping.
#[derive(Debug)]
pub(super) struct Page(MmapRaw);

/// What a worker shows at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Look {
    pub(super) state: u32,
    pub(super) loop_beat: u64,
    pub(super) native_beat: u64,
    pub(super) served: u64,
}

impl Page {
    /// A new page, and the fd that the worker inherits.
    pub(super) fn create(header: &Header) -> Result<(OwnedFd, Page)> {
        let (fd, map) = mem::create_sealed(c"offloop-worker", PAGE_LEN)?;
        // SAFETY: the mapping is longer than the fixed part, and nobody else has it yet.
        unsafe { map.as_mut_ptr().copy_from_nonoverlapping(header.encode().as_ptr(), FIXED_LEN) };
        Ok((fd, Page(map)))
    }

    /// The page that this process inherited.
    pub(super) fn attach(fd: BorrowedFd<'_>) -> Result<(Page, Header)> {
        let (_, map, len) = mem::attach_sealed(fd)?;
        if len != PAGE_LEN {
            return Err(Error::new(ErrorKind::Corrupt, "memfd is not a worker's page").with("len", len).with("want", PAGE_LEN));
        }
        let mut fixed = [0; FIXED_LEN];
        // SAFETY: the mapping is longer than the fixed part; what changes meanwhile is caught by the check sum.
        unsafe { fixed.as_mut_ptr().copy_from_nonoverlapping(map.as_ptr(), FIXED_LEN) };
        Ok((Page(map), Header::decode(&fixed, len)?))
    }

    fn word32(&self, at: usize) -> &AtomicU32 {
        debug_assert!(at + 4 <= PAGE_LEN && at.is_multiple_of(4));
        // SAFETY: inside of the mapping, aligned, and accessed as an atomic by both sides.
        unsafe { &*self.0.as_mut_ptr().add(at).cast::<AtomicU32>() }
    }

    fn word64(&self, at: usize) -> &AtomicU64 {
        debug_assert!(at + 8 <= PAGE_LEN && at.is_multiple_of(8));
        // SAFETY: inside of the mapping, aligned, and accessed as an atomic by both sides.
        unsafe { &*self.0.as_mut_ptr().add(at).cast::<AtomicU64>() }
    }

    // ---- the supervisor's side ----

    /// What the worker shows. `None` when no worker may show that: `before` is what it showed last.
    pub(super) fn look(&self, before: u32, id: WorkerId) -> Option<Look> {
        // Pairs with the Release of `show`: proto and echo were stored before.
        let shown = self.word32(word::STATE).load(Ordering::Acquire);
        if shown < before || shown > state::DRAINED {
            return None;
        }
        if shown != state::NONE {
            let proto = self.word32(word::PROTO).load(Ordering::Relaxed);
            if proto & 0xFFFF != u32::from(MAJOR) || self.word64(word::ECHO).load(Ordering::Relaxed) != id.incarnation {
                return None;
            }
        }
        // Only whether they change counts: Relaxed.
        let loop_beat = self.word64(word::LOOP_BEAT).load(Ordering::Relaxed);
        let native_beat = self.word64(word::NATIVE_BEAT).load(Ordering::Relaxed);
        let served = self.word64(word::SERVED).load(Ordering::Relaxed);
        Some(Look { state: shown, loop_beat, native_beat, served })
    }

    /// What the worker does, at `now`. Any thread may ask.
    pub(super) fn load(&self, now: u64) -> Load {
        // Words of different moments make a number that is wrong for one look: Relaxed.
        let due = self.word64(word::LOOP_DUE).load(Ordering::Relaxed);
        let late = self.late(now).max(now.saturating_sub(due));
        Load { served: self.served(), loop_delay: Some(Duration::from_nanos(late)).filter(|_| due != 0) }
    }

    pub(super) fn served(&self) -> u64 {
        self.word64(word::SERVED).load(Ordering::Relaxed)
    }

    /// What is left at `now` of the greatest lateness.
    fn late(&self, now: u64) -> u64 {
        let halves = now.saturating_sub(self.word64(word::LATE_AT).load(Ordering::Relaxed)) / LATE_HALF_NS;
        let late = self.word64(word::LATE).load(Ordering::Relaxed);
        u32::try_from(halves).ok().and_then(|halves| late.checked_shr(halves)).unwrap_or(0)
    }

    /// Sets the flag that asks the worker to finish.
    pub(super) fn ask_to_drain(&self) {
        // Release: pairs with the Acquire of `is_asked_to_drain`.
        self.word32(word::FLAGS).fetch_or(DRAIN, Ordering::Release);
    }

    /// Tells a spare whose place it takes.
    pub(super) fn activate(&self, worker: WorkerId) {
        self.word32(word::SLOT).store(worker.slot, Ordering::Relaxed);
        self.word64(word::INCARNATION).store(worker.incarnation, Ordering::Relaxed);
        // Release: pairs with the Acquire of `activated`.
        self.word32(word::FLAGS).fetch_or(ACTIVE, Ordering::Release);
    }

    /// What the worker said of its failure.
    pub(super) fn text(&self) -> Option<String> {
        // Pairs with the Release of `say`.
        let len = self.word32(word::TEXT_LEN).load(Ordering::Acquire) as usize;
        (1..=MAX_TEXT).contains(&len).then(|| self.get(word::TEXT, len))
    }

    /// Asks the worker where its loop stands, by another `number` than before; false when it cannot say.
    pub(super) fn ask_stack(&self, number: u32) -> bool {
        let hooked = self.word32(word::HOOKED).load(Ordering::Relaxed) != 0;
        if hooked {
            self.word32(word::ASKED).store(number, Ordering::Relaxed);
        }
        hooked
    }

    /// The question `number` was answered.
    pub(super) fn is_told(&self, number: u32) -> bool {
        // Pairs with the Release of `tell_stack`.
        self.word32(word::TOLD).load(Ordering::Acquire) == number
    }

    /// The answer to the question `number`, if there is one: whole lines as they can be shown, without what would steer a terminal.
    pub(super) fn stack(&self, number: u32) -> Option<String> {
        if !self.is_told(number) {
            return None;
        }
        let len = self.word32(word::STACK_LEN).load(Ordering::Relaxed) as usize;
        let shown = |c: char| if c.is_control() && c != '\n' && c != '\t' { char::REPLACEMENT_CHARACTER } else { c };
        (1..=MAX_STACK).contains(&len).then(|| self.get(word::STACK, len).chars().map(shown).collect())
    }

    /// Whole characters; what is no UTF-8 is replaced.
    fn get(&self, at: usize, len: usize) -> String {
        let words = (0..len.div_ceil(4)).flat_map(|i| self.word32(at + 4 * i).load(Ordering::Relaxed).to_le_bytes());
        let bytes: Vec<u8> = words.take(len).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    // ---- the worker's side ----

    /// Says that the worker is attached.
    pub(super) fn hello(&self, incarnation: u64) {
        self.word64(word::ECHO).store(incarnation, Ordering::Relaxed);
        self.word32(word::PROTO).store(u32::from(MAJOR) | u32::from(MINOR) << 16, Ordering::Relaxed);
        self.show(state::HELLO);
    }

    /// Shows `at_least` that state; true if it is news.
    pub(super) fn show(&self, at_least: u32) -> bool {
        // Release: pairs with the Acquire of `look`.
        self.word32(word::STATE).fetch_max(at_least, Ordering::Release) < at_least
    }

    /// A beat at `now`, and another is to come within `next` nanoseconds. Returns how many there were before.
    pub(super) fn beat_loop(&self, now: u64, next: u64) -> u64 {
        let due = self.word64(word::LOOP_DUE);
        let late = match due.load(Ordering::Relaxed) {
            0 => 0,
            due => now.saturating_sub(due),
        };
        if late > 0 && late >= self.late(now) {
            self.word64(word::LATE).store(late, Ordering::Relaxed);
            self.word64(word::LATE_AT).store(now, Ordering::Relaxed);
        }
        due.store(now.saturating_add(next), Ordering::Relaxed);
        self.word64(word::LOOP_BEAT).fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn has_beaten(&self) -> bool {
        self.word64(word::LOOP_BEAT).load(Ordering::Relaxed) != 0
    }

    pub(super) fn beat_native(&self) {
        self.word64(word::NATIVE_BEAT).fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn serve(&self, n: u64) {
        self.word64(word::SERVED).fetch_add(n, Ordering::Relaxed);
    }

    pub(super) fn is_asked_to_drain(&self) -> bool {
        // Pairs with the Release of `ask_to_drain`.
        self.word32(word::FLAGS).load(Ordering::Acquire) & DRAIN != 0
    }

    /// Slot and incarnation of the place that this spare has taken.
    pub(super) fn activated(&self) -> Option<(u32, u64)> {
        // Pairs with the Release of `activate`, before which the two were stored.
        let active = self.word32(word::FLAGS).load(Ordering::Acquire) & ACTIVE != 0;
        active.then(|| (self.word32(word::SLOT).load(Ordering::Relaxed), self.word64(word::INCARNATION).load(Ordering::Relaxed)))
    }

    /// Leaves a text for the supervisor, cut at a character's end where it is too long.
    pub(super) fn say(&self, text: &str) {
        let cut = text.floor_char_boundary(MAX_TEXT);
        self.put(word::TEXT, &text[..cut]);
        // Release: pairs with the Acquire of `text`.
        self.word32(word::TEXT_LEN).store(cut as u32, Ordering::Release);
    }

    /// Says that the worker can say where its loop stands.
    pub(super) fn hook(&self) {
        self.word32(word::HOOKED).store(1, Ordering::Relaxed);
    }

    /// The number of the last question; 0 before the first.
    pub(super) fn asked(&self) -> u32 {
        self.word32(word::ASKED).load(Ordering::Relaxed)
    }

    /// Answers the question `number`, by lines that fit; empty where it is not known.
    pub(super) fn tell_stack(&self, number: u32, stack: &str) {
        let fits = cut(stack, MAX_STACK);
        self.put(word::STACK, fits);
        self.word32(word::STACK_LEN).store(fits.len() as u32, Ordering::Relaxed);
        // Release: pairs with the Acquire of `is_told`.
        self.word32(word::TOLD).store(number, Ordering::Release);
    }

    fn put(&self, at: usize, text: &str) {
        for (i, part) in text.as_bytes().chunks(4).enumerate() {
            let mut bytes = [0; 4];
            bytes[..part.len()].copy_from_slice(part);
            self.word32(at + 4 * i).store(u32::from_le_bytes(bytes), Ordering::Relaxed);
        }
    }
}

/// As many whole lines from the beginning as fit; of a first line that is too long, what fits.
fn cut(text: &str, most: usize) -> &str {
    let text = text.trim_end();
    if text.len() <= most {
        return text;
    }
    // One more: the line's end itself may be beyond.
    match text.as_bytes()[..=most].iter().rposition(|byte| *byte == b'\n') {
        Some(end) => &text[..end],
        None => &text[..text.floor_char_boundary(most)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    const ID: WorkerId = WorkerId { slot: 1, generation: 1, incarnation: 9 };

    fn pair() -> (Page, Page) {
        let header = Header { minor: 0, slot: 1, generation: 1, incarnation: 9, beat_ns: 1, hang_ns: 0, orphan_ns: 0 };
        let (fd, own) = Page::create(&header).expect("page");
        let (theirs, seen) = Page::attach(fd.as_fd()).expect("attach");
        assert_eq!(seen, header);
        (own, theirs)
    }

    #[test]
    fn a_worker_shows_how_far_it_is_and_that_it_lives() {
        let (own, theirs) = pair();
        assert_eq!(own.look(0, ID), Some(Look { state: state::NONE, loop_beat: 0, native_beat: 0, served: 0 }));
        theirs.hello(9);
        theirs.beat_loop(1, 1);
        theirs.beat_native();
        theirs.serve(3);
        assert!(theirs.show(state::READY) && !theirs.show(state::READY) && !theirs.show(state::HELLO));
        assert_eq!(own.look(state::HELLO, ID), Some(Look { state: state::READY, loop_beat: 1, native_beat: 1, served: 3 }));
        assert!(!theirs.is_asked_to_drain());
        own.ask_to_drain();
        assert!(theirs.is_asked_to_drain());
        assert_eq!(theirs.activated(), None);
        own.activate(WorkerId { slot: 7, generation: 1, incarnation: 11 });
        assert_eq!((theirs.activated(), theirs.is_asked_to_drain()), (Some((7, 11)), true));
    }

    #[test]
    fn the_lateness_of_a_loop_is_seen_while_it_lasts_and_fades() {
        const S: u64 = 1_000_000_000;
        let (own, theirs) = pair();
        let delay = |now| own.load(now).loop_delay.map(|late| late.as_nanos() as u64);
        assert_eq!(delay(7 * S), None, "it has not beaten");
        theirs.beat_loop(10 * S, S);
        assert_eq!((delay(10 * S), delay(11 * S)), (Some(0), Some(0)));
        assert_eq!(delay(13 * S), Some(2 * S), "it is late now");
        theirs.beat_loop(14 * S, S);
        assert_eq!((delay(14 * S), delay(15 * S - 1)), (Some(3 * S), Some(3 * S)));
        theirs.beat_loop(15 * S, S);
        assert_eq!((delay(15 * S), delay(16 * S)), (Some(3 * S / 2), Some(3 * S / 4)));
        theirs.beat_loop(16 * S + S / 2, S);
        assert_eq!(delay(16 * S + S / 2), Some(3 * S / 4), "a shorter one changes nothing");
        theirs.beat_loop(20 * S, S);
        assert_eq!(delay(20 * S), Some(2 * S + S / 2), "a longer one counts");
        theirs.beat_loop(20 * S, S);
        assert_eq!(delay(u64::MAX), Some(u64::MAX - 21 * S));
        // A worker may write anything.
        for (due, late, at) in [(u64::MAX, u64::MAX, u64::MAX), (1, u64::MAX, 0), (u64::MAX, 1, 0)] {
            theirs.word64(word::LOOP_DUE).store(due, Ordering::Relaxed);
            theirs.word64(word::LATE).store(late, Ordering::Relaxed);
            theirs.word64(word::LATE_AT).store(at, Ordering::Relaxed);
            assert!(delay(100 * S).is_some());
            theirs.beat_loop(100 * S, u64::MAX);
        }
    }

    #[test]
    fn what_no_worker_may_show_is_seen() {
        let (own, theirs) = pair();
        theirs.hello(9);
        assert!(own.look(state::READY, ID).is_none(), "it went back");
        assert!(own.look(0, WorkerId { incarnation: 10, ..ID }).is_none(), "another incarnation");
        theirs.word32(word::PROTO).store(2, Ordering::Relaxed);
        assert!(own.look(0, ID).is_none(), "another protocol");
        let (own, theirs) = pair();
        theirs.hello(9);
        theirs.word32(word::STATE).store(4, Ordering::Relaxed);
        assert!(own.look(0, ID).is_none(), "no such state");
    }

    #[test]
    fn a_stack_is_the_answer_to_the_last_question() {
        let (own, theirs) = pair();
        assert!(!own.ask_stack(1), "it cannot say");
        assert_eq!(theirs.asked(), 0);
        theirs.hook();
        assert!(own.ask_stack(1) && !own.is_told(1));
        assert_eq!((theirs.asked(), own.stack(1)), (1, None));
        theirs.tell_stack(1, "at spin (wörker.js:3:5)\nat handle (worker.js:9:1)\n");
        assert_eq!(own.stack(1).as_deref(), Some("at spin (wörker.js:3:5)\nat handle (worker.js:9:1)"));
        assert!(own.ask_stack(2));
        assert_eq!(own.stack(2), None, "what was said before");
        theirs.tell_stack(2, "");
        assert!(own.is_told(2));
        assert_eq!(own.stack(2), None, "it does not know");
        assert_eq!(own.text(), None);
    }

    #[test]
    fn a_stack_is_cut_at_a_lines_end() {
        let (own, theirs) = pair();
        let lines: Vec<String> = (0..400).map(|n| format!("at line {n} of wörker.js")).collect();
        theirs.tell_stack(1, &lines.join("\n"));
        let shown = own.stack(1).expect("told");
        let count = shown.lines().count();
        assert_eq!(shown, lines[..count].join("\n"));
        assert!(shown.len() <= MAX_STACK && shown.len() + 1 + lines[count].len() > MAX_STACK, "{count}");
        for (text, want) in
            [("ab\ncd\n", "ab"), ("ab\ncd", "ab"), ("abc\nd", "abc"), ("abcd", "abc"), ("abü", "ab"), ("ab\n", "ab"), ("", "")]
        {
            assert_eq!(cut(text, 3), want, "{text:?}");
        }
        theirs.tell_stack(2, &"x".repeat(MAX_STACK));
        assert_eq!(own.stack(2).map(|s| s.len()), Some(MAX_STACK), "all that there is room for");
    }

    #[test]
    fn a_stack_that_is_none_harms_nobody() {
        let (own, theirs) = pair();
        theirs.tell_stack(1, "\u{1b}[2Jat\tspin\r\n\0");
        assert_eq!(own.stack(1).as_deref(), Some("\u{FFFD}[2Jat\tspin\u{FFFD}\n\u{FFFD}"));
        theirs.word32(word::STACK).store(u32::MAX, Ordering::Relaxed);
        assert!(own.stack(1).is_some_and(|s| s.starts_with('\u{FFFD}')));
        for lie in [MAX_STACK as u32 + 1, u32::MAX] {
            theirs.word32(word::STACK_LEN).store(lie, Ordering::Relaxed);
            assert_eq!(own.stack(1), None);
        }
    }

    #[test]
    fn a_text_is_cut_where_it_is_too_long_and_mended_where_it_is_no_text() {
        let (own, theirs) = pair();
        assert_eq!(own.text(), None);
        theirs.say("module not found: ./wörker.js");
        assert_eq!(own.text().as_deref(), Some("module not found: ./wörker.js"));
        theirs.say(&"ü".repeat(MAX_TEXT));
        assert_eq!(own.text().map(|t| t.chars().filter(|c| *c == 'ü').count()), Some(MAX_TEXT / 2));
        theirs.word32(word::TEXT).store(u32::MAX, Ordering::Relaxed);
        assert!(own.text().is_some_and(|t| t.starts_with('\u{FFFD}')));
        for lie in [MAX_TEXT as u32 + 1, u32::MAX] {
            theirs.word32(word::TEXT_LEN).store(lie, Ordering::Relaxed);
            assert_eq!(own.text(), None);
        }
    }
}
