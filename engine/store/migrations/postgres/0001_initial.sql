-- Version 1. Times ending in _ms are milliseconds since 1970 by the server's clock. Keys compare by bytes, whatever the
-- database's locale.

-- The one clock of the store: no statement takes a time from a caller.
CREATE FUNCTION rowmill_now_ms() RETURNS BIGINT LANGUAGE sql VOLATILE
    AS $$ SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint $$;

CREATE TABLE leases (
    name TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    token BIGINT NOT NULL,
    owner TEXT,
    epoch TEXT COLLATE "C" NOT NULL,
    until_ms BIGINT NOT NULL
);

CREATE TABLE runs (
    id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    workflow_name TEXT NOT NULL,
    workflow_fingerprint TEXT NOT NULL,
    status TEXT COLLATE "C" NOT NULL,
    organisation TEXT COLLATE "C" NOT NULL,
    team TEXT COLLATE "C" NOT NULL,
    actor TEXT NOT NULL,
    submit_key TEXT COLLATE "C",
    version BIGINT NOT NULL,
    created_ms BIGINT NOT NULL,
    started_ms BIGINT,
    ended_ms BIGINT,
    cancel_ms BIGINT,
    cancel_actor TEXT,
    cancel_reason TEXT,
    collecting BIGINT NOT NULL,
    collected BIGINT NOT NULL,
    labels TEXT NOT NULL,
    counts TEXT NOT NULL,
    error TEXT,
    parameters TEXT NOT NULL,
    workflow_text TEXT NOT NULL,
    payload BYTEA NOT NULL
);
CREATE UNIQUE INDEX runs_submit_key ON runs (organisation, submit_key) WHERE submit_key IS NOT NULL;
CREATE INDEX runs_created ON runs (created_ms, id);
CREATE INDEX runs_status ON runs (status, created_ms, id);
CREATE INDEX runs_ended ON runs (ended_ms, id) WHERE ended_ms IS NOT NULL;

CREATE TABLE run_labels (
    run_id TEXT COLLATE "C" NOT NULL,
    key TEXT COLLATE "C" NOT NULL,
    value TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (key, value, run_id)
);
CREATE INDEX run_labels_run ON run_labels (run_id);

CREATE TABLE run_versions (
    run_id TEXT COLLATE "C" NOT NULL,
    version BIGINT NOT NULL,
    opened_ms BIGINT NOT NULL,
    published_ms BIGINT,
    output TEXT,
    counts TEXT,
    payload BYTEA,
    PRIMARY KEY (run_id, version)
);

CREATE TABLE stages (
    run_id TEXT COLLATE "C" NOT NULL,
    version BIGINT NOT NULL,
    stage BIGINT NOT NULL,
    name TEXT NOT NULL,
    class TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    payload BYTEA NOT NULL,
    status TEXT COLLATE "C" NOT NULL,
    error TEXT,
    chunk_count BIGINT,
    started_ms BIGINT,
    ended_ms BIGINT,
    PRIMARY KEY (run_id, version, stage)
);

CREATE TABLE chunks (
    run_id TEXT COLLATE "C" NOT NULL,
    version BIGINT NOT NULL,
    stage BIGINT NOT NULL,
    chunk BIGINT NOT NULL,
    path TEXT NOT NULL,
    etag TEXT,
    size_bytes BIGINT,
    row_start BIGINT,
    row_count BIGINT,
    schema_fingerprint TEXT NOT NULL,
    partitions BIGINT NOT NULL,
    payload BYTEA NOT NULL,
    PRIMARY KEY (run_id, version, stage, chunk)
);

CREATE TABLE journal (
    run_id TEXT COLLATE "C" NOT NULL,
    version BIGINT NOT NULL,
    stage BIGINT NOT NULL,
    chunk BIGINT NOT NULL,
    token BIGINT NOT NULL,
    attempt BIGINT NOT NULL,
    output TEXT NOT NULL,
    ledger TEXT,
    rows_out BIGINT NOT NULL,
    bytes_out BIGINT NOT NULL,
    committed_ms BIGINT NOT NULL,
    counts TEXT NOT NULL,
    payload BYTEA NOT NULL,
    PRIMARY KEY (run_id, version, stage, chunk)
);

-- The sums of the journal's counts, kept by the transaction that commits a chunk, so that `show` never scans the journal.
CREATE TABLE step_counts (
    run_id TEXT COLLATE "C" NOT NULL,
    version BIGINT NOT NULL,
    stage BIGINT NOT NULL,
    step TEXT COLLATE "C" NOT NULL,
    ok BIGINT NOT NULL,
    cached BIGINT NOT NULL,
    defaulted BIGINT NOT NULL,
    skipped BIGINT NOT NULL,
    failed BIGINT NOT NULL,
    dead_lettered BIGINT NOT NULL,
    not_run BIGINT NOT NULL,
    unknown BIGINT NOT NULL,
    PRIMARY KEY (run_id, version, stage, step)
);

-- One row holds the records of one flush for one chunk, packed (src/effect.rs), not one row per effect.
CREATE TABLE effects (
    seq BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id TEXT COLLATE "C" NOT NULL,
    version BIGINT NOT NULL,
    stage BIGINT NOT NULL,
    chunk BIGINT NOT NULL,
    batch BYTEA NOT NULL,
    part BIGINT NOT NULL,
    records BYTEA NOT NULL
);
CREATE UNIQUE INDEX effects_batch ON effects (run_id, version, stage, chunk, batch, part);

CREATE TABLE events (
    seq BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id TEXT COLLATE "C" NOT NULL,
    id TEXT COLLATE "C" NOT NULL,
    at_ms BIGINT NOT NULL,
    kind TEXT NOT NULL,
    actor TEXT NOT NULL,
    detail TEXT NOT NULL
);
CREATE UNIQUE INDEX events_id ON events (run_id, id);
CREATE INDEX events_run ON events (run_id, seq);
