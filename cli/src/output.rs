//! What is printed: numbers that people can read, tables, reports.

use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::error::ArrowError;
use arrow::util::display::FormatOptions;
use arrow::util::pretty::pretty_format_batches_with_options;
use rowmill::{Diagnostics, RunReport, StagePlace};
use serde_json::{Value as Json, json};

/// `1,234,567`
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1.2 M`
pub(crate) fn short(number: f64) -> String {
    let units = [(1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")];
    match units.iter().find(|(size, _)| number >= *size) {
        Some((size, unit)) => format!("{:.1}{unit}", number / size),
        None => format!("{number:.0} "),
    }
}

/// `1.2 MB`
pub(crate) fn bytes(number: u64) -> String {
    format!("{}B", short(number as f64))
}

/// `1.24 s`, `3 m 05 s`
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    match duration.as_secs() {
        0 if seconds < 0.1 => format!("{:.1} ms", seconds * 1e3),
        0..60 => format!("{seconds:.2} s"),
        whole => format!("{} m {:02} s", whole / 60, whole % 60),
    }
}

/// Rows as a table with a header; columns whose every cell is numeric stand to the right.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let widths: Vec<usize> = (0..header.len())
        .map(|column| {
            let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
            cells.chain([header[column].chars().count()]).max().unwrap_or(0)
        })
        .collect();
    let numeric: Vec<bool> = (0..header.len())
        .map(|column| {
            let mut cells = rows.iter().filter_map(|row| row.get(column)).peekable();
            cells.peek().is_some() && cells.all(|cell| cell.starts_with(|c: char| c.is_ascii_digit()))
        })
        .collect();
    let line = |cells: Vec<&str>| {
        let mut text = String::from(" ");
        for (column, cell) in cells.iter().enumerate() {
            let width = widths[column];
            match numeric[column] {
                true => text.push_str(&format!(" {cell:>width$} ")),
                false => text.push_str(&format!(" {cell:<width$} ")),
            }
        }
        text.trim_end().to_owned() + "\n"
    };
    let mut text = line(header.to_vec());
    for row in rows {
        text.push_str(&line(row.iter().map(String::as_str).collect()));
    }
    text
}

/// Rows as a table with lines; what is absent is told from empty text.
pub(crate) fn rows(batches: &[RecordBatch]) -> Result<String, ArrowError> {
    // A time that no calendar holds is an error, and not the text of one in the table.
    batches.iter().try_for_each(rowmill::check_printable)?;
    let options = FormatOptions::default().with_null("NULL");
    Ok(pretty_format_batches_with_options(batches, &options)?.to_string())
}

/// Where the stages of a run ran: tasks of SQL, or attempts with their items.
pub(crate) fn places_table(places: &[StagePlace]) -> String {
    let rows: Vec<Vec<String>> = places
        .iter()
        .map(|StagePlace { stage, place }| {
            vec![
                stage.clone(),
                place.class.clone(),
                place.process.clone(),
                place.host.clone(),
                count(place.tasks),
                if place.items > 0 { count(place.items) } else { String::new() },
                duration(Duration::from_millis(place.busy_ms)),
            ]
        })
        .collect();
    table(&["stage", "class", "ran in", "host", "tasks", "items", "time"], &rows)
}

/// The end of a run, for people.
pub(crate) fn summary(report: &RunReport) -> String {
    let seconds = report.elapsed.as_secs_f64().max(1e-9);
    let mut text = format!(
        "workflow {} {} in {} (run {})\n",
        report.workflow,
        outcome(report),
        duration(report.elapsed),
        report.id
    );
    if report.replanned {
        text.push_str("memory ran out in a hash join; the run started over with sort-merge joins\n");
    }
    if !report.steps.is_empty() {
        let rows: Vec<Vec<String>> = report
            .steps
            .iter()
            .map(|step| {
                vec![
                    step.name.clone(),
                    step.class.clone(),
                    count(step.rows),
                    short(step.rows as f64 / seconds),
                    bytes(step.bytes),
                ]
            })
            .collect();
        text.push_str(&table(&["step", "class", "rows", "rows/s", "bytes"], &rows));
    }
    text.push_str(&items(report));
    if !report.unneeded.is_empty() {
        text.push_str(&format!("  not needed, not run: {}\n", report.unneeded.join(", ")));
    }
    let rows: Vec<Vec<String>> =
        report.sinks.iter().map(|sink| vec![sink.name.clone(), count(sink.rows), sink.path.clone()]).collect();
    text.push_str(&table(&["sink", "rows", "path"], &rows));
    text
}

fn outcome(report: &RunReport) -> &'static str {
    match report.items.iter().any(|items| items.failures() > 0) {
        true => "succeeded with failures",
        false => "succeeded",
    }
}

/// The exit code of a run that published.
pub(crate) fn exit_code(report: &RunReport) -> u8 {
    match report.items.iter().any(|items| items.failures() > 0) {
        true => crate::exit::WITH_FAILURES,
        false => crate::exit::SUCCESS,
    }
}

/// What became of the items of steps that are not SQL, and the first few that failed.
fn items(report: &RunReport) -> String {
    if report.items.is_empty() {
        return String::new();
    }
    let rows: Vec<Vec<String>> = report
        .items
        .iter()
        .map(|items| {
            let counts = &items.counts;
            let outcomes: Vec<String> =
                counts.outcomes.iter().map(|(outcome, many)| format!("{} {outcome}", count(many))).collect();
            vec![
                items.step.clone(),
                count(counts.items),
                outcomes.join(", "),
                count(counts.attempts),
                count(counts.retries),
                count(counts.calls),
            ]
        })
        .collect();
    let mut text = table(&["step", "items", "outcomes", "attempts", "retries", "calls"], &rows);
    text.push_str(&picture(report));
    for items in &report.items {
        // One line for each reason, however many of the samples have it.
        let mut reasons: Vec<(&str, &str, u32, Vec<&str>)> = Vec::new();
        for sample in &items.samples {
            let known = reasons.iter_mut().find(|(outcome, reason, attempts, _)| {
                *outcome == sample.outcome && *reason == sample.reason && *attempts == sample.attempts
            });
            match known {
                Some((.., at)) => at.push(&sample.item),
                None => reasons.push((sample.outcome, &sample.reason, sample.attempts, vec![&sample.item])),
            }
        }
        for (outcome, reason, attempts, at) in reasons {
            let attempts = if attempts == 1 { "1 attempt".to_owned() } else { format!("{attempts} attempts") };
            let items_are = if at.len() == 1 { "item" } else { "items" };
            text.push_str(&format!(
                "  {} {outcome} after {attempts}: {reason} ({items_are} {})\n",
                items.step,
                at.join(", ")
            ));
        }
        let listed = items.samples.len() as u64;
        let all = items.counts.items.saturating_sub(items.counts.outcomes.get(rowmill::step::Outcome::Ok));
        let all = all.saturating_sub(items.counts.outcomes.get(rowmill::step::Outcome::Cached));
        if all > listed && listed > 0 {
            text.push_str(&format!("  {}: {} more\n", items.step, count(all - listed)));
        }
    }
    text
}

/// Where the items of each step went: a bar of outcomes, each of them at least one sign wide.
fn picture(report: &RunReport) -> String {
    const WIDTH: u64 = 48;
    const SIGNS: [(rowmill::step::Outcome, char); 8] = [
        (rowmill::step::Outcome::Ok, '█'),
        (rowmill::step::Outcome::Cached, '▓'),
        (rowmill::step::Outcome::Defaulted, '▒'),
        (rowmill::step::Outcome::Skipped, '·'),
        (rowmill::step::Outcome::DeadLettered, '†'),
        (rowmill::step::Outcome::Failed, 'x'),
        (rowmill::step::Outcome::Unknown, '?'),
        (rowmill::step::Outcome::NotRun, '-'),
    ];
    let shown = |items: &&rowmill::ItemsReport| items.counts.items > 0;
    let width = report.items.iter().filter(shown).map(|items| items.step.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    let mut used = Vec::new();
    for items in report.items.iter().filter(shown) {
        let mut bar = String::new();
        for (outcome, sign) in SIGNS {
            let many = items.counts.outcomes.get(outcome);
            if many > 0 {
                let share = (many * WIDTH / items.counts.items).max(1);
                bar.extend(std::iter::repeat_n(sign, usize::try_from(share).unwrap_or(1)));
                if !used.contains(&(outcome, sign)) {
                    used.push((outcome, sign));
                }
            }
        }
        text.push_str(&format!("  {:<width$}  {bar}\n", items.step));
    }
    if used.len() > 1 {
        let legend: Vec<String> = used.iter().map(|(outcome, sign)| format!("{sign} {outcome}")).collect();
        text.push_str(&format!("  {:<width$}  {}\n", "", legend.join("  ")));
    }
    text
}

/// The end of a run, for machines.
pub(crate) fn summary_json(report: &RunReport) -> Json {
    json!({
        "outcome": outcome(report).replace(' ', "_"),
        "exit_code": exit_code(report),
        "run": report.id.to_string(),
        "workflow": report.workflow,
        "elapsed_s": report.elapsed.as_secs_f64(),
        "replanned": report.replanned,
        "steps": report.steps.iter().map(|step| json!({
            "name": step.name, "class": step.class, "rows": step.rows, "bytes": step.bytes, "batches": step.batches,
        })).collect::<Vec<_>>(),
        "items": report.items.iter().map(|items| json!({
            "step": items.step,
            "items": items.counts.items,
            "outcomes": items.counts.outcomes.iter().map(|(outcome, many)| (outcome.as_str().to_owned(), many.into()))
                .collect::<serde_json::Map<String, Json>>(),
            "attempts": items.counts.attempts,
            "retries": items.counts.retries,
            "calls": items.counts.calls,
            "samples": items.samples.iter().map(|sample| json!({
                "item": sample.item, "outcome": sample.outcome, "reason": sample.reason, "attempts": sample.attempts,
            })).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
        "places": report.places,
        "unneeded": report.unneeded,
        "sinks": report.sinks.iter().map(|sink| json!({
            "name": sink.name, "path": sink.path, "rows": sink.rows,
        })).collect::<Vec<_>>(),
        "warnings": report.warnings.to_json(),
    })
}

/// Prints reports where they belong: JSON on standard output, text on standard error. Gives the exit code.
pub(crate) fn failure(reports: &Diagnostics, json: bool, color: bool) -> u8 {
    let code = crate::exit::code(reports);
    match json {
        true => println!("{}", json!({"outcome": "failed", "exit_code": code, "errors": reports.to_json()})),
        false => {
            eprint!("{}", reports.render(color));
            let errors = reports.reports.len();
            if errors > 1 {
                eprintln!("{errors} errors");
            }
        }
    }
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(count(0), "0");
        assert_eq!(count(336_776), "336,776");
        assert_eq!(count(1_000), "1,000");
        assert_eq!(short(999.0), "999 ");
        assert_eq!(short(1_234_567.0), "1.2 M");
        assert_eq!(duration(Duration::from_millis(1_240)), "1.24 s");
        assert_eq!(duration(Duration::from_secs(185)), "3 m 05 s");
    }
}
