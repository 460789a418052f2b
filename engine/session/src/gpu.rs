//! The GPU as a session uses it: the planner of class `gpu`, and the functions that search on it.

use std::path::Path;
use std::sync::Arc;

use datafusion::common::{DataFusionError, Result};
use datafusion::physical_plan::ExecutionPlan;
use rowmill_engine::plan::placement::{ClassPlanner, ClassPlanners, Placed, Unserved};
pub use rowmill_gpu::probe::{DeviceInfo, has_cublas, probe};
use rowmill_gpu_plan::{GpuContext, GpuOptions, GpuRule, GpuUse};
pub use rowmill_gpu_plan::{Measurement, OffloadTable, Operator, bench};
use rowmill_spec::config;

/// The name of the table of measurements in `gpu.dir`.
const TABLE: &str = "offload.json";

/// The rule of `rowmill-gpu-plan` as the engine calls it.
#[derive(Debug)]
struct GpuClass(GpuRule);

impl ClassPlanner for GpuClass {
    fn place(&self, plan: Arc<dyn ExecutionPlan>) -> Result<Placed> {
        let gpu = self.0.context();
        if gpu.options().usage == GpuUse::Required
            && let Err(reason) = gpu.device()
        {
            let reason = format!("`gpu.use` is `required`, and {reason}");
            return Err(DataFusionError::External(Box::new(Unserved { class: "gpu", reason })));
        }
        let rewritten = self.0.rewrite(plan)?;
        Ok(Placed { plan: rewritten.plan, notes: rewritten.notes })
    }
}

/// The planners of a session whose GPU is `gpu`.
pub(crate) fn planners(gpu: &Arc<GpuContext>) -> ClassPlanners {
    let planner: Arc<dyn ClassPlanner> = Arc::new(GpuClass(GpuRule::new(Arc::clone(gpu))));
    ClassPlanners([("gpu", planner)].into())
}

/// What a configuration says about the GPU; `state` is the folder of durable runs, which `auto` lies in.
pub fn options(gpu: &config::Gpu, state: &Path) -> GpuOptions {
    let folder = gpu.dir.clone().unwrap_or_else(|| state.join("gpu"));
    GpuOptions {
        usage: match gpu.usage {
            "always" => GpuUse::Always,
            "never" => GpuUse::Never,
            "required" => GpuUse::Required,
            _ => GpuUse::Auto,
        },
        ordinal: gpu.device,
        memory_bytes: gpu.memory_bytes,
        launch_bytes: usize::try_from(gpu.launch_bytes).unwrap_or(usize::MAX),
        kernels: Some(folder.join("kernels")),
        table: Some(folder.join(TABLE)),
    }
}

/// The device for steps of kind `gpu`, which search without a plan.
pub(crate) fn device_of(gpu: &Arc<GpuContext>) -> rowmill_step_gpu::DeviceFor {
    let gpu = Arc::clone(gpu);
    Arc::new(move |rows, bytes| gpu.corpus_device(rows, bytes))
}
