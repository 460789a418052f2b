//! `rowmill top`: what a cluster is doing, again and again.

use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::time::Duration;

use rowmill_wire::jobs::StatusResponse;

use super::{asked_to_stop, show};
use crate::args::ClusterArguments;
use crate::exit;
use crate::settings::Settings;

/// Another screen, and the one before; the cursor to its beginning, and what is below removed.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
const AGAIN: &str = "\x1b[H\x1b[J";

pub(crate) async fn top(
    arguments: &ClusterArguments,
    folder: Option<&Path>,
    interval_s: u64,
    settings: &Settings,
) -> u8 {
    let (cluster, dead) = match show::connect(arguments, folder, settings) {
        Ok(found) => found,
        Err(code) => return code,
    };
    // On a terminal one screen; elsewhere, and as JSON, one look after the other.
    let screen = std::io::stdout().is_terminal() && !settings.is_json();
    if screen && say(ENTER).is_err() {
        return exit::SUCCESS;
    }
    let mut looks = tokio::time::interval(Duration::from_secs(interval_s));
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let stop = asked_to_stop();
    tokio::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            _ = looks.tick() => {}
        }
        let said = match (show::look(&cluster).await, settings.is_json()) {
            (Ok(look), true) => format!("{}\n", show::json(&look, &dead)),
            (Ok(look), false) => format!("{}\n\n{}", in_short(&look.status), show::text(&look, &dead)),
            (Err(error), true) => format!("{}\n", serde_json::json!({"error": error.to_string()})),
            (Err(error), false) => format!("{error}\n"),
        };
        // Who closes the pipe has seen enough.
        if say(&if screen { format!("{AGAIN}{said}") } else { said }).is_err() {
            break;
        }
    }
    if screen && let Err(error) = say(LEAVE) {
        tracing::debug!("the terminal is gone: {error}");
    }
    exit::SUCCESS
}

fn say(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// The whole in one line.
fn in_short(status: &StatusResponse) -> String {
    let (busy, slots) =
        status.executors.iter().fold((0, 0), |(busy, slots), executor| (busy + executor.busy, slots + executor.slots));
    let waiting: u32 = status.jobs.iter().map(|job| job.waiting).sum();
    let queued: u32 = status.queues.iter().map(|queue| queue.waiting).sum();
    let counted = |many: usize, word: &str| format!("{many} {word}{}", if many == 1 { "" } else { "s" });
    format!(
        "{}, {busy} of {slots} slots busy, {}, {waiting} partitions waiting, {queued} jobs queued",
        counted(status.executors.len(), "executor"),
        counted(status.jobs.len(), "job")
    )
}
