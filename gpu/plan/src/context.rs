//! The device as plans share it: opened once, one lane, given up when it is lost.
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use datafusion::common::runtime::SpawnedTask;
use datafusion::common::{DataFusionError, Result};
use parking_lot::Mutex;
use rowmill_gpu::compile::Floats;
use rowmill_gpu::device::{Device, DeviceOptions};

use crate::decide::{Decision, OffloadTable, Operator};

/// How many times as long as its upload a corpus is searched in memory before it is put on the device.
const UPLOADS_BEFORE: f64 = 10.0;
/// How much longer than the CPU the device may take for a chunk before the next ones are left to the CPU.
const SLOWER_BY: f64 = 1.1;

/// Whether the device is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GpuUse {
    /// Where the table says that it pays.
    #[default]
    Auto,
    /// For everything that has a kernel.
    Always,
    /// Not at all.
    Never,
    /// As always; a machine without a usable device cannot run what asks for one.
    Required,
}

/// How the device is used.
#[derive(Debug, Clone)]
pub struct GpuOptions {
    /// Whether.
    pub usage: GpuUse,
    /// The driver's number of the device.
    pub ordinal: usize,
    /// What this process may use of its memory; 85% of what is free where absent.
    pub memory_bytes: Option<u64>,
    /// Bytes of input that are gathered for one launch.
    pub launch_bytes: usize,
    /// Where compiled kernels are kept between processes; nowhere where absent.
    pub kernels: Option<PathBuf>,
    /// The table of `rowmill gpu bench`; a file that is not there is none.
    pub table: Option<PathBuf>,
}

impl Default for GpuOptions {
    fn default() -> Self {
        Self {
            usage: GpuUse::Auto,
            ordinal: 0,
            memory_bytes: None,
            launch_bytes: 128 << 20,
            kernels: None,
            table: None,
        }
    }
}

/// The device of a session, opened when it is first asked for.
pub struct GpuContext {
    options: GpuOptions,
    opened: OnceLock<std::result::Result<Opened, String>>,
    lane: Mutex<()>,
    lost: AtomicBool,
}

struct Opened {
    device: Arc<Device>,
    table: OffloadTable,
}

impl fmt::Debug for GpuContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GpuContext").field("options", &self.options).finish_non_exhaustive()
    }
}

impl GpuContext {
    /// A context; nothing is opened yet.
    pub fn new(options: GpuOptions) -> Arc<Self> {
        Arc::new(Self { options, opened: OnceLock::new(), lane: Mutex::new(()), lost: AtomicBool::new(false) })
    }

    /// Its options.
    pub fn options(&self) -> &GpuOptions {
        &self.options
    }

    /// The device, or why there is none. Warns once where there is none and one is wanted.
    ///
    /// # Errors
    /// The reason, in words.
    pub fn device(&self) -> std::result::Result<&Arc<Device>, String> {
        if self.options.usage == GpuUse::Never {
            return Err("`gpu.use` is `never`".into());
        }
        if self.lost.load(Ordering::Acquire) {
            return Err("the GPU was lost to an earlier failure; restart the process to use it again".into());
        }
        self.opened().map(|opened| &opened.device)
    }

    fn opened(&self) -> std::result::Result<&Opened, String> {
        let opened = self.opened.get_or_init(|| {
            let options = DeviceOptions {
                ordinal: self.options.ordinal,
                budget_bytes: self.options.memory_bytes.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX)),
                kernel_cache: self.options.kernels.clone(),
            };
            let opened = Device::open(&options).map_err(|error| error.to_string());
            match opened {
                Ok(device) => {
                    let table = self.table(&device.info().name);
                    if self.options.usage == GpuUse::Auto && table.measured.is_empty() {
                        tracing::warn!(
                            "the GPU {} was not measured yet, so everything stays on the CPU: `rowmill gpu bench --save` \
                             measures what is faster there, `gpu.use: always` goes without",
                            device.info().name
                        );
                    }
                    Ok(Opened { table, device })
                }
                Err(reason) => {
                    if self.options.usage != GpuUse::Required {
                        tracing::warn!("{reason}; work of class `gpu` runs on the CPU, with equal results");
                    }
                    Err(reason)
                }
            }
        });
        opened.as_ref().map_err(String::clone)
    }

    fn table(&self, device: &str) -> OffloadTable {
        let Some(path) = self.options.table.as_ref().filter(|path| path.exists()) else {
            return OffloadTable::default();
        };
        match OffloadTable::read(path) {
            Ok(table) if table.device == device => table,
            Ok(table) => {
                tracing::warn!(
                    "{} was measured on {}, this is {device}; `rowmill gpu bench --save` measures it again",
                    path.display(),
                    table.device
                );
                OffloadTable::default()
            }
            Err(reason) => {
                tracing::warn!("{reason}; `rowmill gpu bench --save` measures it again");
                OffloadTable::default()
            }
        }
    }

    /// Whether to offload: by the options, else by the table. `resident`: the rows are on the device already.
    pub fn decide(&self, operator: Operator, rows: Option<u64>, bytes: u64, resident: bool) -> Decision {
        match self.options.usage {
            GpuUse::Always => Decision::plain(true, "`gpu.use` is `always`"),
            GpuUse::Required => Decision::plain(true, "`gpu.use` is `required`"),
            GpuUse::Never => Decision::plain(false, "`gpu.use` is `never`"),
            GpuUse::Auto => match self.opened() {
                Ok(opened) => opened.table.decide(operator, rows, bytes, resident),
                Err(why) => Decision::plain(false, why),
            },
        }
    }

    /// Whether to offload now. As [`GpuContext::decide`]; and by itself no operator waits for its kernels: while those
    /// that are not compiled yet are made in the background, the CPU goes on.
    pub(crate) fn decide_now(
        self: &Arc<Self>,
        operator: Operator,
        rows: usize,
        bytes: usize,
        resident: bool,
        kernels: impl FnOnce() -> Vec<String>,
    ) -> Decision {
        let decision = self.decide(operator, Some(rows as u64), bytes as u64, resident);
        if !decision.offload || self.options.usage != GpuUse::Auto {
            return decision;
        }
        let Ok(device) = self.device() else { return decision };
        let waiting: Vec<String> =
            kernels().into_iter().filter(|source| !device.compiler().is_ready(source, Floats::AsOnCpu)).collect();
        if waiting.is_empty() {
            return decision;
        }
        let device = Arc::clone(device);
        // Nobody waits for it: what it makes is found the next time, and a failure is kept and said by the compiler.
        drop(tokio::task::spawn_blocking(move || {
            for source in waiting {
                let _ = device.compiler().prepare(&source, Floats::AsOnCpu);
            }
        }));
        Decision::plain(false, "its kernels are being compiled")
    }

    /// The device for a search over a corpus, and the time that searches in memory take before it goes there: then
    /// putting it there is at most a tenth of what was spent. `None` where it stays in memory.
    pub fn corpus_device(&self, rows: u64, bytes: u64) -> Option<(Arc<Device>, Duration)> {
        if !self.decide(Operator::TopK, Some(rows), bytes, true).offload {
            return None;
        }
        let device = Arc::clone(self.device().ok()?);
        let after_ms = match (self.options.usage, self.opened()) {
            (GpuUse::Auto, Ok(opened)) => opened.table.corpus_upload_ms(rows, bytes)? * UPLOADS_BEFORE,
            _ => 0.0,
        };
        Some((device, Duration::from_secs_f64(after_ms / 1000.0)))
    }

    /// Runs `work` on the device's one lane, on a thread that may block, and says how long it took there.
    ///
    /// # Errors
    /// That of the task itself; `work`'s own comes back inside.
    pub(crate) async fn on_lane<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Arc<Device>) -> rowmill_gpu::Result<T> + Send + 'static,
    ) -> Result<rowmill_gpu::Result<(T, Duration)>> {
        let context = Arc::clone(self);
        let task = SpawnedTask::spawn_blocking(move || {
            let device = context.device().map_err(rowmill_gpu::Error::NoDevice)?;
            let _lane = context.lane.lock();
            let started = Instant::now();
            let outcome = work(device).map(|made| (made, started.elapsed()));
            if matches!(&outcome, Err(error) if error.is_poisoned()) {
                context.lost.store(true, Ordering::Release);
            }
            outcome
        });
        task.join().await.map_err(|error| DataFusionError::ExecutionJoin(Box::new(error)))
    }
}

/// Watches a device that was chosen by the table: where it is slower than the CPU would be, it is not asked again. A table
/// is measured on an idle machine and on other rows.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    slow: bool,
}

impl Watch {
    /// Whether the device kept its word so far.
    pub(crate) fn allows(&self) -> bool {
        !self.slow
    }

    /// Takes notice of a chunk that the device did for `decision`.
    pub(crate) fn saw(&mut self, operator: Operator, decision: &Decision, took: Duration) {
        let took_ms = took.as_secs_f64() * 1000.0;
        if let Some(cpu_ms) = decision.cpu_ms
            && took_ms > cpu_ms * SLOWER_BY
        {
            self.slow = true;
            let operator = operator.as_str();
            tracing::info!(operator, took_ms, cpu_ms, "the GPU was slower than the table promised; the CPU goes on");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_slower_than_the_cpu_is_not_asked_again() {
        let promised = Decision { offload: true, why: String::new(), cpu_ms: Some(10.0) };
        let mut watch = Watch::default();
        watch.saw(Operator::Sort, &promised, Duration::from_millis(10));
        watch.saw(Operator::Sort, &Decision::plain(true, "asked for"), Duration::from_secs(9));
        assert!(watch.allows());
        watch.saw(Operator::Sort, &promised, Duration::from_millis(12));
        assert!(!watch.allows());
    }
}
