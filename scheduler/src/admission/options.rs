//! What admission is configured with.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rowmill_cores::admission;
use rowmill_cores::resources::{Quota, Resources};
use rowmill_wire::handshake::TenantName;

/// The queue that is always there.
pub(crate) const DEFAULT_QUEUE: &str = "default";
/// Stands for everybody else.
const OTHERS: &str = "*";

/// One queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueOptions {
    /// Higher goes first.
    pub priority: u32,
    /// Jobs that run at a time; `None` is no limit of its own.
    pub max_running: Option<u32>,
    /// Jobs that wait; one more is refused.
    pub max_queued: u32,
    /// How long a job waits before it is refused.
    pub timeout: Duration,
}

impl Default for QueueOptions {
    fn default() -> Self {
        Self { priority: 0, max_running: None, max_queued: 20_000, timeout: Duration::from_secs(3_600) }
    }
}

/// What an organisation or a team may have at a time; `None` is no limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuotaOptions {
    /// Its share against its neighbours; at least 1.
    pub weight: u32,
    /// Jobs.
    pub jobs: Option<u64>,
    /// Partitions.
    pub tasks: Option<u64>,
    /// Thousandths of a core.
    pub cpu_milli: Option<u64>,
    /// Bytes.
    pub memory_bytes: Option<u64>,
    /// Thousandths of an executor of class `gpu`.
    pub gpu_milli: Option<u64>,
}

impl Default for QuotaOptions {
    fn default() -> Self {
        Self { weight: 1, jobs: None, tasks: None, cpu_milli: None, memory_bytes: None, gpu_milli: None }
    }
}

impl From<&QuotaOptions> for admission::TenantOptions {
    fn from(options: &QuotaOptions) -> Self {
        let &QuotaOptions { weight, jobs, tasks, cpu_milli, memory_bytes, gpu_milli } = options;
        Self { weight: weight.max(1), quota: Quota { runs: jobs, tasks, cpu_milli, memory_bytes, gpu_milli } }
    }
}

/// Queues and quotas of a scheduler.
#[derive(Debug, Clone)]
pub struct AdmissionOptions {
    /// Queues by name; `default` is there whether or not it is named.
    pub queues: BTreeMap<Arc<str>, QueueOptions>,
    /// Quotas by `organisation`, `organisation/team`, `*`, `organisation/*` and `*/*`.
    pub quotas: BTreeMap<String, QuotaOptions>,
    /// How long something waits to rise by one priority.
    pub ageing: Duration,
    /// Bytes of plans that wait, all queues together; one more is refused.
    pub most_waiting_bytes: u64,
}

impl Default for AdmissionOptions {
    fn default() -> Self {
        Self {
            queues: BTreeMap::new(),
            quotas: BTreeMap::new(),
            ageing: Duration::from_secs(10),
            most_waiting_bytes: 1 << 30,
        }
    }
}

impl AdmissionOptions {
    /// All queues, in the order of their names.
    pub(super) fn all_queues(&self) -> BTreeMap<Arc<str>, QueueOptions> {
        let mut queues = self.queues.clone();
        queues.entry(DEFAULT_QUEUE.into()).or_default();
        queues
    }

    /// What holds for an organisation, and for a team in it.
    pub(super) fn tenant(&self, name: &TenantName) -> (admission::TenantOptions, admission::TenantOptions) {
        let find = |names: &[String]| {
            let found = names.iter().find_map(|name| self.quotas.get(name));
            found.map(Into::into).unwrap_or_default()
        };
        let TenantName { organisation, team } = name;
        let organisations = [organisation.to_string(), OTHERS.to_owned()];
        let teams =
            [format!("{organisation}/{team}"), format!("{organisation}/{OTHERS}"), format!("{OTHERS}/{OTHERS}")];
        (find(&organisations), find(&teams))
    }

    /// The core's options; `queues` gives each queue its number.
    pub(super) fn core(&self, queues: &BTreeMap<Arc<str>, QueueOptions>) -> admission::Options {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let numbered = (0..).zip(queues.values()).map(|(number, queue)| {
            let options = admission::QueueOptions {
                priority: queue.priority,
                max_running: queue.max_running.unwrap_or(u32::MAX),
                max_queued: queue.max_queued,
                timeout_ms: ms(queue.timeout),
            };
            (rowmill_cores::ids::QueueId(number), options)
        });
        let plain = admission::Options::single_queue(
            rowmill_cores::ids::QueueId(0),
            admission::QueueOptions { priority: 0, max_running: 0, max_queued: 0, timeout_ms: 0 },
        );
        admission::Options {
            queues: numbered.collect(),
            ageing_ms: ms(self.ageing).max(1),
            // What registers was judged (cluster_state.rs), and memory and GPUs of executors are counted for quotas alone.
            largest_executor: Resources {
                slots: u32::MAX,
                cpu_milli: u64::MAX,
                memory_bytes: u64::MAX,
                gpu_milli: u64::MAX,
            },
            ..plain
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_entry_holds() {
        let quota = |jobs| QuotaOptions { jobs: Some(jobs), ..QuotaOptions::default() };
        let names = [("acme", 1), ("acme/data", 2), ("acme/*", 3), ("*", 4), ("*/*", 5)];
        let quotas = names.map(|(name, jobs)| (name.to_owned(), quota(jobs))).into_iter().collect();
        let options = AdmissionOptions { quotas, ..AdmissionOptions::default() };
        for (name, expected) in [("acme/data", (1, 2)), ("acme/web", (1, 3)), ("acme", (1, 3)), ("other/data", (4, 5))]
        {
            let (organisation, team) = options.tenant(&TenantName::parse(name).unwrap());
            assert_eq!((organisation.quota.runs, team.quota.runs), (Some(expected.0), Some(expected.1)), "{name}");
        }
        let (organisation, _) = AdmissionOptions::default().tenant(&TenantName::default());
        assert_eq!(organisation.quota, Quota::default());
    }
}
