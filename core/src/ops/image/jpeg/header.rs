//! Segments up to and between the scans of a JPEG (T.81 annex B).

use super::bits::Huffman;
use super::corrupt;
use crate::error::Result;

pub(super) struct Component {
    id: u8,
    pub(super) h: usize,
    pub(super) v: usize,
    quant_id: usize,
    /// In file order; that of the component's first scan, as in libjpeg.
    pub(super) quant: Option<[f32; 64]>,
}

pub(super) struct Frame {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) progressive: bool,
    pub(super) components: Vec<Component>,
}

/// One component of a scan: its number in the frame and its tables.
#[derive(Clone, Copy)]
pub(super) struct ScanComponent {
    pub(super) at: usize,
    pub(super) dc: usize,
    pub(super) ac: usize,
}

pub(super) struct Scan {
    pub(super) components: Vec<ScanComponent>,
    /// First and last coefficient in file order, position of the bit before and of this scan (T.81 G.1.1).
    pub(super) first: usize,
    pub(super) last: usize,
    pub(super) high: u32,
    pub(super) low: u32,
}

pub(super) enum Next {
    /// Entropy-coded data begins at `pos`.
    Scan(Scan),
    /// The end marker.
    End,
    /// Of a kind that is not decoded here.
    Unusual,
}

/// What the segments have said so far.
pub(super) struct Segments<'a> {
    data: &'a [u8],
    pub(super) pos: usize,
    quants: [Option<[u16; 64]>; 4],
    pub(super) dc: [Option<Huffman>; 4],
    pub(super) ac: [Option<Huffman>; 4],
    pub(super) restart: usize,
    jfif: bool,
    adobe: Option<u8>,
    pub(super) frame: Option<Frame>,
}

fn be16(b: &[u8], at: usize) -> Result<usize> {
    match b.get(at..at + 2) {
        Some(s) => Ok(usize::from(s[0]) << 8 | usize::from(s[1])),
        None => Err(corrupt("header is truncated")),
    }
}

fn byte(b: &[u8], at: usize) -> Result<u8> {
    b.get(at).copied().ok_or_else(|| corrupt("header is truncated"))
}

impl<'a> Segments<'a> {
    pub(super) fn new(data: &'a [u8]) -> Segments<'a> {
        Segments {
            data,
            pos: 2,
            quants: [None; 4],
            dc: [const { None }; 4],
            ac: [const { None }; 4],
            restart: 0,
            jfif: false,
            adobe: None,
            frame: None,
        }
    }

    pub(super) fn data(&self) -> &'a [u8] {
        self.data
    }

    /// Whether three components are red, green and blue: the rule of libjpeg's `default_decompress_parms`.
    pub(super) fn is_rgb(&self) -> bool {
        let ids = |f: &Frame| f.components.iter().map(|c| c.id).eq(*b"RGB");
        !self.jfif && self.adobe.map_or(self.frame.as_ref().is_some_and(ids), |transform| transform == 0)
    }

    /// Reads to the next scan.
    pub(super) fn next(&mut self) -> Result<Next> {
        let data = self.data;
        loop {
            // Left-over bytes of a scan, fill bytes and stuffed zeros are stepped over, as libjpeg does.
            let rest = data.get(self.pos..).unwrap_or(&[]);
            let marker = rest.windows(2).position(|w| w[0] == 0xff && !matches!(w[1], 0 | 0x01 | 0xd0..=0xd8 | 0xff));
            let Some(at) = marker.map(|m| self.pos + m) else { return Err(corrupt("data ends before the image")) };
            let marker = data[at + 1];
            if marker == 0xd9 {
                return Ok(Next::End);
            }
            let len = be16(data, at + 2)?;
            let seg = match data.get(at + 4..at + 2 + len) {
                Some(s) if len >= 2 => s,
                _ => return Err(corrupt("header is truncated")),
            };
            self.pos = at + 2 + len;
            match marker {
                0xdb => self.quantisation(seg)?,
                0xc4 => self.huffman(seg)?,
                // More than one frame is hierarchical.
                0xc0..=0xc2 if self.frame.is_some() => return Ok(Next::Unusual),
                0xc0..=0xc2 => match self.start_of_frame(seg, marker == 0xc2)? {
                    true => {}
                    false => return Ok(Next::Unusual),
                },
                // Other frames: lossless, hierarchical, arithmetic.
                0xc3 | 0xc5..=0xcf => return Ok(Next::Unusual),
                0xdd => self.restart = be16(seg, 0)?,
                0xe0 if seg.starts_with(b"JFIF\0") => self.jfif = true,
                0xee if seg.starts_with(b"Adobe") && seg.len() >= 12 => self.adobe = Some(seg[11]),
                0xda => return self.start_of_scan(seg).map(Next::Scan),
                _ => {}
            }
        }
    }

    fn quantisation(&mut self, seg: &[u8]) -> Result<()> {
        let mut at = 0;
        while at < seg.len() {
            let (wide, id) = (seg[at] >> 4, usize::from(seg[at] & 15));
            if wide > 1 || id > 3 {
                return Err(corrupt("quantisation table is out of range"));
            }
            at += 1;
            let mut table = [0u16; 64];
            for q in &mut table {
                *q = if wide == 1 { be16(seg, at)? as u16 } else { u16::from(byte(seg, at)?) };
                at += 1 + usize::from(wide);
            }
            self.quants[id] = Some(table);
        }
        Ok(())
    }

    fn huffman(&mut self, seg: &[u8]) -> Result<()> {
        let mut at = 0;
        while at < seg.len() {
            let (class, id) = (seg[at] >> 4, usize::from(seg[at] & 15));
            let counts = seg.get(at + 1..at + 17).and_then(|s| s.first_chunk::<16>());
            let counts = counts.ok_or_else(|| corrupt("header is truncated"))?;
            let n = counts.iter().map(|c| usize::from(*c)).sum::<usize>();
            let symbols = seg.get(at + 17..at + 17 + n).ok_or_else(|| corrupt("header is truncated"))?;
            if class > 1 || id > 3 || n > 256 {
                return Err(corrupt("huffman table is out of range"));
            }
            let table = Some(Huffman::new(counts, symbols)?);
            if class == 0 {
                self.dc[id] = table
            } else {
                self.ac[id] = table
            }
            at += 17 + n;
        }
        Ok(())
    }

    fn start_of_frame(&mut self, seg: &[u8], progressive: bool) -> Result<bool> {
        let n = usize::from(byte(seg, 5)?);
        let (height, width) = (be16(seg, 1)?, be16(seg, 3)?);
        if seg[0] != 8 || !(n == 1 || n == 3) || width == 0 || height == 0 {
            return Ok(false);
        }
        let mut components = Vec::with_capacity(n);
        for i in 0..n {
            let (id, hv, quant_id) = (byte(seg, 6 + 3 * i)?, byte(seg, 7 + 3 * i)?, usize::from(byte(seg, 8 + 3 * i)?));
            let (mut h, mut v) = (usize::from(hv >> 4), usize::from(hv & 15));
            if !(1..=4).contains(&h) || !(1..=4).contains(&v) || quant_id > 3 {
                return Err(corrupt("component is out of range"));
            }
            if n == 1 {
                // A scan of one component has one block per MCU, whatever its sampling says (T.81 A.2.2).
                (h, v) = (1, 1);
            }
            components.push(Component { id, h, v, quant_id, quant: None });
        }
        self.frame = Some(Frame { width, height, progressive, components });
        Ok(true)
    }

    fn start_of_scan(&mut self, seg: &[u8]) -> Result<Scan> {
        let Some(frame) = &mut self.frame else { return Err(corrupt("scan comes before the frame")) };
        let n = usize::from(byte(seg, 0)?);
        if n == 0 || n > frame.components.len() {
            return Err(corrupt("number of components is out of range"));
        }
        let mut components: Vec<ScanComponent> = Vec::with_capacity(n);
        for i in 0..n {
            let (id, tables) = (byte(seg, 1 + 2 * i)?, byte(seg, 2 + 2 * i)?);
            let after = components.last().map_or(0, |c| c.at + 1);
            let found = frame.components.iter().skip(after).position(|c| c.id == id).map(|p| p + after);
            let (dc, ac) = (usize::from(tables >> 4), usize::from(tables & 15));
            let at = found.filter(|_| dc < 4 && ac < 4).ok_or_else(|| corrupt("scan component is out of range"))?;
            let component = &mut frame.components[at];
            if component.quant.is_none() {
                let table = self.quants[component.quant_id].ok_or_else(|| corrupt("quantisation table is missing"))?;
                component.quant = Some(table.map(f32::from));
            }
            components.push(ScanComponent { at, dc, ac });
        }
        let (first, last, bits) = (byte(seg, 1 + 2 * n)?, byte(seg, 2 + 2 * n)?, byte(seg, 3 + 2 * n)?);
        Ok(Scan { components, first: usize::from(first), last: usize::from(last), high: u32::from(bits >> 4), low: u32::from(bits & 15) })
    }
}
