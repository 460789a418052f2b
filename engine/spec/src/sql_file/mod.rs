//! A workflow as a SQL file.
//!
//! ```sql
//! -- name: flight-delays
//! -- param month int64 = 1
//! CREATE EXTERNAL TABLE flights STORED AS PARQUET LOCATION 'data/flights.parquet';
//! CREATE VIEW clean AS SELECT * FROM flights WHERE month = $month;
//! CREATE VIEW worst WITH (class = 'memory') AS SELECT carrier, avg(delay) FROM clean GROUP BY carrier;
//! COPY worst TO 'out/worst.parquet';
//! ```
//!
//! External tables are sources, views are steps, copies are sinks; a comment outside a statement may declare the
//! name, the description, parameters (`-- param NAME TYPE [= VALUE]`) and variables (`-- var ...`). Queries are taken
//! as they are: the engine parses them. What DataFusion takes in these statements and is not read here is refused.

mod columns;
mod header;
mod options;
mod source;
mod statements;
#[cfg(test)]
mod tests;
mod tokens;

use std::sync::Arc;

use indexmap::IndexMap;

use crate::codes;
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::model::Workflow;
use crate::names::is_workflow_name;
use crate::read::finish;
use crate::report::Reporter;
use crate::span::{Span, Spanned, TextId, Texts};
use crate::yaml;
use tokens::{Cursor, Part};

/// Reads a workflow from a SQL file; `name` is what reports call the text, and the workflow's name unless the text
/// says another.
///
/// # Errors
/// All errors of the text at once.
pub fn parse_sql(name: &str, text: &str) -> Result<Workflow, Diagnostics> {
    if let Err(report) = yaml::check_size(text.len()) {
        return Err(Diagnostics { reports: vec![report], texts: Arc::default() });
    }
    let mut texts = Texts::new();
    let id = texts.add(name, text);
    let texts = Arc::new(texts);
    let mut reporter = Reporter::default();
    let mut workflow = Workflow {
        name: Spanned::bare(String::new()),
        description: None,
        params: IndexMap::new(),
        vars: IndexMap::new(),
        sources: IndexMap::new(),
        steps: IndexMap::new(),
        sinks: IndexMap::new(),
        durable: false,
        texts: Arc::default(),
        warnings: Vec::new(),
    };
    let mut header = header::Header::default();
    let split = tokens::split(id, text, |part| {
        match part {
            Part::Comment(comment, range) => header.line(id, &comment, &range, &mut workflow, &mut reporter),
            Part::Statement(tokens) => {
                let mut cursor = Cursor::new(id, text, &tokens);
                if let Err(report) = statements::read(&mut cursor, &mut workflow, &mut reporter) {
                    reporter.push(*report);
                }
            }
        }
        // A text of a newer version may hold statements that this one does not know.
        !header.refused && !reporter.full()
    });
    if let Err(report) = split {
        reporter.push(*report);
        return finish(None, reporter, texts);
    }
    if header.refused {
        return finish(None, reporter, texts);
    }
    if workflow.name.value.is_empty() {
        workflow.name = Spanned::bare(name_of_file(name));
        if !is_workflow_name(&workflow.name) {
            reporter.push(no_name(id, name));
            return finish(None, reporter, texts);
        }
    }
    if workflow.steps.is_empty() && workflow.sinks.is_empty() && reporter.errors() == 0 {
        reporter.push(
            Diagnostic::error(codes::NOTHING_TO_DO, "the workflow has no steps")
                .at(Span::new(id, 0..0), "")
                .help("add a step: `CREATE VIEW name AS SELECT ...;`"),
        );
    }
    finish(Some(workflow), reporter, texts)
}

/// `flows/flight-delays.sql` is named flight-delays.
fn name_of_file(path: &str) -> String {
    let file = path.rsplit(['/', '\\']).next().unwrap_or(path);
    crate::names::normalize(file.rsplit_once('.').map_or(file, |(stem, _)| stem))
}

fn no_name(id: TextId, name: &str) -> Diagnostic {
    Diagnostic::error(codes::BAD_NAME, format!("the file name of `{name}` cannot be the name of a workflow"))
        .at(Span::new(id, 0..0), "the text says no other name")
        .help("begin the text with `-- name: some-name`")
}
