//! Stages, chunk manifests and versions of the result.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::model::*;
use crate::sql::value::args;
use crate::sql::{KEY_TEXT_BYTES, LONG_TEXT_BYTES, Row, Tx, Value, check_text, lease, one, runs, to_i64, values_sql};

/// Manifest rows in one statement. Binding numbered placeholders costs SQLite the square of their number.
const CHUNKS_PER_INSERT: usize = 16;

pub(crate) async fn put_stages(tx: &mut impl Tx, fenced: &Fence, stages: &[NewStage]) -> Result<()> {
    let _row = lease::fence(tx, fenced, lease::Lock::Update).await?;
    let run = fenced.run.to_string();
    let newest = runs::state(tx, fenced.run).await?.version;
    for stage in stages {
        check_text(&stage.name, "name", KEY_TEXT_BYTES)?;
        check_text(&stage.class, "class", KEY_TEXT_BYTES)?;
        check_text(&stage.fingerprint, "fingerprint", KEY_TEXT_BYTES)?;
        let StageId { version, stage: number } = stage.id;
        if version == 0 || version > newest {
            return Err(Error::invalid("version", format!("{version} is not a version of the run, 1 to {newest} are")));
        }
        let inserted = tx
            .execute(
                "INSERT INTO stages (run_id, version, stage, name, class, fingerprint, payload, status) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, 'pending') ON CONFLICT DO NOTHING",
                args![&run, version, number, &stage.name, &stage.class, &stage.fingerprint, &stage.payload[..]],
            )
            .await?;
        if inserted == 0 {
            let rows = tx
                .rows(
                    "SELECT name, class, fingerprint, payload FROM stages WHERE run_id = $1 AND version = $2 AND stage = $3",
                    args![&run, version, number],
                )
                .await?;
            let row = one(rows, tx.store())?;
            let same = row.text(0)? == stage.name
                && row.text(1)? == stage.class
                && row.text(2)? == stage.fingerprint
                && row.blob(3)? == stage.payload;
            if !same {
                return Err(Error::conflict(
                    format!("stage {number} of run {run}, version {version}"),
                    format!(
                        "it is registered as `{}` with fingerprint {}, not as `{}` with {}",
                        row.text(0)?,
                        row.text(2)?,
                        stage.name,
                        stage.fingerprint
                    ),
                ));
            }
        }
    }
    Ok(())
}

pub(crate) async fn set_status(
    tx: &mut impl Tx,
    fenced: &Fence,
    stage: StageId,
    status: StageStatus,
    error: Option<&str>,
) -> Result<()> {
    check_text(error.unwrap_or_default(), "error", LONG_TEXT_BYTES)?;
    let row = lease::fence(tx, fenced, lease::Lock::Update).await?;
    let run = fenced.run.to_string();
    let sql = "SELECT status FROM stages WHERE run_id = $1 AND version = $2 AND stage = $3";
    let found = tx.rows(sql, args![&run, stage.version, stage.stage]).await?;
    let before: StageStatus = found.first().ok_or_else(|| stage_not_found(fenced.run, stage))?.parse(0)?;
    if before == status {
        return Ok(());
    }
    // A failed stage may be tried again by a resumed run; a done one stays done.
    let forward = status > before || (before == StageStatus::Failed && status == StageStatus::Running);
    if !forward || before == StageStatus::Done {
        return Err(Error::conflict(
            format!("stage {} of run {run}", stage.stage),
            format!("it is {before} and cannot become {status}"),
        ));
    }
    let now = row.now.wall_ms;
    let started = (status == StageStatus::Running).then_some(now);
    let ended = matches!(status, StageStatus::Done | StageStatus::Failed).then_some(now);
    tx.execute(
        "UPDATE stages SET status = $4, error = $5, started_ms = COALESCE(started_ms, $6), ended_ms = $7 \
         WHERE run_id = $1 AND version = $2 AND stage = $3",
        args![&run, stage.version, stage.stage, status.as_str(), error, started, ended],
    )
    .await?;
    Ok(())
}

fn stage_not_found(run: RunId, stage: StageId) -> Error {
    Error::NotFound { what: format!("stage {} of run {run}, version {}", stage.stage, stage.version) }
}

/// The size of a stage's sealed manifest, or `None` while it is open.
pub(crate) async fn chunk_count(tx: &mut impl Tx, run: RunId, stage: StageId) -> Result<Option<u64>> {
    let sql = "SELECT chunk_count FROM stages WHERE run_id = $1 AND version = $2 AND stage = $3";
    let rows = tx.rows(sql, args![&run.to_string(), stage.version, stage.stage]).await?;
    rows.first().ok_or_else(|| stage_not_found(run, stage))?.opt_uint(0)
}

pub(crate) async fn list_stages(tx: &mut impl Tx, run: RunId, version: u32) -> Result<Vec<Stage>> {
    runs::state(tx, run).await?;
    let id = run.to_string();
    let mut counts: HashMap<u32, Vec<StepCounts>> = HashMap::new();
    let rows = tx
        .rows(
            "SELECT stage, step, ok, cached, defaulted, skipped, failed, dead_lettered, not_run, unknown \
             FROM step_counts WHERE run_id = $1 AND version = $2 ORDER BY stage, step",
            args![&id, version],
        )
        .await?;
    for row in &rows {
        let mut n = [0; 8];
        for (at, n) in n.iter_mut().enumerate() {
            *n = row.uint(2 + at)?;
        }
        let step = StepCounts { step: row.string(1)?, counts: OutcomeCounts::from_array(n) };
        counts.entry(row.uint32(0)?).or_default().push(step);
    }
    let rows = tx
        .rows(
            "SELECT s.stage, s.name, s.class, s.fingerprint, s.payload, s.status, s.error, s.chunk_count, s.started_ms, \
             s.ended_ms, (SELECT COUNT(*) FROM journal j WHERE j.run_id = s.run_id AND j.version = s.version \
             AND j.stage = s.stage) FROM stages s WHERE s.run_id = $1 AND s.version = $2 ORDER BY s.stage",
            args![&id, version],
        )
        .await?;
    let read = |row: &Row| {
        let stage = row.uint32(0)?;
        Ok(Stage {
            id: StageId { version, stage },
            name: row.string(1)?,
            class: row.string(2)?,
            fingerprint: row.string(3)?,
            payload: row.blob(4)?,
            status: row.parse(5)?,
            error: row.opt_string(6)?,
            chunk_count: row.opt_uint(7)?,
            started_ms: row.opt_int(8)?,
            ended_ms: row.opt_int(9)?,
            committed_chunks: row.uint(10)?,
            counts: counts.get(&stage).cloned().unwrap_or_default(),
        })
    };
    rows.iter().map(read).collect()
}

pub(crate) async fn put_chunks(
    tx: &mut impl Tx,
    fenced: &Fence,
    stage: StageId,
    chunks: &[ChunkSpec],
    seal: bool,
) -> Result<()> {
    let _row = lease::fence(tx, fenced, lease::Lock::Update).await?;
    let run = fenced.run.to_string();
    let sealed = chunk_count(tx, fenced.run, stage).await?;
    for chunk in chunks {
        check_text(&chunk.path, "path", LONG_TEXT_BYTES)?;
        check_text(chunk.etag.as_deref().unwrap_or_default(), "etag", LONG_TEXT_BYTES)?;
        check_text(&chunk.schema_fingerprint, "schema_fingerprint", KEY_TEXT_BYTES)?;
    }
    for some in chunks.chunks(CHUNKS_PER_INSERT) {
        let inserted = if sealed.is_some() { 0 } else { insert_chunks(tx, &run, stage, some).await? };
        if inserted < some.len() as u64 {
            compare_chunks(tx, fenced.run, stage, some, sealed.is_some()).await?;
        }
    }
    if !seal || sealed.is_some() {
        return Ok(());
    }
    let rows = tx
        .rows(
            "SELECT COUNT(*), MAX(chunk) FROM chunks WHERE run_id = $1 AND version = $2 AND stage = $3",
            args![&run, stage.version, stage.stage],
        )
        .await?;
    let row = one(rows, tx.store())?;
    let count = row.uint(0)?;
    if row.opt_uint(1)?.map_or(0, |last| last + 1) != count {
        return Err(Error::conflict(
            format!("the manifest of stage {} of run {run}", stage.stage),
            "it has a gap and cannot be sealed",
        ));
    }
    tx.execute(
        "UPDATE stages SET chunk_count = $4 WHERE run_id = $1 AND version = $2 AND stage = $3",
        args![&run, stage.version, stage.stage, to_i64(count, "chunks")?],
    )
    .await?;
    Ok(())
}

async fn insert_chunks(tx: &mut impl Tx, run: &str, stage: StageId, chunks: &[ChunkSpec]) -> Result<u64> {
    let mut args: Vec<Value<'_>> = Vec::with_capacity(chunks.len() * 12);
    for chunk in chunks {
        let opt = |value: Option<u64>, field| value.map(|value| to_i64(value, field)).transpose();
        args.extend_from_slice(args![
            run,
            stage.version,
            stage.stage,
            to_i64(chunk.chunk, "chunk")?,
            &chunk.path,
            chunk.etag.as_deref(),
            opt(chunk.size_bytes, "size_bytes")?,
            opt(chunk.row_start, "row_start")?,
            opt(chunk.row_count, "row_count")?,
            &chunk.schema_fingerprint,
            chunk.partitions,
            &chunk.payload[..],
        ]);
    }
    let head = "INSERT INTO chunks (run_id, version, stage, chunk, path, etag, size_bytes, row_start, row_count, \
                schema_fingerprint, partitions, payload) VALUES";
    tx.execute(values_sql(head, chunks.len(), 12, "ON CONFLICT DO NOTHING"), &args).await
}

/// Finds out whether chunks that could not be inserted are there with the same contents.
async fn compare_chunks(
    tx: &mut impl Tx,
    run: RunId,
    stage: StageId,
    chunks: &[ChunkSpec],
    sealed: bool,
) -> Result<()> {
    let (Some(first), Some(last)) =
        (chunks.iter().map(|chunk| chunk.chunk).min(), chunks.iter().map(|chunk| chunk.chunk).max())
    else {
        return Ok(());
    };
    let sql = format!(
        "SELECT {CHUNK_COLUMNS} FROM chunks WHERE run_id = $1 AND version = $2 AND stage = $3 AND chunk BETWEEN $4 AND $5"
    );
    let id = run.to_string();
    let range = args![&id, stage.version, stage.stage, to_i64(first, "chunk")?, to_i64(last, "chunk")?];
    let rows = tx.rows(sql, range).await?;
    let mut stored = HashMap::new();
    for row in &rows {
        let chunk = read_chunk(row)?;
        stored.insert(chunk.chunk, chunk);
    }
    for chunk in chunks {
        if stored.get(&chunk.chunk) != Some(chunk) {
            let why = match (stored.contains_key(&chunk.chunk), sealed) {
                (true, _) => "is there with other contents",
                (false, true) => "is not in the manifest, which is sealed",
                (false, false) => "could not be stored",
            };
            return Err(Error::conflict(format!("chunk {} of stage {} of run {run}", chunk.chunk, stage.stage), why));
        }
    }
    Ok(())
}

const CHUNK_COLUMNS: &str =
    "chunk, path, etag, size_bytes, row_start, row_count, schema_fingerprint, partitions, payload";

fn read_chunk(row: &Row) -> Result<ChunkSpec> {
    Ok(ChunkSpec {
        chunk: row.uint(0)?,
        path: row.string(1)?,
        etag: row.opt_string(2)?,
        size_bytes: row.opt_uint(3)?,
        row_start: row.opt_uint(4)?,
        row_count: row.opt_uint(5)?,
        schema_fingerprint: row.string(6)?,
        partitions: row.uint32(7)?,
        payload: row.blob(8)?,
    })
}

pub(crate) async fn drop_unsealed(tx: &mut impl Tx, fenced: &Fence, stage: StageId) -> Result<()> {
    let _row = lease::fence(tx, fenced, lease::Lock::Update).await?;
    if chunk_count(tx, fenced.run, stage).await?.is_some() {
        return Err(Error::conflict(
            format!("the manifest of stage {} of run {}", stage.stage, fenced.run),
            "it is sealed",
        ));
    }
    tx.execute(
        "DELETE FROM chunks WHERE run_id = $1 AND version = $2 AND stage = $3 AND NOT EXISTS (SELECT 1 FROM journal j \
         WHERE j.run_id = chunks.run_id AND j.version = chunks.version AND j.stage = chunks.stage \
         AND j.chunk = chunks.chunk)",
        args![&fenced.run.to_string(), stage.version, stage.stage],
    )
    .await?;
    Ok(())
}

/// The number before a page's first, as a bind value.
pub(crate) fn after(page: &PageRequest<u64>) -> Result<i64> {
    page.after.map_or(Ok(-1), |after| to_i64(after, "after"))
}

pub(crate) async fn list_chunks(
    tx: &mut impl Tx,
    run: RunId,
    stage: StageId,
    page: &PageRequest<u64>,
) -> Result<Page<ChunkSpec, u64>> {
    let limit = page.checked_limit()?;
    runs::state(tx, run).await?;
    let sql = format!(
        "SELECT {CHUNK_COLUMNS} FROM chunks WHERE run_id = $1 AND version = $2 AND stage = $3 AND chunk > $4 \
         ORDER BY chunk LIMIT $5"
    );
    let rows = tx.rows(sql, args![&run.to_string(), stage.version, stage.stage, after(page)?, limit + 1]).await?;
    let chunks: Result<Vec<ChunkSpec>> = rows.iter().map(read_chunk).collect();
    Ok(Page::cut(chunks?, limit, |chunk| chunk.chunk))
}

pub(crate) async fn publish(
    tx: &mut impl Tx,
    fenced: &Fence,
    version: u32,
    output: &str,
    counts: &OutcomeCounts,
    payload: &[u8],
) -> Result<()> {
    check_text(output, "output", LONG_TEXT_BYTES)?;
    let row = lease::fence(tx, fenced, lease::Lock::Update).await?;
    let run = fenced.run.to_string();
    let newest = runs::state(tx, fenced.run).await?.version;
    let what = || format!("version {version} of run {run}");
    let sql = "SELECT published_ms, output FROM run_versions WHERE run_id = $1 AND version = $2";
    let rows = tx.rows(sql, args![&run, version]).await?;
    let found = rows.first().ok_or_else(|| Error::NotFound { what: what() })?;
    if found.opt_int(0)?.is_some() {
        if found.opt_string(1)?.as_deref() == Some(output) {
            return Ok(());
        }
        return Err(Error::conflict(what(), "it is published with another output"));
    }
    if version != newest {
        return Err(Error::conflict(what(), format!("version {newest} has been opened since")));
    }
    let counts = runs::to_json(counts, "counts")?;
    tx.execute(
        "UPDATE run_versions SET published_ms = $3, output = $4, counts = $5, payload = $6 \
         WHERE run_id = $1 AND version = $2",
        args![&run, version, row.now.wall_ms, output, &counts, payload],
    )
    .await?;
    Ok(())
}

pub(crate) async fn list_versions(tx: &mut impl Tx, run: RunId) -> Result<Vec<RunVersion>> {
    runs::state(tx, run).await?;
    let rows = tx
        .rows(
            "SELECT version, opened_ms, published_ms, output, counts, payload FROM run_versions WHERE run_id = $1 \
             ORDER BY version",
            args![&run.to_string()],
        )
        .await?;
    let read = |row: &Row| {
        Ok(RunVersion {
            version: row.uint32(0)?,
            opened_ms: row.int(1)?,
            published_ms: row.opt_int(2)?,
            output: row.opt_string(3)?,
            counts: if row.opt_string(4)?.is_some() { Some(row.json(4)?) } else { None },
            payload: row.opt_blob(5)?.unwrap_or_default(),
        })
    };
    rows.iter().map(read).collect()
}
