//! Which parts of a plan a cluster runs with the same result, and how they look when they are sent.
//!
//! The rule is a list of what is known to be right, not of what is known to be wrong: an operator, a source or an
//! expression that is not on it keeps its part of the plan here. And what is sent is decoded once here and must read as
//! the original does, so that nothing is lost on the way.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode as _, TreeNodeRecursion};
use datafusion::common::{JoinType, Result};
use datafusion::datasource::file_format::file_compression_type::FileCompressionType;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::datasource::physical_plan::{ArrowSource, CsvSource, FileScanConfig, FileSource, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::execution::TaskContext;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{Column, DynamicFilterPhysicalExpr};
use datafusion::physical_expr::window::WindowExpr;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::joins::{HashJoinExec, NestedLoopJoinExec};
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::sorts::sort_preserving_merge::SortPreservingMergeExec;
use datafusion::physical_plan::windows::{BoundedWindowAggExec, WindowAggExec};
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties as _, Partitioning, displayable};
use datafusion_proto::physical_plan::AsExecutionPlan;
use datafusion_proto::protobuf::PhysicalPlanNode;
use rowmill_engine::elsewhere::{Part, Sent};
use rowmill_engine::plan::meter::{Meter, MeterExec};
use rowmill_engine::plan::streamed::StreamedExec;
use rowmill_json::ExactJsonSource;
use rowmill_wire::class::{ClassExec, DEFAULT_CLASS, Demand};
use rowmill_wire::codec::RowmillCodec;
use rowmill_wire::step::CountExec;

use crate::exec::{ClusterExec, Placed};
use crate::stays::{mixes_at_hand_over, why_here};
use crate::submit::Cluster;

/// Bytes of a part that is sent. Tables in memory travel in the plan, once for each task.
const MOST_BYTES: usize = 8 << 20;

/// Operators that the cluster may put on top of a part, or of a stage of it.
const ON_TOP: usize = 3;

/// Operators that give the same rows when their partitions run apart.
const OPERATORS: &[&str] = &[
    "AggregateExec",
    "BoundedWindowAggExec",
    "CoalesceBatchesExec",
    "CoalescePartitionsExec",
    "CooperativeExec",
    "CrossJoinExec",
    "EmptyExec",
    "FilterExec",
    "GlobalLimitExec",
    "HashJoinExec",
    "LocalLimitExec",
    "PlaceholderRowExec",
    "ProjectionExec",
    "SortExec",
    "SortMergeJoinExec",
    "SortPreservingMergeExec",
    "UnionExec",
    "UnnestExec",
    "WindowAggExec",
];

/// Replaces the largest parts of `plan` that a cluster can run.
pub(crate) fn place(cluster: &Cluster, part: Part<'_>, plan: Arc<dyn ExecutionPlan>) -> Result<Sent> {
    if (!part.read_here || does_work(&plan))
        && let Some(plan) = leaf(cluster, part, &plan)
    {
        return Ok(Sent { plan, whole: true, notes: Vec::new() });
    }
    let placed = below(cluster, part, plan)?;
    let mut notes = Vec::new();
    if !holds_parts(&placed) {
        let (why, refused) = why_here(&placed, part);
        // Who asks for a class means it; that `cpu` may be here goes without saying.
        if part.class != DEFAULT_CLASS && refused {
            tracing::warn!("{} asks for class {} and runs in this process: {why}", part.name, part.class);
        }
        notes.push(format!("runs in the client: {why}"));
    }
    Ok(Sent { plan: placed, whole: false, notes })
}

/// Whether something of a plan runs on the cluster.
fn holds_parts(plan: &Arc<dyn ExecutionPlan>) -> bool {
    plan.exists(|node| Ok(node.downcast_ref::<ClusterExec>().is_some())).unwrap_or(true)
}

/// The same for what is below the root.
fn below(cluster: &Cluster, part: Part<'_>, plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    if plan.children().is_empty() {
        return Ok(plan);
    }
    let mut changed = false;
    let mut children = Vec::with_capacity(plan.children().len());
    for child in plan.children() {
        let own = match may_stand_apart(&plan, child) && does_work(child) {
            true => leaf(cluster, part, child),
            false => None,
        };
        let new = match own {
            Some(leaf) => leaf,
            None => below(cluster, part, Arc::clone(child))?,
        };
        changed |= !Arc::ptr_eq(&new, child);
        children.push(new);
    }
    if changed { datafusion::physical_plan::replace_children_if_necessary(plan, children) } else { Ok(plan) }
}

/// Whether `parent` does not care that the partitions of `child` come as they like.
fn may_stand_apart(parent: &Arc<dyn ExecutionPlan>, child: &Arc<dyn ExecutionPlan>) -> bool {
    let partitioning = child.output_partitioning();
    if partitioning.partition_count() == 1 {
        return true;
    }
    let mixes = parent.downcast_ref::<CoalescePartitionsExec>().is_some()
        || parent.downcast_ref::<RepartitionExec>().is_some_and(|exchange| !exchange.preserve_order());
    // A writer counts what it was given, in whatever order where it asks for none.
    let writes = parent.name() == "DataSinkExec" && parent.required_input_ordering().iter().all(Option::is_none);
    let unknown = matches!(partitioning, Partitioning::UnknownPartitioning(_) | Partitioning::RoundRobinBatch(_));
    mixes || writes || (unknown && child.output_ordering().is_none())
}

/// Whether there is more to do than to read: what only reads is as well read here.
pub(crate) fn does_work(plan: &Arc<dyn ExecutionPlan>) -> bool {
    if plan.children().is_empty() {
        return false;
    }
    let idle = plan.downcast_ref::<MeterExec>().is_some()
        || plan.downcast_ref::<CoalescePartitionsExec>().is_some()
        || plan.name() == "ProjectionExec";
    !idle || plan.children().into_iter().any(does_work)
}

/// The leaf that stands for a plan, if a cluster can run all of it.
fn leaf(cluster: &Cluster, part: Part<'_>, plan: &Arc<dyn ExecutionPlan>) -> Option<Arc<dyn ExecutionPlan>> {
    if part.in_order && mixes_at_hand_over(plan, part.class, false) {
        return None;
    }
    let own = Demand::plain(part.class).with_memory(part.memory_bytes);
    let (plan, demand) = opened(plan, own)?;
    if !is_supported(&plan) {
        return None;
    }
    let mut meters = HashMap::new();
    let sent = to_send(Arc::clone(&plan), &mut meters).ok()?;
    let bytes = match encoded(&sent, &cluster.context()) {
        Ok(bytes) => bytes,
        Err(why) => {
            tracing::debug!(part = part.name, "stays here: {why}");
            return None;
        }
    };
    let (name, stage) = (part.name.to_owned(), part.stage.to_owned());
    let placed = Placed { name, stage, demand, plan, bytes, meters, places: Arc::clone(part.places) };
    Some(Arc::new(ClusterExec::new(placed, cluster.clone())))
}

/// The plan with the plans of its streamed producers in the place of their leaves, and what it asks for then; `None`
/// where one of them runs here, or where classes would meet in one stage.
fn opened(plan: &Arc<dyn ExecutionPlan>, own: Demand) -> Option<(Arc<dyn ExecutionPlan>, Demand)> {
    let mut elsewhere = true;
    let mut demand = own;
    let opened = Arc::clone(plan).transform_up(|node| {
        let Some(streamed) = node.downcast_ref::<StreamedExec>() else { return Ok(Transformed::no(node)) };
        let Some(producer) = streamed.input().downcast_ref::<ClusterExec>() else {
            elsewhere = false;
            return Ok(Transformed::no(node));
        };
        let part = Arc::clone(producer.part());
        Ok(Transformed::yes(match producer.demand().class == demand.class {
            // They meet in stages, which are to suit both.
            true => {
                demand.memory_bytes = demand.memory_bytes.max(producer.demand().memory_bytes);
                part
            }
            false => handed_over(part, producer.demand())?,
        }))
    });
    let opened = opened.ok().filter(|_| elsewhere)?.data;
    classes_agree(&opened).then_some((opened, demand))
}

/// A part of another class, as the input of a consumer: its stages marked, and where its rows may come in any order and
/// any partition, an exchange above them. Where they may not, the consumer's first operators run in the part's class.
fn handed_over(part: Arc<dyn ExecutionPlan>, demand: &Demand) -> Result<Arc<dyn ExecutionPlan>> {
    let (part, marked) = marked_below(part, demand)?;
    let part = if marked { part } else { Arc::new(ClassExec::new(demand.clone(), part)) };
    if !is_dealt_out(&part) {
        return Ok(part);
    }
    let many = part.output_partitioning().partition_count();
    let columns = dealt_out_by(&part);
    Ok(Arc::new(RepartitionExec::try_new(part, Partitioning::Hash(columns, many))?))
}

/// Whether rows of a part are dealt out anew on their way to another class.
pub(crate) fn is_dealt_out(part: &Arc<dyn ExecutionPlan>) -> bool {
    let partitioning = part.output_partitioning();
    matches!(partitioning, Partitioning::UnknownPartitioning(_) | Partitioning::RoundRobinBatch(_))
        && partitioning.partition_count() > 1
        && part.output_ordering().is_none()
        && !dealt_out_by(part).is_empty()
}

/// The columns by which they are.
fn dealt_out_by(part: &Arc<dyn ExecutionPlan>) -> Vec<Arc<dyn PhysicalExpr>> {
    let schema = part.schema();
    let columns = schema.fields().iter().enumerate();
    columns
        .filter(|(_, field)| field.data_type().is_integer() || field.data_type().is_string())
        .map(|(at, field)| Arc::new(Column::new(field.name(), at)) as Arc<dyn PhysicalExpr>)
        .collect()
}

/// Whether a node's children are stages of their own.
fn is_exchange(node: &Arc<dyn ExecutionPlan>) -> bool {
    node.downcast_ref::<RepartitionExec>().is_some()
        || node.downcast_ref::<CoalescePartitionsExec>().is_some()
        || node.downcast_ref::<SortPreservingMergeExec>().is_some()
}

/// The plan with every stage below its root's marked that was not; and whether the root's stage has a marker.
fn marked_below(plan: Arc<dyn ExecutionPlan>, demand: &Demand) -> Result<(Arc<dyn ExecutionPlan>, bool)> {
    let exchange = is_exchange(&plan);
    let mut marked = plan.downcast_ref::<ClassExec>().is_some();
    let mut children = Vec::new();
    for child in plan.children() {
        let (child, own) = marked_below(Arc::clone(child), demand)?;
        children.push(match exchange && !own {
            true => Arc::new(ClassExec::new(demand.clone(), child)) as Arc<dyn ExecutionPlan>,
            false => child,
        });
        marked |= own && !exchange;
    }
    Ok((datafusion::physical_plan::replace_children_if_necessary(plan, children)?, marked))
}

/// Whether no stage of a plan is marked for two classes.
fn classes_agree(plan: &Arc<dyn ExecutionPlan>) -> bool {
    fn walk(plan: &Arc<dyn ExecutionPlan>, agree: &mut bool) -> BTreeSet<Arc<str>> {
        let mut found = BTreeSet::new();
        for child in plan.children() {
            found.append(&mut walk(child, agree));
        }
        if let Some(marker) = plan.downcast_ref::<ClassExec>() {
            found.insert(Arc::clone(&marker.demand().class));
        }
        *agree &= found.len() <= 1;
        if is_exchange(plan) { BTreeSet::new() } else { found }
    }
    let mut agree = true;
    walk(plan, &mut agree);
    agree
}

/// Whether every operator, source and expression of a plan is one that a cluster runs with the same result.
fn is_supported(plan: &Arc<dyn ExecutionPlan>) -> bool {
    let mut supported = true;
    let walked = plan.apply(|node| {
        supported = operator_is_supported(node) && !is_volatile(node);
        Ok(if supported { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
    });
    walked.is_ok() && supported
}

pub(crate) fn operator_is_supported(node: &Arc<dyn ExecutionPlan>) -> bool {
    if node.downcast_ref::<MeterExec>().is_some() || node.downcast_ref::<ClassExec>().is_some() {
        return true;
    }
    if let Some(source) = node.downcast_ref::<DataSourceExec>() {
        return source_is_supported(source);
    }
    if let Some(exchange) = node.downcast_ref::<RepartitionExec>() {
        // Others are dropped on the way, and with them the number of partitions.
        return matches!(exchange.partitioning(), Partitioning::Hash(..));
    }
    // Ballista changes the sides of joins when it knows how large they are, and with them the order of the rows: a join
    // whose order somebody relies on stays here.
    if matches!(node.name(), "HashJoinExec" | "NestedLoopJoinExec" | "CrossJoinExec")
        && node.output_ordering().is_some()
    {
        return false;
    }
    // Whether the other side holds a null is known to a process that saw all of it.
    if node.downcast_ref::<HashJoinExec>().is_some_and(|join| join.null_aware) {
        return false;
    }
    // What a window's function leaves out is not sent; its name tells of it.
    let filters = |function: &Arc<dyn WindowExpr>| {
        [" FILTER (", "IGNORE NULLS", "DISTINCT "].iter().any(|word| function.name().contains(word))
    };
    if let Some(window) = node.downcast_ref::<WindowAggExec>() {
        return !window.window_expr().iter().any(filters);
    }
    if let Some(window) = node.downcast_ref::<BoundedWindowAggExec>() {
        return !window.window_expr().iter().any(filters);
    }
    if let Some(join) = node.downcast_ref::<NestedLoopJoinExec>() {
        // Which rows of the left side found no partner is known to a process that saw all of the right side.
        let right_alone = matches!(
            join.join_type(),
            JoinType::Inner | JoinType::Right | JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark
        );
        return right_alone;
    }
    OPERATORS.contains(&node.name())
}

fn source_is_supported(source: &DataSourceExec) -> bool {
    let source = source.data_source();
    if source.downcast_ref::<MemorySourceConfig>().is_some() {
        return true;
    }
    let Some(files) = source.downcast_ref::<FileScanConfig>() else { return false };
    // Neither travels with the plan.
    let plain = files.file_compression_type == FileCompressionType::UNCOMPRESSED
        && files.limit.is_none_or(|limit| u32::try_from(limit).is_ok());
    let reader: &Arc<dyn FileSource> = files.file_source();
    plain
        && (reader.downcast_ref::<ParquetSource>().is_some()
            || reader.downcast_ref::<CsvSource>().is_some()
            || reader.downcast_ref::<ExactJsonSource>().is_some()
            || reader.downcast_ref::<ArrowSource>().is_some())
}

/// Whether an operator evaluates what is different each time: a task that goes again would make other rows.
pub(crate) fn is_volatile(node: &Arc<dyn ExecutionPlan>) -> bool {
    let mut volatile = false;
    let walked = node.apply_expressions(&mut |expression: &Arc<dyn PhysicalExpr>| {
        expression.apply(|inner| {
            // A filter that a sort makes for itself as it goes; it leaves out only what cannot come into the result.
            if inner.downcast_ref::<DynamicFilterPhysicalExpr>().is_some() {
                return Ok(TreeNodeRecursion::Jump);
            }
            volatile |= inner.is_volatile_node();
            Ok(TreeNodeRecursion::Continue)
        })
    });
    walked.is_err() || volatile
}

/// The plan as it is sent: boundaries of steps count for themselves.
fn to_send(plan: Arc<dyn ExecutionPlan>, meters: &mut HashMap<Arc<str>, Arc<Meter>>) -> Result<Arc<dyn ExecutionPlan>> {
    plan.transform_up(|node| {
        let Some(boundary) = node.downcast_ref::<MeterExec>() else { return Ok(Transformed::no(node)) };
        meters.insert(Arc::clone(boundary.step()), Arc::clone(boundary.meter()));
        let count = CountExec::new(Arc::clone(boundary.step()), Arc::clone(boundary.input()));
        Ok(Transformed::yes(Arc::new(count) as Arc<dyn ExecutionPlan>))
    })
    .map(|sent| sent.data)
}

/// The bytes of a plan, if they say the same as the plan.
fn encoded(plan: &Arc<dyn ExecutionPlan>, context: &TaskContext) -> Result<Vec<u8>, String> {
    let codec = RowmillCodec::shared();
    let node = PhysicalPlanNode::try_from_physical_plan(Arc::clone(plan), codec.as_ref());
    let node = node.map_err(|error| error.strip_backtrace())?;
    let mut bytes = Vec::new();
    node.try_encode(&mut bytes).map_err(|error| error.strip_backtrace())?;
    if bytes.len() > MOST_BYTES {
        return Err(format!("it would take {} bytes to send", bytes.len()));
    }
    // Read back from the bytes, and from deeper down: a message may be nested only so deep, and the cluster puts its own
    // operators on top.
    let mut deeper = Arc::clone(plan);
    for _ in 0..ON_TOP {
        deeper = Arc::new(CoalescePartitionsExec::new(deeper));
    }
    let mut room = Vec::new();
    PhysicalPlanNode::try_from_physical_plan(deeper, codec.as_ref())
        .and_then(|node| node.try_encode(&mut room))
        .and_then(|()| PhysicalPlanNode::try_decode(&room))
        .map_err(|error| format!("it is nested too deep to send: {}", error.strip_backtrace()))?;
    let back = PhysicalPlanNode::try_decode(&bytes)
        .and_then(|node| node.try_into_physical_plan(context, codec.as_ref()))
        .map_err(|error| error.strip_backtrace())?;
    let (there, here) = (shown(&back), shown(plan));
    if there != here || back.schema() != plan.schema() {
        return Err(format!("it does not survive the way: {here} became {there}"));
    }
    Ok(bytes)
}

fn shown(plan: &Arc<dyn ExecutionPlan>) -> String {
    displayable(plan.as_ref()).indent(false).to_string()
}
