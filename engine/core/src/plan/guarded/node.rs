//! A guarded step in a logical plan: opaque, so that nothing is moved past it.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use datafusion::common::{DFSchema, DFSchemaRef, Result, internal_err};
use datafusion::logical_expr::{Expr, Extension, LogicalPlan, UserDefinedLogicalNodeCore};

use super::Guard;

/// The step over its input, which has the columns that its chain takes.
#[derive(Debug, Clone)]
pub struct GuardedNode {
    guard: Arc<Guard>,
    input: LogicalPlan,
    schema: DFSchemaRef,
}

impl GuardedNode {
    /// The step over `input`.
    ///
    /// # Errors
    /// When its schema holds a name twice, which was refused before.
    pub fn wrap(guard: &Arc<Guard>, input: LogicalPlan) -> Result<LogicalPlan> {
        let schema = Arc::new(DFSchema::try_from(Arc::clone(&guard.schema))?);
        let node = GuardedNode { guard: Arc::clone(guard), input, schema };
        Ok(LogicalPlan::Extension(Extension { node: Arc::new(node) }))
    }

    /// The step.
    pub fn guard(&self) -> &Arc<Guard> {
        &self.guard
    }
}

impl PartialEq for GuardedNode {
    fn eq(&self, other: &Self) -> bool {
        self.guard.step == other.guard.step && self.input == other.input
    }
}
impl Eq for GuardedNode {}
impl PartialOrd for GuardedNode {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        (self == other).then_some(std::cmp::Ordering::Equal)
    }
}
impl Hash for GuardedNode {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.guard.step.hash(state);
        self.input.hash(state);
    }
}

impl UserDefinedLogicalNodeCore for GuardedNode {
    fn name(&self) -> &str {
        "Guarded"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    fn expressions(&self) -> Vec<Expr> {
        Vec::new()
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Guarded: {}, {}, {}", self.guard.step, self.guard.describe(), self.guard.chain.describe())
    }

    fn with_exprs_and_inputs(&self, _expressions: Vec<Expr>, mut inputs: Vec<LogicalPlan>) -> Result<Self> {
        match (inputs.pop(), inputs.is_empty()) {
            (Some(input), true) => Ok(GuardedNode { input, ..self.clone() }),
            _ => internal_err!("a guarded step has one input"),
        }
    }
}
