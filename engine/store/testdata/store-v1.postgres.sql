--
-- PostgreSQL database dump
--


-- Dumped from database version 15.18 (Debian 15.18-0+deb12u1)
-- Dumped by pg_dump version 15.18 (Debian 15.18-0+deb12u1)

SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;

--
-- Name: fixture; Type: SCHEMA; Schema: -; Owner: -
--

CREATE SCHEMA fixture;


--
-- Name: rowmill_now_ms(); Type: FUNCTION; Schema: fixture; Owner: -
--

CREATE FUNCTION fixture.rowmill_now_ms() RETURNS bigint
    LANGUAGE sql
    AS $$ SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint $$;


SET default_tablespace = '';

SET default_table_access_method = heap;

--
-- Name: chunks; Type: TABLE; Schema: fixture; Owner: -
--

CREATE TABLE fixture.chunks (
    run_id text NOT NULL COLLATE pg_catalog."C",
    version bigint NOT NULL,
    stage bigint NOT NULL,
    chunk bigint NOT NULL,
    path text NOT NULL,
    etag text,
    size_bytes bigint,
    row_start bigint,
    row_count bigint,
    schema_fingerprint text NOT NULL,
    partitions bigint NOT NULL,
    payload bytea NOT NULL
);


--
-- Name: effects; Type: TABLE; Schema: fixture; Owner: -
--

CREATE TABLE fixture.effects (
    seq bigint NOT NULL,
    run_id text NOT NULL COLLATE pg_catalog."C",
    version bigint NOT NULL,
    stage bigint NOT NULL,
    chunk bigint NOT NULL,
    batch bytea NOT NULL,
    part bigint NOT NULL,
    records bytea NOT NULL
);


--
-- Name: effects_seq_seq; Type: SEQUENCE; Schema: fixture; Owner: -
--

ALTER TABLE fixture.effects ALTER COLUMN seq ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME fixture.effects_seq_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


--
-- Name: events; Type: TABLE; Schema: fixture; Owner: -
--

CREATE TABLE fixture.events (
    seq bigint NOT NULL,
    run_id text NOT NULL COLLATE pg_catalog."C",
    id text NOT NULL COLLATE pg_catalog."C",
    at_ms bigint NOT NULL,
    kind text NOT NULL,
    actor text NOT NULL,
    detail text NOT NULL
);


--
-- Name: events_seq_seq; Type: SEQUENCE; Schema: fixture; Owner: -
--

ALTER TABLE fixture.events ALTER COLUMN seq ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME fixture.events_seq_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


--
-- Name: journal; Type: TABLE; Schema: fixture; Owner: -
--

CREATE TABLE fixture.journal (
    run_id text NOT NULL COLLATE pg_catalog."C",
    version bigint NOT NULL,
    stage bigint NOT NULL,
    chunk bigint NOT NULL,
    token bigint NOT NULL,
    attempt bigint NOT NULL,
    output text NOT NULL,
    ledger text,
    rows_out bigint NOT NULL,
    bytes_out bigint NOT NULL,
    committed_ms bigint NOT NULL,
    counts text NOT NULL,
    payload bytea NOT NULL
);


--
-- Name: leases; Type: TABLE; Schema: fixture; Owner: -
--

CREATE TABLE fixture.leases (
    name text NOT NULL COLLATE pg_catalog."C",
    token bigint NOT NULL,
    owner text,
    epoch text NOT NULL COLLATE pg_catalog."C",
    until_ms bigint NOT NULL
);


--
-- Name: rowmill_store_version; Type: TABLE; Schema: fixture; Owner: -
--

CREATE TABLE fixture.rowmill_store_version (
    version bigint NOT NULL
);


--
-- Name: run_labels; Type: TABLE; Schema: fixture; Owner: -
--

CREATE TABLE fixture.run_labels (
    run_id text NOT NULL COLLATE pg_catalog."C",
    key text NOT NULL COLLATE pg_catalog."C",
    value text NOT NULL COLLATE pg_catalog."C"
);


--
-- Name: run_versions; Type: TABLE; Schema: fixture; Owner: -
--

CREATE TABLE fixture.run_versions (
    run_id text NOT NULL COLLATE pg_catalog."C",
    version bigint NOT NULL,
    opened_ms bigint NOT NULL,
    published_ms bigint,
    output text,
    counts text,
    payload bytea
);


--
-- Name: runs; Type: TABLE; Schema: fixture; Owner: -
--

CREATE TABLE fixture.runs (
    id text NOT NULL COLLATE pg_catalog."C",
    workflow_name text NOT NULL,
    workflow_fingerprint text NOT NULL,
    status text NOT NULL COLLATE pg_catalog."C",
    organisation text NOT NULL COLLATE pg_catalog."C",
    team text NOT NULL COLLATE pg_catalog."C",
    actor text NOT NULL,
    submit_key text COLLATE pg_catalog."C",
    version bigint NOT NULL,
    created_ms bigint NOT NULL,
    started_ms bigint,
    ended_ms bigint,
    cancel_ms bigint,
    cancel_actor text,
    cancel_reason text,
    collecting bigint NOT NULL,
    collected bigint NOT NULL,
    labels text NOT NULL,
    counts text NOT NULL,
    error text,
    parameters text NOT NULL,
    workflow_text text NOT NULL,
    payload bytea NOT NULL
);


--
-- Name: stages; Type: TABLE; Schema: fixture; Owner: -
--

CREATE TABLE fixture.stages (
    run_id text NOT NULL COLLATE pg_catalog."C",
    version bigint NOT NULL,
    stage bigint NOT NULL,
    name text NOT NULL,
    class text NOT NULL,
    fingerprint text NOT NULL,
    payload bytea NOT NULL,
    status text NOT NULL COLLATE pg_catalog."C",
    error text,
    chunk_count bigint,
    started_ms bigint,
    ended_ms bigint
);


--
-- Name: step_counts; Type: TABLE; Schema: fixture; Owner: -
--

CREATE TABLE fixture.step_counts (
    run_id text NOT NULL COLLATE pg_catalog."C",
    version bigint NOT NULL,
    stage bigint NOT NULL,
    step text NOT NULL COLLATE pg_catalog."C",
    ok bigint NOT NULL,
    cached bigint NOT NULL,
    defaulted bigint NOT NULL,
    skipped bigint NOT NULL,
    failed bigint NOT NULL,
    dead_lettered bigint NOT NULL,
    not_run bigint NOT NULL,
    unknown bigint NOT NULL
);


--
-- Data for Name: chunks; Type: TABLE DATA; Schema: fixture; Owner: -
--

INSERT INTO fixture.chunks VALUES ('01980000-0000-7000-8000-000000000001', 1, 0, 0, 'in/0.parquet', 'e0', 0, 0, NULL, 'sf', 4, '\x010002');
INSERT INTO fixture.chunks VALUES ('01980000-0000-7000-8000-000000000001', 1, 0, 1, 'in/1.parquet', NULL, 10, 1000, NULL, 'sf', 4, '\x010002');
INSERT INTO fixture.chunks VALUES ('01980000-0000-7000-8000-000000000001', 1, 0, 2, 'in/2.parquet', 'e2', 20, 2000, NULL, 'sf', 4, '\x010002');
INSERT INTO fixture.chunks VALUES ('01980000-0000-7000-8000-000000000001', 1, 0, 3, 'in/3.parquet', NULL, 30, 3000, NULL, 'sf', 4, '\x010002');
INSERT INTO fixture.chunks VALUES ('01980000-0000-7000-8000-000000000001', 1, 0, 4, 'in/4.parquet', 'e4', 40, 4000, NULL, 'sf', 4, '\x010002');


--
-- Data for Name: effects; Type: TABLE DATA; Schema: fixture; Owner: -
--

INSERT INTO fixture.effects OVERRIDING SYSTEM VALUE VALUES (1, '01980000-0000-7000-8000-000000000001', 1, 0, 3, '\x313d6c2cb7854bdf90f008cdf40c4aea', 0, '\x01020000000101010101010101010101010101010101080000006120726573756c740202020202020202020202020202020200000000005f6031f295e70d30');


--
-- Data for Name: events; Type: TABLE DATA; Schema: fixture; Owner: -
--

INSERT INTO fixture.events OVERRIDING SYSTEM VALUE VALUES (1, '01980000-0000-7000-8000-000000000001', '4a692b87-5857-4e4d-82cb-2b7b09383980', 1795322610688, 'submitted', 'ada', '{"workflow":"fixture","fingerprint":"f-fixture"}');
INSERT INTO fixture.events OVERRIDING SYSTEM VALUE VALUES (2, '01980000-0000-7000-8000-000000000001', '3c3eb9df-4795-4a89-8a25-a6be590973b8', 1795322610695, 'owner', 'fixture', '{"token":1,"taken_from":null,"version":1}');
INSERT INTO fixture.events OVERRIDING SYSTEM VALUE VALUES (3, '01980000-0000-7000-8000-000000000001', '2b2304cd-00b6-48c9-83cd-d8a6f0fb2431', 1795322610715, 'note', 'fixture', '{"n":1}');


--
-- Data for Name: journal; Type: TABLE DATA; Schema: fixture; Owner: -
--

INSERT INTO fixture.journal VALUES ('01980000-0000-7000-8000-000000000001', 1, 0, 0, 1, 1, 'out/1-0-0-1.arrow', 'ledger', 100, 4096, 1795322610709, '[{"step":"a","counts":{"ok":98,"cached":0,"defaulted":0,"skipped":0,"failed":2,"dead_lettered":0,"not_run":0,"unknown":0}},{"step":"b","counts":{"ok":90,"cached":8,"defaulted":0,"skipped":0,"failed":0,"dead_lettered":0,"not_run":0,"unknown":0}}]', '\x070707');
INSERT INTO fixture.journal VALUES ('01980000-0000-7000-8000-000000000001', 1, 0, 1, 1, 1, 'out/1-0-1-1.arrow', NULL, 100, 4096, 1795322610709, '[{"step":"a","counts":{"ok":98,"cached":0,"defaulted":0,"skipped":0,"failed":2,"dead_lettered":0,"not_run":0,"unknown":0}},{"step":"b","counts":{"ok":90,"cached":8,"defaulted":0,"skipped":0,"failed":0,"dead_lettered":0,"not_run":0,"unknown":0}}]', '\x070707');
INSERT INTO fixture.journal VALUES ('01980000-0000-7000-8000-000000000001', 1, 0, 2, 1, 1, 'out/1-0-2-1.arrow', NULL, 100, 4096, 1795322610709, '[{"step":"a","counts":{"ok":98,"cached":0,"defaulted":0,"skipped":0,"failed":2,"dead_lettered":0,"not_run":0,"unknown":0}},{"step":"b","counts":{"ok":90,"cached":8,"defaulted":0,"skipped":0,"failed":0,"dead_lettered":0,"not_run":0,"unknown":0}}]', '\x070707');


--
-- Data for Name: leases; Type: TABLE DATA; Schema: fixture; Owner: -
--

INSERT INTO fixture.leases VALUES ('run/01980000-0000-7000-8000-000000000001', 1, NULL, 'server', 1795322610719);


--
-- Data for Name: rowmill_store_version; Type: TABLE DATA; Schema: fixture; Owner: -
--

INSERT INTO fixture.rowmill_store_version VALUES (1);


--
-- Data for Name: run_labels; Type: TABLE DATA; Schema: fixture; Owner: -
--

INSERT INTO fixture.run_labels VALUES ('01980000-0000-7000-8000-000000000001', 'env', 'test');


--
-- Data for Name: run_versions; Type: TABLE DATA; Schema: fixture; Owner: -
--

INSERT INTO fixture.run_versions VALUES ('01980000-0000-7000-8000-000000000001', 1, 1795322610688, NULL, NULL, NULL, NULL);


--
-- Data for Name: runs; Type: TABLE DATA; Schema: fixture; Owner: -
--

INSERT INTO fixture.runs VALUES ('01980000-0000-7000-8000-000000000001', 'fixture', 'f-fixture', 'running', 'acme', 'data', 'ada', 'fixture', 1, 1795322610688, 1795322610700, NULL, NULL, NULL, NULL, 0, 0, '{"env":"test"}', '{"ok":0,"cached":0,"defaulted":0,"skipped":0,"failed":0,"dead_lettered":0,"not_run":0,"unknown":0}', NULL, '{"day":"2024-01-01","n":3,"nested":{"b":[1,null],"a":2.5}}', 'rowmill: 1
name: fixture
# héllo, ''quotes'' " and -- comments;
', '\x0001ff');


--
-- Data for Name: stages; Type: TABLE DATA; Schema: fixture; Owner: -
--

INSERT INTO fixture.stages VALUES ('01980000-0000-7000-8000-000000000001', 1, 1, 'stage 1', 'io', 's1', '\x01', 'pending', NULL, NULL, NULL, NULL);
INSERT INTO fixture.stages VALUES ('01980000-0000-7000-8000-000000000001', 1, 0, 'stage 0', 'io', 's0', '\x00', 'running', NULL, 5, 1795322610704, NULL);


--
-- Data for Name: step_counts; Type: TABLE DATA; Schema: fixture; Owner: -
--

INSERT INTO fixture.step_counts VALUES ('01980000-0000-7000-8000-000000000001', 1, 0, 'a', 294, 0, 0, 0, 6, 0, 0, 0);
INSERT INTO fixture.step_counts VALUES ('01980000-0000-7000-8000-000000000001', 1, 0, 'b', 270, 24, 0, 0, 0, 0, 0, 0);


--
-- Name: effects_seq_seq; Type: SEQUENCE SET; Schema: fixture; Owner: -
--

SELECT pg_catalog.setval('fixture.effects_seq_seq', 1, true);


--
-- Name: events_seq_seq; Type: SEQUENCE SET; Schema: fixture; Owner: -
--

SELECT pg_catalog.setval('fixture.events_seq_seq', 3, true);


--
-- Name: chunks chunks_pkey; Type: CONSTRAINT; Schema: fixture; Owner: -
--

ALTER TABLE ONLY fixture.chunks
    ADD CONSTRAINT chunks_pkey PRIMARY KEY (run_id, version, stage, chunk);


--
-- Name: effects effects_pkey; Type: CONSTRAINT; Schema: fixture; Owner: -
--

ALTER TABLE ONLY fixture.effects
    ADD CONSTRAINT effects_pkey PRIMARY KEY (seq);


--
-- Name: events events_pkey; Type: CONSTRAINT; Schema: fixture; Owner: -
--

ALTER TABLE ONLY fixture.events
    ADD CONSTRAINT events_pkey PRIMARY KEY (seq);


--
-- Name: journal journal_pkey; Type: CONSTRAINT; Schema: fixture; Owner: -
--

ALTER TABLE ONLY fixture.journal
    ADD CONSTRAINT journal_pkey PRIMARY KEY (run_id, version, stage, chunk);


--
-- Name: leases leases_pkey; Type: CONSTRAINT; Schema: fixture; Owner: -
--

ALTER TABLE ONLY fixture.leases
    ADD CONSTRAINT leases_pkey PRIMARY KEY (name);


--
-- Name: run_labels run_labels_pkey; Type: CONSTRAINT; Schema: fixture; Owner: -
--

ALTER TABLE ONLY fixture.run_labels
    ADD CONSTRAINT run_labels_pkey PRIMARY KEY (key, value, run_id);


--
-- Name: run_versions run_versions_pkey; Type: CONSTRAINT; Schema: fixture; Owner: -
--

ALTER TABLE ONLY fixture.run_versions
    ADD CONSTRAINT run_versions_pkey PRIMARY KEY (run_id, version);


--
-- Name: runs runs_pkey; Type: CONSTRAINT; Schema: fixture; Owner: -
--

ALTER TABLE ONLY fixture.runs
    ADD CONSTRAINT runs_pkey PRIMARY KEY (id);


--
-- Name: stages stages_pkey; Type: CONSTRAINT; Schema: fixture; Owner: -
--

ALTER TABLE ONLY fixture.stages
    ADD CONSTRAINT stages_pkey PRIMARY KEY (run_id, version, stage);


--
-- Name: step_counts step_counts_pkey; Type: CONSTRAINT; Schema: fixture; Owner: -
--

ALTER TABLE ONLY fixture.step_counts
    ADD CONSTRAINT step_counts_pkey PRIMARY KEY (run_id, version, stage, step);


--
-- Name: effects_batch; Type: INDEX; Schema: fixture; Owner: -
--

CREATE UNIQUE INDEX effects_batch ON fixture.effects USING btree (run_id, version, stage, chunk, batch, part);


--
-- Name: events_id; Type: INDEX; Schema: fixture; Owner: -
--

CREATE UNIQUE INDEX events_id ON fixture.events USING btree (run_id, id);


--
-- Name: events_run; Type: INDEX; Schema: fixture; Owner: -
--

CREATE INDEX events_run ON fixture.events USING btree (run_id, seq);


--
-- Name: run_labels_run; Type: INDEX; Schema: fixture; Owner: -
--

CREATE INDEX run_labels_run ON fixture.run_labels USING btree (run_id);


--
-- Name: runs_created; Type: INDEX; Schema: fixture; Owner: -
--

CREATE INDEX runs_created ON fixture.runs USING btree (created_ms, id);


--
-- Name: runs_ended; Type: INDEX; Schema: fixture; Owner: -
--

CREATE INDEX runs_ended ON fixture.runs USING btree (ended_ms, id) WHERE (ended_ms IS NOT NULL);


--
-- Name: runs_status; Type: INDEX; Schema: fixture; Owner: -
--

CREATE INDEX runs_status ON fixture.runs USING btree (status, created_ms, id);


--
-- Name: runs_submit_key; Type: INDEX; Schema: fixture; Owner: -
--

CREATE UNIQUE INDEX runs_submit_key ON fixture.runs USING btree (organisation, submit_key) WHERE (submit_key IS NOT NULL);


--
-- PostgreSQL database dump complete
--


