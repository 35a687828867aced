//! Where in a text an offset lies: what an error about bad input must name.

use crate::error::{Error, ErrorKind};

/// Line and column of `at` in `text`, both from 1. A line ends with LF, CRLF or CR; the column counts characters (bytes
/// that do not start a character, as in invalid UTF-8, count with the one before).
pub(crate) fn line_and_column(text: &[u8], at: usize) -> (usize, usize) {
    let before = &text[..at.min(text.len())];
    let line = 1 + line_ends(before);
    let start = before.iter().rposition(|&b| b == b'\n' || b == b'\r').map_or(0, |i| i + 1);
    let column = 1 + before[start..].iter().filter(|&&b| b & 0xC0 != 0x80).count();
    (line, column)
}

/// How many line ends (LF, CRLF, CR) `text` holds.
pub(crate) fn line_ends(text: &[u8]) -> usize {
    let lf = text.iter().filter(|&&b| b == b'\n').count();
    let cr = text.iter().filter(|&&b| b == b'\r').count();
    if cr == 0 {
        return lf;
    }
    let crlf = text.windows(2).filter(|w| w == b"\r\n").count();
    lf + cr - crlf
}

/// `Corrupt` about the byte at `at`: `what (offset=…, line=…, column=…)`.
pub(crate) fn corrupt_at(text: &[u8], at: usize, what: &'static str) -> Error {
    let (line, column) = line_and_column(text, at);
    Error::new(ErrorKind::Corrupt, what).with("offset", at).with("line", line).with("column", column)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_with_lf_crlf_or_cr_and_columns_count_characters() {
        let text = "a\r\nb\rc\nä!x".as_bytes();
        assert_eq!(line_and_column(text, 0), (1, 1));
        assert_eq!(line_and_column(text, 3), (2, 1));
        assert_eq!(line_and_column(text, 5), (3, 1));
        assert_eq!(line_and_column(text, 10), (4, 3));
        assert_eq!(line_and_column(text, 999), (4, 4));
    }
}
