//! The journal: which chunks are committed, each at most once, under a fence.

use std::collections::{BTreeMap, HashMap};

use crate::error::{Error, Result};
use crate::model::*;
use crate::sql::value::args;
use crate::sql::{KEY_TEXT_BYTES, LONG_TEXT_BYTES, Row, Tx, check_text, lease, one, progress, runs, to_i64};

/// Commits chunks. The caller turns [`Error::Fenced`] into [`CommitResult::Fenced`].
pub(crate) async fn commit(tx: &mut impl Tx, fenced: &Fence, commits: &[ChunkCommit]) -> Result<Vec<CommitResult>> {
    let lease_row = lease::fence(tx, fenced, lease::Lock::Share).await?;
    let run = fenced.run.to_string();
    check_against_stages(tx, fenced.run, commits).await?;

    // In the order of the keys, so that two transactions with overlapping chunks wait for each other in one direction.
    let mut order: Vec<usize> = (0..commits.len()).collect();
    order.sort_by_key(|&index| commits[index].chunk);
    let mut results = vec![CommitResult::Fenced; commits.len()];
    let mut sums: BTreeMap<(StageId, &str), OutcomeCounts> = BTreeMap::new();
    for index in order {
        let commit = &commits[index];
        let result = insert(tx, &run, fenced.token, commit, lease_row.now.wall_ms).await?;
        if let Inserted::New = result {
            for step in &commit.counts {
                sums.entry((commit.chunk.stage_id(), &step.step)).or_default().add(step.counts);
            }
        }
        results[index] = match result {
            Inserted::New | Inserted::Ours => CommitResult::Committed,
            Inserted::Lost(winner) => CommitResult::AlreadyCommitted { winner },
        };
        // Also when another attempt won: what this one logged is of no use to anybody.
        tx.execute(
            "DELETE FROM effects WHERE run_id = $1 AND version = $2 AND stage = $3 AND chunk = $4",
            args![&run, commit.chunk.version, commit.chunk.stage, to_i64(commit.chunk.chunk, "chunk")?],
        )
        .await?;
    }
    for ((stage, step), counts) in sums {
        add_counts(tx, &run, stage, step, counts).await?;
    }
    Ok(results)
}

enum Inserted {
    /// The chunk was free.
    New,
    /// This attempt had committed it before.
    Ours,
    /// Another attempt had.
    Lost(Winner),
}

async fn insert(tx: &mut impl Tx, run: &str, token: u64, commit: &ChunkCommit, now_ms: i64) -> Result<Inserted> {
    let ChunkId { version, stage, chunk } = commit.chunk;
    let chunk = to_i64(chunk, "chunk")?;
    let counts = runs::to_json(&commit.counts, "counts")?;
    let inserted = tx
        .execute(
            "INSERT INTO journal (run_id, version, stage, chunk, token, attempt, output, ledger, rows_out, bytes_out, \
             committed_ms, counts, payload) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) \
             ON CONFLICT DO NOTHING",
            args![
                run,
                version,
                stage,
                chunk,
                to_i64(token, "token")?,
                commit.attempt,
                &commit.output,
                commit.ledger.as_deref(),
                to_i64(commit.rows_out, "rows_out")?,
                to_i64(commit.bytes_out, "bytes_out")?,
                now_ms,
                &counts,
                &commit.payload[..],
            ],
        )
        .await?;
    if inserted > 0 {
        return Ok(Inserted::New);
    }
    let rows = tx
        .rows(
            "SELECT token, attempt, output FROM journal WHERE run_id = $1 AND version = $2 AND stage = $3 AND chunk = $4",
            args![run, version, stage, chunk],
        )
        .await?;
    let row = one(rows, tx.store())?;
    let winner = Winner { token: row.uint(0)?, attempt: row.uint32(1)?, output: row.string(2)? };
    let ours = winner.token == token && winner.attempt == commit.attempt && winner.output == commit.output;
    Ok(if ours { Inserted::Ours } else { Inserted::Lost(winner) })
}

async fn add_counts(tx: &mut impl Tx, run: &str, stage: StageId, step: &str, counts: OutcomeCounts) -> Result<()> {
    let mut n = [0; 8];
    for (n, count) in n.iter_mut().zip(counts.to_array()) {
        *n = to_i64(count, "counts")?;
    }
    tx.execute(
        "INSERT INTO step_counts (run_id, version, stage, step, ok, cached, defaulted, skipped, failed, dead_lettered, \
         not_run, unknown) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) \
         ON CONFLICT (run_id, version, stage, step) DO UPDATE SET ok = step_counts.ok + excluded.ok, \
         cached = step_counts.cached + excluded.cached, defaulted = step_counts.defaulted + excluded.defaulted, \
         skipped = step_counts.skipped + excluded.skipped, failed = step_counts.failed + excluded.failed, \
         dead_lettered = step_counts.dead_lettered + excluded.dead_lettered, \
         not_run = step_counts.not_run + excluded.not_run, unknown = step_counts.unknown + excluded.unknown",
        args![run, stage.version, stage.stage, step, n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7]],
    )
    .await?;
    Ok(())
}

/// Refuses chunks of stages that are not registered and chunks beyond the end of a sealed manifest, and text that no
/// database keeps.
async fn check_against_stages(tx: &mut impl Tx, run: RunId, commits: &[ChunkCommit]) -> Result<()> {
    let mut counts: HashMap<StageId, Option<u64>> = HashMap::new();
    for commit in commits {
        check_text(&commit.output, "output", LONG_TEXT_BYTES)?;
        check_text(commit.ledger.as_deref().unwrap_or_default(), "ledger", LONG_TEXT_BYTES)?;
        for step in &commit.counts {
            check_text(&step.step, "counts", KEY_TEXT_BYTES)?;
        }
        let stage = commit.chunk.stage_id();
        let count = match counts.get(&stage) {
            Some(count) => *count,
            None => {
                let count = progress::chunk_count(tx, run, stage).await?;
                counts.insert(stage, count);
                count
            }
        };
        if count.is_some_and(|count| commit.chunk.chunk >= count) {
            return Err(Error::NotFound {
                what: format!(
                    "chunk {} of stage {} (run {run}, version {})",
                    commit.chunk.chunk, stage.stage, stage.version
                ),
            });
        }
    }
    Ok(())
}

pub(crate) async fn list(
    tx: &mut impl Tx,
    run: RunId,
    stage: StageId,
    page: &PageRequest<u64>,
) -> Result<Page<CommittedChunk, u64>> {
    let limit = page.checked_limit()?;
    runs::state(tx, run).await?;
    let rows = tx
        .rows(
            "SELECT chunk, token, attempt, output, ledger, rows_out, bytes_out, committed_ms, counts, payload \
             FROM journal WHERE run_id = $1 AND version = $2 AND stage = $3 AND chunk > $4 ORDER BY chunk LIMIT $5",
            args![&run.to_string(), stage.version, stage.stage, progress::after(page)?, limit + 1],
        )
        .await?;
    let chunks: Result<Vec<CommittedChunk>> = rows.iter().map(|row| read(row, stage)).collect();
    Ok(Page::cut(chunks?, limit, |chunk| chunk.commit.chunk.chunk))
}

fn read(row: &Row, stage: StageId) -> Result<CommittedChunk> {
    Ok(CommittedChunk {
        commit: ChunkCommit {
            chunk: stage.chunk(row.uint(0)?),
            attempt: row.uint32(2)?,
            output: row.string(3)?,
            ledger: row.opt_string(4)?,
            rows_out: row.uint(5)?,
            bytes_out: row.uint(6)?,
            counts: row.json(8)?,
            payload: row.blob(9)?,
        },
        token: row.uint(1)?,
        committed_ms: row.int(7)?,
    })
}
