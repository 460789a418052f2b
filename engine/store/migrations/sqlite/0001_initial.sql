-- Version 1. Times ending in _ms are milliseconds since 1970 by the store's clock, except leases.until_ms, which is
-- counted on the clock that leases.epoch names (see src/clock.rs).
CREATE TABLE leases (
    name TEXT NOT NULL PRIMARY KEY,
    token INTEGER NOT NULL,
    owner TEXT,
    epoch TEXT NOT NULL,
    until_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE runs (
    id TEXT NOT NULL PRIMARY KEY,
    workflow_name TEXT NOT NULL,
    workflow_fingerprint TEXT NOT NULL,
    status TEXT NOT NULL,
    organisation TEXT NOT NULL,
    team TEXT NOT NULL,
    actor TEXT NOT NULL,
    submit_key TEXT,
    version INTEGER NOT NULL,
    created_ms INTEGER NOT NULL,
    started_ms INTEGER,
    ended_ms INTEGER,
    cancel_ms INTEGER,
    cancel_actor TEXT,
    cancel_reason TEXT,
    collecting INTEGER NOT NULL,
    collected INTEGER NOT NULL,
    labels TEXT NOT NULL,
    counts TEXT NOT NULL,
    error TEXT,
    parameters TEXT NOT NULL,
    workflow_text TEXT NOT NULL,
    payload BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX runs_submit_key ON runs (organisation, submit_key) WHERE submit_key IS NOT NULL;
CREATE INDEX runs_created ON runs (created_ms, id);
CREATE INDEX runs_status ON runs (status, created_ms, id);
CREATE INDEX runs_ended ON runs (ended_ms, id) WHERE ended_ms IS NOT NULL;

CREATE TABLE run_labels (
    run_id TEXT NOT NULL,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (key, value, run_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX run_labels_run ON run_labels (run_id);

CREATE TABLE run_versions (
    run_id TEXT NOT NULL,
    version INTEGER NOT NULL,
    opened_ms INTEGER NOT NULL,
    published_ms INTEGER,
    output TEXT,
    counts TEXT,
    payload BLOB,
    PRIMARY KEY (run_id, version)
) STRICT;

CREATE TABLE stages (
    run_id TEXT NOT NULL,
    version INTEGER NOT NULL,
    stage INTEGER NOT NULL,
    name TEXT NOT NULL,
    class TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    payload BLOB NOT NULL,
    status TEXT NOT NULL,
    error TEXT,
    chunk_count INTEGER,
    started_ms INTEGER,
    ended_ms INTEGER,
    PRIMARY KEY (run_id, version, stage)
) STRICT;

CREATE TABLE chunks (
    run_id TEXT NOT NULL,
    version INTEGER NOT NULL,
    stage INTEGER NOT NULL,
    chunk INTEGER NOT NULL,
    path TEXT NOT NULL,
    etag TEXT,
    size_bytes INTEGER,
    row_start INTEGER,
    row_count INTEGER,
    schema_fingerprint TEXT NOT NULL,
    partitions INTEGER NOT NULL,
    payload BLOB NOT NULL,
    PRIMARY KEY (run_id, version, stage, chunk)
) STRICT, WITHOUT ROWID;

CREATE TABLE journal (
    run_id TEXT NOT NULL,
    version INTEGER NOT NULL,
    stage INTEGER NOT NULL,
    chunk INTEGER NOT NULL,
    token INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    output TEXT NOT NULL,
    ledger TEXT,
    rows_out INTEGER NOT NULL,
    bytes_out INTEGER NOT NULL,
    committed_ms INTEGER NOT NULL,
    counts TEXT NOT NULL,
    payload BLOB NOT NULL,
    PRIMARY KEY (run_id, version, stage, chunk)
) STRICT, WITHOUT ROWID;

-- The sums of the journal's counts, kept by the transaction that commits a chunk, so that `show` never scans the journal.
CREATE TABLE step_counts (
    run_id TEXT NOT NULL,
    version INTEGER NOT NULL,
    stage INTEGER NOT NULL,
    step TEXT NOT NULL,
    ok INTEGER NOT NULL,
    cached INTEGER NOT NULL,
    defaulted INTEGER NOT NULL,
    skipped INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    dead_lettered INTEGER NOT NULL,
    not_run INTEGER NOT NULL,
    unknown INTEGER NOT NULL,
    PRIMARY KEY (run_id, version, stage, step)
) STRICT, WITHOUT ROWID;

-- One row holds the records of one flush for one chunk, packed (src/effect.rs), not one row per effect.
CREATE TABLE effects (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    run_id TEXT NOT NULL,
    version INTEGER NOT NULL,
    stage INTEGER NOT NULL,
    chunk INTEGER NOT NULL,
    batch BLOB NOT NULL,
    part INTEGER NOT NULL,
    records BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX effects_batch ON effects (run_id, version, stage, chunk, batch, part);

CREATE TABLE events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    run_id TEXT NOT NULL,
    id TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    kind TEXT NOT NULL,
    actor TEXT NOT NULL,
    detail TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX events_id ON events (run_id, id);
CREATE INDEX events_run ON events (run_id, seq);
