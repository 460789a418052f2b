//! The prompt of `rowmill sql`: statements over several lines, history, a few commands of its own.

use std::path::PathBuf;
use std::time::Instant;

use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use super::sql::{Context, execute};
use crate::args::RowFormat;
use crate::exit;
use crate::output::{count, duration};
use crate::settings::Settings;

const HELP: &str = "\
A statement ends with `;` and may take several lines. A quoted path is a table:
  SELECT * FROM 'data.parquet' LIMIT 5;
  DESCRIBE 'orders.csv';
  CREATE VIEW large AS SELECT * FROM 'orders.csv' WHERE amount > 100;
  COPY (SELECT * FROM large) TO 'large.parquet';
  EXPLAIN SELECT count(*) FROM large;
Commands:
  .help              this
  .format FORMAT     rows as table, csv or json
  .quit              leave (also \\q, Ctrl-D)
Ctrl-C drops what was typed, or stops the statement that runs. Arrow keys find earlier statements.";

/// Reads and runs statements until the person leaves.
pub(super) async fn prompt(context: &Context, mut format: RowFormat, settings: &Settings) -> u8 {
    let mut editor = match DefaultEditor::new() {
        Ok(editor) => editor,
        Err(error) => {
            eprintln!("error: no prompt: {error}");
            return exit::ENVIRONMENT;
        }
    };
    let history = history_file();
    if let Some(path) = &history
        && let Err(error) = editor.load_history(path)
    {
        tracing::debug!(%error, "no history");
    }
    println!("SQL over files: SELECT * FROM 'data.parquet' LIMIT 5;   (.help for more, .quit to leave)");
    let mut pending = String::new();
    loop {
        let line = match editor.readline(if pending.is_empty() { "rowmill> " } else { "     ... " }) {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => {
                pending.clear();
                continue;
            }
            Err(ReadlineError::Eof) => break,
            Err(error) => {
                eprintln!("error: {error}");
                return exit::ENVIRONMENT;
            }
        };
        if pending.is_empty() {
            match command(line.trim()) {
                Some(Typed::Quit) => break,
                Some(Typed::Help) => {
                    println!("{HELP}");
                    continue;
                }
                Some(Typed::Format(new)) => {
                    format = new;
                    continue;
                }
                Some(Typed::Unknown) => {
                    eprintln!("error: there is no command `{}`; .help lists them", line.trim());
                    continue;
                }
                None => {}
            }
        }
        pending.push_str(&line);
        pending.push('\n');
        if pending.trim().is_empty() {
            pending.clear();
        }
        if !is_complete(&pending) {
            continue;
        }
        let statement = std::mem::take(&mut pending);
        if let Err(error) = editor.add_history_entry(statement.trim()) {
            tracing::debug!(%error, "the statement is not remembered");
        }
        if let Some(path) = &history
            && let Err(error) = editor.save_history(path)
        {
            tracing::debug!(%error, "the history is not kept");
        }
        let started = Instant::now();
        tokio::select! {
            // What is wrong was told; the prompt goes on.
            answer = execute(context, &statement, format, settings) => if let Ok(rows) = answer {
                let unit = if rows == 1 { "row" } else { "rows" };
                println!("{} {unit} in {}", count(rows), duration(started.elapsed()));
            },
            _ = tokio::signal::ctrl_c() => eprintln!("stopped after {}", duration(started.elapsed())),
        }
    }
    exit::SUCCESS
}

/// What a line is that is no SQL.
#[derive(Debug, PartialEq, Eq)]
enum Typed {
    Quit,
    Help,
    Format(RowFormat),
    Unknown,
}

fn command(line: &str) -> Option<Typed> {
    let word = line.trim_end_matches(';').to_ascii_lowercase();
    Some(match word.as_str() {
        "\\q" | "quit" | "exit" | ".quit" | ".exit" | ".q" => Typed::Quit,
        "\\?" | "\\h" | "help" | ".help" | "?" => Typed::Help,
        ".format table" => Typed::Format(RowFormat::Table),
        ".format csv" => Typed::Format(RowFormat::Csv),
        ".format json" => Typed::Format(RowFormat::Json),
        other if other.starts_with(['.', '\\']) => Typed::Unknown,
        _ => return None,
    })
}

/// Whether `text` ends with a `;` that stands neither in quotes nor in a comment.
fn is_complete(text: &str) -> bool {
    let mut complete = false;
    let mut rest = text.char_indices().peekable();
    while let Some((_, c)) = rest.next() {
        let next = rest.peek().map(|(_, next)| *next);
        match (c, next) {
            ('\'' | '"', _) => {
                complete = false;
                // A doubled quote closes and opens again, which comes to the same.
                if !rest.by_ref().any(|(_, other)| other == c) {
                    return false;
                }
            }
            ('-', Some('-')) => {
                rest.by_ref().any(|(_, other)| other == '\n');
            }
            ('/', Some('*')) => {
                rest.next();
                let mut before = ' ';
                let closed = rest.by_ref().any(|(_, other)| {
                    let end = before == '*' && other == '/';
                    before = other;
                    end
                });
                if !closed {
                    return false;
                }
            }
            (';', _) => complete = true,
            (c, _) if c.is_whitespace() => {}
            _ => complete = false,
        }
    }
    complete
}

fn history_file() -> Option<PathBuf> {
    let folder = match std::env::var_os("XDG_STATE_HOME").filter(|folder| !folder.is_empty()) {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(std::env::var_os("HOME")?).join(".local").join("state"),
    }
    .join("rowmill");
    std::fs::create_dir_all(&folder).ok()?;
    Some(folder.join("sql_history"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_ends_with_a_semicolon_outside_quotes() {
        for text in ["SELECT 1;", "SELECT ';' ;\n", "SELECT 1; -- done", "SELECT 1; /* a;b */", "SELECT 'it''s';"] {
            assert!(is_complete(text), "{text}");
        }
        for text in ["SELECT 1", "SELECT 'a;", "SELECT \"a;\n", "SELECT 1 -- ;", "SELECT 1 /* ;", "SELECT 1; SELECT 2"]
        {
            assert!(!is_complete(text), "{text}");
        }
    }

    #[test]
    fn commands_are_told_from_sql() {
        assert_eq!(command(".help"), Some(Typed::Help));
        assert_eq!(command("quit;"), Some(Typed::Quit));
        assert_eq!(command(".format json"), Some(Typed::Format(RowFormat::Json)));
        assert_eq!(command(".nonsense"), Some(Typed::Unknown));
        assert_eq!(command("SELECT 1;"), None);
    }
}
