//! Who gets a connection: the strategies as data, and the choice among workers as a pure function.

use crate::error::{Error, Result};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// How connections come to workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Balance {
    /// Workers accept from one shared socket: whoever comes first.
    #[default]
    Shared,
    /// The cluster accepts, and gives each worker one in turn.
    RoundRobin,
    /// The cluster accepts, and gives to the worker that has the fewest.
    LeastConnections,
    /// The cluster accepts, and gives all connections of an address to one worker.
    IpHash,
    /// The kernel spreads connections over a socket per worker (`SO_REUSEPORT`). Those that wait to be accepted are lost when a worker leaves.
    Reuseport,
}

const NAMES: &[(&str, Balance)] = &[
    ("shared", Balance::Shared),
    ("round-robin", Balance::RoundRobin),
    ("least-connections", Balance::LeastConnections),
    ("ip-hash", Balance::IpHash),
    ("reuseport", Balance::Reuseport),
];

impl Balance {
    /// What each is called, the default first.
    pub fn names() -> impl Iterator<Item = &'static str> {
        NAMES.iter().map(|(name, _)| *name)
    }

    /// The cluster accepts, and passes connections on.
    #[must_use]
    pub fn passes(self) -> bool {
        matches!(self, Balance::RoundRobin | Balance::LeastConnections | Balance::IpHash)
    }
}

impl FromStr for Balance {
    type Err = Error;

    fn from_str(text: &str) -> Result<Balance> {
        NAMES.iter().find(|(name, _)| *name == text).map(|(_, balance)| *balance).ok_or_else(|| {
            let all: Vec<&str> = Balance::names().collect();
            Error::invalid("there is no such strategy").with("option", "balance").with("value", text).with("want", all.join(" "))
        })
    }
}

impl fmt::Display for Balance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(NAMES.iter().find(|(_, balance)| balance == self).map_or("", |(name, _)| name))
    }
}

/// A worker that could have a connection: one per slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) slot: u32,
    /// It has answered to what it was given before.
    pub(super) has_room: bool,
    /// Connections that it has.
    pub(super) load: u64,
}

/// The index of who is to have a connection; `None`: nobody has room. What `IpHash` chooses may have no room, and is to be waited for.
/// `last`: the slot that had the one before. `client`: its address; without one it is `RoundRobin`.
pub(super) fn choose(balance: Balance, candidates: &[Candidate], last: Option<u32>, client: Option<IpAddr>) -> Option<usize> {
    if let (Balance::IpHash, Some(client)) = (balance, client) {
        return (0..candidates.len()).max_by_key(|i| score(client, candidates[*i].slot));
    }
    // The next slots after the last one come first.
    let turn = |slot: u32| (last.is_some_and(|last| slot <= last), slot);
    let with_room = (0..candidates.len()).filter(|i| candidates[*i].has_room);
    with_room.min_by_key(|i| {
        let Candidate { slot, load, .. } = candidates[*i];
        (if balance == Balance::LeastConnections { load } else { 0 }, turn(slot))
    })
}

/// Rendezvous hashing (Thaler, Ravishankar 1998): each client has its own order of slots, so a slot that comes or goes moves its clients only.
/// Nothing else goes in, so every cluster has the same order. An address of version 4 that is mapped into version 6 is that of version 4.
fn score(client: IpAddr, slot: u32) -> u64 {
    let bits = match client.to_canonical() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    };
    mix(mix(mix(bits as u64) ^ (bits >> 64) as u64) ^ u64::from(slot))
}

/// splitmix64's finaliser (Steele, Lea, Flood 2014): every input bit reaches every output bit.
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn all(slots: impl IntoIterator<Item = u32>) -> Vec<Candidate> {
        slots.into_iter().map(|slot| Candidate { slot, has_room: true, load: 0 }).collect()
    }

    fn chosen(balance: Balance, candidates: &[Candidate], last: Option<u32>, client: Option<IpAddr>) -> Option<u32> {
        choose(balance, candidates, last, client).map(|i| candidates[i].slot)
    }

    fn clients() -> impl Iterator<Item = IpAddr> {
        (0..4000u32).map(|n| IpAddr::from(Ipv4Addr::from_bits(0x0a00_0000 + n)))
    }

    #[test]
    fn strategies_are_read_and_shown() {
        for (name, balance) in NAMES {
            assert_eq!(name.parse::<Balance>().expect(name), *balance);
            assert_eq!(balance.to_string(), *name);
        }
        assert_eq!(Balance::default(), Balance::Shared);
        let e = "roundrobin".parse::<Balance>().expect_err("no such");
        assert!(e.to_string().contains("option=balance, value=roundrobin, want=shared round-robin"), "{e}");
    }

    #[test]
    fn turns_go_round_whatever_slots_there_are() {
        let some = all([1, 4, 7]);
        let mut last = None;
        let mut seen = Vec::new();
        for _ in 0..7 {
            last = chosen(Balance::RoundRobin, &some, last, None);
            seen.extend(last);
        }
        assert_eq!(seen, [1, 4, 7, 1, 4, 7, 1]);
        assert_eq!(chosen(Balance::RoundRobin, &some, Some(5), None), Some(7), "the slot that had the last is gone");
        assert_eq!(chosen(Balance::RoundRobin, &[], None, None), None);
    }

    #[test]
    fn who_has_no_room_is_passed_over() {
        let mut some = all([0, 1, 2]);
        some[1].has_room = false;
        assert_eq!(chosen(Balance::RoundRobin, &some, Some(0), None), Some(2));
        some[1].load = 0;
        some[0].load = 3;
        some[2].load = 4;
        assert_eq!(chosen(Balance::LeastConnections, &some, Some(0), None), Some(0));
        for one in &mut some {
            one.has_room = false;
        }
        assert_eq!(chosen(Balance::RoundRobin, &some, None, None), None);
        assert_eq!(chosen(Balance::LeastConnections, &some, None, None), None);
    }

    #[test]
    fn the_fewest_connections_win_and_equals_take_turns() {
        let mut some = all([0, 1, 2]);
        some[0].load = 2;
        some[1].load = 1;
        some[2].load = 1;
        assert_eq!(chosen(Balance::LeastConnections, &some, Some(0), None), Some(1));
        assert_eq!(chosen(Balance::LeastConnections, &some, Some(1), None), Some(2));
        assert_eq!(chosen(Balance::LeastConnections, &some, Some(2), None), Some(1));
    }

    #[test]
    fn an_address_has_one_worker_and_a_slot_that_goes_moves_its_clients_only() {
        let four = all(0..4);
        let home = |client| chosen(Balance::IpHash, &four, None, Some(client)).expect("one");
        let mut counts = [0u32; 4];
        for client in clients() {
            let slot = home(client);
            counts[slot as usize] += 1;
            for last in [None, Some(0), Some(3)] {
                assert_eq!(chosen(Balance::IpHash, &four, last, Some(client)), Some(slot));
            }
            // Without slot 2, and back again.
            let without = chosen(Balance::IpHash, &all([0, 1, 3]), None, Some(client)).expect("one");
            assert!(without == slot || slot == 2, "{client}");
            // A fifth one takes some, and moves no other.
            let five = chosen(Balance::IpHash, &all(0..5), None, Some(client)).expect("one");
            assert!(five == slot || five == 4, "{client}");
        }
        // 1,000 each; the standard deviation is 27.
        assert!(counts.iter().all(|n| (850..1150).contains(n)), "{counts:?}");
        // Whoever moves from slot 2 is spread over the others.
        let moved: Vec<u32> =
            clients().filter(|c| home(*c) == 2).filter_map(|c| chosen(Balance::IpHash, &all([0, 1, 3]), None, Some(c))).collect();
        for slot in [0, 1, 3] {
            assert!(moved.iter().filter(|s| **s == slot).count() > moved.len() / 5, "slot {slot}");
        }
    }

    #[test]
    fn the_worker_of_an_address_is_waited_for() {
        let mut four = all(0..4);
        let client = Some(IpAddr::from(Ipv4Addr::LOCALHOST));
        let slot = chosen(Balance::IpHash, &four, None, client).expect("one");
        four[slot as usize].has_room = false;
        four[slot as usize].load = 9;
        assert_eq!(chosen(Balance::IpHash, &four, None, client), Some(slot));
    }

    #[test]
    fn a_mapped_address_is_that_of_version_4_and_the_order_is_the_same_for_ever() {
        let eight = all(0..8);
        for client in clients() {
            let IpAddr::V4(v4) = client else { unreachable!() };
            let mapped = IpAddr::from(v4.to_ipv6_mapped());
            assert_eq!(chosen(Balance::IpHash, &eight, None, Some(client)), chosen(Balance::IpHash, &eight, None, Some(mapped)));
        }
        // Written down when the hash was: a change of it moves every client of a running service.
        let of = |ip: IpAddr| chosen(Balance::IpHash, &eight, None, Some(ip)).expect("one");
        let golden = [
            of(Ipv4Addr::LOCALHOST.into()),
            of(Ipv4Addr::new(192, 0, 2, 1).into()),
            of(Ipv6Addr::LOCALHOST.into()),
            of("2001:db8::1".parse().expect("an address")),
        ];
        assert_eq!(golden, GOLDEN);
    }

    const GOLDEN: [u32; 4] = [6, 6, 7, 6];

    #[test]
    fn without_an_address_turns_are_taken() {
        let some = all([0, 1]);
        assert_eq!(chosen(Balance::IpHash, &some, Some(0), None), Some(1));
        assert_eq!(chosen(Balance::IpHash, &some, Some(1), None), Some(0));
    }
}
