//! Who sleeps, who searches, who is woken: a task and an idle worker are never left alone together.
//!
//! Lessons measured for this design: a wake per submit costs 0.9 µs, several spinning workers starve the submitter. So at
//! most one worker *searches*. A submit that finds nobody searching claims one sleeper, which thereby holds the role of
//! searcher, and wakes it; every later submit sees the role taken and pays nothing. A searcher that finds work gives the role
//! back and, if more is queued, claims the next sleeper. A sleeper is claimed once, by whoever takes it off the list; it
//! takes itself off the same way, so a token goes to exactly those who wait for one.
//!
//! **Promise.** When everybody has done what they were about to do: if work is queued, no worker sleeps, or one of them has
//! been claimed, or the role is held by somebody who will look for work.
//!
//! **Why it holds.** Four fences (SeqCst), which have a total order S:
//!
//! | Fence | Who                                  | Before it                         | After it                           |
//! |-------|--------------------------------------|-----------------------------------|------------------------------------|
//! | Q     | [`publish`](Idle::publish) of a submit | the work can be seen              | reads `searching`, then `sleepers` |
//! | E     | [`end_search`](Idle::end_search)     | `searching = false`               | looks for work                     |
//! | L     | [`lie_down`](Idle::lie_down)         | on the list, `sleepers` counts it | looks for work                     |
//! | T     | `end_search(false)` of a worker that took work | what it left can be seen | reads `sleepers`, `searching`      |
//!
//! 1. *A submit saw the role taken and woke nobody.* Whoever held the role gives it back before E. Q before E in S: that
//!    look finds the work. E before Q: the submit would have read `false`, or the mark of a later holder, of whom the same
//!    is true. The last holder is therefore the one who matters, and it looks. So **nobody may give the role back without
//!    looking for work afterwards**: a worker that took some ([`may_wake`](Idle::may_wake)), one that lies down (L), one
//!    that leaves, and [`wake_one`](Idle::wake_one) itself when there was nobody to give the role to.
//! 2. *A submit saw nobody searching and nobody asleep.* Each worker is awake or on its way to the list. Q before L: its
//!    look after L finds the work. L before Q: the submit would have counted it.
//! 3. *A worker took work, left some, and saw nobody asleep (T).* As 2, with T for Q.
//! 4. *A claim.* Removal from the list is under its lock, so one of "claimed" and "took itself off" is true; a claimed
//!    worker gets its token and looks for work as the searcher, which ends as in 1.
//!
//! `models` below lets loom try every interleaving, and shows that each of these looks is needed.

use crate::sync::modelled::{AtomicBool, AtomicUsize, Mutex, Ordering, fence, lock};

/// What a claimed sleeper gets: look for work.
pub(super) const TOKEN: u32 = 1;
/// The same, and it holds the role of searcher.
pub(super) const TOKEN_SEARCH: u32 = 2;

/// What the protocol needs to know of its pool.
pub(super) trait Crew {
    /// Work is queued that any worker may take. Relaxed loads will do.
    fn has_work(&self) -> bool;
    /// There may be one more worker.
    fn may_grow(&self) -> bool;
    /// Starts one more worker, which holds the role of searcher. False if none can be had.
    fn grow(&self) -> bool;
    /// None could be started. If there is nobody else either, what is queued ends here.
    fn give_up(&self);
    /// Ends the sleep of a worker that was claimed.
    fn hand(&self, slot: usize, token: u32);
}

/// See the module's text.
pub(super) struct Idle {
    searching: AtomicBool,
    /// Length of `list`, to look without the lock.
    sleepers: AtomicUsize,
    list: Mutex<Vec<usize>>,
}

impl Idle {
    pub(super) fn new() -> Idle {
        Idle { searching: AtomicBool::new(false), sleepers: AtomicUsize::new(0), list: Mutex::new(Vec::new()) }
    }

    /// What this thread has queued is from here on seen by whoever lies down, or this thread sees it asleep; the same with
    /// the role of searcher. [`wake_one`](Self::wake_one) should follow.
    pub(super) fn publish() {
        fence(Ordering::SeqCst); // Q
    }

    /// It may be worth it to wake somebody: nobody searches, and somebody sleeps or can be started. After Q or T.
    pub(super) fn may_wake(&self, crew: &impl Crew) -> bool {
        !self.searching.load(Ordering::Relaxed) && (self.sleepers.load(Ordering::Relaxed) > 0 || crew.may_grow())
    }

    /// Gets one more worker going, if nobody is searching: a sleeper, or a new one below the limit. After Q, E or T.
    pub(super) fn wake_one(&self, crew: &impl Crew) {
        if !self.may_wake(crew) {
            return;
        }
        while !self.searching.swap(true, Ordering::AcqRel) {
            let sleeper = {
                let mut list = lock(&self.list);
                let sleeper = list.pop();
                self.sleepers.store(list.len(), Ordering::Relaxed);
                sleeper
            };
            if let Some(slot) = sleeper {
                return crew.hand(slot, TOKEN_SEARCH);
            }
            if crew.grow() {
                return;
            }
            // The sleeper took itself off, or there is no thread to be had. Who queued work meanwhile saw the role taken.
            self.end_search(true);
            crew.give_up();
            if self.sleepers.load(Ordering::Relaxed) == 0 || !crew.has_work() {
                return;
            }
        }
    }

    /// The role of searcher for a worker that is awake; false if somebody has it.
    pub(super) fn begin_search(&self) -> bool {
        !self.searching.swap(true, Ordering::AcqRel)
    }

    /// Gives the role back, if this worker has it. It must look for work afterwards.
    pub(super) fn end_search(&self, searcher: bool) {
        if searcher {
            // A swap, so that in loom's eyes too it comes after every attempt that found the role taken.
            self.searching.swap(false, Ordering::AcqRel);
        }
        fence(Ordering::SeqCst); // E, T
    }

    /// Puts a worker without work on the list. It must look for work afterwards, and only then sleep.
    pub(super) fn lie_down(&self, slot: usize) {
        {
            let mut list = lock(&self.list);
            list.push(slot);
            self.sleepers.store(list.len(), Ordering::Relaxed);
        }
        fence(Ordering::SeqCst); // L
    }

    /// Takes one worker off the list. False if it is not on it: somebody else has claimed it, or it is awake.
    pub(super) fn claim(&self, slot: usize) -> bool {
        let mut list = lock(&self.list);
        let at = list.iter().position(|s| *s == slot);
        if let Some(at) = at {
            list.remove(at);
            self.sleepers.store(list.len(), Ordering::Relaxed);
        }
        at.is_some()
    }

    /// Takes everybody off the list.
    pub(super) fn claim_all(&self) -> Vec<usize> {
        let mut list = lock(&self.list);
        self.sleepers.store(0, Ordering::Relaxed);
        std::mem::take(&mut *list)
    }
}

/// `make loom`: every interleaving of two submits and two workers, up to a bound of preemptions.
#[cfg(all(test, loom))]
mod models {
    use super::*;
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicU32;
    use loom::thread;

    /// Which looks are left out.
    #[derive(Clone, Copy, Default)]
    struct Mutant {
        /// A worker sleeps without looking once more.
        sleeps_at_once: bool,
        /// A searcher that took work gives the role back without a look at what is left.
        forgets_the_rest: bool,
        /// A submit that had nobody to give the role to drops it without a look.
        drops_the_role: bool,
    }

    struct Pool {
        idle: Idle,
        work: AtomicUsize,
        tokens: [AtomicU32; 2],
        mutant: Mutant,
    }

    impl Crew for Pool {
        fn has_work(&self) -> bool {
            self.work.load(Ordering::Relaxed) > 0
        }
        fn may_grow(&self) -> bool {
            false
        }
        fn grow(&self) -> bool {
            if self.mutant.drops_the_role {
                // As if it had been handed over; nobody will look.
                self.idle.searching.store(false, Ordering::Release);
            }
            self.mutant.drops_the_role
        }
        fn give_up(&self) {}
        fn hand(&self, slot: usize, token: u32) {
            self.tokens[slot].store(token, Ordering::Release);
        }
    }

    impl Pool {
        fn submit(&self) {
            self.work.fetch_add(1, Ordering::Release);
            Idle::publish();
            self.idle.wake_one(self);
        }

        fn take(&self) -> bool {
            self.work.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok()
        }

        /// What `worker` does, until it has a task that never returns (true), or sleeps or has been claimed (false).
        fn worker(&self, slot: usize, mut searcher: bool) -> bool {
            loop {
                if self.take() {
                    self.idle.end_search(searcher);
                    if !self.mutant.forgets_the_rest && self.has_work() {
                        self.idle.wake_one(self);
                    }
                    return true;
                }
                searcher = searcher || self.idle.begin_search();
                if searcher && self.has_work() {
                    continue;
                }
                self.idle.end_search(std::mem::take(&mut searcher));
                self.idle.lie_down(slot);
                if self.mutant.sleeps_at_once || !self.has_work() || !self.idle.claim(slot) {
                    return false;
                }
            }
        }
    }

    fn model(mutant: Mutant) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(2);
        builder.check(move || {
            let tokens = [AtomicU32::new(0), AtomicU32::new(0)];
            let pool = Arc::new(Pool { idle: Idle::new(), work: AtomicUsize::new(0), tokens, mutant });
            let submit = thread::spawn({
                let pool = pool.clone();
                move || pool.submit()
            });
            let workers = [0, 1].map(|slot| {
                let pool = pool.clone();
                thread::spawn(move || pool.worker(slot, false))
            });
            pool.submit();
            submit.join().expect("submit");
            let mut busy = workers.map(|w| w.join().expect("worker"));
            // Those who have a token go on.
            while let Some(slot) = (0..2).find(|s| pool.tokens[*s].load(Ordering::Acquire) != 0) {
                let token = pool.tokens[slot].swap(0, Ordering::AcqRel);
                busy[slot] = pool.worker(slot, token == TOKEN_SEARCH);
            }
            let asleep = busy.iter().any(|b| !b);
            assert!(!(asleep && pool.has_work()), "a task waits, a worker sleeps, nobody was woken");
        });
    }

    #[test]
    fn idle_never_leaves_a_task_and_a_sleeper_alone() {
        model(Mutant::default());
    }

    #[test]
    #[should_panic(expected = "nobody was woken")]
    fn idle_without_the_look_before_sleep_does() {
        model(Mutant { sleeps_at_once: true, ..Mutant::default() });
    }

    #[test]
    #[should_panic(expected = "nobody was woken")]
    fn idle_without_the_look_at_the_rest_does() {
        model(Mutant { forgets_the_rest: true, ..Mutant::default() });
    }

    #[test]
    #[should_panic(expected = "nobody was woken")]
    fn idle_that_drops_the_role_does() {
        model(Mutant { drops_the_role: true, ..Mutant::default() });
    }
}
