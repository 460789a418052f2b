//! The edge between two segments, as the consumer sees it: a table whose rows another plan makes.
//!
//! Segments are planned apart, so that DataFusion never optimizes across a step that is not SQL. While the consumer
//! is optimized the edge is only a schema, and the scan that is left of it afterwards says which columns (and, where
//! this is the only consumer and the producer is pure, which filters) the producer may leave out; once the producer
//! has its physical plan, the edge hands that out instead of a scan.

use std::sync::{Arc, OnceLock};

use arrow::datatypes::{Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{Result, internal_err};
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::projection::{ProjectionExec, ProjectionExpr};

use super::spool::{Spool, SpoolExec};
use super::streamed::StreamedExec;

/// What stands behind an edge once the producer is planned.
#[derive(Debug)]
pub enum Producer {
    /// One consumer, whose plan holds the producer's as a leaf.
    Plan(Arc<dyn ExecutionPlan>),
    /// Several consumers: each reads what one execution of the producer left in the spool.
    Spool(Arc<Spool>),
}

/// A table over another segment's output.
#[derive(Debug)]
pub struct EdgeTable {
    step: Arc<str>,
    schema: SchemaRef,
    takes_filters: bool,
    producer: OnceLock<Producer>,
}

impl EdgeTable {
    /// The output of `step`, which has `schema`. Where `takes_filters`, filters that the consumer pushes into its
    /// scan of this edge are promised to be applied by the producer.
    pub fn new(step: Arc<str>, schema: SchemaRef, takes_filters: bool) -> Self {
        // A plan may turn out to know less about nulls than its logical form did, and DataFusion refuses a table whose
        // plan does: across an edge every column may be null.
        let fields: Vec<_> = schema.fields().iter().map(|field| field.as_ref().clone().with_nullable(true)).collect();
        let schema = Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()));
        EdgeTable { step, schema, takes_filters, producer: OnceLock::new() }
    }

    /// The step behind the edge.
    pub fn step(&self) -> &str {
        &self.step
    }

    /// Puts the producer behind the edge. Its schema holds, by name, every column that a scan will ask for.
    pub fn connect(&self, producer: Producer) -> Result<()> {
        if self.producer.set(producer).is_err() {
            return internal_err!("the edge from step {} was connected twice", self.step);
        }
        Ok(())
    }
}

#[async_trait]
impl TableProvider for EdgeTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let support = match self.takes_filters {
            true => TableProviderFilterPushDown::Exact,
            false => TableProviderFilterPushDown::Unsupported,
        };
        Ok(vec![support; filters.len()])
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let plan: Arc<dyn ExecutionPlan> = match self.producer.get() {
            Some(Producer::Plan(plan)) => Arc::new(StreamedExec::new(Arc::clone(&self.step), Arc::clone(plan))),
            Some(Producer::Spool(spool)) => Arc::new(SpoolExec::new(Arc::clone(spool))),
            None => return internal_err!("step {} is read before it is planned", self.step),
        };
        let wanted: Schema = match projection {
            Some(columns) => self.schema.project(columns)?,
            None => self.schema.as_ref().clone(),
        };
        let made = plan.schema();
        let columns: Vec<usize> =
            wanted.fields().iter().map(|field| made.index_of(field.name())).collect::<Result<_, _>>()?;
        if columns.len() == made.fields().len() && columns.iter().enumerate().all(|(at, column)| at == *column) {
            return Ok(plan);
        }
        let columns: Vec<ProjectionExpr> = columns
            .into_iter()
            .map(|at| {
                let name = made.field(at).name();
                ProjectionExpr::new(Arc::new(Column::new(name, at)), name.clone())
            })
            .collect();
        Ok(Arc::new(ProjectionExec::try_new(columns, plan)?))
    }
}
