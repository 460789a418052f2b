//! Real processes: a writer that is killed in the middle of its commits, and several that race for a lease and for
//! chunks. The processes are this test binary, run again with one helper test selected.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rowmill_store::*;

use crate::support::*;

const STORE: &str = "ROWMILL_STORE_TEST_STORE";
const RUN: &str = "ROWMILL_STORE_TEST_RUN";
const TOKEN: &str = "ROWMILL_STORE_TEST_TOKEN";
const NUMBER: &str = "ROWMILL_STORE_TEST_NUMBER";

async fn open(place: &str) -> Arc<dyn RunStore> {
    match place.split_once('|') {
        Some((url, schema)) => {
            open_postgres(PostgresOptions { schema: schema.to_owned(), ..PostgresOptions::url(url) }).await.unwrap()
        }
        None => open_sqlite(SqliteOptions::file(place)).await.unwrap(),
    }
}

fn helper(test: &str, place: &str, run: RunId, token: u64, number: u32) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", &format!("process::{test}"), "--nocapture", "--test-threads=1"])
        .env(STORE, place)
        .env(RUN, run.to_string())
        .env(TOKEN, token.to_string())
        .env(NUMBER, number.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

fn told() -> Option<(String, RunId, u64, u32)> {
    let var = |name| std::env::var(name).ok();
    Some((var(STORE)?, var(RUN)?.parse().unwrap(), var(TOKEN)?.parse().unwrap(), var(NUMBER)?.parse().unwrap()))
}

/// Lines that a helper said, without the test harness's own.
fn said(child: &mut Child) -> impl Iterator<Item = String> + use<> {
    let out = BufReader::new(child.stdout.take().unwrap());
    out.lines().map_while(Result::ok).filter_map(|line| line.split_once('@').map(|(_, said)| said.to_owned()))
}

fn say(line: String) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    writeln!(out, "@{line}").unwrap();
    out.flush().unwrap();
}

/// Takes the run and then logs effects and commits chunks until it is killed, saying what was confirmed.
#[tokio::test]
#[ignore = "a process of the kill test"]
async fn helper_writer() {
    let Some((place, run, _, number)) = told() else { return };
    let store = open(&place).await;
    let fence = take(&*store, run, &Owner::new(format!("writer {number}")), AcquireMode::Steal).await;
    say(format!("token {}", fence.token));
    let mut chunk = u64::from(number) * 1_000_000;
    loop {
        for flush in 0..2u8 {
            let records =
                (0..50).map(|key| record(S0.chunk(chunk), flush * 50 + key, EffectKind::Result, &[flush; 64]));
            store.append_effects(&fence, &EffectBatch::new(records.collect())).await.unwrap();
            say(format!("effects {chunk} {}", (flush + 1) * 50));
        }
        assert_eq!(store.commit_chunk(&fence, &commit(S0.chunk(chunk), 1)).await.unwrap(), CommitResult::Committed);
        say(format!("commit {chunk}"));
        chunk += 1;
    }
}

async fn kill_test(place: &str, rounds: u32) {
    let store = open(place).await;
    let (run, _) = begun(&*store, &Owner::new("parent")).await;
    let mut confirmed: BTreeSet<u64> = BTreeSet::new();
    let mut killed_inside = 0;
    let mut last_token = 0;
    for round in 1..=rounds {
        let mut child = helper("helper_writer", place, run, 0, round);
        let mut lines = said(&mut child);
        // Different lengths, so that the kill meets different moments.
        let wanted = 3 + (round * 7) % 29;
        let mut effects: BTreeMap<u64, usize> = BTreeMap::new();
        let mut hear = |line: &str, confirmed: &mut BTreeSet<u64>| {
            let words: Vec<u64> = line.split(' ').skip(1).map(|word| word.parse().unwrap()).collect();
            match line.split(' ').next() {
                Some("token") => {
                    assert!(words[0] > last_token);
                    last_token = words[0];
                }
                Some("commit") => {
                    confirmed.insert(words[0]);
                    effects.remove(&words[0]);
                }
                _ => {
                    effects.insert(words[0], words[1] as usize);
                }
            }
        };
        for _ in 0..wanted {
            hear(&lines.next().expect("the writer died by itself"), &mut confirmed);
        }
        child.kill().unwrap();
        lines.for_each(|line| hear(&line, &mut confirmed));
        child.wait().unwrap();
        killed_inside += usize::from(!effects.is_empty());

        // A fresh look at what is on disk.
        let after = open(place).await;
        after.check().await.unwrap();
        let committed = after.committed(run, S0, &all()).await.unwrap().items;
        let stored: BTreeSet<u64> = committed.iter().map(|chunk| chunk.commit.chunk.chunk).collect();
        assert!(stored.is_superset(&confirmed), "a confirmed commit is lost");
        assert!(stored.len() <= confirmed.len() + 1, "more was committed than one call in flight");
        confirmed = stored;
        for (chunk, least) in &effects {
            let found = after.effects(run, S0.chunk(*chunk)).await.unwrap().by_key.len();
            if confirmed.contains(chunk) {
                assert_eq!(found, 0, "effects of a committed chunk");
            } else {
                assert!(found >= *least && found % 50 == 0, "{found} of {least} confirmed effects");
            }
        }
        for chunk in confirmed.iter().rev().take(3) {
            assert!(after.effects(run, S0.chunk(*chunk)).await.unwrap().by_key.is_empty());
        }
        let sums = after.stages(run, 1).await.unwrap().remove(0);
        assert_eq!(sums.counts[0].counts.total(), 100 * confirmed.len() as u64, "sums and journal disagree");
        after.close().await;
    }
    assert!(killed_inside > 0, "no kill met a chunk in progress");
}

#[tokio::test]
async fn a_killed_writer_loses_nothing_that_was_confirmed() {
    let files = tempfile::tempdir().unwrap();
    kill_test(files.path().join("runs.sqlite").to_str().unwrap(), 12).await;
}

#[tokio::test]
async fn a_killed_writer_loses_nothing_that_was_confirmed_on_postgres() {
    let Some(server) = crate::server::shared() else { return };
    kill_test(&format!("{}|kill_test", server.url()), 6).await;
}

/// Tries to take the run again and again, for a short time each, and says which tokens it got.
#[tokio::test]
#[ignore = "a process of the race test"]
async fn helper_taker() {
    let Some((place, run, _, number)) = told() else { return };
    let store = open(&place).await;
    let owner = Owner::new(format!("taker {number}"));
    let mut got = 0;
    for _ in 0..3000 {
        if let Acquired::Lease(lease) =
            store.acquire(run, &owner, Duration::from_millis(60_000), AcquireMode::Free).await.unwrap()
        {
            say(format!("token {}", lease.fence.token));
            got += 1;
            store.release(&lease.fence).await.unwrap();
        }
        if got == 25 {
            break;
        }
    }
}

/// Commits chunks under a fence that all share and says which ones were its own, and who won the others.
#[tokio::test]
#[ignore = "a process of the race test"]
async fn helper_committer() {
    let Some((place, run, token, number)) = told() else { return };
    let store = open(&place).await;
    let fence = Fence { run, token };
    for chunk in 0..CHUNKS {
        match store.commit_chunk(&fence, &commit(S0.chunk(chunk), number)).await.unwrap() {
            CommitResult::Committed => say(format!("won {chunk} {number}")),
            CommitResult::AlreadyCommitted { winner } => say(format!("lost {chunk} {}", winner.attempt)),
            CommitResult::Fenced => panic!("nobody took the run over"),
        }
    }
}

const CHUNKS: u64 = 120;

async fn race_test(place: &str) {
    let store = open(place).await;
    let (run, fence) = begun(&*store, &Owner::new("parent")).await;
    // Chunks first: three processes, one fence, each chunk won once and everybody agrees by whom.
    let mut children: Vec<Child> =
        (1..=3).map(|number| helper("helper_committer", place, run, fence.token, number)).collect();
    let lines: Vec<Vec<String>> = children.iter_mut().map(|child| said(child).collect()).collect();
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    let mut winners: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut won = Vec::new();
    for line in lines.iter().flatten() {
        let words: Vec<&str> = line.split(' ').collect();
        winners.entry(words[1].to_owned()).or_default().insert(words[2].to_owned());
        if words[0] == "won" {
            won.push(words[1].to_owned());
        }
    }
    assert_eq!(lines.iter().map(Vec::len).sum::<usize>() as u64, 3 * CHUNKS);
    assert_eq!(won.len() as u64, CHUNKS, "each chunk is won once");
    assert!(winners.values().all(|winners| winners.len() == 1), "{winners:?}");
    let sums = store.stages(run, 1).await.unwrap().remove(0);
    assert_eq!(sums.counts[0].counts.total(), 100 * CHUNKS);

    // Then the lease: no token is given out twice.
    store.release(&fence).await.unwrap();
    let mut children: Vec<Child> = (1..=3).map(|number| helper("helper_taker", place, run, 0, number)).collect();
    let tokens: Vec<Vec<String>> = children.iter_mut().map(|child| said(child).collect()).collect();
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    let mut flat: Vec<&String> = tokens.iter().flatten().collect();
    let count = flat.len();
    flat.sort();
    flat.dedup();
    assert_eq!(flat.len(), count, "a token was given to two owners");
    assert!(tokens.iter().all(|tokens| !tokens.is_empty()), "every process got its turn: {tokens:?}");
}

#[tokio::test]
async fn processes_race_for_leases_and_chunks() {
    let files = tempfile::tempdir().unwrap();
    race_test(files.path().join("runs.sqlite").to_str().unwrap()).await;
}

#[tokio::test]
async fn processes_race_for_leases_and_chunks_on_postgres() {
    let Some(server) = crate::server::shared() else { return };
    race_test(&format!("{}|race_test", server.url())).await;
}

/// Opens a store that does not exist yet.
#[tokio::test]
#[ignore = "a process of the creation test"]
async fn helper_creator() {
    let Some((place, _, _, number)) = told() else { return };
    let store = open(&place).await;
    store.submit(&new_run(&format!("flow {number}"))).await.unwrap();
    say("done".to_owned());
}

async fn creation_test(place: &str) {
    let mut children: Vec<Child> =
        (0..6).map(|number| helper("helper_creator", place, RunId::new(), 0, number)).collect();
    for child in &mut children {
        assert_eq!(said(child).count(), 1);
        assert!(child.wait().unwrap().success());
    }
    let store = open(place).await;
    store.check().await.unwrap();
    assert_eq!(store.count_runs(&RunFilter::default()).await.unwrap().get(&RunStatus::Queued), Some(&6));
}

#[tokio::test]
async fn processes_create_one_store_together() {
    for _ in 0..3 {
        let files = tempfile::tempdir().unwrap();
        creation_test(files.path().join("runs.sqlite").to_str().unwrap()).await;
    }
    let Some(server) = crate::server::shared() else { return };
    creation_test(&format!("{}|creation_test", server.url())).await;
}
