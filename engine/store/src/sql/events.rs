//! The audit trail.

use uuid::Uuid;

use crate::error::Result;
use crate::model::*;
use crate::sql::value::args;
use crate::sql::{KEY_TEXT_BYTES, LONG_TEXT_BYTES, Tx, check_text, lease, runs};

/// Records an event of the store's own, in the transaction that makes it happen.
pub(crate) async fn record(
    tx: &mut impl Tx,
    run: RunId,
    kind: &str,
    actor: &str,
    detail: &serde_json::Value,
    at_ms: i64,
) -> Result<()> {
    insert(tx, run, &Uuid::new_v4(), kind, actor, &detail.to_string(), at_ms).await
}

async fn insert(
    tx: &mut impl Tx,
    run: RunId,
    id: &Uuid,
    kind: &str,
    actor: &str,
    detail: &str,
    at_ms: i64,
) -> Result<()> {
    tx.execute(
        "INSERT INTO events (run_id, id, at_ms, kind, actor, detail) VALUES ($1, $2, $3, $4, $5, $6) \
         ON CONFLICT DO NOTHING",
        args![&run.to_string(), &id.to_string(), at_ms, kind, actor, detail],
    )
    .await?;
    Ok(())
}

pub(crate) async fn append(tx: &mut impl Tx, fenced: &Fence, events: &[NewEvent]) -> Result<()> {
    // Exclusively: a reader that follows the trail by its sequence must not see 7 before 6.
    let row = lease::fence(tx, fenced, lease::Lock::Update).await?;
    for event in events {
        check_text(&event.kind, "kind", KEY_TEXT_BYTES)?;
        check_text(&event.actor, "actor", KEY_TEXT_BYTES)?;
        let detail = runs::to_json(&event.detail, "detail")?;
        check_text(&detail, "detail", LONG_TEXT_BYTES)?;
        insert(tx, fenced.run, &event.id, &event.kind, &event.actor, &detail, row.now.wall_ms).await?;
    }
    Ok(())
}

pub(crate) async fn list(tx: &mut impl Tx, run: RunId, page: &PageRequest<i64>) -> Result<Page<RunEvent, i64>> {
    let limit = page.checked_limit()?;
    runs::state(tx, run).await?;
    let rows = tx
        .rows(
            "SELECT seq, id, at_ms, kind, actor, detail FROM events WHERE run_id = $1 AND seq > $2 ORDER BY seq LIMIT $3",
            args![&run.to_string(), page.after.unwrap_or(i64::MIN), limit + 1],
        )
        .await?;
    let events = rows.iter().map(|row| {
        Ok(RunEvent {
            seq: row.int(0)?,
            id: row.string(1)?,
            at_ms: row.int(2)?,
            kind: row.string(3)?,
            actor: row.string(4)?,
            detail: row.json(5)?,
        })
    });
    Ok(Page::cut(events.collect::<Result<_>>()?, limit, |event: &RunEvent| event.seq))
}
