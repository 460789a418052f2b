//! Why a part of a plan stays in the client, where it does; and which rows of a durable run a cluster would bring into another
//! order.

use std::sync::Arc;

use datafusion::common::tree_node::TreeNode as _;
use datafusion::datasource::source::DataSourceExec;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties as _};
use rowmill_engine::elsewhere::Part;
use rowmill_engine::plan::streamed::StreamedExec;

use crate::exec::ClusterExec;
use crate::place::{does_work, is_dealt_out, is_volatile, operator_is_supported};

/// Why nothing of a plan goes to the cluster, and whether that is because it cannot.
pub(crate) fn why_here(plan: &Arc<dyn ExecutionPlan>, part: Part<'_>) -> (String, bool) {
    if part.in_order && mixes_at_hand_over(plan, part.class, false) {
        let why = "a change of class would mix rows that come in order whenever a durable run makes them";
        return (why.to_owned(), true);
    }
    let works = match plan.name() {
        "DataSinkExec" => plan.children().into_iter().any(does_work),
        _ => does_work(plan),
    };
    match first_unsupported(plan) {
        Some(node) if node.children().is_empty() && node.downcast_ref::<DataSourceExec>().is_none() => {
            ("its input is there".to_owned(), works)
        }
        Some(node) => (format!("{} does not go to a cluster", node.name()), true),
        None if works => ("its plan cannot be sent".to_owned(), true),
        None => ("it only reads".to_owned(), false),
    }
}

/// The operator nearest to the leaves that keeps a plan here; writers always do.
fn first_unsupported(plan: &Arc<dyn ExecutionPlan>) -> Option<&Arc<dyn ExecutionPlan>> {
    let below = plan.children().into_iter().find_map(first_unsupported);
    let keeps = || plan.name() != "DataSinkExec" && (!operator_is_supported(plan) || is_volatile(plan));
    below.or_else(|| keeps().then_some(plan))
}

/// Whether rows of another class that come in order would be dealt out anew on their way to the top of `plan`, with nothing
/// between that has no order of its own. `mixed` says whether there is such a thing above.
pub(crate) fn mixes_at_hand_over(plan: &Arc<dyn ExecutionPlan>, class: &str, mixed: bool) -> bool {
    if let Some(streamed) = plan.downcast_ref::<StreamedExec>() {
        let producer = streamed.input().downcast_ref::<ClusterExec>();
        return producer.is_some_and(|producer| {
            !mixed && producer.demand().class.as_ref() != class && is_dealt_out(producer.part()) && !mixes(producer.part())
        });
    }
    let mixed = mixed || mixes_itself(plan);
    plan.children().into_iter().any(|child| mixes_at_hand_over(child, class, mixed))
}

/// Whether a plan gives its rows in an order that hangs on time.
fn mixes(plan: &Arc<dyn ExecutionPlan>) -> bool {
    plan.exists(|node| Ok(mixes_itself(node))).unwrap_or(true)
}

/// Whether an operator does: what it hands on are not the rows of its input one after the other.
fn mixes_itself(node: &Arc<dyn ExecutionPlan>) -> bool {
    let many = || node.children().iter().any(|child| child.output_partitioning().partition_count() > 1);
    match node.name() {
        "AggregateExec"
        | "BoundedWindowAggExec"
        | "CrossJoinExec"
        | "HashJoinExec"
        | "NestedLoopJoinExec"
        | "RepartitionExec"
        | "SortExec"
        | "SortMergeJoinExec"
        | "WindowAggExec" => true,
        "CoalescePartitionsExec" | "SortPreservingMergeExec" => many(),
        _ => false,
    }
}
