//! The disk tier's own: restarts, damage, two processes, a kill in the middle of a write, room.

use std::fs::OpenOptions;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rowmill_cache::{CacheTier, DiskOptions, DiskTier};

use crate::support::{always, found, scope, store};

const CHILD: &str = "ROWMILL_CACHE_TEST_CHILD";

fn options(directory: &Path) -> DiskOptions {
    DiskOptions { look_again: Duration::ZERO, ..DiskOptions::new(directory, 1 << 24) }
}

async fn open(directory: &Path) -> DiskTier {
    DiskTier::open(options(directory)).await.unwrap()
}

fn segments(directory: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

#[tokio::test]
async fn it_passes_the_suite() {
    let place = tempfile::tempdir().unwrap();
    crate::suite::check(&open(&place.path().join("a/b")).await).await;
}

#[tokio::test]
async fn it_survives_a_restart_and_goes_on_in_the_same_file() {
    let place = tempfile::tempdir().unwrap();
    for round in 0..5i64 {
        let tier = open(place.path()).await;
        let before: Vec<i64> = (0..round).collect();
        assert_eq!(found(&tier, 1, &before, always()).await, before);
        store(&tier, 1, &[round], 1).await;
    }
    assert_eq!(segments(place.path()).len(), 1);
    let tier = open(place.path()).await;
    tier.clear(Some(&scope(1))).await.unwrap();
    store(&tier, 1, &[3], 1).await;
    drop(tier);
    assert_eq!(found(&open(place.path()).await, 1, &[1, 2, 3], always()).await, [3], "cleared stays cleared");
}

#[tokio::test]
async fn two_processes_open_at_once_see_each_other() {
    let place = tempfile::tempdir().unwrap();
    let (a, b) = (open(place.path()).await, open(place.path()).await);
    for id in 0..10 {
        store(&a, 1, &[id], 1).await;
        store(&b, 1, &[100 + id], 1).await;
        assert_eq!(found(&a, 1, &[id, 100 + id], always()).await, [id, 100 + id]);
        assert_eq!(found(&b, 1, &[id, 100 + id], always()).await, [id, 100 + id]);
    }
    assert_eq!(segments(place.path()).len(), 2, "each writes its own");
    a.clear(None).await.unwrap();
    assert_eq!(found(&b, 1, &[0, 100], always()).await, [0i64; 0]);
    store(&b, 1, &[7], 1).await;
    assert_eq!(found(&a, 1, &[7], always()).await, [7], "b noticed that its file is gone");
}

#[tokio::test]
async fn every_torn_or_changed_byte_is_a_miss_and_never_wrong_data() {
    let place = tempfile::tempdir().unwrap();
    store(&open(place.path()).await, 1, &[1, 2, 3], 1).await;
    store(&open(place.path()).await, 1, &[4, 5], 1).await;
    let file = segments(place.path()).remove(0);
    let whole = std::fs::read(&file).unwrap();
    let ids = [1, 2, 3, 4, 5];
    assert_eq!(found(&open(place.path()).await, 1, &ids, always()).await, ids);
    let mut damaged = 0;
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        std::fs::write(&file, &bytes).unwrap();
        let left = found(&open(place.path()).await, 1, &ids, always()).await;
        damaged += usize::from(left.len() < 5);
        // Only the eight bytes of the file's head that mean nothing may change unseen.
        assert!(left.len() < 5 || (12..16).contains(&at), "byte {at} counts");
    }
    assert!(damaged >= whole.len() - 8);
    for end in (0..whole.len()).step_by(3) {
        std::fs::write(&file, &whole[..end]).unwrap();
        let tier = open(place.path()).await;
        let left = found(&tier, 1, &ids, always()).await;
        assert!(left.is_empty() || left == [1, 2, 3], "{left:?}");
        // What is written behind a torn block is found again.
        store(&tier, 1, &[6], 1).await;
        drop(tier);
        let after = found(&open(place.path()).await, 1, &[6], always()).await;
        assert_eq!(after, [6], "cut at {end}");
        for extra in segments(place.path()).iter().filter(|path| **path != file) {
            std::fs::remove_file(extra).unwrap();
        }
    }
}

#[tokio::test]
async fn a_body_that_rots_while_the_tier_is_open_is_a_miss() {
    let place = tempfile::tempdir().unwrap();
    let tier = open(place.path()).await;
    store(&tier, 1, &[1], 1).await;
    store(&tier, 1, &[2], 1).await;
    let path = segments(place.path()).remove(0);
    let mut file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    file.seek(SeekFrom::End(-20)).unwrap();
    let mut byte = [0];
    file.read_exact(&mut byte).unwrap();
    file.seek(SeekFrom::End(-20)).unwrap();
    file.write_all(&[byte[0] ^ 255]).unwrap();
    assert_eq!(found(&tier, 1, &[1, 2], always()).await, [1]);
    let stats = tier.stats().await;
    assert_eq!((stats.unreadable, stats.entries), (1, Some(1)));
    store(&tier, 1, &[2], 2).await;
    assert_eq!(found(&tier, 1, &[1, 2], always()).await, [1, 2]);
}

#[tokio::test]
async fn another_version_is_a_miss_and_its_file_is_left_alone() {
    let place = tempfile::tempdir().unwrap();
    store(&open(place.path()).await, 1, &[1], 1).await;
    let path = segments(place.path()).remove(0);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[8] = 99;
    std::fs::write(&path, &bytes).unwrap();
    let tier = open(place.path()).await;
    assert_eq!(found(&tier, 1, &[1], always()).await, [0i64; 0]);
    store(&tier, 1, &[2], 1).await;
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    assert_eq!((segments(place.path()).len(), tier.stats().await.unreadable), (2, 1));
}

#[tokio::test]
async fn the_oldest_segments_make_room() {
    let place = tempfile::tempdir().unwrap();
    let options = DiskOptions { segment_bytes: 8 << 10, max_bytes: 64 << 10, ..options(place.path()) };
    let (a, b) = (DiskTier::open(options.clone()).await.unwrap(), DiskTier::open(options).await.unwrap());
    for block in 0..200i64 {
        let ids: Vec<i64> = (block * 10..block * 10 + 10).collect();
        let tier = if block % 3 == 0 { &a } else { &b };
        store(tier, 1, &ids, 1).await;
        assert_eq!(found(&a, 1, &ids, always()).await, ids);
        let bytes: u64 = segments(place.path()).iter().map(|path| path.metadata().unwrap().len()).sum();
        assert!(bytes <= 64 << 10, "{bytes}");
    }
    assert_eq!(found(&a, 1, &[0, 1, 2], always()).await, [0i64; 0]);
    assert!(b.stats().await.evicted > 0);
    let huge: Vec<i64> = (0..5000).collect();
    store(&a, 1, &huge, 1).await;
    assert!(found(&a, 1, &[1990], always()).await == [1990], "what never fits drives nothing out");
}

#[tokio::test]
async fn a_place_that_cannot_be_is_named() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let error = DiskTier::open(options(&file.join("cache"))).await.unwrap_err().to_string();
    assert!(error.contains("file"), "{error}");
}

/// Not a test by itself: the child of the next one. Writes blocks as fast as it can until it is killed.
#[tokio::test]
async fn child_that_writes_until_it_is_killed() {
    let Some(directory) = std::env::var_os(CHILD) else { return };
    let base: i64 = std::env::var("ROWMILL_CACHE_TEST_BASE").unwrap().parse().unwrap();
    let tier = open(Path::new(&directory)).await;
    for block in 0..100_000i64 {
        let ids: Vec<i64> = (base + block * 50..base + block * 50 + 50).collect();
        store(&tier, 1, &ids, 1).await;
        println!("wrote {block}");
    }
}

fn child(directory: &Path, base: i64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "disk::child_that_writes_until_it_is_killed", "--nocapture"])
        .env(CHILD, directory)
        .env("ROWMILL_CACHE_TEST_BASE", base.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Waits until the children wrote something new.
fn until_larger(directory: &Path, bytes: u64) {
    let started = Instant::now();
    let size = || segments(directory).iter().filter_map(|path| path.metadata().ok()).map(|m| m.len()).sum::<u64>();
    while size() <= bytes {
        assert!(started.elapsed() < Duration::from_secs(30), "the children write");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[tokio::test]
async fn two_processes_share_it_and_survive_kills_in_the_middle_of_writes() {
    let place = tempfile::tempdir().unwrap();
    let reader = open(place.path()).await;
    let mut sure = Vec::new();
    let mut torn = 0;
    for round in 0..8i64 {
        let bases = [round * 20_000_000, round * 20_000_000 + 10_000_000];
        let size: u64 = segments(place.path()).iter().map(|path| path.metadata().unwrap().len()).sum();
        let mut children = bases.map(|base| child(place.path(), base));
        until_larger(place.path(), size + 20_000);
        std::thread::sleep(Duration::from_millis(u64::try_from(round * 7).unwrap()));
        for (child, base) in children.iter_mut().zip(bases) {
            child.kill().unwrap();
            assert!(!child.wait().unwrap().success(), "it was killed, and did not end by itself");
            let mut said = String::new();
            child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
            // The last line may be cut.
            let whole = &said[..said.rfind('\n').map_or(0, |end| end + 1)];
            let blocks = whole.lines().filter_map(|line| line.split("wrote ").nth(1)).filter_map(|n| n.parse().ok());
            let blocks: Vec<i64> = blocks.collect();
            sure.extend(blocks.iter().map(|block| base + block * 50));
        }
        // A write that was cut off by the kill, made certain: half a block behind what is there.
        // The newest file may be one that the kill left empty.
        let whole = |path: &PathBuf| std::fs::read(path).ok().filter(|bytes| bytes.len() >= 1000);
        let (path, bytes) = segments(place.path()).iter().rev().find_map(|p| Some((p.clone(), whole(p)?))).unwrap();
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(&bytes[16..1000]).unwrap();
        torn += 1;
        // What was said to be written is found, by a process that was open all the time and by a new one.
        for tier in [&reader, &open(place.path()).await] {
            let all = found(tier, 1, &sure, always()).await;
            let bytes: u64 = segments(place.path()).iter().map(|path| path.metadata().unwrap().len()).sum();
            if bytes < 12 << 20 {
                assert_eq!(all.len(), sure.len(), "round {round}");
            }
        }
    }
    assert!(!sure.is_empty() && torn == 8);
}
