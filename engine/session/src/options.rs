//! How a session uses its machine.

use std::path::PathBuf;
use std::sync::Arc;

use rowmill_engine::calls::{CacheOptions, Host};
use rowmill_engine::elsewhere::Elsewhere;
use rowmill_engine::runtime::{BATCH_ROWS, EngineOptions};
use rowmill_engine::sources::stores::StoreOptions;
use rowmill_gpu_plan::vector_top_k::vector_top_k;
use rowmill_gpu_plan::{GpuContext, GpuOptions};
use rowmill_spec::config::Connection;
use rowmill_step::StepFactory;

/// Options of a [`crate::Session`]; `None` means that the machine is asked.
#[derive(Debug, Clone, Default)]
pub struct SessionOptions {
    /// Bytes that the process may use; 70% of the machine's memory, or of its cgroup's limit, where absent.
    pub memory_bytes: Option<u64>,
    /// Partitions that plans aim at; one for each core where absent.
    pub partitions: Option<usize>,
    /// Rows of a batch.
    pub batch_rows: Option<usize>,
    /// Where operators spill to; the system's temporary folder where absent.
    pub temp_dir: Option<PathBuf>,
    /// Bytes that may be spilled; 100 GB where absent.
    pub max_temp_bytes: Option<u64>,
    /// Settings of object stores.
    pub stores: StoreOptions,
    /// Connections that steps name.
    pub connections: Vec<Connection>,
    /// Where results of steps are cached.
    pub cache: CacheOptions,
    /// The interpreter of Python steps; `python3` of `PATH` where absent.
    pub python: Option<String>,
    /// How a GPU is used; a session that is given none uses it where that pays.
    pub gpu: GpuOptions,
    /// The file of ONNX Runtime, for `model` steps; it is looked for where absent.
    pub model_library: Option<PathBuf>,
    /// Step kinds that the program adds to Rowmill's own; one of the same key takes its place.
    pub kinds: Vec<Arc<dyn StepFactory>>,
    /// Where parts of plans may run, if not here: a cluster (`rowmill-cluster`).
    pub elsewhere: Option<Arc<dyn Elsewhere>>,
    /// Threads that compute, if not those that call.
    pub compute: Option<tokio::runtime::Handle>,
}

impl From<&SessionOptions> for EngineOptions {
    fn from(options: &SessionOptions) -> Self {
        let gpu = GpuContext::new(options.gpu.clone());
        EngineOptions {
            class_planners: crate::gpu::planners(&gpu),
            functions: vec![vector_top_k(Arc::clone(&gpu))],
            memory_bytes: options.memory_bytes.unwrap_or_else(default_memory_bytes),
            partitions: options.partitions.unwrap_or_else(cores),
            batch_rows: options.batch_rows.unwrap_or(BATCH_ROWS),
            temp_dir: options.temp_dir.clone(),
            max_temp_bytes: options.max_temp_bytes.unwrap_or(100 << 30),
            compute: options.compute.clone(),
            stores: options.stores.clone(),
            host: Host {
                elsewhere: options.elsewhere.clone(),
                ..crate::host::host(
                    &options.connections,
                    &[
                        crate::host::kinds_with(
                            options.python.as_deref().unwrap_or("python3"),
                            &gpu,
                            options.model_library.as_deref(),
                        ),
                        options.kinds.clone(),
                    ]
                    .concat(),
                    &options.cache,
                )
            },
        }
    }
}

/// Cores that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// 70% of what the machine has or the cgroup allows, whichever is less.
pub fn default_memory_bytes() -> u64 {
    const FALLBACK: u64 = 4 << 30;
    let limit = [machine_memory_bytes(), cgroup_memory_bytes()].into_iter().flatten().min().unwrap_or(FALLBACK);
    limit / 10 * 7
}

fn machine_memory_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

/// The least limit of this process's cgroup and those above it, version 2 or 1.
fn cgroup_memory_bytes() -> Option<u64> {
    let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    own.lines()
        .filter_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            match (parts.next()?, parts.next()?) {
                ("", path) => least_limit("/sys/fs/cgroup", path, "memory.max"),
                (controllers, path) if controllers.split(',').any(|name| name == "memory") => {
                    least_limit("/sys/fs/cgroup/memory", path, "memory.limit_in_bytes")
                }
                _ => None,
            }
        })
        .min()
}

fn least_limit(root: &str, path: &str, file: &str) -> Option<u64> {
    let mut folder = PathBuf::from(root).join(path.trim_start_matches('/'));
    let mut least: Option<u64> = None;
    loop {
        let limit = std::fs::read_to_string(folder.join(file)).ok().and_then(|text| text.trim().parse().ok());
        least = least.into_iter().chain(limit).min();
        if folder.as_os_str() == root || !folder.pop() {
            return least;
        }
    }
}
