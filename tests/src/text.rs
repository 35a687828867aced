//! Reading source text: code without comments, fenced blocks of Markdown.

/// The code of a Rust file, line by line: comments and the trailing `#[cfg(test)] mod tests` are blank, strings stay.
#[must_use]
pub fn rust_code(text: &str) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let mut in_block = 0usize;
    let mut tests = false;
    let lines: Vec<&str> = text.lines().collect();
    for (i, line) in lines.iter().enumerate() {
        if line.trim_start().starts_with("#[cfg(") && line.contains("test") {
            tests |= lines.get(i + 1).is_some_and(|next| next.trim_start().starts_with("mod ") && next.trim_end().ends_with('{'));
        }
        if tests {
            out.push(String::new());
            continue;
        }
        let mut code = String::new();
        let mut chars = line.chars().peekable();
        let mut in_string = false;
        while let Some(c) = chars.next() {
            match (c, chars.peek()) {
                ('*', Some('/')) if in_block > 0 => {
                    chars.next();
                    in_block -= 1;
                }
                ('/', Some('*')) if !in_string => {
                    chars.next();
                    in_block += 1;
                }
                _ if in_block > 0 => {}
                ('/', Some('/')) if !in_string => break,
                ('\\', Some(_)) if in_string => {
                    code.push(c);
                    code.extend(chars.next());
                }
                ('"', _) => {
                    in_string = !in_string;
                    code.push(c);
                }
                _ => code.push(c),
            }
        }
        out.push(code);
    }
    out
}

/// One fenced block.
#[derive(Debug, PartialEq, Eq)]
pub struct Fence {
    /// What stands behind the opening fence: `rust`, `sh`.
    pub lang: String,
    /// The nearest heading above, without `#`.
    pub heading: String,
    /// The text between the fences.
    pub body: String,
}

/// The fenced blocks of a Markdown text, in order.
#[must_use]
pub fn fences(markdown: &str) -> Vec<Fence> {
    let mut out: Vec<Fence> = Vec::new();
    let mut heading = String::new();
    let mut open: Option<Fence> = None;
    for line in markdown.lines() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(_), Some(_)) => out.extend(open.take()),
            (Some(lang), None) => open = Some(Fence { lang: lang.trim().to_owned(), heading: heading.clone(), body: String::new() }),
            (None, Some(fence)) => {
                fence.body.push_str(line);
                fence.body.push('\n');
            }
            (None, None) => {
                if line.starts_with('#') {
                    heading = line.trim_start_matches('#').trim().to_owned();
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_test_modules_are_no_code() {
        let text = "use a; // crate::x\n/* crate::y */ let s = \"// no comment\";\n#[cfg(test)]\nmod tests {\n use crate::z;\n}\n";
        assert_eq!(rust_code(text), ["use a; ", " let s = \"// no comment\";", "", "", "", ""]);
    }

    #[test]
    fn fences_know_their_heading() {
        let f = fences("# A\n```sh\nmake\n```\n## B\ntext\n```\nx\n```\n");
        assert_eq!(f[0], Fence { lang: "sh".into(), heading: "A".into(), body: "make\n".into() });
        assert_eq!(f[1].heading, "B");
    }
}
