//! `rowmill sql`: SQL over files, once or at a prompt.

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::path::PathBuf;

use arrow::array::RecordBatch;
use futures::StreamExt as _;
use rowmill::Session;
use rowmill::spec::{Diagnostic, Diagnostics};

use super::open_session;
use crate::args::RowFormat;
use crate::exit;
use crate::output::{count, failure};
use crate::settings::Settings;

/// Rows that a table shows at most; the other formats print all.
const TABLE_ROWS: usize = 1_000;

pub(super) type Context = rowmill::SqlContext;

/// Runs `query`, the file's statements, what stands on standard input, or a prompt.
pub(crate) async fn sql(
    query: Option<String>,
    file: Option<PathBuf>,
    format: Option<RowFormat>,
    settings: &Settings,
) -> u8 {
    let format = format.unwrap_or(if settings.is_json() { RowFormat::Json } else { RowFormat::Table });
    let session = match open_session(settings) {
        Ok(session) => session,
        Err(code) => return code,
    };
    let context = session.sql_context();
    let text = match (query, file) {
        (Some(query), _) => query,
        (None, Some(path)) => match rowmill::read_text(&path) {
            Ok(text) => text,
            Err(reports) => return failure(&reports, settings.is_json(), settings.is_colored()),
        },
        (None, None) if std::io::stdin().is_terminal() => {
            return super::prompt::prompt(&context, format, settings).await;
        }
        (None, None) => {
            let mut text = String::new();
            if let Err(error) = std::io::stdin().read_to_string(&mut text) {
                eprintln!("error: cannot read standard input: {error}");
                return exit::ENVIRONMENT;
            }
            // As a file may begin.
            text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text)
        }
    };
    match execute(&context, &text, format, settings).await {
        Ok(_) => exit::SUCCESS,
        Err(code) => code,
    }
}

/// Runs every statement of `text` and prints what each answers. Gives the number of rows.
pub(super) async fn execute(context: &Context, text: &str, format: RowFormat, settings: &Settings) -> Result<u64, u8> {
    let refuse = |reports: &Diagnostics| failure(reports, settings.is_json(), settings.is_colored());
    let statements = rowmill::split_statements(text).map_err(|error| refuse(&Session::report(&error)))?;
    if statements.is_empty() {
        let nothing =
            Diagnostic::error("RM0301", "there is no SQL to run").help("give one statement, such as \"SELECT 1\"");
        return Err(refuse(&Diagnostics { reports: vec![nothing], ..Diagnostics::default() }));
    }
    let mut rows = 0;
    for statement in statements {
        rows += one(context, statement, format).await.map_err(|error| refuse(&explained(Session::report(&error))))?;
    }
    Ok(rows)
}

/// Says of a table that is not there what could have been meant.
fn explained(mut reports: Diagnostics) -> Diagnostics {
    for report in &mut reports.reports {
        let missing = report.message.strip_prefix("there is no table `").and_then(|rest| rest.strip_suffix('`'));
        let Some(name) = missing.map(str::to_owned) else { continue };
        report.help.extend(file_like(&name).map(|file| format!("did you mean the file '{file}'?")));
        report.help.push("a file is a table by its quoted path, such as FROM 'orders.csv'".to_owned());
    }
    reports
}

/// A file of this folder that is named as `name`, endings aside, or nearly so.
fn file_like(name: &str) -> Option<String> {
    let stem = |file: &str| file.split('.').next().unwrap_or(file).to_lowercase();
    let wanted = stem(name);
    let near = |other: &str| {
        let (mut one, mut two): (Vec<char>, Vec<char>) = (wanted.chars().collect(), other.chars().collect());
        one.sort_unstable();
        two.sort_unstable();
        // The same letters, perhaps in another order: what fingers do.
        one == two
    };
    let entries = std::fs::read_dir(".").ok()?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut files: Vec<String> =
        entries.filter(|file| !file.starts_with('.') && file.contains('.') && near(&stem(file))).collect();
    files.sort_unstable();
    files.into_iter().next()
}

async fn one(context: &Context, statement: rowmill::SqlStatement, format: RowFormat) -> Result<u64, rowmill::SqlError> {
    let answer = context.execute(statement).await?;
    let (schema, mut stream) = (answer.schema, answer.rows);
    let mut printer = Printer::new(format);
    let mut rows = 0;
    let mut held: Vec<RecordBatch> = Vec::new();
    let mut held_rows = 0;
    while let Some(batch) = stream.next().await.transpose()? {
        rows += batch.num_rows() as u64;
        match format {
            RowFormat::Table => {
                let left = TABLE_ROWS - held_rows;
                held_rows += batch.num_rows().min(left);
                held.push(batch.slice(0, batch.num_rows().min(left)));
            }
            _ => printer.print(&batch)?,
        }
    }
    match format {
        RowFormat::Table if schema.fields().is_empty() => {}
        RowFormat::Table => {
            if held.is_empty() {
                held.push(RecordBatch::new_empty(schema));
            }
            println!("{}", crate::output::rows(&held)?);
            if rows > TABLE_ROWS as u64 {
                println!("{} of {} rows shown", count(TABLE_ROWS as u64), count(rows));
            }
        }
        _ => {
            if rows == 0 {
                printer.print(&RecordBatch::new_empty(schema))?;
            }
            printer.finish()?;
        }
    }
    Ok(rows)
}

/// Writes batches to standard output as they come.
enum Printer {
    Csv(Box<arrow::csv::Writer<std::io::Stdout>>),
    Json(Box<arrow::json::LineDelimitedWriter<std::io::Stdout>>),
    Table,
}

impl Printer {
    fn new(format: RowFormat) -> Printer {
        match format {
            RowFormat::Table => Printer::Table,
            RowFormat::Csv => {
                Printer::Csv(Box::new(arrow::csv::WriterBuilder::new().with_header(true).build(std::io::stdout())))
            }
            RowFormat::Json => Printer::Json(Box::new(arrow::json::LineDelimitedWriter::new(std::io::stdout()))),
        }
    }

    fn print(&mut self, batch: &RecordBatch) -> Result<(), rowmill::SqlError> {
        match self {
            Printer::Csv(writer) => writer.write(batch)?,
            Printer::Json(writer) => {
                rowmill::check_printable(batch)?;
                writer.write(batch)?;
            }
            Printer::Table => {}
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), rowmill::SqlError> {
        if let Printer::Json(writer) = self {
            writer.finish()?;
        }
        Ok(std::io::stdout().flush()?)
    }
}
