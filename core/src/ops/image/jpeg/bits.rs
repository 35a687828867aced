//! Huffman tables and the bits of a scan (T.81 annexes C and F).

use super::corrupt;
use crate::error::Result;

/// Bits of one look-up. 12 keep both tables of a component in the first-level cache.
const LOOK: u32 = 12;
/// In an entry of `many`: the block ends after these symbols.
const END: u32 = 1 << 15;

pub(super) struct Huffman {
    /// By the next 12 bits: `length << 8 | symbol`; 0 for a longer code.
    one: Vec<u16>,
    /// By the next 12 bits, as AC symbols: bits to step over (0..=7), coefficients to step over (8..=14), [`END`].
    many: Vec<u32>,
    /// Codes of each length: first code, number of codes, position of the first one's symbol.
    lengths: [(u32, u32, u32); 17],
    symbols: Vec<u8>,
}

impl Huffman {
    pub(super) fn new(counts: &[u8; 16], symbols: &[u8]) -> Result<Huffman> {
        let mut one = vec![0u16; 1 << LOOK];
        let mut lengths = [(0u32, 0u32, 0u32); 17];
        let (mut code, mut at) = (0u32, 0u32);
        for len in 1..=16u32 {
            let n = u32::from(counts[len as usize - 1]);
            if code + n > 1 << len {
                return Err(corrupt("huffman table has more codes than fit"));
            }
            lengths[len as usize] = (code, n, at);
            for i in 0..n {
                if len <= LOOK {
                    let entry = (len as u16) << 8 | u16::from(symbols[(at + i) as usize]);
                    let first = ((code + i) << (LOOK - len)) as usize;
                    one[first..first + (1 << (LOOK - len))].fill(entry);
                }
            }
            at += n;
            code = (code + n) << 1;
        }
        let mut many = vec![0u32; 1 << LOOK];
        for (window, entry) in many.iter_mut().enumerate() {
            let (mut bits, mut coefficients, mut end) = (0u32, 0u32, 0u32);
            // A symbol counts when its code lies in the window; its value bits need not.
            while bits < LOOK && end == 0 {
                let e = one[window << bits & ((1 << LOOK) - 1)];
                let (len, run, size) = (u32::from(e >> 8), u32::from(e >> 4 & 15), u32::from(e & 15));
                if e == 0 || bits + len > LOOK {
                    break;
                }
                match (run, size) {
                    (15, 0) => coefficients += 16,
                    (_, 0) => end = END,
                    _ => coefficients += run + 1,
                }
                bits += len + size;
            }
            // More than one block can hold: such a window is stepped over symbol by symbol.
            *entry = if coefficients > 63 { 0 } else { end | coefficients << 8 | bits };
        }
        Ok(Huffman { one, many, lengths, symbols: symbols.to_vec() })
    }
}

/// The entropy-coded bits of a scan: `bits` holds the next ones, highest first, of which `n` are counted as read.
pub(super) struct BitReader<'a> {
    data: &'a [u8],
    pos: usize,
    bits: u64,
    n: u32,
    /// Zero bits that were added behind the end of the data.
    padding: u64,
}

impl<'a> BitReader<'a> {
    pub(super) fn new(data: &'a [u8], pos: usize) -> BitReader<'a> {
        BitReader { data, pos, bits: 0, n: 0, padding: 0 }
    }

    /// Where to look for the next marker: nothing up to here is one.
    pub(super) fn position(&self) -> usize {
        self.pos
    }

    /// The next `n` bits as a number, `n` at most 16.
    #[inline(always)]
    pub(super) fn take(&mut self, n: u32) -> u32 {
        if n == 0 {
            return 0;
        }
        let v = (self.bits >> (64 - n)) as u32;
        self.consume(n);
        v
    }

    /// Makes at least 48 bits ready.
    #[inline(always)]
    pub(super) fn refill(&mut self) {
        if self.n >= 48 {
            return;
        }
        if let Some(word) = self.data.get(self.pos..).and_then(<[u8]>::first_chunk::<8>) {
            let word = u64::from_be_bytes(*word);
            // No byte of it is 0xFF, hence neither a marker nor a stuffed byte: "has a zero byte" of the complement.
            if word & 0x8080_8080_8080_8080 & (!word).wrapping_sub(0x0101_0101_0101_0101) == 0 {
                // Bits beyond `n` are those of the same bytes, so that or-ing them again changes nothing.
                self.bits |= word >> self.n;
                let bytes = (63 - self.n) >> 3;
                self.pos += bytes as usize;
                self.n += bytes << 3;
                return;
            }
        }
        self.refill_slow();
    }

    #[cold]
    #[inline(never)]
    fn refill_slow(&mut self) {
        // What the quick path looked ahead is dropped: behind a 0xFF it would be wrong.
        self.bits &= (!0u64).checked_shl(64 - self.n).unwrap_or(0);
        while self.n <= 56 {
            let byte = match self.data[self.pos.min(self.data.len())..] {
                [0xff, 0, ..] => {
                    self.pos += 2;
                    0xff
                }
                [0xff, 0xff, ..] => {
                    self.pos += 1;
                    continue;
                }
                [0xff, ..] | [] => {
                    self.padding += 8;
                    0
                }
                [b, ..] => {
                    self.pos += 1;
                    b
                }
            };
            self.bits |= u64::from(byte) << (56 - self.n);
            self.n += 8;
        }
    }

    #[inline(always)]
    fn consume(&mut self, bits: u32) {
        self.bits <<= bits;
        self.n -= bits;
    }

    /// Whether bits were used that the data does not have.
    pub(super) fn overran(&self) -> bool {
        self.padding > u64::from(self.n)
    }

    #[inline(always)]
    pub(super) fn symbol(&mut self, table: &Huffman) -> Result<u32> {
        let e = table.one[(self.bits >> (64 - LOOK)) as usize];
        if e != 0 {
            self.consume(u32::from(e >> 8));
            return Ok(u32::from(e & 0xff));
        }
        self.long_symbol(table)
    }

    #[cold]
    #[inline(never)]
    fn long_symbol(&mut self, table: &Huffman) -> Result<u32> {
        for len in LOOK + 1..=16 {
            let (first, n, at) = table.lengths[len as usize];
            let code = (self.bits >> (64 - len)) as u32;
            if code.wrapping_sub(first) < n {
                self.consume(len);
                return Ok(u32::from(table.symbols[(at + code - first) as usize]));
            }
        }
        Err(corrupt("no such huffman code"))
    }

    /// The next `size` bits as T.81 F.2.2.1 "EXTEND" reads them.
    #[inline(always)]
    pub(super) fn value(&mut self, size: u32) -> i32 {
        if size == 0 {
            return 0;
        }
        let v = (self.bits >> (64 - size)) as i32;
        self.consume(size);
        if v < 1 << (size - 1) { v - (1 << size) + 1 } else { v }
    }

    /// Steps over the coefficients `from..64` of a block.
    #[inline(always)]
    pub(super) fn skip_ac(&mut self, table: &Huffman, from: usize) -> Result<()> {
        let mut k = from as u32;
        while k < 64 {
            self.refill();
            let e = table.many[(self.bits >> (64 - LOOK)) as usize];
            let after = k + (e >> 8 & 0x7f);
            // At 64 a block ends without a symbol that says so: the symbols behind are the next block's.
            if e != 0 && after < 64 {
                self.consume(e & 0xff);
                if e & END != 0 {
                    return Ok(());
                }
                k = after;
                continue;
            }
            let symbol = self.symbol(table)?;
            match (symbol >> 4, symbol & 15) {
                (15, 0) => k += 16,
                (_, 0) => return Ok(()),
                (run, size) => {
                    k += run + 1;
                    self.consume(size);
                }
            }
        }
        Ok(())
    }

    /// Starts again behind the restart marker that must come now.
    pub(super) fn restart(&mut self) -> Result<()> {
        if self.overran() {
            return Err(corrupt("data ends before the image"));
        }
        let rest = &self.data[self.pos.min(self.data.len())..];
        // Bytes between the last used one and the marker are padding.
        let Some(at) = rest.windows(2).position(|w| w[0] == 0xff && w[1] != 0 && w[1] != 0xff) else {
            return Err(corrupt("data ends before the image"));
        };
        if !(0xd0..=0xd7).contains(&rest[at + 1]) {
            return Err(corrupt("restart marker is missing"));
        }
        self.pos += at + 2;
        (self.bits, self.n, self.padding) = (0, 0, 0);
        Ok(())
    }
}
