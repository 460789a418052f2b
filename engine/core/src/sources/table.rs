//! A table over a fixed list of files.
//!
//! Files that are read in the same way form a group, and each group is one scan. Parquet and JSON find columns by
//! name and adapt each file to the table's schema inside the scan, so all their files are one group. CSV knows columns
//! by place only, and Arrow IPC is read as written: there each distinct file schema is a group, brought to the table's
//! schema by a projection, and the groups are united.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, FieldRef, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{DFSchema, Result, ScalarValue, Statistics};
use datafusion::datasource::file_format::FileFormat;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::listing::helpers::{expr_applicable_for_cols, filter_partitioned_file};
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder};
use datafusion::datasource::table_schema::TableSchema;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{CaseExpr, CastExpr, Column, Literal, binary, lit};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::projection::{ProjectionExec, ProjectionExpr};
use datafusion::physical_plan::union::UnionExec;

use crate::plan::wide_rows::rows_for;

/// Files that one scan reads.
#[derive(Debug, Clone)]
pub struct FileSet {
    /// The store they lie in.
    pub store: ObjectStoreUrl,
    /// How they are read.
    pub format: Arc<dyn FileFormat>,
    /// The columns as the reader yields them; equal to the table's where the reader adapts files itself.
    pub schema: SchemaRef,
    /// The files, with partition values in the table's order.
    pub files: Vec<PartitionedFile>,
    /// How wide their rows are.
    pub width: Arc<RowWidth>,
}

/// Bytes of a row, as far as they are known before it is read.
#[derive(Debug, Clone, Default)]
pub struct RowWidth {
    /// Of each column of the files, in the table's order; empty where they are not known one by one.
    pub columns: Vec<usize>,
    /// Of the text of a row, which is read whatever is asked for.
    pub text: usize,
}

impl RowWidth {
    /// Of the columns that are read.
    fn of(&self, projection: Option<&Vec<usize>>) -> usize {
        let asked = |at: &usize| projection.is_none_or(|columns| columns.contains(at));
        let columns = self.columns.iter().enumerate().filter(|(at, _)| asked(at)).map(|(_, bytes)| bytes).sum();
        self.text.max(columns)
    }
}

/// A table over files.
#[derive(Debug)]
pub struct FileTable {
    schema: SchemaRef,
    file_columns: usize,
    partition_columns: Vec<FieldRef>,
    /// Field text that means null: every column is then read as text, and converted after it was compared.
    null_text: Option<String>,
    sets: Vec<FileSet>,
}

impl FileTable {
    /// A table with `file_schema` columns from the files, then `partition_columns` from their paths.
    pub fn new(
        file_schema: &SchemaRef,
        partition_columns: Vec<FieldRef>,
        null_text: Option<String>,
        sets: Vec<FileSet>,
    ) -> Self {
        let mut fields: Vec<FieldRef> = file_schema.fields().iter().cloned().collect();
        fields.extend(partition_columns.iter().cloned());
        FileTable {
            schema: Arc::new(Schema::new(fields)),
            file_columns: file_schema.fields().len(),
            partition_columns,
            null_text,
            sets,
        }
    }

    /// What is read.
    pub fn sets(&self) -> &[FileSet] {
        &self.sets
    }

    fn partition_names(&self) -> Vec<&str> {
        self.partition_columns.iter().map(|field| field.name().as_str()).collect()
    }

    /// The files of a set whose partition values pass `filters`.
    fn prune(&self, set: &FileSet, filters: &[Expr]) -> Result<Vec<PartitionedFile>> {
        if filters.is_empty() {
            return Ok(set.files.clone());
        }
        let columns = Schema::new(self.partition_columns.clone());
        let columns = DFSchema::try_from(columns)?;
        let pruned: Result<Vec<_>> =
            set.files.iter().map(|file| filter_partitioned_file(file.clone(), filters, &columns)).collect();
        Ok(pruned?.into_iter().flatten().collect())
    }

    async fn scan_set(
        &self,
        state: &dyn Session,
        set: &FileSet,
        files: Vec<PartitionedFile>,
        projection: Option<&Vec<usize>>,
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let target = state.config().target_partitions().max(1);
        let read_schema = match self.null_text {
            Some(_) => all_text(&set.schema),
            None => Arc::clone(&set.schema),
        };
        let adapts = self.null_text.is_none()
            && set.schema.fields().len() == self.file_columns
            && set
                .schema
                .fields()
                .iter()
                .zip(self.schema.fields())
                .all(|(one, two)| one.name() == two.name() && one.data_type() == two.data_type());
        let groups = FileGroup::new(files).split_files(target);
        let with_statistics = adapts && groups.iter().flat_map(FileGroup::iter).all(PartitionedFile::has_statistics);
        let (groups, statistics) = match with_statistics {
            true => self.with_statistics(groups)?,
            false => (groups, Statistics::new_unknown(&self.schema)),
        };
        let table_schema = TableSchema::builder(Arc::clone(&read_schema))
            .with_table_partition_cols(self.partition_columns.clone())
            .build();
        let source = set.format.file_source(table_schema);
        let most = state.config().batch_size();
        let rows = rows_for(set.width.of(projection), most);
        let builder = FileScanConfigBuilder::new(set.store.clone(), source)
            .with_file_groups(groups)
            .with_limit(limit)
            .with_batch_size((rows < most).then_some(rows));
        if adapts {
            let config = builder.with_statistics(statistics).with_projection_indices(projection.cloned())?.build();
            return set.format.create_physical_plan(state, config).await;
        }
        // Read only the columns that are asked for, then bring each to its place and type.
        let wanted: Vec<usize> = projection.cloned().unwrap_or_else(|| (0..self.schema.fields().len()).collect());
        let place_in_file = |at: usize| -> Option<usize> {
            match at < self.file_columns {
                true => set.schema.index_of(self.schema.field(at).name()).ok(),
                false => Some(set.schema.fields().len() + at - self.file_columns),
            }
        };
        let read: Vec<usize> = wanted.iter().filter_map(|at| place_in_file(*at)).collect();
        let config = builder.with_projection_indices(Some(read.clone()))?.build();
        let plan = set.format.create_physical_plan(state, config).await?;
        let columns: Result<Vec<ProjectionExpr>> = wanted
            .iter()
            .map(|at| {
                let field = self.schema.field(*at);
                let value: Arc<dyn PhysicalExpr> = match place_in_file(*at) {
                    None => Arc::new(Literal::new(ScalarValue::try_from(field.data_type())?)),
                    Some(place) => {
                        let position = read.iter().position(|column| *column == place).unwrap_or(0);
                        let column: Arc<dyn PhysicalExpr> = Arc::new(Column::new(field.name(), position));
                        self.convert(column, *at, field.data_type(), &plan.schema())?
                    }
                };
                Ok(ProjectionExpr::new(value, field.name().clone()))
            })
            .collect();
        Ok(Arc::new(ProjectionExec::try_new(columns?, plan)?))
    }

    /// Adds the statistics of the files up, for each group and for all of them.
    fn with_statistics(&self, groups: Vec<FileGroup>) -> Result<(Vec<FileGroup>, Statistics)> {
        let mut with = Vec::with_capacity(groups.len());
        for group in groups {
            let files = group.iter().filter_map(|file| file.statistics.as_deref());
            let statistics = Statistics::try_merge_iter(files, &self.schema)?;
            with.push(group.with_statistics(Arc::new(statistics)));
        }
        let all =
            Statistics::try_merge_iter(with.iter().filter_map(|group| group.file_statistics(None)), &self.schema)?;
        Ok((with, all))
    }

    /// `CASE WHEN column = null_text OR column = '' THEN NULL ELSE CAST(column AS type) END`, or the cast alone.
    fn convert(
        &self,
        column: Arc<dyn PhysicalExpr>,
        at: usize,
        kind: &DataType,
        input: &Schema,
    ) -> Result<Arc<dyn PhysicalExpr>> {
        use datafusion::logical_expr::Operator;
        let from = column.data_type(input)?;
        let cast = |column: Arc<dyn PhysicalExpr>| -> Arc<dyn PhysicalExpr> {
            match &from == kind {
                true => column,
                false => Arc::new(CastExpr::new(column, kind.clone(), None)),
            }
        };
        let Some(null_text) = self.null_text.as_ref().filter(|_| at < self.file_columns) else {
            return Ok(cast(column));
        };
        let text = |text: &str| lit(ScalarValue::Utf8View(Some(text.to_owned())));
        let is = binary(Arc::clone(&column), Operator::Eq, text(null_text), input)?;
        let is_null = match matches!(kind, DataType::Utf8View) {
            // An empty field is null for every type but text.
            true => is,
            false => {
                let empty = binary(Arc::clone(&column), Operator::Eq, text(""), input)?;
                binary(is, Operator::Or, empty, input)?
            }
        };
        let null: Arc<dyn PhysicalExpr> = Arc::new(Literal::new(ScalarValue::try_from(kind)?));
        Ok(Arc::new(CaseExpr::try_new(None, vec![(is_null, null)], Some(cast(column)))?))
    }
}

fn all_text(schema: &SchemaRef) -> SchemaRef {
    let fields: Vec<_> = schema
        .fields()
        .iter()
        .map(|field| field.as_ref().clone().with_data_type(DataType::Utf8View).with_nullable(true))
        .collect();
    Arc::new(Schema::new(fields))
}

#[async_trait]
impl TableProvider for FileTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let names = self.partition_names();
        Ok(filters
            .iter()
            .map(|filter| match !names.is_empty() && expr_applicable_for_cols(&names, filter) {
                // Decided by the path alone: a file passes or it is not read.
                true => TableProviderFilterPushDown::Exact,
                false => TableProviderFilterPushDown::Inexact,
            })
            .collect())
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let names = self.partition_names();
        let by_path: Vec<Expr> = filters
            .iter()
            .filter(|filter| !names.is_empty() && expr_applicable_for_cols(&names, filter))
            .cloned()
            .collect();
        // A limit may only be handed to the scan when no filter stands between.
        let limit = limit.filter(|_| filters.len() == by_path.len());
        let mut scans = Vec::new();
        for set in &self.sets {
            let files = self.prune(set, &by_path)?;
            if !files.is_empty() {
                scans.push(self.scan_set(state, set, files, projection, limit).await?);
            }
        }
        if scans.len() > 1 {
            return UnionExec::try_new(scans);
        }
        match scans.pop() {
            Some(scan) => Ok(scan),
            None => {
                let schema = match projection {
                    Some(columns) => Arc::new(self.schema.project(columns)?),
                    None => Arc::clone(&self.schema),
                };
                Ok(Arc::new(EmptyExec::new(schema)))
            }
        }
    }

    fn statistics(&self) -> Option<Statistics> {
        None
    }
}

/// Groups files by the schema they are read with, keeping the order of first appearance.
pub fn group_by_schema(files: Vec<(SchemaRef, PartitionedFile)>) -> Vec<(SchemaRef, Vec<PartitionedFile>)> {
    let mut groups: Vec<(SchemaRef, Vec<PartitionedFile>)> = Vec::new();
    let mut places: HashMap<SchemaRef, usize> = HashMap::new();
    for (schema, file) in files {
        let at = *places.entry(Arc::clone(&schema)).or_insert_with(|| {
            groups.push((schema, Vec::new()));
            groups.len() - 1
        });
        groups[at].1.push(file);
    }
    groups
}
