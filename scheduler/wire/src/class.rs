//! The marker that says which class of executors a stage runs on, and how many slots a task of it takes.
//!
//! [`ClassExec`] passes batches through and changes nothing. It stands anywhere in a stage; Ballista cuts stages at hash
//! exchanges, so a marker must not share a stage with another class: whoever plans puts an exchange between them
//! ([`class_of_stage`] finds those who did not). A stage without a marker runs where its job says.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use ballista_core::execution_plans::{RangeShuffleReaderExec, ShuffleReaderExec};
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Result, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::execution_plan::{CardinalityEffect, ChildrenPropertiesMode, ReplaceChildrenOptions};
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};

/// The class of a job that does not say one.
pub const DEFAULT_CLASS: &str = "cpu";

/// What a stage asks of its executor.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Demand {
    /// The class of executors.
    pub class: Arc<str>,
    /// Slots that one partition takes; `u32::MAX` takes all that an executor has.
    pub slots: u32,
    /// Bytes of memory that are kept for one partition; zero where its slots' share will do.
    pub memory_bytes: u64,
}

impl Demand {
    /// One slot on an executor of a class.
    pub fn plain(class: &str) -> Self {
        Self { class: class.into(), slots: 1, memory_bytes: 0 }
    }

    /// The same with so much memory for each partition.
    pub fn with_memory(self, memory_bytes: u64) -> Self {
        Self { memory_bytes, ..self }
    }

    /// What suits both, of one class.
    fn largest(self, other: &Self) -> Self {
        Self {
            class: self.class,
            slots: self.slots.max(other.slots),
            memory_bytes: self.memory_bytes.max(other.memory_bytes),
        }
    }
}

/// Marks the stage that it stands in.
#[derive(Debug, Clone)]
pub struct ClassExec {
    demand: Demand,
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
}

impl ClassExec {
    /// Marks the stage of `input`.
    pub fn new(demand: Demand, input: Arc<dyn ExecutionPlan>) -> Self {
        let properties = input.properties().clone();
        Self { demand, input, properties }
    }

    /// What the stage asks for.
    pub fn demand(&self) -> &Demand {
        &self.demand
    }

    fn over(&self, mut children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        match (children.pop(), children.is_empty()) {
            (Some(input), true) => Ok(Arc::new(Self::new(self.demand.clone(), input))),
            _ => internal_err!("a class marker has one input"),
        }
    }
}

impl DisplayAs for ClassExec {
    fn fmt_as(&self, _kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClassExec: class={}, slots={}", self.demand.class, self.demand.slots)?;
        match self.demand.memory_bytes {
            0 => Ok(()),
            bytes => write!(f, ", memory={bytes}"),
        }
    }
}

impl ExecutionPlan for ClassExec {
    fn name(&self) -> &str {
        "ClassExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        _visit: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        self.over(children)
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        self.input.execute(partition, context)
    }

    fn cardinality_effect(&self) -> CardinalityEffect {
        CardinalityEffect::Equal
    }
}

/// The demand of a stage, read from its plan; upstream stages are only shuffle readers in it. `None` where it has no
/// marker.
///
/// # Errors
/// Its markers disagree: the text says how.
pub fn class_of_stage(plan: &Arc<dyn ExecutionPlan>) -> std::result::Result<Option<Demand>, String> {
    let mut found: BTreeMap<Arc<str>, Demand> = BTreeMap::new();
    walk(plan, &mut found);
    let mut demands = found.into_iter();
    match (demands.next(), demands.next()) {
        (None, _) => Ok(None),
        (Some((_, demand)), None) => Ok(Some(demand)),
        (Some((one, _)), Some((other, _))) => Err(format!(
            "one stage is marked for class {one} and for class {other}; an exchange must stand between them"
        )),
    }
}

fn walk(plan: &Arc<dyn ExecutionPlan>, found: &mut BTreeMap<Arc<str>, Demand>) {
    if plan.downcast_ref::<ShuffleReaderExec>().is_some() || plan.downcast_ref::<RangeShuffleReaderExec>().is_some() {
        return;
    }
    if let Some(marker) = plan.downcast_ref::<ClassExec>() {
        let other = found.remove(&marker.demand.class);
        let both = other.map_or_else(|| marker.demand.clone(), |other| other.largest(&marker.demand));
        found.insert(marker.demand.class.clone(), both);
    }
    for child in plan.children() {
        walk(child, found);
    }
}

/// Puts a marker above every node that `choose` names a demand for.
///
/// # Errors
/// DataFusion's, when a node cannot be rebuilt.
pub fn mark(
    plan: Arc<dyn ExecutionPlan>,
    choose: impl Fn(&Arc<dyn ExecutionPlan>) -> Option<Demand>,
) -> Result<Arc<dyn ExecutionPlan>> {
    plan.transform_up(|node| match choose(&node) {
        Some(demand) => Ok(Transformed::yes(Arc::new(ClassExec::new(demand, node)) as Arc<dyn ExecutionPlan>)),
        None => Ok(Transformed::no(node)),
    })
    .map(|transformed| transformed.data)
}
