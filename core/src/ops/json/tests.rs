//! What vectors cannot say: cancellation, threads, damaged input, and agreement with a second reader.

use crate::buffer::Bytes;
use crate::error::{ErrorKind, Result};
use crate::ops::testing::{CancelAfter, Random, run_with};
use crate::ops::{Control, run_inline};
use crate::value::Value;

fn document(random: &mut Random, depth: usize, out: &mut String) {
    match random.below(if depth == 0 { 6 } else { 9 }) {
        0 => out.push_str("null"),
        1 => out.push_str("true"),
        2 => out.push_str(["0", "-1", "1.5e-7", "123456789012345678901234567890", "-0.0", "1E+2"][random.below(6)]),
        3 => out.push_str("false"),
        4 | 5 => out
            .push_str(["\"\"", "\"é𝄞 text\"", "\"a\\n\\u00e9\\uD834\\uDD1E\"", "\"0123456789012345\\\\\"", "\"0123456\""][random.below(5)]),
        6 | 7 => {
            out.push('{');
            for i in 0..random.below(4) {
                out.push_str(if i > 0 { " ,\n" } else { "" });
                out.push_str(&format!("\"k{}\" : ", random.below(5)));
                document(random, depth - 1, out);
            }
            out.push('}');
        }
        _ => {
            out.push('[');
            for i in 0..random.below(5) {
                out.push_str(if i > 0 { ",          " } else { "" });
                document(random, depth - 1, out);
            }
            out.push(']');
        }
    }
}

fn valid(text: &[u8]) -> bool {
    matches!(run_inline("json.validate", vec![Bytes::from(text)], &Value::map([("fail", false.into())])), Ok(Value::Bool(true)))
}

fn bytes(result: Result<Value>) -> Vec<u8> {
    result.and_then(Value::into_bytes).expect("the op succeeds").to_vec()
}

#[test]
fn damaged_documents_are_judged_as_another_reader_judges_them() {
    let mut random = Random(8259);
    let mut refused = 0;
    for _ in 0..4000 {
        let mut text = String::new();
        document(&mut random, 5, &mut text);
        assert!(valid(text.as_bytes()), "{text}");
        let mut text = text.into_bytes();
        for _ in 0..1 + random.below(3) {
            let at = random.below(text.len() + 1);
            match random.below(3) {
                0 => text.truncate(at),
                1 if at < text.len() => text[at] = b"{}[],:\"\\0-.eE \ntu\x80\xC3\x01"[random.below(20)],
                _ => text.insert(at, b"{}[],:\"\\0-.eE \ntu\x80\xC3\x01"[random.below(20)]),
            }
        }
        // `IgnoredAny` does not look into strings; a whole value refuses lone surrogates, which the documents do not hold.
        let other = std::str::from_utf8(&text).is_ok() && serde_json::from_slice::<serde_json::Value>(&text).is_ok();
        let lone = text.windows(3).any(|w| w[0] == b'\\' && w[1] == b'u' && w[2] == b'D');
        if !lone {
            assert_eq!(valid(&text), other, "{}", String::from_utf8_lossy(&text));
        }
        refused += usize::from(!other);
        for (op, params) in [
            ("json.minify", Value::Nil),
            ("json.format", Value::Nil),
            ("json.pointer", Value::map([("pointers", Value::Array(vec!["/k1/0/k2".into(), "/0/1".into()]))])),
            ("json.query", Value::map([("path", "$..[?@.k1 == @.k2 || @[0] < 3 || search(@, 'x')]".into()), ("select", "nodes".into())])),
            ("json.filter_lines", Value::map([("where", "@.k1".into()), ("project", "/k1".into())])),
        ] {
            if let Err(e) = run_inline(op, vec![Bytes::from(&text[..])], &params) {
                assert_eq!(e.kind(), ErrorKind::Corrupt, "{op}: {e}");
            }
        }
    }
    assert!(refused > 1000, "the damage is visible: {refused}");
}

#[test]
fn rewriting_keeps_the_value_and_is_stable() {
    let mut random = Random(6901);
    for _ in 0..2000 {
        let mut text = String::new();
        document(&mut random, 5, &mut text);
        let parse = |t: &[u8]| serde_json::from_slice::<serde_json::Value>(t).expect("valid");
        let minified = bytes(run_inline("json.minify", vec![text.as_bytes().into()], &Value::Nil));
        let formatted = bytes(run_inline("json.format", vec![text.as_bytes().into()], &Value::Nil));
        assert_eq!(parse(&minified), parse(text.as_bytes()));
        assert_eq!(parse(&formatted), parse(text.as_bytes()));
        assert_eq!(bytes(run_inline("json.minify", vec![formatted.into()], &Value::Nil)), minified);
    }
}

#[test]
fn lines_come_out_the_same_on_any_number_of_threads() {
    let mut text = String::new();
    for i in 0..200_000 {
        text.push_str(&format!("{{\"i\":{i},\"s\":{},\"t\":\"{}\"}}\n", i % 7, "x".repeat(i % 40)));
    }
    let params = || Value::map([("where", "@.s == 3 && length(@.t) > 5".into()), ("project", "/i".into())]);
    let want: String = (0..200_000).filter(|i| i % 7 == 3 && i % 40 > 5).map(|i| format!("{i}\n")).collect();
    for threads in [1, 2, 5] {
        let got = bytes(run_with("json.filter_lines", text.as_bytes(), &params(), &CancelAfter::new(usize::MAX), threads));
        assert!(got == want.as_bytes(), "{threads} threads");
    }
    let limited = Value::map([("where", "@.i > 150000".into()), ("limit", Value::Int(3)), ("project", "/i".into())]);
    assert_eq!(
        bytes(run_with("json.filter_lines", text.as_bytes(), &limited, &CancelAfter::new(usize::MAX), 3)),
        b"150001\n150002\n150003\n"
    );
}

#[test]
fn the_first_bad_line_is_reported_whichever_thread_meets_one() {
    let mut text = "{\"a\": [1, 2, 3, 4, 5, 6, 7, 8, 9]}\n".repeat(200_000).into_bytes();
    let line = 35;
    for at in [90_001, 120_000, 199_999] {
        text[at * line] = b'!';
    }
    for threads in [1, 4] {
        let e = run_with("json.filter_lines", &text, &Value::Nil, &CancelAfter::new(usize::MAX), threads).expect_err("line 90002 is bad");
        assert_eq!(e.kind(), ErrorKind::Corrupt);
        assert!(e.to_string().contains("line=90002, column=1"), "{e}");
    }
}

#[test]
fn every_op_sees_cancellation() {
    let numbers = format!("[{}1]", "1, ".repeat(2_000_000));
    let space = format!("[{}]", " ".repeat(6 << 20));
    let long_string = format!("\"{}\"", "é".repeat(3 << 20));
    let long_number = "1".repeat(6 << 20);
    let lines = "{\"a\":1}\n".repeat(800_000);
    let mut cases: Vec<(&str, Value, &str)> = Vec::new();
    for text in [&numbers, &space, &long_string, &long_number] {
        for op in ["json.validate", "json.minify", "json.format"] {
            cases.push((op, Value::Nil, text));
        }
        cases.push(("json.pointer", Value::map([("pointers", Value::Array(vec!["/5".into()]))]), text));
        cases.push(("json.query", Value::map([("path", "$".into())]), text));
    }
    cases.push(("json.filter_lines", Value::map([("where", "@.a == 1".into())]), &lines));
    for (op, params, text) in cases {
        for after in [0, 4] {
            let e = run_with(op, text.as_bytes(), &params, &CancelAfter::new(after), 1).expect_err("cancelled");
            assert_eq!(e.kind(), ErrorKind::Cancelled, "{op} after {after}");
        }
        run_with(op, text.as_bytes(), &params, &CancelAfter::new(100_000), 2).expect("an op that is not cancelled ends");
    }
}

#[test]
fn a_query_that_does_much_work_on_a_short_text_sees_cancellation() {
    let text = format!("[{}1]", "1,".repeat(2000));
    // 2000 × 2000 comparisons; reading the text looks at the token once.
    let params = Value::map([("path", "$[?count($[?@ == 1]) == 0]".into())]);
    let counted = CancelAfter::new(50);
    let e = run_with("json.query", text.as_bytes(), &params, &counted, 1).expect_err("cancelled");
    assert_eq!(e.kind(), ErrorKind::Cancelled);
    assert!(counted.check().is_err());
}

#[test]
fn many_pointers_are_found_and_parsing_them_sees_cancellation() {
    const MANY: usize = 200_000;
    // From the last to the first, so that each goes in front of the ones before it.
    let names: Vec<String> = (0..MANY).rev().map(|i| format!("/k{i:06}/v")).collect();
    let params = |more: &[&str]| {
        let all = names.iter().map(String::as_str).chain(more.iter().copied());
        Value::map([("pointers", Value::Array(all.map(|n| Value::from(n.to_owned())).collect()))])
    };
    // Whoever parses to the end meets the broken one.
    let e = run_with("json.pointer", b"{}", &params(&["broken"]), &CancelAfter::new(MANY / 512), 1).expect_err("cancelled while parsing");
    assert_eq!(e.kind(), ErrorKind::Cancelled);

    let text = b"{\"k000003\":{\"v\":3},\"k199999\":{\"v\":[4]}}";
    let Value::Array(found) = run_with("json.pointer", text, &params(&[]), &CancelAfter::new(usize::MAX), 1).expect("found") else {
        panic!("json.pointer returns an array")
    };
    let found: Vec<(usize, Vec<u8>)> =
        found.into_iter().enumerate().filter_map(|(i, v)| Some((i, v.into_bytes().ok()?.to_vec()))).collect();
    assert_eq!(found, [(0, b"[4]".to_vec()), (MANY - 4, b"3".to_vec())]);
}

#[test]
fn of_members_with_one_name_the_last_counts_with_all_below_it() {
    let cases = [
        (r#"{"a":{"b":1,"c":2},"a":{"b":3}}"#, [Some("{\"b\":3}"), Some("3"), None, None]),
        (r#"{"a":{"b":1},"a":5}"#, [Some("5"), None, None, None]),
        (r#"{"a":5,"a":{"c":{"d":1},"b":2,"c":{}}}"#, [Some(r#"{"c":{"d":1},"b":2,"c":{}}"#), Some("2"), Some("{}"), None]),
        (r#"{"a":{"c":{"d":1}},"x":{"c":1},"a":{"c":{"d":2}}}"#, [Some(r#"{"c":{"d":2}}"#), None, Some(r#"{"d":2}"#), Some("2")]),
    ];
    let pointers = Value::map([("pointers", Value::Array(["/a", "/a/b", "/a/c", "/a/c/d"].map(Value::from).into()))]);
    for (text, expected) in cases {
        let Ok(Value::Array(found)) = run_inline("json.pointer", vec![Bytes::from(text.as_bytes())], &pointers) else {
            panic!("json.pointer returns an array")
        };
        let found: Vec<Option<String>> =
            found.into_iter().map(|v| v.into_bytes().ok().map(|b| String::from_utf8_lossy(&b).into_owned())).collect();
        assert_eq!(found, expected.map(|e| e.map(str::to_owned)), "{text}");
    }
}

#[test]
fn depth_is_a_number_and_not_a_stack() {
    let deep = format!("{}{}", "[".repeat(1_000_000), "]".repeat(1_000_000));
    let depth = || ("max_depth", Value::Int(1_000_000));
    for (op, params) in [
        ("json.validate", Value::map([depth()])),
        ("json.minify", Value::map([depth()])),
        ("json.pointer", Value::map([depth(), ("pointers", Value::Array(vec!["/0/0/0".into()]))])),
        ("json.query", Value::map([depth(), ("path", "$[0][0][?@ == $[0][0][0]]".into())])),
        ("json.filter_lines", Value::map([depth(), ("where", "@ == @".into())])),
    ] {
        run_inline(op, vec![deep.as_bytes().into()], &params).expect("deep documents work when allowed");
    }
}
