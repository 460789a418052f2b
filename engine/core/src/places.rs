//! Which process did what for a run: told by whoever ran it, kept with what a durable run commits, shown when it is over.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use rowmill_items::{MadeThere, Tally};
use serde::{Deserialize, Serialize};

/// The name of the process that drives a run.
pub const CLIENT: &str = "client";

/// What one process did for a stage, in one class.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// [`CLIENT`], or the name of an executor.
    pub process: String,
    /// Its machine; empty where that is not known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub host: String,
    /// The class of what it did.
    pub class: String,
    /// Tasks of SQL, or attempts at groups of items.
    pub tasks: u64,
    /// Items in those attempts; none for SQL.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub items: u64,
    /// How long they took together, in milliseconds. Of SQL in the client: how long the stage took.
    pub busy_ms: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Place {
    /// The client, which did so many tasks of a class.
    pub fn client(class: &str, tasks: u64, items: u64, time: Duration) -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host = host.trim().to_owned();
        Place { process: CLIENT.to_owned(), host, class: class.to_owned(), tasks, items, busy_ms: millis(time) }
    }

    /// Whether it is the process that drives the run.
    pub fn is_client(&self) -> bool {
        self.process == CLIENT
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Places of which each process and class is there once, in their order.
pub fn merged(places: impl IntoIterator<Item = Place>) -> Vec<Place> {
    let mut by_process: BTreeMap<(bool, String, String, String), Place> = BTreeMap::new();
    for place in places {
        let key = (!place.is_client(), place.process.clone(), place.host.clone(), place.class.clone());
        match by_process.get_mut(&key) {
            Some(known) => {
                known.tasks += place.tasks;
                known.items += place.items;
                known.busy_ms += place.busy_ms;
            }
            None => {
                by_process.insert(key, place);
            }
        }
    }
    by_process.into_values().collect()
}

/// Where the attempts of a step of this class were made that these counts tell of; those of this process took `time`.
pub fn of_calls(class: &str, counts: &Tally, time: Duration) -> Vec<Place> {
    let there = counts.made_elsewhere();
    let snapshot = counts.snapshot();
    let (attempts, items) =
        there.values().fold((0, 0), |(attempts, items), made| (attempts + made.attempts, items + made.items));
    let own = snapshot.attempts.saturating_sub(attempts);
    let mut places = Vec::with_capacity(there.len() + 1);
    if own > 0 || there.is_empty() {
        // What was tried again counts once more there, and once here.
        places.push(Place::client(class, own, snapshot.items.saturating_sub(items), time));
    }
    places.extend(there.into_iter().map(|(process, made)| {
        let MadeThere { host, attempts, items, time } = made;
        Place { process, host, class: class.to_owned(), tasks: attempts, items, busy_ms: millis(time) }
    }));
    places
}

/// What one process did for a stage of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StagePlace {
    /// The stage, or the step; [`SINKS`] for writing results.
    pub stage: String,
    /// The process, and what it did.
    #[serde(flatten)]
    pub place: Place,
}

/// What writing results is called among stages.
pub const SINKS: &str = "sinks";

/// The places of a stage.
pub(crate) fn of_stage(stage: &str, places: impl IntoIterator<Item = Place>) -> Vec<StagePlace> {
    merged(places).into_iter().map(|place| StagePlace { stage: stage.to_owned(), place }).collect()
}

/// What a commit's record says beside other things.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeBy {
    /// Who made it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub made: Vec<Place>,
}

impl MadeBy {
    /// Reads it out of a commit's record; records of earlier versions of Rowmill say nothing.
    pub fn read(payload: &[u8]) -> Self {
        serde_json::from_slice(payload).unwrap_or_default()
    }
}

/// Who ran parts of plans elsewhere, as it becomes known.
#[derive(Debug, Default)]
pub struct PlaceLog(Mutex<Vec<(String, Place)>>);

impl PlaceLog {
    /// Notes who ran something of a stage.
    pub fn add(&self, stage: &str, place: Place) {
        self.0.lock().push((stage.to_owned(), place));
    }

    /// What was noted since it was last asked for, by stage.
    pub fn take(&self) -> Vec<(String, Place)> {
        std::mem::take(&mut *self.0.lock())
    }

    /// The same, whichever stage it was for.
    pub fn take_all(&self) -> Vec<Place> {
        merged(self.take().into_iter().map(|(_, place)| place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(process: &str, class: &str, tasks: u64) -> Place {
        Place { process: process.to_owned(), class: class.to_owned(), tasks, busy_ms: 10, ..Place::default() }
    }

    #[test]
    fn a_process_is_named_once_for_each_class_and_the_client_first() {
        let all = [place("io.b", "io", 1), place("cpu.a", "cpu", 2), place(CLIENT, "cpu", 1), place("io.b", "io", 3)];
        let merged = merged(all);
        let named: Vec<(&str, u64, u64)> =
            merged.iter().map(|place| (place.process.as_str(), place.tasks, place.busy_ms)).collect();
        assert_eq!(named, [(CLIENT, 1, 10), ("cpu.a", 2, 10), ("io.b", 4, 20)]);
    }

    #[test]
    fn records_of_earlier_versions_say_nothing_and_of_this_one_what_was_kept() {
        assert_eq!(MadeBy::read(b""), MadeBy::default());
        assert_eq!(MadeBy::read(br#"{"items": 3, "outcomes": {}}"#), MadeBy::default());
        let kept = MadeBy { made: vec![place("cpu.a", "cpu", 2)] };
        assert_eq!(MadeBy::read(&serde_json::to_vec(&kept).unwrap()), kept);
    }
}
