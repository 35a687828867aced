//! The records of `README.md`: made by a producer, checked by a consumer.

use offloop_tests::crc32::crc32;

/// Bytes before the body.
pub(crate) const HEAD: usize = 16;

/// All records of one seed.
pub(crate) struct Records {
    seed: u32,
    block: Vec<u8>,
}

impl Records {
    pub(crate) fn new(seed: u32) -> Records {
        Records { seed, block: (0..4096u32).map(|i| (i * 167 + (i >> 8) * 13).wrapping_add(seed) as u8).collect() }
    }

    fn body(&self, number: u64) -> &[u8] {
        let mut h = (number as u32 ^ self.seed).wrapping_mul(0x9E37_79B1);
        h ^= h >> 15;
        h = h.wrapping_mul(0x85EB_CA77);
        h ^= h >> 13;
        &self.block[(h >> 10) as usize % 3072..][..h as usize % 1000]
    }

    /// Record `number` of `incarnation`, in `out`.
    pub(crate) fn make(&self, incarnation: u32, number: u64, out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&incarnation.to_le_bytes());
        out.extend_from_slice(&number.to_le_bytes());
        out.extend_from_slice(self.body(number));
        let crc = crc32(&out[4..]);
        out[..4].copy_from_slice(&crc.to_le_bytes());
    }

    /// Incarnation and number of a record that is whole.
    pub(crate) fn check(&self, record: &[u8]) -> Result<(u32, u64), String> {
        let u32_at = |at: usize| record.get(at..at + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        let (Some(crc), Some(incarnation), Some(low), Some(high)) = (u32_at(0), u32_at(4), u32_at(8), u32_at(12)) else {
            return Err(format!("a record of {} bytes", record.len()));
        };
        let number = u64::from(low) | u64::from(high) << 32;
        if crc32(&record[4..]) != crc {
            return Err(format!("record {incarnation}:{number} is torn"));
        }
        if record[HEAD..] != *self.body(number) {
            return Err(format!("record {incarnation}:{number} is another one"));
        }
        Ok((incarnation, number))
    }
}
