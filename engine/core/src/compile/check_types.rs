//! Pass: plans every step against the schemas of what it reads, so that types are known at every edge.
//!
//! A step whose input did not check is passed over in silence: the first error is the one to read. Nothing is
//! optimized here, and no rows are read.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::catalog::{CatalogProvider, MemoryCatalogProvider};
use datafusion::common::{DataFusionError, ParamValues, Result};
use datafusion::datasource::ViewTable;
use datafusion::execution::SessionState;
use datafusion::logical_expr::LogicalPlan;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{Expr as SqlExpr, Ident, visit_expressions_mut};
use indexmap::IndexMap;
use rowmill_spec::{Diagnostic, MappedText, ResourceClass, Span, StepKind, Workflow};

use rowmill_items::Tally;
use rowmill_step::{Effects, OnError};

use super::Reports;
use super::bind_values::Bound;
use super::guard_steps::{guard, is_guarded};
use super::kept_results::{Identities, KeptKey};
use super::open_sources::OpenedSources;
use super::resolve_names::Names;
use super::sql_errors::planning_error;
use super::tables::StepTables;
use super::typed_lists::with_typed_lists;
use crate::calls::describe::columns;
use crate::calls::{Call, Host, describe};
use crate::plan::dead_letters::{letters_of, letters_schema};
use crate::plan::edge::EdgeTable;
use crate::plan::guarded::Guard;
use crate::plan::meter::{Meter, MeterNode};
use crate::wrong_answers::plan_statement;

/// SQL steps fused into one query at most: planning time grows with the square of it.
const MAX_FUSED: usize = 32;

/// A step that checked.
#[derive(Debug)]
pub struct CheckedStep {
    /// What it reads, by declared names, once for each mention.
    pub reads: Vec<String>,
    /// Its columns.
    pub schema: SchemaRef,
    /// What it does.
    pub body: Body,
    /// The class it runs in.
    pub class: ResourceClass,
    /// How its consumers get its rows.
    pub edge: EdgeKind,
    /// Steps fused into its query, itself included.
    pub fused: usize,
    /// Under what its whole result is kept, if it is.
    pub kept: Option<KeptKey>,
}

/// What a step does.
#[derive(Debug)]
pub enum Body {
    /// Its analysed plan, from the boundaries of the steps below it.
    Query(LogicalPlan),
    /// It is SQL with an error policy.
    Guarded(Arc<Guard>),
    /// It is not SQL.
    Call(Arc<Call>),
    /// Nobody wrote it down: the items that a step put aside.
    DeadLetters(Arc<str>),
}

impl CheckedStep {
    /// Its query, if it is simply SQL.
    pub fn query(&self) -> Option<&LogicalPlan> {
        match &self.body {
            Body::Query(plan) => Some(plan),
            Body::Guarded(_) | Body::Call(_) | Body::DeadLetters(_) => None,
        }
    }

    /// What is known of a SQL step with an error policy.
    pub fn guard(&self) -> Option<&Arc<Guard>> {
        match &self.body {
            Body::Guarded(guard) => Some(guard),
            Body::Query(_) | Body::Call(_) | Body::DeadLetters(_) => None,
        }
    }

    /// The counts of its items, if its items have outcomes.
    pub fn tally(&self) -> Option<&Arc<Tally>> {
        match &self.body {
            Body::Query(_) | Body::DeadLetters(_) => None,
            Body::Guarded(guard) => Some(&guard.tally),
            Body::Call(call) => Some(&call.tally),
        }
    }

    /// What is known of a step that is not SQL.
    pub fn call(&self) -> Option<&Arc<Call>> {
        match &self.body {
            Body::Query(_) | Body::Guarded(_) | Body::DeadLetters(_) => None,
            Body::Call(call) => Some(call),
        }
    }
}

/// How rows get from a step to those who read it.
#[derive(Debug, Clone)]
pub enum EdgeKind {
    /// Its one consumer's query holds its query.
    Fused,
    /// Its one consumer runs in another class, or the query grew long: planned apart, streamed.
    Streamed(Arc<EdgeTable>),
    /// Several read it: it runs once and is kept.
    Spooled(Arc<EdgeTable>),
}

impl EdgeKind {
    /// The table behind the edge, where there is one.
    pub fn table(&self) -> Option<&Arc<EdgeTable>> {
        match self {
            EdgeKind::Fused => None,
            EdgeKind::Streamed(table) | EdgeKind::Spooled(table) => Some(table),
        }
    }
}

/// All steps that checked, in the order of their dependencies.
#[derive(Debug, Default)]
pub struct Checked {
    /// The steps.
    pub steps: IndexMap<String, CheckedStep>,
    /// A meter for each.
    pub meters: IndexMap<String, Arc<Meter>>,
}

/// Checks every step that [`Names::order`] holds.
pub async fn check(
    workflow: &Workflow,
    names: &Names,
    bound: &Bound,
    opened: &OpenedSources,
    state: &SessionState,
    host: &Host,
    reports: &mut Reports,
) -> Checked {
    let mut checked = Checked::default();
    let tables = Arc::new(StepTables::default());
    let catalog = MemoryCatalogProvider::new();
    let options = &state.config().options().catalog;
    if let Err(error) = catalog.register_schema(&options.default_schema, Arc::clone(&tables) as _) {
        reports.push(Diagnostic::error("RM0900", error.strip_backtrace()).fault(rowmill_spec::Fault::Internal));
        return checked;
    }
    state.catalog_list().register_catalog(options.default_catalog.clone(), Arc::new(catalog));
    for (name, table) in &opened.tables {
        tables.insert(name, Arc::clone(table));
    }
    let consumer_classes = consumer_classes(workflow, names);
    let engine = format!("{} {:?}", env!("CARGO_PKG_VERSION"), state.config().options().execution.time_zone);
    let mut identities = Identities::new(workflow, bound, opened, engine);
    for name in &names.order {
        if let (None, Some(of)) = (workflow.steps.get(name), letters_of(name)) {
            if let Some(step) = checked.steps.get(of) {
                match dead_letters(workflow, name, of, step, names) {
                    Ok(letters) => {
                        if let Some(table) = letters.edge.table() {
                            tables.insert(name, Arc::clone(table) as _);
                        }
                        checked.meters.insert(name.clone(), Arc::new(Meter::default()));
                        checked.steps.insert(name.clone(), letters);
                    }
                    Err(report) => reports.push(report),
                }
            }
            continue;
        }
        let (Some(parsed), Some(step)) = (names.steps.get(name), workflow.steps.get(name)) else { continue };
        let ready =
            parsed.reads.iter().all(|read| opened.tables.contains_key(read) || checked.steps.contains_key(read));
        if !ready {
            continue;
        }
        let inputs: Vec<SchemaRef> = parsed
            .reads
            .iter()
            .filter_map(|read| {
                let source = opened.tables.get(read).map(|table| table.schema());
                source.or_else(|| checked.steps.get(read).map(|step| Arc::clone(&step.schema)))
            })
            .collect();
        let meter = Arc::new(Meter::default());
        let consumers = names.consumers.get(name).copied().unwrap_or(0);
        let (StepKind::Sql(sql), Some(statement)) = (&step.kind, &parsed.statement) else {
            let Some(input) = inputs.first() else { continue };
            if let Err(report) = identities.note(step, &parsed.reads, None) {
                reports.push(report);
            }
            match describe(step, input, bound, host).await {
                Ok(call) => {
                    let schema = columns(&call);
                    let declared = step.resources.class.as_ref();
                    let class = declared.map_or_else(|| step.kind.class(), |class| class.value.clone());
                    // Never fused: nothing may be moved past it. One that is not to be repeated runs to its end
                    // whoever reads it, so it is kept.
                    let once = call.policy.effects == Effects::Once;
                    let table = Arc::new(EdgeTable::new(Arc::from(name.as_str()), Arc::clone(&schema), false));
                    let edge = match consumers > 1 || once {
                        true => EdgeKind::Spooled(Arc::clone(&table)),
                        false => EdgeKind::Streamed(Arc::clone(&table)),
                    };
                    tables.insert(name, table as _);
                    checked.meters.insert(name.clone(), meter);
                    let body = Body::Call(Arc::new(call));
                    let reads = parsed.reads.clone();
                    checked
                        .steps
                        .insert(name.clone(), CheckedStep { reads, schema, body, class, edge, fused: 1, kept: None });
                }
                Err(errors) => errors.into_iter().for_each(|error| reports.push(error)),
            }
            continue;
        };
        let statement = with_typed_lists(match_case(statement, &inputs), bound);
        let guarded = is_guarded(step);
        // A guarded step's query is planned over a stand-in for its input, which is planned apart.
        let behind = match parsed.reads.as_slice() {
            [read] if guarded => tables.get(read).map(|table| (read, table)),
            _ => None,
        };
        if let (Some((read, _)), Some(input)) = (&behind, inputs.first()) {
            let stand_in = EdgeTable::new(Arc::from(read.as_str()), Arc::clone(input), false);
            tables.insert(read, Arc::new(stand_in));
        }
        let planned = plan_query(state, statement, bound).await;
        if let Some((read, table)) = behind {
            tables.insert(read, table);
        }
        let plan = match planned {
            Ok(plan) => plan,
            Err(error) => {
                reports.push(planning_error(name, &sql.text, &error));
                continue;
            }
        };
        if let Some(report) = check_columns(name, &sql.text, &plan) {
            reports.push(report);
            continue;
        }
        if guarded {
            if let Err(report) = identities.note(step, &parsed.reads, None) {
                reports.push(report);
            }
            match guard(step, &sql.text, &parsed.reads, plan, state) {
                Ok(guard) => {
                    let class = class_of(step.resources.class.as_ref().map(|class| &class.value));
                    let schema = Arc::clone(&guard.schema);
                    let table = Arc::new(EdgeTable::new(Arc::from(name.as_str()), Arc::clone(&schema), false));
                    tables.insert(name, Arc::clone(&table) as _);
                    let edge = match consumers > 1 {
                        true => EdgeKind::Spooled(table),
                        false => EdgeKind::Streamed(table),
                    };
                    checked.meters.insert(name.clone(), meter);
                    let body = Body::Guarded(Arc::new(guard));
                    let reads = parsed.reads.clone();
                    checked
                        .steps
                        .insert(name.clone(), CheckedStep { reads, schema, body, class, edge, fused: 1, kept: None });
                }
                Err(errors) => errors.into_iter().for_each(|error| reports.push(error)),
            }
            continue;
        }
        let noted = identities.note(step, &parsed.reads, Some(&plan));
        let kept = match noted {
            Ok(kept) => kept,
            Err(report) => {
                reports.push(report);
                continue;
            }
        };
        let schema: SchemaRef = Arc::clone(plan.schema().inner());
        let class = class_of(step.resources.class.as_ref().map(|class| &class.value));
        let fused = 1 + parsed
            .reads
            .iter()
            .filter_map(|read| checked.steps.get(read))
            .filter(|step| matches!(step.edge, EdgeKind::Fused))
            .map(|step| step.fused)
            .sum::<usize>();
        let metered = MeterNode::wrap(Arc::from(name.as_str()), Arc::clone(&meter), plan.clone());
        let same_class = consumer_classes
            .get(name.as_str())
            .is_none_or(|classes| classes.iter().all(|other| other.as_ref() == Some(&class)));
        let edge = match consumers {
            0 | 1 if kept.is_some() => {
                // All of its rows and columns are kept, whatever its one reader asks for.
                EdgeKind::Streamed(Arc::new(EdgeTable::new(Arc::from(name.as_str()), Arc::clone(&schema), false)))
            }
            0 | 1 if same_class && fused < MAX_FUSED => EdgeKind::Fused,
            0 | 1 => EdgeKind::Streamed(Arc::new(EdgeTable::new(Arc::from(name.as_str()), Arc::clone(&schema), true))),
            _ => EdgeKind::Spooled(Arc::new(EdgeTable::new(Arc::from(name.as_str()), Arc::clone(&schema), false))),
        };
        match edge.table() {
            Some(table) => tables.insert(name, Arc::clone(table) as _),
            None => tables.insert(name, Arc::new(ViewTable::new(metered.clone(), None))),
        }
        checked.meters.insert(name.clone(), meter);
        checked.steps.insert(
            name.clone(),
            CheckedStep { reads: parsed.reads.clone(), schema, body: Body::Query(metered), class, edge, fused, kept },
        );
    }
    checked
}

/// The dead letters of a step that checked.
fn dead_letters(
    workflow: &Workflow,
    name: &str,
    of: &str,
    step: &CheckedStep,
    names: &Names,
) -> Result<CheckedStep, Diagnostic> {
    let sink = workflow.sinks.values().find(|sink| sink.from.eq_ignore_ascii_case(name));
    let span = sink.map_or(Span::NONE, |sink| sink.from.span);
    let (item, put_aside) = match &step.body {
        Body::Call(call) => (Some(&call.input), matches!(call.policy.on_error, OnError::DeadLetter)),
        Body::Guarded(guard) => (Some(guard.chain.input()), matches!(guard.on_error, OnError::DeadLetter)),
        Body::Query(_) | Body::DeadLetters(_) => (None, false),
    };
    let (Some(item), true) = (item, put_aside) else {
        let message = format!("`{name}` is asked for, and step `{of}` puts no items aside");
        let report = Diagnostic::error("RM0204", message).at(span, "");
        return Err(report.help(format!("say `on_error: dead_letter` in `{of}`")));
    };
    let schema = letters_schema(item).map_err(|column| {
        let message = format!("`{name}` would have two columns `{column}`: the item's, and that of its error");
        Diagnostic::error("RM0311", message)
            .at(span, "")
            .help(format!("give the column of `{of}`'s input another name"))
    })?;
    let table = Arc::new(EdgeTable::new(Arc::from(name), Arc::clone(&schema), false));
    let edge = match names.consumers.get(name).copied().unwrap_or(0) > 1 {
        true => EdgeKind::Spooled(table),
        false => EdgeKind::Streamed(table),
    };
    let body = Body::DeadLetters(Arc::from(of));
    Ok(CheckedStep { reads: vec![of.to_owned()], schema, body, class: class_of(None), edge, fused: 1, kept: None })
}

/// A SQL step runs in `cpu` where nothing else is said.
pub fn class_of(declared: Option<&ResourceClass>) -> ResourceClass {
    declared.cloned().unwrap_or(ResourceClass::Cpu)
}

/// The classes of the SQL steps that read each step; `None` for a reader that is not SQL, which fuses with nothing.
fn consumer_classes<'a>(workflow: &'a Workflow, names: &'a Names) -> HashMap<&'a str, Vec<Option<ResourceClass>>> {
    let mut classes: HashMap<&str, Vec<Option<ResourceClass>>> = HashMap::new();
    for (name, parsed) in &names.steps {
        let class = workflow.steps.get(name).and_then(|step| step.resources.class.as_ref()).map(|class| &class.value);
        for read in &parsed.reads {
            let class = parsed.statement.is_some().then(|| class_of(class));
            classes.entry(read).or_default().push(class);
        }
    }
    classes
}

async fn plan_query(state: &SessionState, statement: Statement, bound: &Bound) -> Result<LogicalPlan> {
    let plan = plan_statement(state, statement).await?;
    let plan = match bound.scalars.is_empty() {
        true => plan,
        false => {
            let values = bound.scalars.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect();
            plan.with_param_values(ParamValues::Map(values))?
        }
    };
    state.analyzer().execute_and_check(plan, &state.config().options().clone(), |_, _| {}).map_err(
        |error| match error {
            // The analyzer's pass is of no interest to the person who wrote the query.
            DataFusionError::Context(_, inner) => *inner,
            other => other,
        },
    )
}

/// Two columns of one name could not be told apart by whoever reads the step.
fn check_columns(step: &str, text: &MappedText, plan: &LogicalPlan) -> Option<Diagnostic> {
    let mut seen = HashSet::new();
    let twice = plan.schema().fields().iter().find(|field| !seen.insert(field.name().as_str()))?;
    Some(
        Diagnostic::error("RM0311", format!("step `{step}` makes two columns named `{}`", twice.name()))
            .at(text.span, "")
            .help("give each a name of its own: `... AS name`"),
    )
}

/// Makes unquoted identifiers match columns whatever their case.
///
/// SQL folds `Carrier` to `carrier`; a file may hold `Carrier`. An unquoted identifier that matches no input column
/// in lower case, but exactly one regardless of case, is taken for that one. Quoted identifiers stay as they are.
fn match_case(statement: &Statement, inputs: &[SchemaRef]) -> Statement {
    let mut exact: HashSet<&str> = HashSet::new();
    let mut folded: HashMap<String, HashSet<&str>> = HashMap::new();
    for field in inputs.iter().flat_map(|schema| schema.fields().iter()) {
        exact.insert(field.name());
        folded.entry(field.name().to_lowercase()).or_default().insert(field.name());
    }
    let mixed = folded.values().any(|names| names.iter().any(|name| name.to_lowercase() != **name));
    let mut statement = statement.clone();
    if !mixed {
        return statement;
    }
    let fix = |ident: &mut Ident| {
        if ident.quote_style.is_some() || exact.contains(ident.value.to_lowercase().as_str()) {
            return;
        }
        if let Some(names) = folded.get(&ident.value.to_lowercase())
            && let (Some(name), 1) = (names.iter().next(), names.len())
        {
            ident.value = (*name).to_owned();
            ident.quote_style = Some('"');
        }
    };
    if let Statement::Statement(inner) = &mut statement {
        let _: ControlFlow<()> = visit_expressions_mut(inner.as_mut(), |expression| {
            match expression {
                SqlExpr::Identifier(ident) => fix(ident),
                SqlExpr::CompoundIdentifier(idents) => {
                    if let Some(last) = idents.last_mut() {
                        fix(last);
                    }
                }
                _ => {}
            }
            ControlFlow::Continue(())
        });
    }
    statement
}
