//! Progress of a run: a line for each step on a terminal, plain lines elsewhere.

use std::sync::Arc;
use std::time::{Duration, Instant};

use indexmap::IndexMap;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use parking_lot::Mutex;
use rowmill::spec::config::Progress as Mode;
use rowmill::{Meter, Observer, Tally};

use crate::output::{bytes, count, duration, short};

/// Between two looks at the meters of a run on a terminal.
const TICK: Duration = Duration::from_millis(100);
/// Between two plain lines.
const PLAIN_TICK: Duration = Duration::from_secs(5);

/// Shows the meters of a run until it is dropped.
#[derive(Debug)]
pub(crate) struct Progress {
    mode: Mode,
    shown: Mutex<Option<Shown>>,
}

#[derive(Debug)]
struct Shown {
    bars: Option<MultiProgress>,
    /// Ends with the run: dropping the set aborts the task.
    _task: tokio::task::JoinSet<()>,
}

impl Progress {
    /// Shows nothing yet.
    pub(crate) fn new(mode: Mode) -> Progress {
        Progress { mode, shown: Mutex::new(None) }
    }

    /// Takes the lines away.
    pub(crate) fn finish(&self) {
        if let Some(shown) = self.shown.lock().take()
            && let Some(bars) = shown.bars
            && let Err(error) = bars.clear()
        {
            tracing::debug!(%error, "cannot clear the progress lines");
        }
    }
}

impl Observer for Progress {
    fn started(&self, _run: uuid::Uuid, meters: &IndexMap<String, Arc<Meter>>, tallies: &IndexMap<String, Arc<Tally>>) {
        let meters: Vec<Shows> =
            meters.iter().map(|(name, meter)| (name.clone(), Arc::clone(meter), tallies.get(name).cloned())).collect();
        let mut task = tokio::task::JoinSet::new();
        let bars = match self.mode {
            Mode::None | Mode::Auto => return,
            Mode::Plain => {
                task.spawn(show_plain(meters));
                None
            }
            Mode::Bar => {
                let bars = MultiProgress::new();
                task.spawn(show_bars(meters, bars.clone()));
                Some(bars)
            }
        };
        *self.shown.lock() = Some(Shown { bars, _task: task });
    }
}

/// A step with what is known of it while it runs.
type Shows = (String, Arc<Meter>, Option<Arc<Tally>>);

/// What a line says of the items of a step that is not SQL.
fn of_items(tally: Option<&Arc<Tally>>) -> String {
    let Some(counts) = tally.map(|tally| tally.snapshot()) else { return String::new() };
    let mut text = format!("  {} in flight", counts.in_flight);
    for (what, many) in [("waiting", counts.waiting), ("retries", counts.retries), ("failed", counts.errors())] {
        if many > 0 {
            text.push_str(&format!(", {} {what}", count(many)));
        }
    }
    text
}

async fn show_bars(meters: Vec<Shows>, bars: MultiProgress) {
    let width = meters.iter().map(|(name, ..)| name.chars().count()).max().unwrap_or(4);
    // A terminal holds only so many lines; the last steps are nearest to the result.
    let shown = meters.len().min(12);
    let style = ProgressStyle::with_template("  {spinner} {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner());
    let lines: Vec<(Shows, ProgressBar)> = meters
        .into_iter()
        .rev()
        .take(shown)
        .rev()
        .map(|shows| (shows, bars.add(ProgressBar::new_spinner().with_style(style.clone()))))
        .collect();
    let started = Instant::now();
    let mut ticks = tokio::time::interval(TICK);
    loop {
        ticks.tick().await;
        let seconds = started.elapsed().as_secs_f64().max(1e-3);
        for ((name, meter, tally), line) in &lines {
            line.set_message(format!(
                "{name:<width$}  {:>15} rows  {:>9}/s  {:>9}  {}{}",
                count(meter.rows()),
                short(meter.rows() as f64 / seconds),
                bytes(meter.bytes()),
                duration(started.elapsed()),
                of_items(tally.as_ref())
            ));
            line.tick();
        }
    }
}

async fn show_plain(meters: Vec<Shows>) {
    let started = Instant::now();
    let mut ticks = tokio::time::interval(PLAIN_TICK);
    ticks.tick().await;
    let mut before: Vec<u64> = vec![0; meters.len()];
    loop {
        ticks.tick().await;
        let seconds = started.elapsed().as_secs_f64();
        for (at, (name, meter, tally)) in meters.iter().enumerate() {
            let rows = meter.rows();
            if rows != before[at] {
                eprintln!(
                    "step {name}: {} rows, {}/s, {}, {}{}",
                    count(rows),
                    short(rows as f64 / seconds),
                    bytes(meter.bytes()),
                    duration(started.elapsed()),
                    of_items(tally.as_ref())
                );
                before[at] = rows;
            }
        }
    }
}
