//! Diagnostics for people (`render`) and for machines (`to_json`).

use std::borrow::Cow;

use annotate_snippets::renderer::Renderer;
use annotate_snippets::{AnnotationKind, Group, Level, Snippet, normalize_untrusted_str};
use serde_json::{Value as Json, json};

use crate::diagnostic::{Diagnostic, Diagnostics, Fault, Severity};
use crate::span::{Span, TextId, Texts};

/// Columns of a report; longer lines of the text are cut around the place.
const WIDTH: usize = 120;
/// The most bytes of text that are handed to the renderer for one snippet.
const MAX_EXCERPT: usize = 64 * 1024;

impl Diagnostics {
    /// Every report with its places in the text, as a compiler would show it; with ANSI colours if `color`.
    ///
    /// Control characters of the texts are neutralised.
    pub fn render(&self, color: bool) -> String {
        let renderer = if color { Renderer::styled() } else { Renderer::plain() }.term_width(WIDTH);
        let mut rendered = String::new();
        for report in &self.reports {
            if !rendered.is_empty() {
                rendered.push('\n');
            }
            rendered.push_str(&renderer.render(&[group(report, &self.texts)]));
            rendered.push('\n');
        }
        // The renderer shows control characters of the texts as pictures, but for those beyond ASCII, some of which
        // terminals obey. The carriage return of a line's end is no part of the line.
        rendered.replace(|c| matches!(c, '\u{80}'..='\u{9f}'), "\u{fffd}").replace("\u{240d}\n", "\n")
    }

    /// The reports as a JSON array of objects with `code`, `severity`, `fault`, `message`, `help`, and, where the
    /// place is known, `file`, `line`, `column`, `end` (line and column; all from 1, columns in characters) and
    /// `labels`.
    pub fn to_json(&self) -> Json {
        Json::Array(self.reports.iter().map(|report| report.to_json(&self.texts)).collect())
    }
}

impl Diagnostic {
    /// See [`Diagnostics::to_json`].
    pub fn to_json(&self, texts: &Texts) -> Json {
        let labels: Vec<Json> = self
            .labels
            .iter()
            .filter_map(|(span, remark)| {
                let mut place = place(*span, texts)?;
                place.insert("remark".to_owned(), json!(remark));
                Some(Json::Object(place))
            })
            .collect();
        let mut object = serde_json::Map::new();
        object.insert("code".to_owned(), json!(self.code));
        object.insert("severity".to_owned(), json!(self.severity.as_str()));
        object.insert("fault".to_owned(), json!(self.fault.as_str()));
        object.insert("message".to_owned(), json!(self.message));
        if let Some(place) = self.labels.first().and_then(|(span, _)| place(*span, texts)) {
            object.extend(place);
        }
        object.insert("labels".to_owned(), Json::Array(labels));
        object.insert("help".to_owned(), json!(self.help));
        Json::Object(object)
    }
}

impl Severity {
    /// `error` or `warning`.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
        }
    }
}

impl Fault {
    /// `workflow`, `data`, `environment` or `internal`.
    pub fn as_str(self) -> &'static str {
        match self {
            Fault::Workflow => "workflow",
            Fault::Data => "data",
            Fault::Environment => "environment",
            Fault::Internal => "internal",
        }
    }
}

fn place(span: Span, texts: &Texts) -> Option<serde_json::Map<String, Json>> {
    let (file, _) = texts.get(span.text)?;
    let (line, column) = texts.line_column(span)?;
    let (end_line, end_column) = texts.line_column(Span { start: span.end, ..span })?;
    let mut place = serde_json::Map::new();
    place.insert("file".to_owned(), json!(file));
    place.insert("line".to_owned(), json!(line));
    place.insert("column".to_owned(), json!(column));
    place.insert("end".to_owned(), json!({"line": end_line, "column": end_column}));
    Some(place)
}

fn group<'a>(report: &'a Diagnostic, texts: &'a Texts) -> Group<'a> {
    let level = match report.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let mut group = Group::with_title(level.primary_title(clean(&report.message)).id(report.code));
    // One snippet for each text, in the order in which the labels name them.
    let mut order: Vec<TextId> = Vec::new();
    for (span, _) in &report.labels {
        if !order.contains(&span.text) {
            order.push(span.text);
        }
    }
    for id in order {
        let Some((name, text)) = texts.get(id) else { continue };
        let labels: Vec<(usize, &(Span, String))> =
            report.labels.iter().enumerate().filter(|(_, (span, _))| span.text == id).collect();
        for labels in excerpts(text, &labels) {
            group = group.element(snippet(name, text, &labels));
        }
    }
    for help in &report.help {
        group = group.element(Level::HELP.message(clean(help)));
    }
    group
}

type Label<'a> = (usize, &'a (Span, String));

/// Labels that are shown in one snippet: all of them, or each alone where too much text lies between.
fn excerpts<'a>(text: &str, labels: &[Label<'a>]) -> Vec<Vec<Label<'a>>> {
    let lines = labels.iter().map(|(_, (span, _))| lines_around(text, *span));
    let start = lines.clone().map(|(start, _)| start).min().unwrap_or(0);
    let end = lines.map(|(_, end)| end).max().unwrap_or(0);
    if end - start <= MAX_EXCERPT { vec![labels.to_vec()] } else { labels.iter().map(|label| vec![*label]).collect() }
}

fn snippet<'a>(name: &'a str, text: &'a str, labels: &[Label<'a>]) -> Snippet<'a, annotate_snippets::Annotation<'a>> {
    let lines = labels.iter().map(|(_, (span, _))| lines_around(text, *span));
    let start = lines.clone().map(|(start, _)| start).min().unwrap_or(0);
    let end = lines.map(|(_, end)| end).max().unwrap_or(0).min(floor(text, start + MAX_EXCERPT));
    let excerpt = text.get(start..end).unwrap_or("");
    let first_line = text.get(..start).unwrap_or("").bytes().filter(|byte| *byte == b'\n').count() + 1;
    let mut snippet = Snippet::source(excerpt).line_start(first_line).path(name);
    for (at, (span, remark)) in labels {
        let from = floor(text, span.start as usize).max(start).min(end) - start;
        let to = floor(text, span.end as usize).max(start).min(end) - start;
        let kind = if *at == 0 { AnnotationKind::Primary } else { AnnotationKind::Context };
        let mut annotation = kind.span(from..to.max(from));
        if !remark.is_empty() {
            annotation = annotation.label(clean(remark));
        }
        snippet = snippet.annotation(annotation);
    }
    snippet
}

/// The bytes of the lines that a span touches.
fn lines_around(text: &str, span: Span) -> (usize, usize) {
    let from = floor(text, span.start as usize);
    let to = floor(text, span.end as usize).max(from);
    let start = text.get(..from).and_then(|before| before.rfind('\n')).map_or(0, |at| at + 1);
    let end = text.get(to..).and_then(|rest| rest.find('\n')).map_or(text.len(), |at| to + at);
    (start, end)
}

/// The nearest boundary of a character at or before a byte.
fn floor(text: &str, at: usize) -> usize {
    text.floor_char_boundary(at)
}

/// Text that may hold anything, for a line of a report.
fn clean(text: &str) -> Cow<'_, str> {
    if text.chars().any(char::is_control) { Cow::Owned(normalize_untrusted_str(text)) } else { Cow::Borrowed(text) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codes;
    use std::sync::Arc;

    fn reports(text: &str, labels: &[(usize, usize, &str)]) -> Diagnostics {
        let mut texts = Texts::new();
        let id = texts.add("flow.yaml", text);
        let mut report = Diagnostic::error(codes::UNKNOWN_KEY, "a message").help("a next move");
        for (start, end, remark) in labels {
            report = report.at(Span::new(id, *start..*end), *remark);
        }
        Diagnostics { reports: vec![report], texts: Arc::new(texts) }
    }

    #[test]
    fn places_at_the_edges_of_a_text() {
        for (text, start, end) in
            [("", 0, 0), ("", 5, 9), ("é", 1, 1), ("a\n", 2, 2), ("a\nb", 0, 3), ("a", 1, 0), ("\r\n", 0, 2)]
        {
            let rendered = reports(text, &[(start, end, "here")]).render(false);
            assert!(rendered.contains("error[RM0103]: a message") && rendered.contains("a next move"), "{rendered}");
        }
    }

    #[test]
    fn labels_far_apart_are_shown_each() {
        let text = format!("first\n{}last\n", "x\n".repeat(200_000));
        let last = text.len() - 5;
        let rendered = reports(&text, &[(last, last + 4, "second"), (0, 5, "first")]).render(false);
        assert!(rendered.contains("200002 | last") && rendered.contains("1 | first"), "{rendered}");
        assert!(rendered.len() < 1_000);
    }

    #[test]
    fn a_span_of_another_text_is_left_out() {
        let mut reports = reports("abc", &[]);
        reports.reports[0].labels.push((Span { text: TextId(7), start: 0, end: 1 }, "lost".to_owned()));
        let rendered = reports.render(false);
        assert_eq!(rendered, "error[RM0103]: a message\n |\n = help: a next move\n");
        assert_eq!(reports.to_json()[0]["labels"], json!([]));
    }

    #[test]
    fn appended_reports_keep_their_places() {
        let mut first = reports("one", &[(0, 3, "")]);
        first.append(reports("two", &[(0, 3, "")]));
        let rendered = first.render(false);
        assert!(rendered.contains("1 | one") && rendered.contains("1 | two"), "{rendered}");
    }

    #[test]
    fn machines_get_places() {
        let json = reports("é = 1\nxyz", &[(7, 10, "remark")]).to_json();
        assert_eq!(json[0]["code"], "RM0103");
        assert_eq!((&json[0]["line"], &json[0]["column"]), (&json!(2), &json!(1)));
        assert_eq!(json[0]["end"], json!({"line": 2, "column": 4}));
        assert_eq!(json[0]["file"], "flow.yaml");
        assert_eq!(json[0]["fault"], "workflow");
        assert_eq!(json[0]["labels"][0]["remark"], "remark");
        assert_eq!(json[0]["help"], json!(["a next move"]));
    }

    #[test]
    fn colours_are_used_only_when_asked_for() {
        let reports = reports("abc", &[(0, 1, "")]);
        assert!(!reports.render(false).contains('\u{1b}'));
        assert!(reports.render(true).contains('\u{1b}'));
    }
}
