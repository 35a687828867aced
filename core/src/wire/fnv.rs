//! FNV-1a (Fowler, Noll, Vo), 64 bits: of layouts and check sums of mapped memory. It guards against mistakes, not against an attacker.

/// The check sum of a fixed part.
pub(super) fn check_sum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(FNV_BEGIN, |h, b| fnv(h, *b))
}

/// A hash that changes with any of the facts, which are below 65,536.
pub(super) const fn layout_of(facts: &[usize]) -> u64 {
    let mut hash = FNV_BEGIN;
    let mut i = 0;
    while i < facts.len() {
        hash = fnv(hash, (facts[i] & 0xFF) as u8);
        hash = fnv(hash, (facts[i] >> 8) as u8);
        i += 1;
    }
    hash
}

const FNV_BEGIN: u64 = 0xcbf2_9ce4_8422_2325;

const fn fnv(hash: u64, byte: u8) -> u64 {
    (hash ^ byte as u64).wrapping_mul(0x0000_0100_0000_01b3)
}
