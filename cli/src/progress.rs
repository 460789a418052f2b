//! Progress of a run: a line for each step on a terminal, plain lines elsewhere.

use std::sync::Arc;
use std::time::{Duration, Instant};

use indexmap::IndexMap;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use parking_lot::Mutex;
use rowmill::spec::config::Progress as Mode;
use rowmill::{Meter, Observer};

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
    fn started(&self, _run: uuid::Uuid, meters: &IndexMap<String, Arc<Meter>>) {
        let meters = meters.clone();
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

async fn show_bars(meters: IndexMap<String, Arc<Meter>>, bars: MultiProgress) {
    let width = meters.keys().map(|name| name.chars().count()).max().unwrap_or(4);
    // A terminal holds only so many lines; the last steps are nearest to the result.
    let shown = meters.len().min(12);
    let style = ProgressStyle::with_template("  {spinner} {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner());
    let lines: Vec<(String, Arc<Meter>, ProgressBar)> = meters
        .into_iter()
        .rev()
        .take(shown)
        .rev()
        .map(|(name, meter)| (name, meter, bars.add(ProgressBar::new_spinner().with_style(style.clone()))))
        .collect();
    let started = Instant::now();
    let mut ticks = tokio::time::interval(TICK);
    loop {
        ticks.tick().await;
        let seconds = started.elapsed().as_secs_f64().max(1e-3);
        for (name, meter, line) in &lines {
            line.set_message(format!(
                "{name:<width$}  {:>15} rows  {:>9}/s  {:>9}  {}",
                count(meter.rows()),
                short(meter.rows() as f64 / seconds),
                bytes(meter.bytes()),
                duration(started.elapsed())
            ));
            line.tick();
        }
    }
}

async fn show_plain(meters: IndexMap<String, Arc<Meter>>) {
    let started = Instant::now();
    let mut ticks = tokio::time::interval(PLAIN_TICK);
    ticks.tick().await;
    let mut before: Vec<u64> = vec![0; meters.len()];
    loop {
        ticks.tick().await;
        let seconds = started.elapsed().as_secs_f64();
        for (at, (name, meter)) in meters.iter().enumerate() {
            let rows = meter.rows();
            if rows != before[at] {
                eprintln!(
                    "step {name}: {} rows, {}/s, {}, {}",
                    count(rows),
                    short(rows as f64 / seconds),
                    bytes(meter.bytes()),
                    duration(started.elapsed())
                );
                before[at] = rows;
            }
        }
    }
}
