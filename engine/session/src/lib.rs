//! Rowmill's façade: load a workflow, check it, explain it, run it.
//!
//! This crate wires the parts together and holds no logic of its own: text is read by `rowmill-spec`, compiled and run
//! by `rowmill-engine`.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use rowmill::{Inputs, Session, SessionOptions};
//!
//! let session = Session::try_new(SessionOptions::default())?;
//! let (workflow, inputs) = rowmill::load("flow.yaml".as_ref())?;
//! let report = session.run(workflow, &inputs).await?;
//! println!("{} rows", report.sinks.iter().map(|sink| sink.rows).sum::<u64>());
//! # Ok(())
//! # }
//! ```

pub mod cache;
pub mod gpu;
mod host;
pub mod load;
pub mod options;
pub mod runs;
pub mod session;

pub use cache::CachePlace;
pub use host::kinds;
pub use load::{LoadError, load, load_vars, read_text};
pub use options::SessionOptions;
pub use rowmill_engine::calls::CacheOptions;
pub use rowmill_engine::compile::Inputs;
pub use rowmill_engine::compile::explain::Explanation;
pub use rowmill_engine::local::{ItemsReport, Observer, RunError, RunReport, SinkReport, StepReport};
pub use rowmill_engine::places::{Place, StagePlace};
pub use rowmill_engine::plan::meter::Meter;
pub use rowmill_engine::sinks::check_printable;
pub use rowmill_engine::sources::stores::StoreOptions;
pub use rowmill_engine::sql::{SqlContext, SqlStatement, split_statements};
pub use rowmill_gpu_plan::{GpuContext, GpuOptions, GpuUse};
pub use rowmill_items::{Tally, TallySnapshot};
pub use rowmill_spec as spec;
pub use rowmill_spec::{Diagnostics, Fault, Workflow};
pub use rowmill_step as step;
pub use rowmill_store as store;
pub use runs::{Collected, ResumeOptions, Runs, RunsOptions};
pub use session::{Session, SqlError};
