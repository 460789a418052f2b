//! Shapes, places, limits and hostile texts.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::span::{MappedText, Texts};

fn read(text: &str) -> (Option<Node>, Vec<Diagnostic>) {
    let mut texts = Texts::new();
    let id = texts.add("t.yaml", text);
    let mut reporter = Reporter::default();
    let node = parse(id, text, &mut reporter);
    (node, reporter.finish())
}

fn value_of(text: &str) -> Node {
    let (node, reports) = read(text);
    assert!(reports.is_empty(), "{reports:?}");
    match node.unwrap().kind {
        Kind::Mapping(mut entries) => entries.pop().unwrap().1,
        other => panic!("{other:?}"),
    }
}

fn slice(text: &str, span: Span) -> &str {
    &text[span.start as usize..span.end as usize]
}

fn code(text: &str) -> &'static str {
    let (_, reports) = read(text);
    assert_eq!(reports.len(), 1, "{reports:?}");
    reports[0].code
}

/// Checks that every byte of the value that stands in the file as itself is mapped to itself.
fn check_map(text: &str, mapped: &MappedText) {
    assert!(!mapped.pieces.is_empty() || mapped.text.is_empty(), "no map for {:?} in {text:?}", mapped.text);
    for pair in mapped.pieces.windows(2) {
        assert!(pair[0].0 < pair[1].0, "{:?}", mapped.pieces);
    }
    for (at, c) in mapped.text.char_indices() {
        let span = mapped.span_of(at..at + c.len_utf8());
        let found = &text[span.start as usize..];
        let folded = matches!(c, ' ' | '\n') && (found.starts_with(['\n', '\r']) || found.is_empty());
        let escaped = found.starts_with('\\') || found.starts_with("''");
        assert!(
            found.starts_with(c) || folded || escaped,
            "{c:?} at {at} of {:?} maps to {:?}",
            mapped.text,
            found.get(..10)
        );
    }
}

#[test]
fn spans_cover_what_was_written() {
    let text = "é: {a: [1, 'x y', \"z\"] , b: plain text }  # c\n";
    let (node, reports) = read(text);
    assert!(reports.is_empty(), "{reports:?}");
    let Kind::Mapping(entries) = node.unwrap().kind else { panic!() };
    assert_eq!(slice(text, entries[0].0.span), "é");
    assert_eq!(slice(text, entries[0].1.span), "{a: [1, 'x y', \"z\"] , b: plain text }");
    let Kind::Mapping(inner) = &entries[0].1.kind else { panic!() };
    assert_eq!(slice(text, inner[0].1.span), "[1, 'x y', \"z\"]");
    let Kind::Sequence(items) = &inner[0].1.kind else { panic!() };
    assert_eq!(slice(text, items[1].span), "'x y'");
    assert_eq!(slice(text, items[2].span), "\"z\"");
    assert_eq!(slice(text, inner[1].1.span), "plain text");
}

#[test]
fn a_quoted_scalar_ends_at_its_quote() {
    let text = "a: 'x'   # comment\nb: 1\n";
    let (node, _) = read(text);
    let Kind::Mapping(entries) = node.unwrap().kind else { panic!() };
    assert_eq!(slice(text, entries[0].1.span), "'x'");
}

#[test]
fn a_byte_order_mark_shifts_places() {
    let text = "\u{feff}a: value\n";
    let node = value_of(text);
    assert_eq!(slice(text, node.span), "value");
}

#[test]
fn literal_blocks_map_line_by_line() {
    let text = "sql: |\n    SELECT é\n\n      FROM t\n    WHERE x\n\n";
    let node = value_of(text);
    let mapped = node.mapped(text).unwrap();
    assert_eq!(mapped.text, "SELECT é\n\n  FROM t\nWHERE x\n");
    check_map(text, &mapped);
    let at = mapped.text.find("FROM").unwrap();
    assert_eq!(slice(text, mapped.span_of(at..at + 4)), "FROM");
    assert_eq!(mapped.offset_at(3, 3), Some(at));
}

#[test]
fn blocks_of_every_kind_map() {
    for header in ["|", "|-", "|+", ">", ">-", ">+", "|2", ">2-", "| # comment"] {
        for body in [
            "  a b\n  c\n",
            "  a\n\n\n  b\n\n",
            "  a\n    more\n     indented\n  b\n",
            "  é\n  数据 x\n",
            "\n\n  late\n",
            "  end",
            "  trailing  \n  x\t\n",
        ] {
            let text = format!("k: {header}\n{body}");
            let node = value_of(&text);
            check_map(&text, &node.mapped(&text).unwrap());
            let crlf = text.replace('\n', "\r\n");
            let node = value_of(&crlf);
            check_map(&crlf, &node.mapped(&crlf).unwrap());
        }
    }
}

#[test]
fn quoted_and_folded_texts_map() {
    for text in [
        "k: plain on\n  two lines\n\n  and more\n",
        "k: 'it''s\n  folded\n\n   é'\n",
        "k: \"a\\tb\\u00e9 \\\n   joined \\\"x\\\" \\x41\n  folded\n\n  two\"\n",
        "k: \"\\U0001F680 x\"\n",
        "k: ''\n",
        "k: \"  spaces  kept  \"\n",
    ] {
        let node = value_of(text);
        check_map(text, &node.mapped(text).unwrap());
    }
    let text = "k: \"ab\\u00e9cd\"\n";
    let mapped = value_of(text).mapped(text).unwrap();
    let at = mapped.text.find("cd").unwrap();
    assert_eq!(slice(text, mapped.span_of(at..at + 2)), "cd");
}

#[test]
fn what_is_not_used_is_refused() {
    for text in [
        "a: &x 1\n",
        "a: *x\n",
        "a: !!str 1\n",
        "a: !x {}\n",
        "a: 1\n---\nb: 2\n",
        "<<: {a: 1}\n",
        "? [a]\n: 1\n",
        "{a: 1}: 2\n",
    ] {
        let found = code(text);
        // An alias of an anchor that is not there is an error of the parser's.
        assert!(
            found == codes::UNSUPPORTED_YAML || (found == codes::YAML_SYNTAX && text.contains('*')),
            "{text:?}: {found}"
        );
    }
    assert_eq!(code("a: 1\nb: 2\na: 3\n"), codes::DUPLICATE_KEY);
    assert_eq!(code(""), codes::EMPTY_TEXT);
    assert_eq!(code("# only\n"), codes::EMPTY_TEXT);
    assert_eq!(code("a: [1\n"), codes::YAML_SYNTAX);
    assert_eq!(code("a: b\0c\n"), codes::YAML_SYNTAX);
    assert_eq!(code("a:\n\tb: 1\n"), codes::YAML_SYNTAX);
}

#[test]
fn an_explicit_document_is_one_document() {
    let (node, reports) = read("---\na: 1\n...\n");
    assert!(node.is_some() && reports.is_empty(), "{reports:?}");
}

#[test]
fn both_places_of_a_key_are_named() {
    let text = "a: {x: 1}\na: {x: 2}\n";
    let (_, reports) = read(text);
    assert_eq!(reports[0].labels.iter().map(|(span, _)| span.start).collect::<Vec<_>>(), [10, 0]);
}

#[test]
fn hostile_texts_end_quickly_in_errors() {
    let bomb = {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
        for level in 1..30 {
            text.push_str(&format!("a{level}: &a{level} [{}]\n", vec![format!("*a{}", level - 1); 9].join(", ")));
        }
        text
    };
    let anchors: String = (0..100_000).map(|n| format!("k{n}: &a{n} x\n")).collect();
    let cases = [
        ("alias bomb", bomb),
        ("anchors", anchors),
        ("brackets", "[".repeat(100_000)),
        ("braces", "{a: ".repeat(100_000)),
        ("mixed", "[{a: ".repeat(100_000)),
        ("dashes", "- ".repeat(100_000)),
        ("many dashes", "- ".repeat(8_000_000)),
        ("questions", "? ".repeat(100_000)),
        ("indentation", (0..3_000).map(|n| format!("{}a:\n", " ".repeat(n))).collect()),
        ("wide flow key", format!("[[{}]]", "a,".repeat(4_000_000))),
        ("wide flow map key", format!("- {{{}}}", "a,".repeat(4_000_000))),
        ("open flow", format!("- [{}", "\"a\",".repeat(2_000_000))),
        ("colons", ":".repeat(5_000_000) + "\n- {"),
        ("200 MB", "#".repeat(200_000_000)),
    ];
    for (name, text) in cases {
        let start = Instant::now();
        let (node, reports) = read_without_copy(&text);
        let took = start.elapsed();
        assert!(node.is_none() && !reports.is_empty(), "{name} was taken: {node:?}");
        assert!(took < Duration::from_millis(400), "{name} took {took:?}");
    }
}

fn read_without_copy(text: &str) -> (Option<Node>, Vec<Diagnostic>) {
    let mut reporter = Reporter::default();
    let node = parse(TextId(0), text, &mut reporter);
    (node, reporter.finish())
}

#[test]
fn depth_is_limited_exactly() {
    let nest = |levels: usize| format!("{}x{}", "[".repeat(levels), "]".repeat(levels));
    assert!(read(&nest(MAX_DEPTH)).0.is_some());
    assert_eq!(code(&nest(MAX_DEPTH + 1)), codes::TEXT_LIMIT);
}

#[test]
fn many_values_are_limited_and_many_are_fine() {
    let list = |count: usize| "- a\n".repeat(count);
    assert!(read(&list(200_000)).0.is_some());
    assert_eq!(code(&list(MAX_NODES)), codes::TEXT_LIMIT);
    // Long lists in brackets are fine where they cannot be keys.
    let flow = format!("k: [{}]\n", vec!["a"; 100_000].join(", "));
    assert!(read(&flow).0.is_some());
    // And so are long queries with many commas.
    let query = format!("k: |\n  SELECT {}\nl: 'x{}'\n", vec!["1"; 200_000].join(", "), ",".repeat(100_000));
    assert!(read(&query).0.is_some());
}

#[test]
fn duplicates_by_the_hundred_thousand_stay_readable() {
    let text = "a: 1\n".repeat(100_000);
    let (_, reports) = read(&text);
    assert!(reports.len() <= 100);
    assert!(reports.last().unwrap().help.iter().any(|help| help.contains("there may be more errors")));
}

#[test]
fn quoted_texts_read_back() {
    for text in ["", "a", "\"\\\n\t\r\0\u{7f}\u{85}\u{2028}é🚀", "- x: y # z", "  "] {
        let yaml = format!("k: {}\n", quote(text));
        match value_of(&yaml).kind {
            Kind::Scalar(scalar) => assert_eq!(&*scalar.value, text),
            other => panic!("{other:?}"),
        }
    }
}

fn block_text() -> impl Strategy<Value = String> {
    let line = prop_oneof![3 => "[a-zé数 ,'\"#:]{0,12}", 1 => Just(String::new()), 1 => "   [a-z]{1,4}"];
    prop::collection::vec(line, 1..8).prop_map(|lines| lines.join("\n"))
}

proptest! {
    #[test]
    fn blocks_map_to_their_bytes(body in block_text(), header in "[|>][-+]?", indent in 1_usize..6, crlf: bool) {
        let indented: String = body.lines().map(|line| {
            if line.trim().is_empty() { "\n".to_owned() } else { format!("{}{line}\n", " ".repeat(indent)) }
        }).collect();
        let mut text = format!("k: {header}\n{indented}");
        if crlf {
            text = text.replace('\n', "\r\n");
        }
        if let (Some(Node { kind: Kind::Mapping(entries), .. }), _) = read(&text) {
            let mapped = entries[0].1.mapped(&text).unwrap();
            if mapped.text.contains(|c| c != '\n') {
                check_map(&text, &mapped);
            }
        }
    }

    #[test]
    fn quoted_texts_map_to_their_bytes(body in "[a-zé数 '\\n:#,]{0,40}", double: bool) {
        let text = if double {
            format!("k: \"{}\"\n", body.replace('\n', "\n  ").replace('\'', "\\\""))
        } else {
            format!("k: '{}'\n", body.replace('\'', "''").replace('\n', "\n  "))
        };
        if let (Some(Node { kind: Kind::Mapping(entries), .. }), _) = read(&text) {
            let mapped = entries[0].1.mapped(&text).unwrap();
            if mapped.text.contains(|c| c != '\n') {
                check_map(&text, &mapped);
            }
        }
    }

    #[test]
    fn any_text_can_be_quoted(text in any::<String>()) {
        let yaml = format!("k: {}\n", quote(&text));
        let node = value_of(&yaml);
        match &node.kind {
            Kind::Scalar(scalar) => prop_assert_eq!(&*scalar.value, text.as_str()),
            other => prop_assert!(false, "{:?}", other),
        }
    }

    #[test]
    fn nothing_panics(text in "[-a-c:?&*!|>'\"%@`{}\\[\\], \\n\\t\\r#\\\\é\u{feff}\\x00]{0,60}") {
        let (node, reports) = read(&text);
        prop_assert!(node.is_some() || !reports.is_empty());
    }
}
