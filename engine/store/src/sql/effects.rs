//! The effect log: appended in batches, read back per chunk, deleted by the commit.

use std::collections::BTreeMap;

use crate::effect::{Appended, ChunkEffects, EffectBatch};
use crate::error::{Error, Result};
use crate::model::*;
use crate::sql::value::args;
use crate::sql::{Tx, Value, lease, runs, to_i64};

/// The longest result that a record may hold.
const MOST_RESULT_BYTES: usize = 256 << 20;
/// How many chunks one look at the journal asks for.
const CHUNKS_PER_QUERY: usize = 500;

pub(crate) async fn append(tx: &mut impl Tx, fenced: &Fence, batch: &EffectBatch) -> Result<Appended> {
    if let Some(record) = batch.records.iter().find(|record| record.bytes.len() > MOST_RESULT_BYTES) {
        return Err(Error::invalid(
            "records",
            format!("a result of {} bytes is more than the effect log keeps ({MOST_RESULT_BYTES})", record.bytes.len()),
        ));
    }
    lease::fence(tx, fenced, lease::Lock::Share).await?;
    let run = fenced.run.to_string();
    let packed = batch.pack();
    let mut chunks: Vec<ChunkId> = packed.iter().map(|(chunk, _, _)| *chunk).collect();
    chunks.dedup();
    let mut already_committed = Vec::new();
    let mut by_stage: BTreeMap<StageId, Vec<ChunkId>> = BTreeMap::new();
    for chunk in chunks {
        by_stage.entry(chunk.stage_id()).or_default().push(chunk);
    }
    for (stage, chunks) in by_stage {
        for some in chunks.chunks(CHUNKS_PER_QUERY) {
            already_committed.extend(committed_among(tx, &run, stage, some).await?);
        }
    }
    for (chunk, part, records) in &packed {
        if already_committed.binary_search(chunk).is_ok() {
            continue;
        }
        tx.execute(
            "INSERT INTO effects (run_id, version, stage, chunk, batch, part, records) \
             VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING",
            args![
                &run,
                chunk.version,
                chunk.stage,
                to_i64(chunk.chunk, "chunk")?,
                &batch.id.as_bytes()[..],
                *part,
                &records[..],
            ],
        )
        .await?;
    }
    Ok(Appended { already_committed })
}

async fn committed_among(tx: &mut impl Tx, run: &str, stage: StageId, chunks: &[ChunkId]) -> Result<Vec<ChunkId>> {
    let mut sql =
        "SELECT chunk FROM journal WHERE run_id = $1 AND version = $2 AND stage = $3 AND chunk IN (".to_owned();
    let mut args: Vec<Value<'_>> = vec![run.into(), stage.version.into(), stage.stage.into()];
    for chunk in chunks {
        args.push(to_i64(chunk.chunk, "chunk")?.into());
        sql.push_str(&format!("{}${}", if args.len() > 4 { ", " } else { "" }, args.len()));
    }
    sql.push_str(") ORDER BY chunk");
    tx.rows(sql, &args).await?.iter().map(|row| Ok(stage.chunk(row.uint(0)?))).collect()
}

pub(crate) async fn read(tx: &mut impl Tx, run: RunId, chunk: ChunkId) -> Result<ChunkEffects> {
    runs::state(tx, run).await?;
    let id = run.to_string();
    let mut effects = ChunkEffects::default();
    let mut after = i64::MIN;
    // One value at a time: a value may have several megabytes.
    loop {
        let rows = tx
            .rows(
                "SELECT seq, records FROM effects WHERE run_id = $1 AND version = $2 AND stage = $3 AND chunk = $4 \
                 AND seq > $5 ORDER BY seq LIMIT 16",
                args![&id, chunk.version, chunk.stage, to_i64(chunk.chunk, "chunk")?, after],
            )
            .await?;
        let Some(last) = rows.last() else { return Ok(effects) };
        after = last.int(0)?;
        for row in &rows {
            effects.replay(row.blob(1)?).map_err(|message| row.corrupted(message))?;
        }
    }
}
