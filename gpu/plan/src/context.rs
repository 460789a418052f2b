//! The device as plans share it: opened once, one lane, given up when it is lost.
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use datafusion::common::runtime::SpawnedTask;
use datafusion::common::{DataFusionError, Result};
use parking_lot::Mutex;
use rowmill_gpu::device::{Device, DeviceOptions};

use crate::decide::{Decision, OffloadTable, Operator};

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
                Ok(device) => Ok(Opened { table: self.table(&device.info().name), device }),
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

    /// Whether to offload: by the options, else by the table.
    pub fn decide(&self, operator: Operator, rows: Option<u64>, bytes: u64) -> Decision {
        match self.options.usage {
            GpuUse::Always => Decision { offload: true, why: "`gpu.use` is `always`".into() },
            GpuUse::Required => Decision { offload: true, why: "`gpu.use` is `required`".into() },
            GpuUse::Never => Decision { offload: false, why: "`gpu.use` is `never`".into() },
            GpuUse::Auto => match self.opened() {
                Ok(opened) => opened.table.decide(operator, rows, bytes, false),
                Err(why) => Decision { offload: false, why },
            },
        }
    }

    /// Runs `work` on the device's one lane, on a thread that may block.
    ///
    /// # Errors
    /// That of the task itself; `work`'s own comes back inside.
    pub(crate) async fn on_lane<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Arc<Device>) -> rowmill_gpu::Result<T> + Send + 'static,
    ) -> Result<rowmill_gpu::Result<T>> {
        let context = Arc::clone(self);
        let task = SpawnedTask::spawn_blocking(move || {
            let device = context.device().map_err(rowmill_gpu::Error::NoDevice)?;
            let _lane = context.lane.lock();
            let outcome = work(device);
            if matches!(&outcome, Err(error) if error.is_poisoned()) {
                context.lost.store(true, Ordering::Release);
            }
            outcome
        });
        task.join().await.map_err(|error| DataFusionError::ExecutionJoin(Box::new(error)))
    }
}
