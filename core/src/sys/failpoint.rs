//! Named points at which a test lets this process die or stop.
//!
//! Only with the feature `failpoints`; without it a point is nothing. `OFFLOOP_FAILPOINT=<name>:<n>[:stop]` sends this
//! process `SIGKILL` (or `SIGSTOP`) when it passes the point for the *n*-th time, so that whoever watches sees exactly what
//! an unlucky moment leaves behind.

/// Points that only rings of kind `mpmc` pass.
pub const TASKS: &[&str] = &[
    "claim.wanted",
    "claim.passed",
    "pop.wanted",
    "pop.won",
    "take.wanted",
    "take.won",
    "hold.freed",
    "hold.returned",
    "settle.claim",
    "settle.hold",
];

/// Points that only the writer of a lossless broadcast passes.
pub const GATE: &[&str] = &["gate.looked", "gate.moved", "gate.settled"];

/// Points of lanes whose producer publishes in batches: it says how far it has committed, a reader publishes that.
pub const BATCH: &[&str] = &["committed.shown", "committed.seen", "committed.published"];

/// Points of a channel's protocol beside those of its rings.
pub const CHANNEL: &[&str] =
    &["channel.opened", "channel.greeted", "channel.no_room", "channel.fds_sent", "channel.fds_seen", "channel.closing"];

/// Points that rings of any kind pass, for tests that walk over all of them. Passing one that is not listed is a bug, found by any test that does.
pub const NAMES: &[&str] = &[
    "seat.locked",
    "seat.taken",
    "claim.made",
    "commit.padded",
    "commit.written",
    "publish.before",
    "publish.after",
    "wake.seen",
    "wake.rung",
    "pop.shown",
    "pop.released",
    "head.before",
    "head.after",
    "wait.armed",
    "wait.woken",
    "seat.leaving",
    "seat.left",
];

/// Passes the point `name`.
#[inline(always)]
pub fn hit(name: &'static str) {
    #[cfg(feature = "failpoints")]
    armed::hit(name);
    #[cfg(not(feature = "failpoints"))]
    let _ = name;
}

#[cfg(feature = "failpoints")]
mod armed {
    use crate::sync::atomic::{AtomicU64, Ordering};
    use std::sync::OnceLock;

    struct Plan {
        name: String,
        signal: libc::c_int,
        left: AtomicU64,
    }

    static PLAN: OnceLock<Option<Plan>> = OnceLock::new();

    fn plan() -> Option<Plan> {
        let text = std::env::var("OFFLOOP_FAILPOINT").ok()?;
        let mut parts = text.split(':');
        let name = parts.next()?.to_owned();
        let left = AtomicU64::new(parts.next()?.parse().ok()?);
        let signal = if parts.next() == Some("stop") { libc::SIGSTOP } else { libc::SIGKILL };
        Some(Plan { name, signal, left })
    }

    pub(super) fn hit(name: &'static str) {
        let lists = [super::NAMES, super::TASKS, super::GATE, super::BATCH, super::CHANNEL];
        assert!(lists.iter().any(|list| list.contains(&name)), "{name} is in no list");
        let Some(plan) = PLAN.get_or_init(plan) else { return };
        if plan.name == name && plan.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            // To this thread, which then does not pass: of a process's signals another thread may be told.
            // SAFETY: a plain call.
            unsafe { libc::raise(plan.signal) };
        }
    }
}
