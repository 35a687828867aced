//! Single stories, with an exact clock.

use super::super::event::{Cause, Ended, Event, Expiry, FIRST_SPARE, Reloaded, State, WorkerId};
use super::super::options::{Options, ScaleDown};
use super::super::plan::{Action, Input, Plan};
use crate::error::{Error, ErrorKind};
use crate::sys::process::Exit;
use std::time::Duration;

const MS: u64 = 1_000_000;

fn id(slot: u32, incarnation: u64) -> WorkerId {
    WorkerId { slot, generation: 1, incarnation }
}

fn code(code: i32) -> Ended {
    Ended { exit: Exit { code: Some(code), signal: None, core_dumped: false }, oom: false }
}

struct Story {
    plan: Plan,
    /// Milliseconds.
    now: u64,
}

/// What is done, without the events.
#[derive(Debug, PartialEq)]
enum Deed {
    Spawn(u32, u64),
    Signal(u32, i32),
    Drain(u32, u64),
    Dump(u32, i32),
    Weigh(u32),
    Activate(u32, u32, u64),
}

fn deeds(actions: &[Action]) -> Vec<Deed> {
    let deed = |a: &Action| match a {
        Action::Spawn(id) => Some(Deed::Spawn(id.slot, id.incarnation)),
        Action::Signal(id, signal) => Some(Deed::Signal(id.slot, *signal)),
        Action::Drain(id) => Some(Deed::Drain(id.slot, id.incarnation)),
        Action::Dump(id, signal) => Some(Deed::Dump(id.slot, *signal)),
        Action::Weigh(id, _) => Some(Deed::Weigh(id.slot)),
        Action::Activate(id, worker) => Some(Deed::Activate(id.slot, worker.slot, worker.incarnation)),
        Action::Report(_) => None,
    };
    actions.iter().filter_map(deed).collect()
}

fn reports(actions: &[Action]) -> Vec<Event> {
    actions.iter().filter_map(|a| if let Action::Report(event) = a { Some(event.clone()) } else { None }).collect()
}

impl Story {
    fn with(options: &Options, max_starting: usize) -> Story {
        Story { plan: Plan::new(options, max_starting, 1), now: 0 }
    }

    fn new() -> Story {
        Story::with(&Options::default(), 8)
    }

    /// One input; every start succeeds.
    fn tell(&mut self, input: Input) -> Vec<Action> {
        let mut out = Vec::new();
        self.plan.handle(input, self.now * MS, &mut out);
        let mut at = 0;
        while at < out.len() {
            if let Action::Spawn(id) = out[at] {
                self.plan.handle(Input::Spawned(id, 1), self.now * MS, &mut out);
            }
            at += 1;
        }
        out
    }

    /// Goes to that time, with the ticks on the way.
    fn until(&mut self, ms: u64) -> Vec<Action> {
        let mut all = Vec::new();
        while let Some(at) = self.plan.next_deadline().map(|at| at.div_ceil(MS)).filter(|at| *at <= ms) {
            self.now = self.now.max(at);
            all.extend(self.tell(Input::Tick));
        }
        self.now = ms;
        all
    }

    /// As [`until`](Self::until), with workers whose loops turn.
    fn beating(&mut self, ms: u64, ids: &[WorkerId], on_loop: bool) -> Vec<Action> {
        let mut all = Vec::new();
        while self.now < ms {
            let step = (self.now + 500).min(ms);
            self.now = step;
            for id in ids {
                let beat = if on_loop { step } else { 1 };
                all.extend(self.tell(Input::Beats(*id, beat, step)));
            }
            all.extend(self.until(step));
        }
        all
    }

    fn ready(&mut self, id: WorkerId) -> Vec<Action> {
        let mut out = self.tell(Input::Hello(id));
        out.extend(self.tell(Input::Ready(id)));
        out
    }

    /// An exit, and the tick that settles it.
    fn exit(&mut self, id: WorkerId) -> Vec<Action> {
        let mut out = self.tell(Input::Exited(id, code(1), None));
        out.extend(self.until(self.now));
        out
    }

    fn state(&self, slot: u32) -> State {
        self.plan.states().find(|(id, _)| id.slot == slot).map_or(State::Empty, |(_, s)| s)
    }
}

use Deed::{Activate, Drain, Dump, Signal, Spawn, Weigh};

#[test]
fn a_worker_is_ready_after_hello_and_ready_and_in_no_other_order() {
    let mut s = Story::new();
    assert_eq!(deeds(&s.tell(Input::Scale(1))), [Spawn(0, 1)]);
    assert_eq!(s.state(0), State::Spawned);
    assert_eq!(reports(&s.tell(Input::Ready(id(0, 1)))), []);
    s.now = 7;
    assert_eq!(reports(&s.tell(Input::Hello(id(0, 1)))), [Event::Starting { worker: id(0, 1) }]);
    assert_eq!(reports(&s.tell(Input::Hello(id(0, 1)))), []);
    let ready = Event::Ready { worker: id(0, 1), after: Duration::from_millis(7) };
    assert_eq!(reports(&s.tell(Input::Ready(id(0, 1)))), [ready]);
    assert_eq!(reports(&s.tell(Input::Ready(id(0, 1)))), []);
    assert_eq!(s.state(0), State::Ready);
}

#[test]
fn messages_of_a_dead_incarnation_are_counted_and_dropped() {
    let mut s = Story::new();
    s.tell(Input::Scale(1));
    s.ready(id(0, 1));
    s.exit(id(0, 1));
    assert_eq!(s.state(0), State::Spawned);
    for input in [
        Input::Hello(id(0, 1)),
        Input::Ready(id(0, 1)),
        Input::Beats(id(0, 1), 1, 1),
        Input::Drained(id(0, 1)),
        Input::Corrupt(id(0, 1)),
        Input::Kill(id(0, 1)),
        Input::Exited(id(0, 1), code(0), None),
        Input::Ready(id(9, 1)),
        Input::Charged(id(9, 1)),
    ] {
        assert_eq!(s.tell(input), []);
    }
    assert_eq!((s.plan.stats().late, s.state(0)), (9, State::Spawned));
}

#[test]
fn the_delays_of_a_slot_double_and_begin_anew_after_half_a_minute() {
    let options = Options { max_failures: Some(1000), ..Options::default() };
    let mut s = Story::with(&options, 8);
    s.tell(Input::Scale(1));
    let mut delays = Vec::new();
    for incarnation in 1..=12 {
        s.ready(id(0, incarnation));
        let out = s.exit(id(0, incarnation));
        delays.extend(reports(&out).into_iter().filter_map(|e| if let Event::BackOff { delay, .. } = e { Some(delay) } else { None }));
        if incarnation > 1 {
            assert_eq!(s.state(0), State::BackOff);
            let next = s.plan.next_deadline().expect("it rests").div_ceil(MS);
            assert_eq!(deeds(&s.until(next - 1)), []);
            assert_eq!(deeds(&s.until(next)), [Spawn(0, incarnation + 1)]);
        }
    }
    for (delay, ms) in delays.iter().zip([0, 100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000]) {
        assert!((ms * 80 / 100..=ms * 120 / 100).contains(&(delay.as_nanos() as u64 / MS)), "{delay:?} for {ms} ms");
    }
    assert_eq!(delays.len(), 12);
    s.ready(id(0, 13));
    s.beating(s.now + 30_000, &[id(0, 13)], true);
    let out = s.exit(id(0, 13));
    assert!(reports(&out).contains(&Event::BackOff { slot: 0, delay: Duration::ZERO }), "{out:?}");
    assert_eq!(deeds(&out), [Spawn(0, 14)]);
}

#[test]
fn who_is_not_ready_in_time_is_asked_and_then_killed() {
    let mut s = Story::new();
    s.tell(Input::Scale(1));
    assert_eq!(s.until(29_999), []);
    assert_eq!(deeds(&s.until(30_000)), [Signal(0, libc::SIGTERM)]);
    assert_eq!(s.until(31_999), []);
    assert_eq!(deeds(&s.until(32_000)), [Signal(0, libc::SIGKILL)]);
    assert_eq!(s.plan.next_deadline(), None, "nothing more can be done");
    let out = s.exit(id(0, 1));
    assert!(matches!(reports(&out)[0], Event::Exited { cause: Cause::BootTimeout, forced: false, uptime: None, .. }), "{out:?}");
    assert_eq!(s.plan.stats().exits.boot_timeout, 1);
}

#[test]
fn a_hanging_worker_is_suspected_dumped_aborted_and_killed() {
    for (native, want) in [(true, Cause::Blocked), (false, Cause::Frozen)] {
        let options = Options { dump_signal: Some(libc::SIGUSR2), ..Options::default() };
        let mut s = Story::with(&options, 8);
        s.tell(Input::Scale(1));
        s.ready(id(0, 1));
        s.beating(5000, &[id(0, 1)], true);
        let mut out = Vec::new();
        while s.now < 14_999 {
            s.now = (s.now + 250).min(14_999);
            s.tell(Input::Beats(id(0, 1), 5000, if native { s.now } else { 5000 }));
            out.extend(s.until(s.now));
        }
        assert_eq!(out, []);
        s.tell(Input::Beats(id(0, 1), 5000, if native { 99_999 } else { 5000 }));
        let out = s.until(15_000);
        assert_eq!(reports(&out), [Event::Suspect { worker: id(0, 1), cause: want, stack: None }]);
        assert_eq!(deeds(&out), [Dump(0, libc::SIGUSR2)]);
        assert_eq!(s.state(0), State::Suspect);
        assert_eq!(deeds(&s.until(17_000)), [Signal(0, libc::SIGABRT)]);
        assert_eq!(s.tell(Input::Beats(id(0, 1), 6000, 6000)), [], "too late");
        assert_eq!(deeds(&s.until(19_000)), [Signal(0, libc::SIGKILL)]);
        s.exit(id(0, 1));
        let exits = s.plan.stats().exits;
        assert_eq!((exits.blocked, exits.frozen), if native { (1, 0) } else { (0, 1) });
    }
}

#[test]
fn a_suspect_that_beats_is_ready_again() {
    let mut s = Story::new();
    s.tell(Input::Scale(1));
    s.ready(id(0, 1));
    s.until(10_000);
    assert_eq!(s.state(0), State::Suspect);
    s.now = 11_999;
    assert_eq!(reports(&s.tell(Input::Beats(id(0, 1), 1, 1))), [Event::Resumed { worker: id(0, 1) }]);
    assert_eq!(s.beating(30_000, &[id(0, 1)], true), []);
    let stats = s.plan.stats();
    assert_eq!((stats.suspected, stats.resumed, stats.ready), (1, 1, 1));
}

#[test]
fn without_a_hang_time_out_nobody_is_suspected_and_no_timer_runs() {
    let options = Options { hang_timeout: Duration::ZERO, ..Options::default() };
    let mut s = Story::with(&options, 8);
    s.tell(Input::Scale(1));
    s.ready(id(0, 1));
    assert_eq!(s.plan.next_deadline(), None);
}

#[test]
fn a_supervisor_that_was_held_up_skips_the_round_and_moves_every_deadline() {
    let mut s = Story::new();
    s.tell(Input::Scale(3));
    s.ready(id(0, 1));
    s.ready(id(1, 1));
    s.beating(20_000, &[id(0, 1), id(1, 1)], true);
    // Of 3 one starts still: its boot has 10 s left when the supervisor is stopped for 15 s.
    s.now = 35_000;
    let out = s.tell(Input::Tick);
    let [Event::Skipped { late }] = reports(&out)[..] else { panic!("{out:?}") };
    assert!((Duration::from_secs(14)..=Duration::from_secs(15)).contains(&late), "{late:?}");
    assert_eq!(deeds(&out), []);
    assert_eq!(s.plan.stats().skipped, 1);
    // The boot has what it had, and the hang time-out begins anew.
    let boot = 30_000 + late.as_millis() as u64;
    assert_eq!(s.until(boot - 1), []);
    assert_eq!(deeds(&s.until(boot)), [Signal(2, libc::SIGTERM)]);
    assert_eq!(reports(&s.until(44_999)), []);
    assert_eq!(reports(&s.until(45_000)).iter().filter(|e| matches!(e, Event::Suspect { .. })).count(), 2);
}

#[test]
fn what_a_supervisor_is_late_by_counts_against_nobody() {
    let mut s = Story::new();
    s.tell(Input::Scale(1));
    s.ready(id(0, 1));
    // Due at 1 s and then a second after each look: 4.9 s late each time, which is no reason to skip a round.
    for now in [5900, 11_800, 17_700] {
        s.now = now;
        assert_eq!(s.tell(Input::Tick), []);
    }
    // Three seconds of the loop's silence are its own.
    assert_eq!(s.until(24_699), []);
    assert!(matches!(reports(&s.until(24_700))[..], [Event::Suspect { .. }]));
}

#[test]
fn what_begins_when_a_supervisor_comes_back_has_its_whole_time() {
    let mut s = Story::new();
    s.tell(Input::Scale(1));
    s.ready(id(0, 1));
    s.now = 20_000;
    let out = s.tell(Input::Scale(2));
    assert!(matches!(reports(&out)[0], Event::Skipped { .. }), "{out:?}");
    assert_eq!(deeds(&out), [Spawn(1, 1)]);
    s.beating(49_999, &[id(0, 1)], true);
    assert_eq!(s.state(1), State::Spawned);
    assert_eq!(deeds(&s.until(50_000)), [Signal(1, libc::SIGTERM)]);
}

#[test]
fn a_drain_ends_by_itself_or_by_force() {
    let mut s = Story::new();
    s.tell(Input::Scale(2));
    s.ready(id(0, 1));
    s.ready(id(1, 1));
    assert_eq!(deeds(&s.tell(Input::Scale(0))), [Drain(1, 1), Drain(0, 1)]);
    assert_eq!(s.exit(id(0, 1)).len(), 1, "only its end is told");
    assert_eq!(s.until(29_999), []);
    assert_eq!(deeds(&s.until(30_000)), [Signal(1, libc::SIGTERM)]);
    assert_eq!(deeds(&s.until(32_000)), [Signal(1, libc::SIGKILL)]);
    let out = s.exit(id(1, 1));
    assert!(matches!(reports(&out)[0], Event::Exited { cause: Cause::Scale, forced: true, .. }), "{out:?}");
    let stats = s.plan.stats();
    assert_eq!((stats.exits.scale, stats.forced, stats.live), (2, 1, 0));
}

#[test]
fn who_says_that_it_has_drained_and_does_not_end_is_ended_soon() {
    let mut s = Story::new();
    s.tell(Input::Scale(1));
    s.ready(id(0, 1));
    s.tell(Input::Scale(0));
    s.now = 100;
    assert_eq!(s.tell(Input::Drained(id(0, 1))), []);
    assert_eq!(s.until(2099), []);
    assert_eq!(deeds(&s.until(2100)), [Signal(0, libc::SIGTERM)]);
}

#[test]
fn too_many_unstable_ends_degrade_and_a_stable_probe_recovers() {
    for (workers, limit) in [(1, 5), (2, 5), (4, 8)] {
        let mut s = Story::new();
        s.tell(Input::Scale(workers));
        let mut ends = 0;
        let degraded_at = loop {
            let live: Vec<WorkerId> = s.plan.procs().map(|(id, _)| id).collect();
            let mut out = Vec::new();
            for id in live {
                out.extend(s.exit(id));
                ends += 1;
                if reports(&out).iter().any(|e| matches!(e, Event::Degraded { .. })) {
                    break;
                }
            }
            if s.plan.stats().degraded {
                break s.now;
            }
            let now = s.now;
            s.until(now + 50);
        };
        assert_eq!(ends, limit + 1);
        // Who is up when it happens stays.
        let live: Vec<WorkerId> = s.plan.procs().map(|(id, _)| id).collect();
        live.iter().for_each(|id| drop(s.exit(*id)));
        assert!((0..workers as u32).all(|slot| s.state(slot) == State::Quarantined));
        assert_eq!(deeds(&s.until(degraded_at + 29_999)), []);
        let probe = deeds(&s.until(degraded_at + 30_000));
        let [Spawn(slot, incarnation)] = probe[..] else { panic!("{probe:?}") };
        s.exit(id(slot, incarnation));
        assert_eq!(deeds(&s.until(degraded_at + 59_999)), []);
        let probe = deeds(&s.until(degraded_at + 60_000));
        let [Spawn(slot, incarnation)] = probe[..] else { panic!("{probe:?}") };
        let good = id(slot, incarnation);
        s.ready(good);
        assert_eq!(s.beating(degraded_at + 64_999, &[good], true), [], "not stable yet");
        let out = s.beating(degraded_at + 65_000, &[good], true);
        assert_eq!(reports(&out)[0], Event::Recovered);
        assert_eq!(deeds(&out).len(), workers - 1, "all others start again");
        assert!(!s.plan.stats().degraded);
    }
}

#[test]
fn a_worker_that_its_owner_lets_go_has_proved_itself() {
    let mut s = Story::new();
    s.tell(Input::Scale(3));
    s.ready(id(0, 1));
    while !s.plan.stats().degraded {
        let live: Vec<WorkerId> = s.plan.procs().map(|(id, _)| id).filter(|id| id.slot != 0).collect();
        live.iter().for_each(|id| drop(s.exit(*id)));
        s.until(s.now + 50);
    }
    let live: Vec<WorkerId> = s.plan.procs().map(|(id, _)| id).filter(|id| id.slot != 0).collect();
    live.iter().for_each(|id| drop(s.exit(*id)));
    let recovers = |out: Vec<Action>| reports(&out).contains(&Event::Recovered);
    assert!(!recovers(s.tell(Input::Release(id(0, 1)))), "one of before says nothing of what fails now");
    s.exit(id(0, 1));
    let probe = deeds(&s.until(s.now + 30_000));
    let [Spawn(slot, incarnation)] = probe[..] else { panic!("{probe:?}") };
    assert!(!recovers(s.tell(Input::Release(id(slot, incarnation)))), "it never was ready");
    s.exit(id(slot, incarnation));
    s.tell(Input::Scale(2));
    let probe = deeds(&s.until(s.now + 30_000));
    let [Spawn(slot, incarnation)] = probe[..] else { panic!("{probe:?}") };
    s.ready(id(slot, incarnation));
    let out = s.tell(Input::Release(id(slot, incarnation)));
    assert!(deeds(&out).iter().any(|d| matches!(d, Spawn(..))), "the other slot starts at once");
    assert!(recovers(out));
}

#[test]
fn an_app_that_crashes_at_once_is_started_a_few_times_in_its_first_minute() {
    for workers in [1, 2, 6] {
        let mut s = Story::new();
        let mut spawns = s.tell(Input::Scale(workers)).iter().filter(|a| matches!(a, Action::Spawn(_))).count();
        while s.now < 60_000 {
            let next = s.now + 10;
            spawns += deeds(&s.until(next)).len();
            let live: Vec<WorkerId> = s.plan.procs().map(|(id, _)| id).collect();
            for id in live {
                spawns += deeds(&s.exit(id)).len();
            }
        }
        assert!(spawns <= 12 * workers && spawns <= 5 + 3 * workers, "{spawns} starts of {workers} workers");
    }
}

#[test]
fn stable_ends_are_replaced_and_degrade_nobody() {
    let mut s = Story::new();
    s.tell(Input::Scale(1));
    for incarnation in 1..=20 {
        s.ready(id(0, incarnation));
        s.beating(s.now + 5000, &[id(0, incarnation)], true);
        s.exit(id(0, incarnation));
        s.until(s.now + 40_000);
    }
    assert_eq!(s.plan.stats().degradations, 0);
}

/// When the owner says that an exit was over a task.
#[derive(Clone, Copy, Debug, PartialEq)]
enum When {
    Before,
    Between,
    After,
}

#[test]
fn a_charged_exit_counts_for_nothing_whenever_it_is_said() {
    for when in [When::Before, When::Between, When::After] {
        let mut s = Story::new();
        s.tell(Input::Scale(1));
        for incarnation in 1..=30 {
            let id = id(0, incarnation);
            s.ready(id);
            if when == When::Before {
                s.tell(Input::Charged(id));
            }
            s.tell(Input::Exited(id, code(1), None));
            assert_eq!(s.state(0), State::Dead);
            if when == When::Between {
                s.tell(Input::Charged(id));
            }
            let mut out = s.until(s.now);
            if when == When::After {
                out.extend(s.tell(Input::Charged(id)));
            }
            assert_eq!(deeds(&out), [Spawn(0, incarnation + 1)], "{when:?} {incarnation}");
        }
        let stats = s.plan.stats();
        assert_eq!((stats.exits.charged, stats.exits.crash, stats.degradations), (30, 0, 0), "{when:?}");
    }
}

#[test]
fn an_exit_before_ready_cannot_be_charged() {
    let mut s = Story::new();
    s.tell(Input::Scale(1));
    for incarnation in 1..=6 {
        s.tell(Input::Charged(id(0, incarnation)));
        s.exit(id(0, incarnation));
        s.tell(Input::Charged(id(0, incarnation)));
        s.until(s.now + 4000);
    }
    let stats = s.plan.stats();
    assert!(stats.degraded && stats.exits.charged == 0 && stats.exits.boot == 6, "{stats:?}");
}

#[test]
fn a_late_charge_ends_a_degradation_that_was_none() {
    let mut s = Story::new();
    s.tell(Input::Scale(1));
    for incarnation in 1..=6 {
        s.ready(id(0, incarnation));
        s.exit(id(0, incarnation));
        if incarnation < 6 {
            s.until(s.now + 4000);
        }
    }
    assert!(s.plan.stats().degraded);
    let out = s.tell(Input::Charged(id(0, 6)));
    assert_eq!(reports(&out)[0], Event::Recovered);
    assert_eq!(deeds(&out), [Spawn(0, 7)]);
}

#[test]
fn one_slot_at_a_time_is_replaced_and_the_new_worker_comes_first() {
    let mut s = Story::new();
    s.tell(Input::Scale(2));
    s.ready(id(0, 1));
    s.ready(id(1, 1));
    assert_eq!(deeds(&s.tell(Input::Retire(0))), [Spawn(0, 2)]);
    assert_eq!(s.tell(Input::Retire(1)), []);
    assert_eq!(s.tell(Input::Retire(0)), [], "it is on its way");
    assert_eq!(deeds(&s.ready(id(0, 2))), [Drain(0, 1)]);
    assert_eq!(s.plan.stats().ready, 2);
    let out = s.exit(id(0, 1));
    assert_eq!(deeds(&out), [Spawn(1, 2)], "the next one's turn");
    assert_eq!(s.plan.stats().exits.retire, 1);
}

fn expired(slot: u32, incarnation: u64, why: Expiry) -> Event {
    Event::Expired { worker: id(slot, incarnation), why }
}

#[test]
fn a_worker_that_is_too_old_is_replaced_and_its_successor_has_its_whole_time() {
    let mut s = Story::with(&Options { max_age: Some(Duration::from_secs(100)), hang_timeout: Duration::ZERO, ..Options::default() }, 8);
    s.tell(Input::Scale(2));
    (0..2).for_each(|slot| drop(s.ready(id(slot, 1))));
    assert!(deeds(&s.until(90_000 - 1)).is_empty());
    let out = s.until(110_000);
    let all: Vec<Event> = reports(&out).into_iter().filter(|e| matches!(e, Event::Expired { .. })).collect();
    assert_eq!(all.len(), 2, "within a tenth of its age: {all:?}");
    let Event::Expired { worker: WorkerId { slot: first, .. }, why: Expiry::Age } = all[0] else { panic!("{all:?}") };
    assert_eq!(deeds(&out), [Spawn(first, 2)], "one at a time, and the successor before the old one");
    assert_eq!(deeds(&s.ready(id(first, 2))), [Drain(first, 1)]);
    let other = 1 - first;
    assert_eq!(deeds(&s.exit(id(first, 1))), [Spawn(other, 2)]);
    s.ready(id(other, 2));
    s.exit(id(other, 1));
    assert!(deeds(&s.until(200_000 - 1)).is_empty(), "both are new");
    let stats = s.plan.stats();
    assert_eq!((stats.expired.age, stats.retired, stats.exits.retire, stats.exits.unasked()), (2, 2, 2, 0));
}

#[test]
fn a_worker_that_has_served_enough_is_replaced() {
    let mut s = Story::with(&Options { max_requests: Some(1000), ..Options::default() }, 8);
    s.tell(Input::Scale(1));
    s.ready(id(0, 1));
    assert!(s.tell(Input::Served(id(0, 1), 899)).is_empty());
    let out = s.tell(Input::Served(id(0, 1), 1101));
    assert_eq!((reports(&out)[0].clone(), deeds(&out)), (expired(0, 1, Expiry::Requests), vec![Spawn(0, 2)]));
    assert!(s.tell(Input::Served(id(0, 1), 1200)).is_empty(), "once");
    assert_eq!(deeds(&s.ready(id(0, 2))), [Drain(0, 1)]);
}

#[test]
fn a_worker_that_has_too_much_memory_three_times_in_a_row_is_replaced() {
    let mut s = Story::with(&Options { max_memory: Some(1 << 30), hang_timeout: Duration::ZERO, ..Options::default() }, 8);
    s.tell(Input::Scale(1));
    assert!(s.until(900).is_empty(), "who is not ready is not weighed");
    s.ready(id(0, 1));
    for too_much in [true, true, false, true, true] {
        s.now += 1000;
        assert_eq!(deeds(&s.until(s.now)), [Weigh(0)]);
        assert!(s.tell(Input::Weighed(id(0, 1), too_much)).is_empty());
    }
    s.now += 1000;
    s.until(s.now);
    let out = s.tell(Input::Weighed(id(0, 1), true));
    assert_eq!((reports(&out)[0].clone(), deeds(&out)), (expired(0, 1, Expiry::Memory), vec![Spawn(0, 2)]));
    s.now += 5000;
    assert!(deeds(&s.until(s.now)).is_empty(), "what leaves is weighed no more, nor who is not ready");
}

#[test]
fn an_expired_worker_goes_on_until_a_successor_comes_up() {
    let mut s = Story::with(&Options { max_requests: Some(10), hang_timeout: Duration::ZERO, ..Options::default() }, 8);
    s.tell(Input::Scale(1));
    s.ready(id(0, 1));
    assert_eq!(deeds(&s.tell(Input::Served(id(0, 1), 11))), [Spawn(0, 2)]);
    assert_eq!(deeds(&s.exit(id(0, 2))), [Spawn(0, 3)], "the first has no delay");
    assert!(deeds(&s.exit(id(0, 3))).is_empty());
    assert_eq!(deeds(&s.until(s.now + 200)), [Spawn(0, 4)], "then it rests");
    assert_eq!(s.state(0), State::Ready);
    assert_eq!(deeds(&s.ready(id(0, 4))), [Drain(0, 1)]);
    assert_eq!(s.plan.stats().expired.requests, 1);
}

#[test]
fn a_replacement_that_fails_leaves_the_old_worker_alone() {
    let mut s = Story::new();
    s.tell(Input::Scale(1));
    s.ready(id(0, 1));
    for incarnation in 2..=30 {
        s.tell(Input::Retire(0));
        s.beating(s.now + 40_000, &[id(0, 1)], true);
        assert!(reports(&s.exit(id(0, incarnation))).contains(&Event::RetireFailed { slot: 0 }));
    }
    let stats = s.plan.stats();
    assert_eq!((s.state(0), stats.degradations, stats.retire_failed), (State::Ready, 0, 29));
    // A spent slot rests before the next try.
    let out = s.tell(Input::Retire(0));
    assert_eq!(deeds(&out), []);
    let out = s.beating(s.now + 40_000, &[id(0, 1)], true);
    assert_eq!(deeds(&out), [Spawn(0, 31)]);
}

#[test]
fn a_worker_that_dies_while_it_is_replaced_is_followed_by_its_successor() {
    let mut s = Story::new();
    s.tell(Input::Scale(1));
    s.ready(id(0, 1));
    s.tell(Input::Retire(0));
    assert_eq!(deeds(&s.exit(id(0, 1))), []);
    assert_eq!(s.ready(id(0, 2)).len(), 2, "starting and ready, and nobody drains");
    assert_eq!(s.plan.procs().collect::<Vec<_>>(), [(id(0, 2), State::Ready)]);
}

#[test]
fn the_youngest_or_the_oldest_leave_first_and_their_slots_are_used_again() {
    for (order, left, freed) in [(ScaleDown::Youngest, [0, 1], 2), (ScaleDown::Oldest, [2, 3], 0)] {
        let options = Options { scale_down: order, hang_timeout: Duration::ZERO, ..Options::default() };
        let mut s = Story::with(&options, 8);
        for n in 1..=4 {
            s.now += 10;
            s.tell(Input::Scale(n));
            s.ready(id(n as u32 - 1, 1));
        }
        let out = s.tell(Input::Scale(2));
        let ends: Vec<u32> = deeds(&out).iter().map(|d| if let Drain(slot, _) = d { *slot } else { 99 }).collect();
        assert_eq!(ends.len(), 2);
        ends.iter().for_each(|slot| drop(s.exit(id(*slot, 1))));
        let ready: Vec<u32> = s.plan.procs().map(|(id, _)| id.slot).collect();
        assert_eq!(ready, left, "{order:?}");
        assert_eq!(deeds(&s.tell(Input::Scale(3))), [Spawn(freed, 2)], "the lowest free slot");
    }
}

#[test]
fn slots_without_a_ready_worker_leave_first() {
    let mut s = Story::new();
    s.tell(Input::Scale(3));
    s.ready(id(1, 1));
    s.ready(id(2, 1));
    assert_eq!(deeds(&s.tell(Input::Scale(2))), [Signal(0, libc::SIGTERM)], "who only starts is asked by signal");
}

#[test]
fn as_many_start_at_once_as_are_allowed() {
    let mut s = Story::with(&Options::default(), 2);
    assert_eq!(deeds(&s.tell(Input::Scale(5))), [Spawn(0, 1), Spawn(1, 1)]);
    assert_eq!(deeds(&s.ready(id(1, 1))), [Spawn(2, 1)]);
    let out = s.exit(id(0, 1));
    assert_eq!(deeds(&out), [Spawn(3, 1)], "who was never tried comes before who was");
}

#[test]
fn the_start_has_failed_when_each_workers_first_try_has() {
    let mut s = Story::new();
    s.tell(Input::Scale(2));
    let failed =
        |out: &[Action]| reports(out).into_iter().find_map(|e| if let Event::StartFailed { error } = e { Some(error) } else { None });
    assert_eq!(failed(&s.exit(id(0, 1))), None);
    assert_eq!(failed(&s.exit(id(0, 2))), None, "the other one may be well");
    let mut out = s.tell(Input::Exited(id(1, 1), code(4), Some("no module named scoring".to_owned())));
    out.extend(s.until(s.now));
    let error = failed(&out).expect("both have failed");
    assert_eq!(error.to_string(), "start failed: no module named scoring (slot=1, exit_code=4)");
    assert!(!s.plan.stats().degraded, "it goes on trying");

    let mut s = Story::new();
    let mut out = Vec::new();
    s.plan.handle(Input::Scale(1), 0, &mut out);
    s.plan.handle(Input::SpawnFailed(id(0, 1), Error::os("clone", libc::EAGAIN)), 0, &mut out);
    assert_eq!(failed(&out).map(|e| e.kind()), Some(ErrorKind::Os), "a start that the system refuses has the system's error");

    let mut s = Story::new();
    s.tell(Input::Scale(2));
    s.ready(id(0, 1));
    let mut out = s.exit(id(1, 1));
    out.extend(s.exit(id(0, 1)));
    assert_eq!(failed(&out), None, "one was ready");
}

#[test]
fn a_stop_can_be_made_shorter_and_ends_with_one_event() {
    let mut s = Story::new();
    s.tell(Input::Scale(3));
    s.ready(id(0, 1));
    s.ready(id(1, 1));
    assert_eq!(deeds(&s.tell(Input::Stop(60_000 * MS))), [Drain(0, 1), Drain(1, 1), Signal(2, libc::SIGTERM)]);
    assert_eq!(deeds(&s.until(2000)), [Signal(2, libc::SIGKILL)]);
    s.exit(id(2, 1));
    s.tell(Input::Stop(5000 * MS));
    assert_eq!(deeds(&s.until(7000)), [Signal(0, libc::SIGTERM), Signal(1, libc::SIGTERM)]);
    assert_eq!(deeds(&s.tell(Input::StopNow)), [Signal(0, libc::SIGKILL), Signal(1, libc::SIGKILL)]);
    assert_eq!(deeds(&s.tell(Input::StopNow)), []);
    s.exit(id(0, 1));
    assert!(!s.plan.is_stopped());
    let out = s.exit(id(1, 1));
    assert_eq!(reports(&out).last(), Some(&Event::Stopped));
    assert_eq!(s.tell(Input::Scale(4)), [], "for good");
    assert_eq!(s.plan.next_deadline(), None);
}

#[test]
fn a_supervisor_without_workers_stops_at_once() {
    let mut s = Story::new();
    assert_eq!(reports(&s.tell(Input::Stop(MS))), [Event::Stopped]);
    assert_eq!(s.tell(Input::Stop(MS)), []);
}

#[test]
fn a_worker_that_scribbles_is_killed_at_once_and_counts_as_a_failure() {
    let mut s = Story::new();
    s.tell(Input::Scale(1));
    s.ready(id(0, 1));
    assert_eq!(deeds(&s.tell(Input::Corrupt(id(0, 1)))), [Signal(0, libc::SIGKILL)]);
    let out = s.exit(id(0, 1));
    assert!(reports(&out).contains(&Event::BackOff { slot: 0, delay: Duration::ZERO }), "{out:?}");
    assert_eq!(s.plan.stats().exits.corrupt, 1);
}

#[test]
fn a_kill_for_want_of_memory_is_told_unless_the_kill_was_ours() {
    let mut s = Story::new();
    let oom = Ended { exit: Exit { code: None, signal: Some(libc::SIGKILL), core_dumped: false }, oom: true };
    s.tell(Input::Scale(1));
    s.ready(id(0, 1));
    let out = s.tell(Input::Exited(id(0, 1), oom, None));
    assert!(matches!(reports(&out)[0], Event::Exited { ended: Ended { oom: true, .. }, .. }), "{out:?}");
    s.until(0);
    s.tell(Input::Kill(id(0, 2)));
    let out = s.tell(Input::Exited(id(0, 2), oom, None));
    assert!(matches!(reports(&out)[0], Event::Exited { ended: Ended { oom: false, .. }, .. }), "{out:?}");
    assert_eq!(s.plan.stats().oom, 1);
}

#[test]
fn a_worker_that_is_killed_by_its_owner_is_replaced_without_delay() {
    let mut s = Story::new();
    s.tell(Input::Scale(1));
    for incarnation in 1..=20 {
        let worker = id(0, incarnation);
        if incarnation % 2 == 0 {
            s.ready(worker);
        }
        assert_eq!(deeds(&s.tell(Input::Kill(worker))), [Signal(0, libc::SIGKILL)]);
        assert_eq!(deeds(&s.tell(Input::Kill(worker))), []);
        assert_eq!(deeds(&s.exit(worker)), [Spawn(0, incarnation + 1)]);
    }
    let stats = s.plan.stats();
    assert_eq!((stats.exits.killed, stats.degradations), (20, 0));
}

#[test]
fn a_released_worker_finishes_and_its_slot_is_not_started_again() {
    let mut s = Story::new();
    s.tell(Input::Scale(3));
    (0..3).for_each(|slot| drop(s.ready(id(slot, 1))));
    // Not whom a scale would have chosen.
    let out = s.tell(Input::Release(id(1, 1)));
    assert_eq!(deeds(&out), [Drain(1, 1)]);
    assert!(reports(&out).contains(&Event::Draining { worker: id(1, 1), cause: Cause::Scale }), "{out:?}");
    assert_eq!(s.plan.stats().wanted, 2);
    assert_eq!(deeds(&s.tell(Input::Release(id(1, 1)))), [], "once");
    assert_eq!(s.plan.stats().wanted, 2);
    assert_eq!(deeds(&s.exit(id(1, 1))), []);
    // The next one that is wanted gets the free slot.
    assert_eq!(deeds(&s.tell(Input::Scale(3))), [Spawn(1, 2)]);
    // One that is not ready has nothing to finish.
    assert_eq!(deeds(&s.tell(Input::Release(id(1, 2)))), [Signal(1, libc::SIGTERM)]);
    s.exit(id(1, 2));
    assert_eq!((s.plan.stats().wanted, s.plan.stats().live), (2, 2));
}

#[test]
fn a_release_of_one_that_has_ended_keeps_its_slot_empty_unless_another_has_it() {
    // Nobody beats here.
    let mut s = Story::with(&Options { hang_timeout: Duration::ZERO, ..Options::default() }, 8);
    s.tell(Input::Scale(2));
    s.ready(id(0, 1));
    s.ready(id(1, 1));
    // Heard before the exit is settled.
    s.tell(Input::Exited(id(0, 1), code(1), None));
    assert_eq!(deeds(&s.tell(Input::Release(id(0, 1)))), []);
    assert_eq!(deeds(&s.until(60_000)), []);
    assert_eq!((s.plan.stats().wanted, s.plan.stats().live), (1, 1));
    // Its slot has another worker by now.
    assert_eq!(deeds(&s.exit(id(1, 1))), [Spawn(1, 2)]);
    assert_eq!(deeds(&s.tell(Input::Release(id(1, 1)))), []);
    assert_eq!((s.plan.stats().wanted, s.plan.stats().live), (1, 1));
    // It rests before its next start.
    s.exit(id(1, 2));
    assert_eq!(s.plan.stats().live, 0);
    assert_eq!(deeds(&s.tell(Input::Release(id(1, 2)))), []);
    assert_eq!(deeds(&s.until(120_000)), []);
    assert_eq!(s.plan.stats().wanted, 0);
    assert_eq!(deeds(&s.tell(Input::Release(id(9, 1)))), [], "a slot that never was");
}

#[test]
fn a_release_while_a_worker_is_replaced_ends_both() {
    let mut s = Story::new();
    s.tell(Input::Scale(1));
    s.ready(id(0, 1));
    assert_eq!(deeds(&s.tell(Input::Retire(0))), [Spawn(0, 2)]);
    assert_eq!(deeds(&s.tell(Input::Release(id(0, 2)))), [], "it does not have the slot yet");
    assert_eq!(s.plan.stats().wanted, 1);
    assert_eq!(deeds(&s.tell(Input::Release(id(0, 1)))), [Drain(0, 1), Signal(0, libc::SIGTERM)]);
    assert_eq!(s.plan.stats().wanted, 0);
    s.exit(id(0, 2));
    assert_eq!(deeds(&s.exit(id(0, 1))), []);
}

#[test]
fn with_once_nobody_takes_the_place_of_a_worker_that_has_ended_and_no_end_is_a_failure() {
    let mut s = Story::with(&Options { once: true, hang_timeout: Duration::ZERO, ..Options::default() }, 1024);
    // Many more than what makes a supervisor degraded, and a slot rest.
    for incarnation in 1..=50 {
        let before = s.plan.stats().wanted;
        assert_eq!((before, deeds(&s.tell(Input::Scale(1)))), (0, vec![Spawn(0, incarnation)]), "at once");
        match incarnation % 4 {
            0 => drop(s.ready(id(0, incarnation))),
            1 => drop(s.tell(Input::Hello(id(0, incarnation)))),
            2 => drop(s.tell(Input::Kill(id(0, incarnation)))),
            _ => {}
        }
        assert_eq!(deeds(&s.exit(id(0, incarnation))), []);
    }
    assert_eq!(deeds(&s.until(120_000)), []);
    // One is asked for between an exit and what settles it, one does not start.
    s.tell(Input::Scale(2));
    s.ready(id(1, 1));
    s.tell(Input::Exited(id(0, 51), code(1), None));
    assert_eq!(deeds(&s.tell(Input::Scale(2))), []);
    let mut out = Vec::new();
    s.plan.handle(Input::Tick, s.now * MS, &mut out);
    assert_eq!(deeds(&out), [Spawn(0, 52)]);
    let error = Error::new(ErrorKind::NotFound, "no such program");
    assert_eq!(deeds(&s.tell(Input::SpawnFailed(id(0, 52), error))), []);
    assert_eq!(deeds(&s.until(240_000)), []);
    let stats = s.plan.stats();
    assert_eq!((stats.wanted, stats.live, stats.degraded, stats.degradations), (1, 1, false, 0));
}

// ---- starts that are answered later ----

/// A supervisor of one worker, which the zygote was asked for, with `kill_grace` 0.
fn asked() -> (Plan, Vec<Action>) {
    let mut plan = Plan::new(&Options { kill_grace: Duration::ZERO, ..Options::default() }, 8, 1);
    let mut out = Vec::new();
    plan.handle(Input::Scale(1), 0, &mut out);
    assert_eq!(deeds(&std::mem::take(&mut out)), [Spawn(0, 1)]);
    (plan, out)
}

fn unwanted() -> Error {
    Error::new(ErrorKind::Cancelled, "worker is not wanted any more")
}

#[test]
fn a_worker_boots_from_when_it_was_asked_for() {
    let (mut plan, mut out) = asked();
    plan.handle(Input::Spawned(id(0, 1), 7), 29_000 * MS, &mut out);
    assert_eq!(reports(&out), [Event::Spawned { worker: id(0, 1), pid: 7 }]);
    assert_eq!(plan.next_deadline(), Some(30_000 * MS));
    plan.handle(Input::Tick, 30_000 * MS, &mut out);
    assert_eq!(deeds(&out), [Signal(0, libc::SIGKILL)]);
}

#[test]
fn a_worker_that_was_given_up_before_it_was_there_is_no_failure() {
    let (mut plan, mut out) = asked();
    plan.handle(Input::Kill(id(0, 1)), 0, &mut out);
    assert_eq!(deeds(&std::mem::take(&mut out)), [Signal(0, libc::SIGKILL)]);
    plan.handle(Input::SpawnFailed(id(0, 1), unwanted()), 0, &mut out);
    assert_eq!(deeds(&std::mem::take(&mut out)), [Spawn(0, 2)], "without delay");
    assert!(reports(&out).iter().all(|e| !matches!(e, Event::StartFailed { .. } | Event::BackOff { .. })));
    plan.handle(Input::Scale(0), 0, &mut out);
    plan.handle(Input::SpawnFailed(id(0, 2), unwanted()), 0, &mut out);
    assert_eq!(deeds(&std::mem::take(&mut out)), [Signal(0, libc::SIGKILL)]);
    plan.handle(Input::Scale(1), 0, &mut out);
    assert_eq!(deeds(&std::mem::take(&mut out)), [Spawn(0, 3)], "at once");
    plan.handle(Input::StopNow, 0, &mut out);
    assert!(!plan.is_stopped(), "until it is known that there is none");
    plan.handle(Input::SpawnFailed(id(0, 3), unwanted()), 0, &mut out);
    assert!(plan.is_stopped());
    assert_eq!((plan.stats().spawn_failed, plan.stats().exits.total(), plan.stats().spawned), (3, 0, 0));
}

#[test]
fn a_worker_that_was_not_there_in_time_is_a_failed_start() {
    let (mut plan, mut out) = asked();
    plan.handle(Input::Tick, 30_000 * MS, &mut out);
    assert_eq!((deeds(&std::mem::take(&mut out)), plan.cause(id(0, 1))), (vec![Signal(0, libc::SIGKILL)], Some(Cause::BootTimeout)));
    let late = Error::new(ErrorKind::StartFailed, "no answer");
    plan.handle(Input::SpawnFailed(id(0, 1), late.clone()), 30_000 * MS, &mut out);
    assert!(reports(&out).contains(&Event::StartFailed { error: late }), "{out:?}");
}

#[test]
fn a_successor_that_was_not_there_leaves_its_predecessor() {
    let mut s = Story::new();
    s.tell(Input::Scale(1));
    s.ready(id(0, 1));
    let mut out = Vec::new();
    s.plan.handle(Input::Retire(0), 0, &mut out);
    assert_eq!(deeds(&std::mem::take(&mut out)), [Spawn(0, 2)]);
    s.plan.handle(Input::SpawnFailed(id(0, 2), Error::os("fork", libc::EAGAIN)), 0, &mut out);
    assert!(reports(&out).contains(&Event::RetireFailed { slot: 0 }), "{out:?}");
    assert_eq!(s.state(0), State::Ready);
    // Nobody has asked for these.
    s.tell(Input::SpawnFailed(id(0, 2), unwanted()));
    s.tell(Input::SpawnFailed(id(7, 2), unwanted()));
    assert_eq!((s.state(0), s.plan.stats().spawn_failed), (State::Ready, 1));
}

/// A process of that generation.
fn of(slot: u32, generation: u32, incarnation: u64) -> WorkerId {
    WorkerId { slot, generation, incarnation }
}

fn reloading(workers: usize, options: &Options) -> Story {
    let mut s = Story::with(options, 8);
    s.tell(Input::Scale(workers));
    for slot in 0..workers as u32 {
        s.ready(id(slot, 1));
    }
    s
}

#[test]
fn a_reload_replaces_slot_by_slot_and_is_over_with_the_last_old_worker() {
    let mut s = reloading(2, &Options::default());
    let out = s.tell(Input::Reload(2));
    assert_eq!(reports(&out)[0], Event::Reloading { generation: 2 });
    assert_eq!(out.iter().filter(|a| matches!(a, Action::Spawn(_))).collect::<Vec<_>>(), [&Action::Spawn(of(0, 2, 2))]);
    assert_eq!(deeds(&s.ready(of(0, 2, 2))), [Drain(0, 1)]);
    // The next slot waits for the old worker's end.
    assert_eq!(deeds(&s.exit(id(0, 1))), [Spawn(1, 2)]);
    s.now = 700;
    assert_eq!(deeds(&s.ready(of(1, 2, 2))), [Drain(1, 1)]);
    let out = s.exit(id(1, 1));
    let report = Reloaded { generation: 2, replaced: 2, forced: 0, took: Duration::from_millis(700) };
    assert_eq!(reports(&out).last(), Some(&Event::Reloaded(report)));
    // From here on the new one is what is started.
    assert!(s.exit(of(0, 2, 2)).contains(&Action::Spawn(of(0, 2, 3))));
    assert_eq!((s.plan.stats().reloads, s.plan.stats().reloads_failed), (1, 0));
}

#[test]
fn a_new_worker_has_to_be_ready_for_a_while_before_the_old_one_finishes() {
    let options = Options { min_ready: Duration::from_secs(1), ..Options::default() };
    let mut s = reloading(1, &options);
    s.tell(Input::Reload(2));
    assert_eq!(deeds(&s.ready(of(0, 2, 2))), []);
    assert_eq!(deeds(&s.until(999)), []);
    assert_eq!(deeds(&s.until(1000)), [Drain(0, 1)]);
    // It has proved itself: what befalls it now is no longer the reload's.
    assert!(s.exit(of(0, 2, 2)).contains(&Action::Spawn(of(0, 2, 3))));
    let out = s.exit(id(0, 1));
    assert!(reports(&out).iter().any(|e| matches!(e, Event::Reloaded(r) if r.replaced == 1)), "{out:?}");
}

#[test]
fn a_canary_that_fails_changes_nothing() {
    const OWN: &str = "cannot find module";
    for (min_ready, text, words) in [(0, Some(OWN), OWN), (1000, Some(OWN), OWN), (1000, None, "before it had proved itself")] {
        let options = Options { min_ready: Duration::from_millis(min_ready), ..Options::default() };
        let mut s = reloading(2, &options);
        s.tell(Input::Reload(2));
        if min_ready > 0 {
            // It comes up, and falls over.
            s.ready(of(0, 2, 2));
        }
        s.tell(Input::Exited(of(0, 2, 2), code(1), text.map(str::to_owned)));
        let out = s.until(10);
        assert_eq!(deeds(&out), []);
        let failed = reports(&out).into_iter().find_map(|e| match e {
            Event::ReloadFailed { generation: 2, error, stuck: 0 } => Some(error),
            _ => None,
        });
        let error = failed.expect("the reload failed");
        assert!(error.kind() == ErrorKind::StartFailed && error.to_string().contains(words), "{error}");
        assert_eq!((s.state(0), s.state(1)), (State::Ready, State::Ready));
        s.exit(id(0, 1));
        assert!(s.until(200).contains(&Action::Spawn(of(0, 1, 3))), "the old generation goes on");
        // The next one may succeed, and has another number.
        s.ready(of(0, 1, 3));
        assert!(s.tell(Input::Reload(3)).contains(&Action::Spawn(of(0, 3, 4))));
    }
}

#[test]
fn a_later_slot_that_fails_three_times_takes_all_back() {
    let mut s = reloading(3, &Options::default());
    s.tell(Input::Reload(2));
    s.ready(of(0, 2, 2));
    assert_eq!(deeds(&s.exit(id(0, 1))), [Spawn(1, 2)]);
    // At once, then with back-off.
    assert_eq!(deeds(&s.exit(of(1, 2, 2))), [Spawn(1, 3)]);
    assert_eq!(deeds(&s.exit(of(1, 2, 3))), []);
    assert_eq!(deeds(&s.until(200)), [Spawn(1, 4)]);
    let out = s.exit(of(1, 2, 4));
    assert!(reports(&out).iter().any(|e| matches!(e, Event::RollingBack { generation: 2, .. })), "{out:?}");
    assert!(out.contains(&Action::Spawn(of(0, 1, 3))), "{out:?}");
    assert_eq!(deeds(&s.ready(of(0, 1, 3))), [Drain(0, 2)]);
    let out = s.exit(of(0, 2, 2));
    assert!(reports(&out).iter().any(|e| matches!(e, Event::ReloadFailed { generation: 2, stuck: 0, .. })), "{out:?}");
    assert_eq!(deeds(&out), [], "slots 1 and 2 never left the old one");
    assert_eq!((s.state(0), s.state(1), s.state(2)), (State::Ready, State::Ready, State::Ready));
}

#[test]
fn who_cannot_go_back_stays() {
    let mut s = reloading(2, &Options { hang_timeout: Duration::ZERO, ..Options::default() });
    s.tell(Input::Reload(2));
    s.ready(of(0, 2, 2));
    s.exit(id(0, 1));
    for incarnation in 2..=4 {
        s.exit(of(1, 2, incarnation));
        s.until(s.now + 500);
    }
    for incarnation in 3..=5 {
        let out = s.exit(of(0, 1, incarnation));
        let failed = reports(&out).iter().any(|e| matches!(e, Event::ReloadFailed { stuck: 1, .. }));
        assert_eq!(failed, incarnation == 5, "{out:?}");
        s.until(s.now + 5000);
    }
    assert_eq!(s.state(0), State::Ready);
    s.exit(of(0, 2, 2));
    assert!(s.until(s.now + 5000).contains(&Action::Spawn(of(0, 1, 6))), "its next one is of the old generation");
}

#[test]
fn who_crashes_during_a_reload_is_started_as_far_as_it_got() {
    let mut s = reloading(3, &Options::default());
    s.tell(Input::Reload(2));
    // The canary is not past.
    assert!(s.exit(id(2, 1)).contains(&Action::Spawn(of(2, 1, 2))));
    s.ready(of(2, 1, 2));
    s.ready(of(0, 2, 2));
    let out = s.exit(id(1, 1));
    assert!(out.contains(&Action::Spawn(of(1, 2, 2))), "{out:?}");
    s.ready(of(1, 2, 2));
    // Slot 1 is done: slot 2 is next.
    let out = s.exit(id(0, 1));
    assert!(out.contains(&Action::Spawn(of(2, 2, 3))), "{out:?}");
    s.ready(of(2, 2, 3));
    let out = s.exit(of(2, 1, 2));
    assert!(reports(&out).iter().any(|e| matches!(e, Event::Reloaded(r) if r.replaced == 3)), "{out:?}");
}

#[test]
fn a_reload_cures_a_degraded_supervisor() {
    let options = Options { max_failures: Some(1), ..Options::default() };
    let mut s = Story::with(&options, 8);
    s.tell(Input::Scale(1));
    s.exit(id(0, 1));
    s.exit(id(0, 2));
    assert_eq!(s.state(0), State::Quarantined);
    let out = s.tell(Input::Reload(2));
    assert!(out.contains(&Action::Spawn(of(0, 2, 3))), "{out:?}");
    let out = s.ready(of(0, 2, 3));
    assert!(reports(&out).iter().any(|e| matches!(e, Event::Reloaded(_))), "{out:?}");
    s.beating(6000, &[of(0, 2, 3)], true);
    assert!(!s.plan.stats().degraded);
}

#[test]
fn slots_come_and_go_during_a_reload() {
    let mut s = reloading(2, &Options::default());
    s.tell(Input::Reload(2));
    s.ready(of(0, 2, 2));
    // A new slot is of the new generation; one that leaves is not waited for.
    assert!(s.tell(Input::Scale(3)).contains(&Action::Spawn(of(2, 2, 1))));
    s.tell(Input::Release(id(1, 1)));
    let out = s.exit(id(0, 1));
    assert!(reports(&out).iter().any(|e| matches!(e, Event::Reloaded(r) if r.replaced == 2)), "{out:?}");
    // Nothing is left of one that a stop has ended.
    s.tell(Input::Reload(3));
    let out = s.tell(Input::Stop(0));
    assert!(!reports(&out).iter().any(|e| matches!(e, Event::ReloadFailed { .. })), "{out:?}");
}

#[test]
fn too_many_failures_take_a_reload_back() {
    let options = Options { max_failures: Some(1), ..Options::default() };
    let mut s = reloading(3, &options);
    s.tell(Input::Reload(2));
    s.ready(of(0, 2, 2));
    // Two old workers crash while the first one drains, and their successors fail.
    s.exit(id(1, 1));
    let out = s.exit(id(2, 1));
    assert!(reports(&out).iter().any(|e| matches!(e, Event::RollingBack { generation: 2, .. })), "{out:?}");
}

fn plain() -> Options {
    Options { ready_after: Some(Duration::from_secs(1)), ..Options::default() }
}

#[test]
fn who_says_nothing_is_ready_after_a_while_is_not_judged_and_is_asked_to_finish_by_a_signal() {
    let mut s = Story::with(&plain(), 8);
    s.tell(Input::Scale(1));
    assert_eq!(s.until(999), []);
    let out = s.until(1000);
    assert_eq!(reports(&out), [Event::Ready { worker: id(0, 1), after: Duration::from_secs(1) }]);
    assert_eq!((s.state(0), s.plan.stats().ready), (State::Ready, 1));
    assert_eq!(s.plan.next_deadline(), None, "nothing is looked at");
    assert_eq!(s.until(100_000), []);
    let out = s.tell(Input::Stop(30_000 * MS));
    assert_eq!(deeds(&out), [Drain(0, 1), Signal(0, libc::SIGTERM)]);
    assert_eq!(reports(&out), [Event::Draining { worker: id(0, 1), cause: Cause::Stop }]);
    assert_eq!(s.until(129_999), []);
    assert_eq!(deeds(&s.until(130_000)), [Signal(0, libc::SIGTERM)]);
    assert_eq!(deeds(&s.until(132_000)), [Signal(0, libc::SIGKILL)]);
    s.exit(id(0, 1));
    assert_eq!((s.plan.stats().forced, s.plan.stats().exits.stop), (1, 1));
}

#[test]
fn who_ends_before_that_has_failed_to_start() {
    let mut s = Story::with(&plain(), 8);
    s.tell(Input::Scale(1));
    s.until(900);
    let out = s.exit(id(0, 1));
    assert!(reports(&out).iter().any(|e| matches!(e, Event::Exited { cause: Cause::Boot, uptime: None, .. })), "{out:?}");
    assert!(reports(&out).iter().any(|e| matches!(e, Event::StartFailed { .. })), "{out:?}");
}

#[test]
fn who_attaches_is_judged_by_what_it_says_also_when_that_comes_late() {
    let mut s = Story::with(&plain(), 8);
    s.tell(Input::Scale(2));
    s.until(500);
    s.tell(Input::Hello(id(0, 1)));
    s.until(1000);
    assert_eq!((s.state(0), s.state(1)), (State::Starting, State::Ready));
    s.now = 4000;
    assert_eq!(reports(&s.tell(Input::Hello(id(1, 1)))), [Event::Starting { worker: id(1, 1) }]);
    assert_eq!((s.state(1), s.plan.stats().ready), (State::Starting, 0));
    // One has its 30 s, the other what is left of them.
    assert_eq!(deeds(&s.until(29_999)), []);
    assert_eq!(deeds(&s.until(30_000)), [Signal(0, libc::SIGTERM)]);
    assert_eq!(reports(&s.tell(Input::Ready(id(1, 1)))), [Event::Ready { worker: id(1, 1), after: Duration::from_secs(30) }]);
    s.until(39_999);
    let out = s.until(40_000);
    assert!(reports(&out).iter().any(|e| matches!(e, Event::Suspect { worker, .. } if *worker == id(1, 1))), "{out:?}");
    let out = s.tell(Input::Stop(MS));
    assert!(deeds(&out).contains(&Drain(1, 1)) && !deeds(&out).contains(&Signal(1, libc::SIGTERM)), "{out:?}");
}

#[test]
fn a_reload_of_those_who_say_nothing_waits_until_they_have_lasted() {
    let options = Options { min_ready: Duration::from_secs(1), ..plain() };
    let mut s = Story::with(&options, 8);
    s.tell(Input::Scale(1));
    s.until(1000);
    assert_eq!(deeds(&s.tell(Input::Reload(2))), [Spawn(0, 2)]);
    assert_eq!(deeds(&s.until(2999)), []);
    assert_eq!(deeds(&s.until(3000)), [Drain(0, 1), Signal(0, libc::SIGTERM)]);
    assert!(reports(&s.exit(id(0, 1))).iter().any(|e| matches!(e, Event::Reloaded(_))));
    // One that attaches late proves itself anew.
    s.tell(Input::Reload(3));
    s.until(4500);
    s.tell(Input::Hello(of(0, 3, 3)));
    assert_eq!(deeds(&s.until(6000)), []);
    s.tell(Input::Ready(of(0, 3, 3)));
    assert_eq!(deeds(&s.until(6999)), []);
    assert_eq!(deeds(&s.until(7000)), [Drain(0, 2), Signal(0, libc::SIGTERM)]);
}

// ---- spares ----

/// The first spare.
const S: u32 = FIRST_SPARE;

/// So many workers that are ready, each `n`th start of it, and one spare that waits.
fn with_spare(workers: u32) -> Story {
    let mut s = Story::with(&Options { spares: 1, hang_timeout: Duration::ZERO, ..Options::default() }, 8);
    s.tell(Input::Scale(workers as usize));
    for slot in 0..workers {
        s.ready(id(slot, 1));
    }
    s.ready(id(S, 1));
    s
}

#[test]
fn a_spare_starts_behind_the_first_worker_and_counts_apart() {
    let mut s = Story::with(&Options { spares: 2, ..Options::default() }, 8);
    assert_eq!(deeds(&s.tell(Input::Scale(2))), [Spawn(0, 1), Spawn(1, 1)]);
    assert_eq!(deeds(&s.ready(id(0, 1))), [Spawn(S, 1), Spawn(S + 1, 1)]);
    s.now = 9;
    let spare = Event::Spare { worker: id(S, 1), after: Duration::from_millis(9) };
    assert_eq!(reports(&s.ready(id(S, 1)))[1..], [spare]);
    let stats = s.plan.stats();
    assert_eq!((stats.wanted, stats.ready, stats.spares, stats.live, stats.became_ready), (2, 1, 1, 2, 2));
}

#[test]
fn a_spare_takes_the_place_of_whoever_ends_in_that_step_and_another_follows() {
    let mut s = with_spare(2);
    s.now = 8000;
    let out = s.tell(Input::Exited(id(1, 1), code(1), None));
    assert_eq!(deeds(&out), [Activate(S, 1, 2)]);
    assert!(reports(&out).contains(&Event::Activated { spare: id(S, 1), worker: id(1, 2) }), "{out:?}");
    assert_eq!((s.plan.stats().ready, s.plan.stats().spares, s.plan.stats().activated), (2, 0, 1));
    // It answers first what has waited.
    assert_eq!(deeds(&s.until(8199)), []);
    assert_eq!(deeds(&s.until(8200)), [Spawn(S, 2)]);
    s.ready(id(S, 2));
    // What is told by the name of before is about it; its time began when it took over.
    s.now = 9000;
    let out = s.exit(id(S, 1));
    let ended = |e: &Event| matches!(e, Event::Exited { worker, uptime: Some(uptime), .. } if *worker == id(1, 2) && uptime.as_secs() == 1);
    assert!(reports(&out).iter().any(ended), "{out:?}");
    assert_eq!(deeds(&out)[0], Activate(S, 1, 3));
    assert_eq!(s.plan.stats().late, 0);
}

#[test]
fn the_slot_of_a_spare_rests_for_who_it_has_relieved() {
    let mut s = with_spare(1);
    for n in 1..=3 {
        assert_eq!(deeds(&s.exit(id(0, n))), [Activate(S, 0, n + 1)]);
        let at = s.now + 300;
        assert_eq!(deeds(&s.until(at)), [Spawn(S, n + 1)]);
        s.ready(id(S, n + 1));
    }
    // The fourth failure in a row.
    let (out, at) = (s.exit(id(0, 4)), s.now);
    assert_eq!(deeds(&out), [Activate(S, 0, 5)]);
    assert!(reports(&out).iter().any(|e| matches!(e, Event::BackOff { slot: S, delay } if delay.as_millis() >= 320)), "{out:?}");
    assert_eq!(deeds(&s.until(at + 319)), []);
    assert_eq!(deeds(&s.until(at + 481)), [Spawn(S, 5)]);
    // A task is to blame for the fifth: it is forgotten.
    s.ready(id(S, 5));
    assert_eq!(deeds(&s.exit(id(0, 5))), [Activate(S, 0, 6)]);
    assert_eq!(deeds(&s.tell(Input::Charged(id(0, 5)))), [Spawn(S, 6)]);
}

#[test]
fn ends_that_spares_make_up_for_degrade_all_the_same() {
    let mut s = with_spare(1);
    let mut out = Vec::new();
    for n in 1..=6 {
        out = s.exit(id(0, n));
        assert!(n == 6 || !s.plan.stats().degraded);
        let at = s.now + 3000;
        out.extend(s.until(at));
        s.ready(id(S, n + 1));
    }
    assert!(s.plan.stats().degraded && s.plan.stats().ready == 1, "{out:?}");
    assert_eq!(s.state(S), State::Quarantined);
}

#[test]
fn spares_that_fail_degrade_nothing() {
    let mut s = with_spare(1);
    for n in 1..=8 {
        let mut out = s.exit(id(S, n));
        let at = s.now + 8000;
        out.extend(s.until(at));
        assert_eq!(deeds(&out), [Spawn(S, n + 1)]);
        s.ready(id(S, n + 1));
    }
    assert!(!s.plan.stats().degraded);
    // So a worker's first failure is no delay.
    s.exit(id(S, 9));
    assert_eq!(deeds(&s.exit(id(0, 1))), [Spawn(0, 2)]);
}

#[test]
fn a_spare_that_ends_is_replaced_and_both_at_once_are() {
    let mut s = with_spare(1);
    s.now = 6000;
    assert_eq!(deeds(&s.exit(id(S, 1))), [Spawn(S, 2)]);
    s.ready(id(S, 2));
    s.now = 12_000;
    s.tell(Input::Exited(id(S, 2), code(1), None));
    s.tell(Input::Exited(id(0, 1), code(1), None));
    // No worker is ready that a spare could stand by.
    assert_eq!(deeds(&s.until(12_500)), [Spawn(0, 2)]);
    assert_eq!(deeds(&s.ready(id(0, 2))), [Spawn(S, 3)]);
}

#[test]
fn a_spare_takes_a_new_place_and_leaves_with_its_generation() {
    let mut s = with_spare(1);
    assert_eq!(deeds(&s.tell(Input::Scale(3))), [Activate(S, 1, 1), Spawn(2, 1)]);
    s.ready(id(2, 1));
    assert_eq!(deeds(&s.until(200)), [Spawn(S, 2)]);
    s.ready(id(S, 2));
    s.tell(Input::Reload(2));
    let other = |slot, incarnation| WorkerId { slot, generation: 2, incarnation };
    for (slot, old) in [(0, 1), (1, 1), (2, 1)] {
        s.ready(other(slot, old + 1));
        // The one of the old generation takes no place of the new one.
        assert_eq!(s.plan.stats().spares, 1);
        s.exit(id(slot, old));
    }
    assert_eq!(s.plan.stats().reloads, 1);
    assert_eq!(deeds(&s.exit(id(S, 2))), [Spawn(S, 3)]);
    s.ready(other(S, 3));
    assert_eq!(deeds(&s.exit(other(0, 2))), [Activate(S, 0, 3)]);
    assert_eq!(deeds(&s.tell(Input::StopNow)).len(), 3);
}

#[test]
fn a_failed_reload_leaves_the_spare_and_it_serves_meanwhile() {
    let mut s = with_spare(1);
    s.tell(Input::Reload(2));
    // The slot has a successor that loads: that is waited for.
    s.exit(WorkerId { generation: 2, ..id(0, 2) });
    assert_eq!((s.plan.stats().reloads_failed, s.plan.stats().spares), (1, 1));
    assert_eq!(deeds(&s.exit(id(0, 1)))[0], Activate(S, 0, 3));
}

#[test]
fn a_program_that_cannot_wait_has_no_spare() {
    let mut s = Story::with(&Options { spares: 1, ..plain() }, 8);
    s.tell(Input::Scale(2));
    assert_eq!(deeds(&s.until(999)), []);
    let out = s.until(1000);
    assert_eq!(reports(&out).iter().filter(|e| matches!(e, Event::SpareRefused { .. })).count(), 1, "{out:?}");
    assert_eq!((deeds(&out), s.plan.stats().live), (vec![], 2));
    // One that has all the time of a start, and says nothing, is none.
    let mut s = Story::with(&Options { spares: 1, ..plain() }, 8);
    s.tell(Input::Scale(1));
    assert_eq!(deeds(&s.ready(id(0, 1))), [Spawn(S, 1)]);
    assert_eq!(deeds(&s.beating(29_999, &[id(0, 1)], true)), []);
    assert_eq!(deeds(&s.beating(30_000, &[id(0, 1)], true)), [Signal(S, libc::SIGTERM)]);
}
