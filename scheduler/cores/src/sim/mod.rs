//! Simulated schedules: two schedulers, several executors, a store and a network, all of which fail.
//!
//! A seed decides everything: the runs, the delays, which messages are lost, late or doubled, who crashes, stops, is cut
//! off or finds its clock moved. After every step the invariants are checked; after the last fault everything must be
//! finished in bounded time, with nothing left reserved, and a tiny run must go through at once.

mod overload;
mod world;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::sabotage::Mutant;
use crate::seed::mix;

/// Numbers from a seed.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(mix(seed))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// From `low` to `high`, both included.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low + 1)
    }

    pub(crate) fn percent(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

/// Runs `one` for `count` seeds from `first` on two threads until the clock says stop. Panics with the first seed that
/// failed; returns how many ran.
fn run_seeds(first: u64, count: u64, limit: Duration, one: impl Fn(u64) -> Result<(), String> + Sync) -> u64 {
    let began = Instant::now();
    let next = AtomicU64::new(0);
    let failed: Mutex<Option<(u64, String)>> = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while began.elapsed() < limit && failed.lock().unwrap().is_none() {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        break;
                    }
                    if let Err(why) = one(first + number) {
                        failed.lock().unwrap().get_or_insert((first + number, why));
                    }
                }
            });
        }
    });
    if let Some((seed, why)) = failed.into_inner().unwrap() {
        panic!("seed {seed}: {why}\nagain: SIMULATION_FIRST={seed} SIMULATION_SEEDS=1");
    }
    next.load(Ordering::Relaxed).min(count)
}

/// Ten thousand schedules, or as many as 110 seconds hold.
#[test]
fn simulated_schedules_keep_their_promises() {
    let (first, count) = (setting("SIMULATION_FIRST", 1), setting("SIMULATION_SEEDS", 10_000));
    let began = Instant::now();
    let total = Mutex::new(world::Seen::default());
    let ran = run_seeds(first, count, Duration::from_secs(110), |seed| {
        let seen = world::simulate(seed, None)?;
        let mut total = total.lock().unwrap();
        total.steps += seen.steps;
        total.commits += seen.commits;
        total.refused_commits += seen.refused_commits;
        total.takeovers += seen.takeovers;
        total.attempts += seen.attempts;
        Ok(())
    });
    let total = total.into_inner().unwrap();
    println!("cluster: seeds {first}..{} in {:.1} s: {total:?}", first + ran, began.elapsed().as_secs_f64());
    if ran >= 1_000 {
        // A simulation in which nothing happens keeps every promise.
        assert!(total.takeovers > 2 * ran && total.refused_commits > ran / 20, "{total:?}");
        assert!(total.attempts > total.commits + ran, "{total:?}");
    }
    assert!(ran >= count.min(1_000), "only {ran} of {count} schedules in 110 seconds: the simulation has become slow");
}

#[test]
fn overload_starves_nobody() {
    let (first, count) = (setting("SIMULATION_FIRST", 1), setting("SIMULATION_SEEDS", 2_000));
    let ran = run_seeds(first, count, Duration::from_secs(60), |seed| overload::simulate(seed, None));
    println!("overload: seeds {first}..{}", first + ran);
}

/// A mistake that nobody finds shows a check that does not look.
#[test]
fn every_planted_mistake_is_found() {
    use Mutant::*;
    let all = [
        CommitTwice,
        IgnoreFence,
        KeepFence,
        ImmortalLease,
        LeakReservation,
        ReleaseTwice,
        QuotaOffByOne,
        LaunchAfterCancel,
        EagerBarrier,
        DropRetry,
        NoAgeing,
        ForgetJournal,
        NoWindow,
        BlindWatchdog,
        Overcommit,
        TrustLateResult,
    ];
    let mut missed = Vec::new();
    for mutant in all {
        let found = (1..=600).find_map(|seed| {
            // The seed must pass without the mistake: only then was it the mistake that was found.
            let in_cluster = world::simulate(seed, Some(mutant)).err().filter(|_| world::simulate(seed, None).is_ok());
            let in_overload =
                || overload::simulate(seed, Some(mutant)).err().filter(|_| overload::simulate(seed, None).is_ok());
            in_cluster.or_else(in_overload).map(|why| (seed, why))
        });
        match found {
            Some((seed, why)) => println!("{mutant:?}: found by seed {seed}: {why}"),
            None => missed.push(mutant),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}
