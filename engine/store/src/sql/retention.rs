//! Retention: ended runs lose their data class by class, the files first and the rows after them.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::model::*;
use crate::sql::value::args;
use crate::sql::{Tx, lease, now, runs, to_ms};

pub(crate) async fn collectable(tx: &mut impl Tx, class: Retention, age: Duration, limit: u32) -> Result<Vec<RunId>> {
    let limit = PageRequest::<()>::first(limit).checked_limit()?;
    let now = now(tx).await?;
    let rows = tx
        .rows(
            "SELECT r.id FROM runs r JOIN leases l ON l.name = 'run/' || r.id \
             WHERE r.ended_ms IS NOT NULL AND r.ended_ms <= $1 AND (r.collected & $2) <> $2 \
             AND (l.owner IS NULL OR l.epoch <> $3 OR l.until_ms <= $4) ORDER BY r.ended_ms, r.id LIMIT $5",
            args![cutoff(now.wall_ms, age)?, class.bits(), &now.epoch, now.lease_ms, limit],
        )
        .await?;
    rows.iter().map(|row| row.parse(0)).collect()
}

/// The latest end of a run that is at least `age` old. A zero age means every ended run.
fn cutoff(now_ms: i64, age: Duration) -> Result<i64> {
    Ok(if age.is_zero() { i64::MAX } else { now_ms - to_ms(age, "age")? })
}

pub(crate) async fn begin(tx: &mut impl Tx, run: RunId, class: Retention, age: Duration) -> Result<bool> {
    let Some(row) = lease::lock(tx, &lease::run_lease_name(run), lease::Lock::Update).await? else {
        return Ok(false);
    };
    let state = runs::state(tx, run).await?;
    let old = match state.ended_ms {
        Some(ended_ms) => ended_ms <= cutoff(row.now.wall_ms, age)?,
        None => false,
    };
    if row.is_live() || !state.status.is_ended() || !old {
        return Ok(false);
    }
    let collecting = state.collecting | class.bits();
    tx.execute("UPDATE runs SET collecting = $2 WHERE id = $1", args![&run.to_string(), collecting]).await?;
    Ok(true)
}

pub(crate) async fn end(tx: &mut impl Tx, run: RunId, class: Retention) -> Result<()> {
    // A run that is gone was removed by an earlier try.
    if lease::lock(tx, &lease::run_lease_name(run), lease::Lock::Update).await?.is_none() {
        return Ok(());
    }
    let state = runs::state(tx, run).await?;
    if state.collecting & class.bits() != class.bits() {
        return Err(Error::conflict(format!("run {run}"), format!("the removal of its {class} data was never begun")));
    }
    let id = run.to_string();
    let tables: &[&'static str] = match class {
        Retention::Temporary => &TEMPORARY,
        Retention::Results => &RESULTS,
        Retention::Audit => &AUDIT,
    };
    for sql in tables {
        tx.execute(*sql, args![&id]).await?;
    }
    if class == Retention::Audit {
        tx.execute("DELETE FROM leases WHERE name = $1", args![&lease::run_lease_name(run)]).await?;
    } else {
        tx.execute("UPDATE runs SET collected = collected | $2 WHERE id = $1", args![&id, class.bits()]).await?;
    }
    Ok(())
}

// Each class includes the ones before it: whoever may remove results may remove what a resume would need.
const TEMPORARY: [&str; 2] = ["DELETE FROM effects WHERE run_id = $1", "DELETE FROM chunks WHERE run_id = $1"];
const RESULTS: [&str; 3] = [TEMPORARY[0], TEMPORARY[1], "DELETE FROM journal WHERE run_id = $1"];
const AUDIT: [&str; 9] = [
    RESULTS[0],
    RESULTS[1],
    RESULTS[2],
    "DELETE FROM step_counts WHERE run_id = $1",
    "DELETE FROM stages WHERE run_id = $1",
    "DELETE FROM run_versions WHERE run_id = $1",
    "DELETE FROM run_labels WHERE run_id = $1",
    "DELETE FROM events WHERE run_id = $1",
    "DELETE FROM runs WHERE id = $1",
];
