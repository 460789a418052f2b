//! The items that a step put aside, as rows: `STEP.dead_letters`, which a sink can take.
//!
//! They are known when the step has come to its end, so the operator reads the step's rows to their end first. Where
//! others read the step too it is kept for all of them, as for any two readers.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DataFusionError, Result, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::execution_plan::{
    Boundedness, ChildrenPropertiesMode, EmissionType, ReplaceChildrenOptions,
};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties};
use futures::{StreamExt as _, TryStreamExt as _};
use rowmill_items::{Ledger, read_ledger};
use rowmill_step::Outcome;

/// What a name ends in that means a step's dead letters.
pub const DEAD_LETTERS: &str = ".dead_letters";

/// Columns that come after the item's own: name, type, name in the ledger.
const ADDED: [(&str, DataType, &str); 6] = [
    ("error_outcome", DataType::Utf8, "outcome"),
    ("error_code", DataType::Utf8, "code"),
    ("error_message", DataType::Utf8, "message"),
    ("error_status", DataType::UInt16, "status"),
    ("error_attempts", DataType::UInt32, "attempts"),
    ("error_details", DataType::Utf8, "details"),
];

/// The step whose dead letters a name means, if it does.
pub fn letters_of(name: &str) -> Option<&str> {
    let at = name.len().checked_sub(DEAD_LETTERS.len())?;
    let (step, end) = name.split_at_checked(at)?;
    (end.eq_ignore_ascii_case(DEAD_LETTERS) && !step.is_empty()).then_some(step)
}

/// The columns of dead letters for items with these columns; the name of one that would be there twice otherwise.
pub fn letters_schema(item: &Schema) -> Result<SchemaRef, String> {
    let mut fields: Vec<FieldRef> =
        item.fields().iter().map(|field| Arc::new(field.as_ref().clone().with_nullable(true))).collect();
    for (name, kind, _) in ADDED {
        if item.field_with_name(name).is_ok() {
            return Err(name.to_owned());
        }
        fields.push(Arc::new(Field::new(name, kind, true)));
    }
    Ok(Arc::new(Schema::new(fields)))
}

/// Where the ledger is.
#[derive(Debug, Clone)]
pub enum Letters {
    /// In this process, and ended when the step is.
    Live(Arc<Ledger>),
    /// In files.
    Files(Vec<PathBuf>),
}

/// Reads a step to its end, and gives its dead letters.
#[derive(Debug)]
pub struct DeadLettersExec {
    step: Arc<str>,
    input: Option<Arc<dyn ExecutionPlan>>,
    letters: Letters,
    properties: Arc<PlanProperties>,
}

impl DeadLettersExec {
    /// The letters of a step; `input` are its rows, which are dropped. None where its ledger is complete already.
    pub fn new(step: Arc<str>, input: Option<Arc<dyn ExecutionPlan>>, letters: Letters, schema: SchemaRef) -> Self {
        let properties = Arc::new(PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Final,
            Boundedness::Bounded,
        ));
        let input = input.map(|input| Arc::new(CoalescePartitionsExec::new(input)) as _);
        DeadLettersExec { step, input, letters, properties }
    }
}

impl DisplayAs for DeadLettersExec {
    fn fmt_as(&self, _kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeadLettersExec: step {}", self.step)
    }
}

impl ExecutionPlan for DeadLettersExec {
    fn name(&self) -> &str {
        "DeadLettersExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        self.input.iter().collect()
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
        Ok(Arc::new(DeadLettersExec {
            step: Arc::clone(&self.step),
            input: children.into_iter().next(),
            letters: self.letters.clone(),
            properties: Arc::clone(&self.properties),
        }))
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        if partition != 0 {
            return internal_err!("dead letters are one partition");
        }
        let rows = self.input.as_ref().map(|input| input.execute(0, context)).transpose()?;
        let (letters, schema) = (self.letters.clone(), self.schema());
        let batches = async move {
            if let Some(mut rows) = rows {
                while let Some(batch) = rows.next().await {
                    drop(batch?);
                }
            }
            let read = tokio::task::spawn_blocking(move || read_letters(&letters, &schema)).await;
            read.map_err(|error| DataFusionError::ExecutionJoin(Box::new(error)))?
        };
        let stream = futures::stream::once(batches)
            .map_ok(|batches| futures::stream::iter(batches.into_iter().map(Ok)))
            .try_flatten();
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), stream)))
    }
}

/// Reads the letters of a step that has come to its end; `schema` is what [`letters_schema`] makes of its items'.
///
/// # Errors
/// When the ledger cannot be read, or is of other items.
pub fn read_letters(letters: &Letters, schema: &SchemaRef) -> Result<Vec<RecordBatch>> {
    let external = |error| DataFusionError::External(Box::new(error));
    let files = match letters {
        Letters::Live(ledger) => ledger.finish().map_err(external)?.into_iter().collect(),
        Letters::Files(files) => files.clone(),
    };
    let mut batches = Vec::new();
    for file in files {
        let (_, ledger) = read_ledger(&file).map_err(external)?;
        for batch in ledger {
            batches.push(rows(&batch, schema)?);
        }
    }
    Ok(batches)
}

/// The letters of one batch of a ledger.
fn rows(ledger: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let column = |name: &str| match ledger.column_by_name(name) {
        Some(column) => Ok(Arc::clone(column)),
        None => internal_err!("a ledger has no column `{name}`"),
    };
    let outcomes = column("outcome")?;
    let put_aside = |word: &str| [Outcome::DeadLettered, Outcome::Unknown].iter().any(|kind| kind.as_str() == word);
    let kept: BooleanArray = outcomes.as_string::<i32>().iter().map(|word| word.map(put_aside)).collect();
    let item = column("item")?;
    let own = schema.fields().len() - ADDED.len();
    let mut columns: Vec<ArrayRef> = Vec::with_capacity(schema.fields().len());
    for field in schema.fields().iter().take(own) {
        match item.as_struct_opt().and_then(|item| item.column_by_name(field.name())) {
            Some(column) if column.data_type() == field.data_type() => columns.push(Arc::clone(column)),
            Some(column) => columns.push(arrow::compute::cast(column, field.data_type())?),
            None => return internal_err!("the items in a ledger have no column `{}`", field.name()),
        }
    }
    for (_, _, name) in ADDED {
        columns.push(column(name)?);
    }
    Ok(filter_record_batch(&RecordBatch::try_new(Arc::clone(schema), columns)?, &kept)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_whose_letters_it_means() {
        assert_eq!(letters_of("weather.dead_letters"), Some("weather"));
        assert_eq!(letters_of("Weather.DEAD_LETTERS"), Some("Weather"));
        assert_eq!(letters_of(".dead_letters"), None);
        assert_eq!(letters_of("weather"), None);
        assert_eq!(letters_of("é.dead_letter"), None);
    }

    #[test]
    fn a_column_of_the_item_is_not_hidden_by_one_of_the_error() {
        let item = Schema::new(vec![Field::new("error_code", DataType::Int64, false)]);
        assert_eq!(letters_schema(&item).unwrap_err(), "error_code");
    }
}
