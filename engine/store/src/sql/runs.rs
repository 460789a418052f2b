//! Runs: submission, reading, listing, cancellation, start and end.

use std::collections::BTreeMap;

use crate::clock::Now;
use crate::error::{Error, Result};
use crate::model::*;
use crate::sql::value::args;
use crate::sql::{KEY_TEXT_BYTES, LONG_TEXT_BYTES, Row, Tx, Value, check_text, events, lease, now, one, to_ms};

/// The columns of [`read`], in its order.
const COLUMNS: &str = "r.id, r.workflow_name, r.workflow_fingerprint, r.parameters, r.status, r.organisation, r.team, \
     r.labels, r.actor, r.submit_key, r.version, r.created_ms, r.started_ms, r.ended_ms, r.cancel_ms, r.cancel_actor, \
     r.cancel_reason, r.counts, r.error, r.collecting, r.payload";

pub(crate) fn not_found(run: RunId) -> Error {
    Error::NotFound { what: format!("run {run}") }
}

fn read(row: &Row) -> Result<Run> {
    let cancel = match (row.opt_int(14)?, row.opt_string(15)?) {
        (Some(at_ms), Some(actor)) => Some(CancelRequest { actor, reason: row.opt_string(16)?, at_ms }),
        _ => None,
    };
    Ok(Run {
        id: row.parse(0)?,
        workflow_name: row.string(1)?,
        workflow_fingerprint: row.string(2)?,
        parameters: row.json(3)?,
        status: row.parse(4)?,
        organisation: row.string(5)?,
        team: row.string(6)?,
        labels: row.json(7)?,
        actor: row.string(8)?,
        submit_key: row.opt_string(9)?,
        version: row.uint32(10)?,
        created_ms: row.int(11)?,
        started_ms: row.opt_int(12)?,
        ended_ms: row.opt_int(13)?,
        cancel,
        counts: row.json(17)?,
        error: row.opt_string(18)?,
        collected: Retention::from_bits(row.int(19)?),
        payload: row.blob(20)?,
    })
}

pub(crate) fn to_json(value: &impl serde::Serialize, field: &'static str) -> Result<String> {
    serde_json::to_string(value).map_err(|error| Error::invalid(field, error.to_string()))
}

fn check(new: &NewRun) -> Result<()> {
    check_text(&new.workflow_name, "workflow_name", KEY_TEXT_BYTES)?;
    check_text(&new.workflow_text, "workflow_text", LONG_TEXT_BYTES)?;
    check_text(&new.workflow_fingerprint, "workflow_fingerprint", KEY_TEXT_BYTES)?;
    check_text(&new.organisation, "organisation", KEY_TEXT_BYTES)?;
    check_text(&new.team, "team", KEY_TEXT_BYTES)?;
    check_text(&new.actor, "actor", KEY_TEXT_BYTES)?;
    if let Some(key) = &new.submit_key {
        check_text(key, "submit_key", KEY_TEXT_BYTES)?;
    }
    for (key, value) in &new.labels {
        check_text(key, "labels", KEY_TEXT_BYTES)?;
        check_text(value, "labels", KEY_TEXT_BYTES)?;
    }
    if new.payload.len() > LONG_TEXT_BYTES {
        return Err(Error::invalid("payload", format!("has more than {LONG_TEXT_BYTES} bytes")));
    }
    Ok(())
}

pub(crate) async fn submit(tx: &mut impl Tx, new: &NewRun) -> Result<Submitted> {
    check(new)?;
    let id = new.id.to_string();
    let parameters = to_json(&new.parameters, "parameters")?;
    check_text(&parameters, "parameters", LONG_TEXT_BYTES)?;
    let labels = to_json(&new.labels, "labels")?;
    let counts = to_json(&OutcomeCounts::default(), "counts")?;
    let now = now(tx).await?;
    let inserted = tx
        .execute(
            "INSERT INTO runs (id, workflow_name, workflow_fingerprint, status, organisation, team, actor, submit_key, \
             version, created_ms, collecting, collected, labels, counts, parameters, workflow_text, payload) \
             VALUES ($1, $2, $3, 'queued', $4, $5, $6, $7, 1, $8, 0, 0, $9, $10, $11, $12, $13) ON CONFLICT DO NOTHING",
            args![
                &id,
                &new.workflow_name,
                &new.workflow_fingerprint,
                &new.organisation,
                &new.team,
                &new.actor,
                new.submit_key.as_deref(),
                now.wall_ms,
                &labels,
                &counts,
                &parameters,
                &new.workflow_text,
                &new.payload[..],
            ],
        )
        .await?;
    if inserted > 0 {
        for (key, value) in &new.labels {
            let sql = "INSERT INTO run_labels (run_id, key, value) VALUES ($1, $2, $3)";
            tx.execute(sql, args![&id, key, value]).await?;
        }
        open_version(tx, &id, 1, &now).await?;
        lease::create(tx, new.id).await?;
        let detail = serde_json::json!({ "workflow": new.workflow_name, "fingerprint": new.workflow_fingerprint });
        events::record(tx, new.id, "submitted", &new.actor, &detail, now.wall_ms).await?;
    }
    let found = find(
        tx,
        "r.id = $1 OR (r.organisation = $2 AND r.submit_key = $3)",
        args![&id, &new.organisation, new.submit_key.as_deref()],
    )
    .await?;
    // The id and the key may have met different runs; then the two contradict each other.
    let [run] = &found[..] else {
        return Err(Error::conflict(
            format!("run {id}"),
            "its id and its submit key belong to different runs; submit with a new id",
        ));
    };
    let same = run.workflow_fingerprint == new.workflow_fingerprint
        && run.parameters == new.parameters
        && run.organisation == new.organisation
        && run.submit_key == new.submit_key;
    if !same {
        return Err(Error::conflict(
            format!("run {}", run.id),
            "it was submitted before with another workflow, other parameters or another key; use a new id and key",
        ));
    }
    Ok(Submitted { created: run.id == new.id, run: run.clone() })
}

async fn open_version(tx: &mut impl Tx, run: &str, version: u32, now: &Now) -> Result<()> {
    tx.execute(
        "INSERT INTO run_versions (run_id, version, opened_ms) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
        args![run, version, now.wall_ms],
    )
    .await?;
    Ok(())
}

async fn find(tx: &mut impl Tx, condition: &str, args: &[Value<'_>]) -> Result<Vec<Run>> {
    let sql = format!("SELECT {COLUMNS} FROM runs r WHERE {condition}");
    tx.rows(sql, args).await?.iter().map(read).collect()
}

/// A run, if it is in the scope.
pub(crate) async fn get(tx: &mut impl Tx, scope: &Scope, run: RunId) -> Result<Run> {
    let found = find(tx, "r.id = $1", args![&run.to_string()]).await?.into_iter().next();
    found.filter(|found| in_scope(scope, found)).ok_or_else(|| not_found(run))
}

fn in_scope(scope: &Scope, run: &Run) -> bool {
    scope.organisation.as_ref().is_none_or(|organisation| *organisation == run.organisation)
        && scope.team.as_ref().is_none_or(|team| *team == run.team)
}

pub(crate) async fn workflow_text(tx: &mut impl Tx, scope: &Scope, run: RunId) -> Result<String> {
    get(tx, scope, run).await?;
    let rows = tx.rows("SELECT workflow_text FROM runs WHERE id = $1", args![&run.to_string()]).await?;
    one(rows, tx.store())?.string(0)
}

/// What a transaction that holds the lease needs to know about its run.
pub(crate) struct State {
    pub(crate) status: RunStatus,
    pub(crate) version: u32,
    pub(crate) collecting: i64,
    pub(crate) ended_ms: Option<i64>,
    pub(crate) cancel: Option<CancelRequest>,
}

pub(crate) async fn state(tx: &mut impl Tx, run: RunId) -> Result<State> {
    let sql = "SELECT status, version, collecting, ended_ms, cancel_ms, cancel_actor, cancel_reason FROM runs \
               WHERE id = $1";
    let row = tx.rows(sql, args![&run.to_string()]).await?.into_iter().next().ok_or_else(|| not_found(run))?;
    let cancel = match (row.opt_int(4)?, row.opt_string(5)?) {
        (Some(at_ms), Some(actor)) => Some(CancelRequest { actor, reason: row.opt_string(6)?, at_ms }),
        _ => None,
    };
    Ok(State {
        status: row.parse(0)?,
        version: row.uint32(1)?,
        collecting: row.int(2)?,
        ended_ms: row.opt_int(3)?,
        cancel,
    })
}

/// Opens an ended run again, under the next version; the caller holds its lease.
pub(crate) async fn reopen(tx: &mut impl Tx, run: RunId, state: &State, now: &Now) -> Result<u32> {
    if state.collecting != 0 {
        return Err(Error::conflict(
            format!("run {run}"),
            "its data has been removed by retention, so it cannot be opened again; submit it as a new run",
        ));
    }
    let id = run.to_string();
    let version = state.version.checked_add(1).ok_or_else(|| Error::invalid("version", "there are too many"))?;
    tx.execute(
        "UPDATE runs SET status = 'running', version = $2, ended_ms = NULL, error = NULL, cancel_ms = NULL, \
         cancel_actor = NULL, cancel_reason = NULL WHERE id = $1",
        args![&id, version],
    )
    .await?;
    open_version(tx, &id, version, now).await?;
    Ok(version)
}

/// The conditions of a listing, as SQL and the values for its placeholders.
struct Conditions {
    sql: String,
    texts: Vec<Option<String>>,
    ints: Vec<i64>,
    /// For each placeholder, whether it takes the next text or the next number.
    kinds: Vec<bool>,
}

impl Conditions {
    async fn new(tx: &mut impl Tx, filter: &RunFilter) -> Result<Self> {
        let mut conditions = Conditions { sql: "1 = 1".to_owned(), texts: vec![], ints: vec![], kinds: vec![] };
        if let Some(organisation) = &filter.scope.organisation {
            conditions.text(" AND r.organisation = ", organisation, "");
        }
        if let Some(team) = &filter.scope.team {
            conditions.text(" AND r.team = ", team, "");
        }
        if let Some(name) = &filter.workflow_name {
            conditions.text(" AND r.workflow_name = ", name, "");
        }
        if !filter.statuses.is_empty() {
            conditions.sql.push_str(" AND r.status IN (''");
            for status in &filter.statuses {
                conditions.text(", ", status.as_str(), "");
            }
            conditions.sql.push(')');
        }
        for (key, value) in &filter.labels {
            conditions.text(" AND EXISTS (SELECT 1 FROM run_labels l WHERE l.run_id = r.id AND l.key = ", key, "");
            conditions.text(" AND l.value = ", value, ")");
        }
        if let Some(age) = filter.younger_than {
            let since = now(tx).await?.wall_ms - to_ms(age, "younger_than")?;
            conditions.int(" AND r.created_ms >= ", since, "");
        }
        Ok(conditions)
    }

    fn text(&mut self, before: &str, value: &str, after: &str) {
        // A NUL is in no stored text, and PostgreSQL would refuse to compare with it: nothing matches.
        self.texts.push(if value.contains('\0') { None } else { Some(value.to_owned()) });
        self.placeholder(before, true, after);
    }

    fn int(&mut self, before: &str, value: i64, after: &str) {
        self.ints.push(value);
        self.placeholder(before, false, after);
    }

    fn placeholder(&mut self, before: &str, text: bool, after: &str) {
        self.kinds.push(text);
        self.sql.push_str(before);
        self.sql.push_str(&format!("${}", self.kinds.len()));
        self.sql.push_str(after);
    }

    fn args(&self) -> Vec<Value<'_>> {
        let mut texts = self.texts.iter();
        let mut ints = self.ints.iter();
        let next = |text: &bool| match text {
            true => Value::Text(texts.next().and_then(|text| text.as_deref())),
            false => Value::Int(ints.next().copied()),
        };
        self.kinds.iter().map(next).collect()
    }
}

pub(crate) async fn list(
    tx: &mut impl Tx,
    filter: &RunFilter,
    page: &PageRequest<RunCursor>,
) -> Result<Page<Run, RunCursor>> {
    let limit = page.checked_limit()?;
    let mut conditions = Conditions::new(tx, filter).await?;
    if let Some(after) = &page.after {
        conditions.int(" AND (r.created_ms, r.id) < (", after.created_ms, "");
        conditions.text(", ", &after.id.to_string(), ")");
    }
    conditions.int(" ORDER BY r.created_ms DESC, r.id DESC LIMIT ", limit + 1, "");
    let runs = find(tx, &conditions.sql, &conditions.args()).await?;
    Ok(Page::cut(runs, limit, |run| RunCursor { created_ms: run.created_ms, id: run.id }))
}

pub(crate) async fn count(tx: &mut impl Tx, filter: &RunFilter) -> Result<BTreeMap<RunStatus, u64>> {
    let conditions = Conditions::new(tx, filter).await?;
    let sql = format!("SELECT r.status, COUNT(*) FROM runs r WHERE {} GROUP BY r.status", conditions.sql);
    let rows = tx.rows(sql, &conditions.args()).await?;
    rows.iter().map(|row| Ok((row.parse(0)?, row.uint(1)?))).collect()
}

pub(crate) async fn claimable(tx: &mut impl Tx, limit: u32) -> Result<Vec<RunId>> {
    let limit = PageRequest::<()>::first(limit).checked_limit()?;
    let now = now(tx).await?;
    let rows = tx
        .rows(
            "SELECT r.id FROM runs r JOIN leases l ON l.name = 'run/' || r.id \
             WHERE r.status IN ('queued', 'running') AND (l.owner IS NULL OR l.epoch <> $1 OR l.until_ms <= $2) \
             ORDER BY r.created_ms, r.id LIMIT $3",
            args![&now.epoch, now.lease_ms, limit],
        )
        .await?;
    rows.iter().map(|row| row.parse(0)).collect()
}

pub(crate) async fn request_cancel(
    tx: &mut impl Tx,
    scope: &Scope,
    run: RunId,
    actor: &str,
    reason: Option<&str>,
) -> Result<CancelResult> {
    check_text(actor, "actor", KEY_TEXT_BYTES)?;
    check_text(reason.unwrap_or_default(), "reason", LONG_TEXT_BYTES)?;
    // The scope comes first: a stranger must not be able to hold another's lease row, however shortly.
    get(tx, scope, run).await?;
    let row = lease::lock_run(tx, run, lease::Lock::Update).await?;
    let state = state(tx, run).await?;
    if state.status.is_ended() {
        // Whoever asks again, or asks for what has happened, is told that it has.
        return Ok(match state.status {
            RunStatus::Cancelled => CancelResult::Cancelled,
            status => CancelResult::AlreadyEnded(status),
        });
    }
    let id = run.to_string();
    if state.cancel.is_none() {
        tx.execute(
            "UPDATE runs SET cancel_ms = $2, cancel_actor = $3, cancel_reason = $4 WHERE id = $1",
            args![&id, row.now.wall_ms, actor, reason],
        )
        .await?;
        let detail = serde_json::json!({ "reason": reason });
        events::record(tx, run, "cancel_requested", actor, &detail, row.now.wall_ms).await?;
    }
    if row.is_live() {
        return Ok(CancelResult::Requested);
    }
    lease::revoke(tx, &row).await?;
    let at_ms = row.now.wall_ms;
    tx.execute("UPDATE runs SET status = 'cancelled', ended_ms = $2 WHERE id = $1", args![&id, at_ms]).await?;
    events::record(tx, run, "ended", actor, &serde_json::json!({ "status": "cancelled" }), at_ms).await?;
    Ok(CancelResult::Cancelled)
}

pub(crate) async fn start(tx: &mut impl Tx, fenced: &Fence) -> Result<()> {
    let row = lease::fence(tx, fenced, lease::Lock::Update).await?;
    tx.execute(
        "UPDATE runs SET status = 'running', started_ms = COALESCE(started_ms, $2), error = NULL WHERE id = $1",
        args![&fenced.run.to_string(), row.now.wall_ms],
    )
    .await?;
    Ok(())
}

pub(crate) async fn finish(tx: &mut impl Tx, fenced: &Fence, finish: &Finish) -> Result<()> {
    if matches!(finish.status, RunStatus::Queued | RunStatus::Running) {
        return Err(Error::invalid("status", format!("a run cannot end as {}", finish.status)));
    }
    check_text(finish.error.as_deref().unwrap_or_default(), "error", LONG_TEXT_BYTES)?;
    let row = lease::lock_run(tx, fenced.run, lease::Lock::Update).await?;
    if row.token == fenced.token && row.owner.is_none() {
        // Our own earlier try, whose reply was lost, has ended the lease under this token; or we let go of it.
        let state = state(tx, fenced.run).await?;
        if state.status == finish.status {
            return Ok(());
        }
        if state.status.is_ended() {
            return Err(Error::Ended { run: fenced.run, status: state.status });
        }
    }
    let row = lease::fence(tx, fenced, lease::Lock::Update).await?;
    let id = fenced.run.to_string();
    let counts = to_json(&finish.counts, "counts")?;
    let ended_ms = finish.status.is_ended().then_some(row.now.wall_ms);
    tx.execute(
        "UPDATE runs SET status = $2, error = $3, counts = $4, ended_ms = $5 WHERE id = $1",
        args![&id, finish.status.as_str(), finish.error.as_deref(), &counts, ended_ms],
    )
    .await?;
    lease::end(tx, &row).await?;
    let kind = if finish.status.is_ended() { "ended" } else { "stopped" };
    let detail = serde_json::json!({ "status": finish.status.as_str(), "error": finish.error });
    let actor = row.owner_text().unwrap_or_default();
    events::record(tx, fenced.run, kind, &actor, &detail, row.now.wall_ms).await
}
