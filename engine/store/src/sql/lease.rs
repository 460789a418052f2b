//! Leases and fences. Every write of an owner passes through [`fence`].
//!
//! A lease is a row with a token that only grows. Whoever holds the current token may write; taking over means to raise
//! the token in a transaction that locks the row, so a write under the old token either is committed before or is
//! refused. Expiry decides only whether a take-over is allowed, never whether a write is.

use std::time::Duration;

use crate::clock::Now;
use crate::error::{Error, Result};
use crate::model::*;
use crate::sql::value::args;
use crate::sql::{KEY_TEXT_BYTES, SERVER_EPOCH, Tx, check_text, events, runs, to_i64, to_ms};

/// How a transaction holds the lease row on PostgreSQL. (On SQLite a writer holds the whole store.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lock {
    /// Others may write under the same fence at the same time; nobody may take over.
    Share,
    /// Nobody else.
    Update,
}

/// A lease row, locked, and the time.
#[derive(Debug)]
pub(crate) struct LeaseRow {
    pub(crate) name: String,
    pub(crate) token: u64,
    pub(crate) owner: Option<String>,
    epoch: String,
    until_ms: i64,
    pub(crate) now: Now,
}

impl LeaseRow {
    /// Whether somebody holds the lease by the store's clock.
    pub(crate) fn is_live(&self) -> bool {
        self.owner.is_some() && self.epoch == self.now.epoch && self.now.lease_ms < self.until_ms
    }

    fn expires_in(&self) -> Duration {
        Duration::from_millis((self.until_ms - self.now.lease_ms).max(0) as u64)
    }

    fn superseded(&self, token: u64) -> Error {
        Error::Fenced { lease: self.name.clone(), token, current_token: self.token, owner: self.owner_text() }
    }

    /// The owner's description without its identity.
    pub(crate) fn owner_text(&self) -> Option<String> {
        self.owner.as_deref().map(|owner| owner.split_once(' ').map_or(owner, |(_, text)| text).to_owned())
    }
}

pub(crate) fn run_lease_name(run: RunId) -> String {
    format!("run/{run}")
}

fn named_lease_name(name: &str) -> Result<String> {
    check_text(name, "name", KEY_TEXT_BYTES)?;
    if name.is_empty() {
        return Err(Error::invalid("name", "is empty"));
    }
    Ok(format!("named/{name}"))
}

/// Locks and reads a lease row.
pub(crate) async fn lock(tx: &mut impl Tx, name: &str, lock: Lock) -> Result<Option<LeaseRow>> {
    let sql = match lock {
        Lock::Share => tx.dialect().pick(
            "SELECT token, owner, epoch, until_ms FROM leases WHERE name = $1",
            "SELECT token, owner, epoch, until_ms, rowmill_now_ms() FROM leases WHERE name = $1 FOR SHARE",
        ),
        Lock::Update => tx.dialect().pick(
            "SELECT token, owner, epoch, until_ms FROM leases WHERE name = $1",
            "SELECT token, owner, epoch, until_ms, rowmill_now_ms() FROM leases WHERE name = $1 FOR UPDATE",
        ),
    };
    let Some(row) = tx.rows(sql, args![name]).await?.into_iter().next() else { return Ok(None) };
    let now = match tx.local_now() {
        Some(now) => now,
        None => {
            let ms = row.int(4)?;
            Now { wall_ms: ms, lease_ms: ms, epoch: SERVER_EPOCH.to_owned() }
        }
    };
    Ok(Some(LeaseRow {
        name: name.to_owned(),
        token: row.uint(0)?,
        owner: row.opt_string(1)?,
        epoch: row.string(2)?,
        until_ms: row.int(3)?,
        now,
    }))
}

/// Locks a run's lease, or says that there is no such run.
pub(crate) async fn lock_run(tx: &mut impl Tx, run: RunId, how: Lock) -> Result<LeaseRow> {
    lock(tx, &run_lease_name(run), how).await?.ok_or_else(|| runs::not_found(run))
}

/// Locks a run's lease and refuses a token that is not the current one.
pub(crate) async fn fence(tx: &mut impl Tx, fence: &Fence, how: Lock) -> Result<LeaseRow> {
    let row = lock_run(tx, fence.run, how).await?;
    if row.token != fence.token || row.owner.is_none() {
        return Err(row.superseded(fence.token));
    }
    Ok(row)
}

/// Makes the lease row that every run has.
pub(crate) async fn create(tx: &mut impl Tx, run: RunId) -> Result<()> {
    let name = run_lease_name(run);
    tx.execute(
        "INSERT INTO leases (name, token, owner, epoch, until_ms) VALUES ($1, 0, NULL, '', 0) ON CONFLICT DO NOTHING",
        args![&name],
    )
    .await?;
    Ok(())
}

async fn write(tx: &mut impl Tx, row: &LeaseRow, token: u64, owner: Option<&str>, ttl_ms: i64) -> Result<()> {
    tx.execute(
        "UPDATE leases SET token = $2, owner = $3, epoch = $4, until_ms = $5 WHERE name = $1",
        args![&row.name, to_i64(token, "token")?, owner, &row.now.epoch, row.now.lease_ms + ttl_ms],
    )
    .await?;
    Ok(())
}

/// Ends whatever lease there is, so that no token issued before can write.
pub(crate) async fn revoke(tx: &mut impl Tx, row: &LeaseRow) -> Result<()> {
    write(tx, row, row.token + 1, None, 0).await
}

/// Ends the lease under its own token, which lets the holder's repeated last call be recognised.
pub(crate) async fn end(tx: &mut impl Tx, row: &LeaseRow) -> Result<()> {
    write(tx, row, row.token, None, 0).await
}

fn check_owner(owner: &Owner) -> Result<String> {
    check_text(&owner.description, "owner", KEY_TEXT_BYTES)?;
    Ok(owner.to_text())
}

pub(crate) async fn acquire(
    tx: &mut impl Tx,
    run: RunId,
    owner: &Owner,
    ttl: Duration,
    mode: AcquireMode,
) -> Result<Acquired> {
    let owner_text = check_owner(owner)?;
    let ttl_ms = to_ms(ttl, "ttl")?;
    let row = lock_run(tx, run, Lock::Update).await?;
    let state = runs::state(tx, run).await?;
    let live = row.is_live();
    if live && row.owner.as_deref() == Some(&owner_text) {
        // The first reply was lost, or the owner asks twice: the same token, renewed.
        write(tx, &row, row.token, Some(&owner_text), ttl_ms).await?;
        let fence = Fence { run, token: row.token };
        return Ok(Acquired::Lease(Lease {
            fence,
            ttl,
            version: state.version,
            status: state.status,
            taken_from: None,
        }));
    }
    if state.status.is_ended() && mode != AcquireMode::Reopen {
        return Ok(Acquired::Ended(state.status));
    }
    if live && mode != AcquireMode::Steal {
        let owner = row.owner_text().unwrap_or_default();
        return Ok(Acquired::Held { owner, expires_in: row.expires_in() });
    }
    let token = row.token + 1;
    write(tx, &row, token, Some(&owner_text), ttl_ms).await?;
    let mut version = state.version;
    let mut status = state.status;
    if state.status.is_ended() {
        version = runs::reopen(tx, run, &state, &row.now).await?;
        status = RunStatus::Running;
    }
    let taken_from = row.owner_text();
    let detail = serde_json::json!({ "token": token, "taken_from": taken_from, "version": version });
    events::record(tx, run, "owner", &owner.description, &detail, row.now.wall_ms).await?;
    Ok(Acquired::Lease(Lease { fence: Fence { run, token }, ttl, version, status, taken_from }))
}

pub(crate) async fn renew(tx: &mut impl Tx, fenced: &Fence, ttl: Duration) -> Result<Renewed> {
    let ttl_ms = to_ms(ttl, "ttl")?;
    let row = fence(tx, fenced, Lock::Update).await?;
    write(tx, &row, row.token, row.owner.as_deref(), ttl_ms).await?;
    Ok(Renewed { cancel: runs::state(tx, fenced.run).await?.cancel })
}

pub(crate) async fn release(tx: &mut impl Tx, fenced: &Fence) -> Result<()> {
    let row = lock_run(tx, fenced.run, Lock::Update).await?;
    if row.token == fenced.token && row.owner.is_some() {
        end(tx, &row).await?;
    }
    Ok(())
}

pub(crate) async fn acquire_named(tx: &mut impl Tx, name: &str, owner: &Owner, ttl: Duration) -> Result<NamedLease> {
    let owner_text = check_owner(owner)?;
    let ttl_ms = to_ms(ttl, "ttl")?;
    let lease_name = named_lease_name(name)?;
    tx.execute(
        "INSERT INTO leases (name, token, owner, epoch, until_ms) VALUES ($1, 0, NULL, '', 0) ON CONFLICT DO NOTHING",
        args![&lease_name],
    )
    .await?;
    let row = lock(tx, &lease_name, Lock::Update).await?.ok_or_else(|| not_found(&lease_name))?;
    let live = row.is_live();
    let ours = row.owner.as_deref() == Some(&owner_text);
    if live && !ours {
        let owner = row.owner_text().unwrap_or_default();
        return Ok(NamedLease::Held { owner, expires_in: row.expires_in() });
    }
    let token = if live { row.token } else { row.token + 1 };
    write(tx, &row, token, Some(&owner_text), ttl_ms).await?;
    Ok(NamedLease::Granted(NamedFence { name: name.to_owned(), token }))
}

pub(crate) async fn renew_named(tx: &mut impl Tx, fenced: &NamedFence, ttl: Duration) -> Result<()> {
    let ttl_ms = to_ms(ttl, "ttl")?;
    let name = named_lease_name(&fenced.name)?;
    let row = lock(tx, &name, Lock::Update).await?.ok_or_else(|| not_found(&name))?;
    if row.token != fenced.token || row.owner.is_none() {
        return Err(row.superseded(fenced.token));
    }
    write(tx, &row, row.token, row.owner.as_deref(), ttl_ms).await
}

pub(crate) async fn release_named(tx: &mut impl Tx, fenced: &NamedFence) -> Result<()> {
    let name = named_lease_name(&fenced.name)?;
    let row = lock(tx, &name, Lock::Update).await?.ok_or_else(|| not_found(&name))?;
    if row.token == fenced.token && row.owner.is_some() {
        end(tx, &row).await?;
    }
    Ok(())
}

fn not_found(name: &str) -> Error {
    Error::NotFound { what: format!("the lease {name}") }
}
