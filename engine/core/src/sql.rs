//! Free SQL over files, on the same engine: what `rowmill sql` runs.
//!
//! Not part of a workflow: here a quoted path is a table, and statements may define views and write files.

use std::fmt;

use arrow::datatypes::SchemaRef;
use datafusion::common::Result;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::context::SessionContext;
use datafusion::sql::parser::{DFParser, Statement};
use futures::FutureExt as _;
use futures::future::BoxFuture;

use crate::runtime::Engine;

/// A conversation in SQL; views that one statement makes are there for the next.
pub struct SqlContext {
    context: SessionContext,
}

impl fmt::Debug for SqlContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SqlContext")
    }
}

/// One parsed statement.
#[derive(Debug)]
pub struct SqlStatement(Statement);

/// Parses a text of statements.
///
/// # Errors
/// When it is not SQL.
pub fn split_statements(text: &str) -> Result<Vec<SqlStatement>> {
    Ok(DFParser::parse_sql(text)?.into_iter().map(SqlStatement).collect())
}

/// What a statement answers.
pub struct Answer {
    /// Its columns; none for a statement that only does something.
    pub schema: SchemaRef,
    /// Its rows.
    pub rows: SendableRecordBatchStream,
}

impl SqlContext {
    /// A context on `engine`.
    pub fn new(engine: &Engine) -> SqlContext {
        SqlContext { context: SessionContext::new_with_state(engine.session(false)).enable_url_table() }
    }

    /// Runs one statement.
    ///
    /// # Errors
    /// When it cannot be planned or started; later errors come with the rows.
    pub fn execute(&self, statement: SqlStatement) -> BoxFuture<'_, Result<Answer>> {
        async move {
            let plan = self.context.state().statement_to_plan(statement.0).await?;
            let frame = self.context.execute_logical_plan(plan).await?;
            let schema = SchemaRef::new(frame.schema().as_arrow().clone());
            Ok(Answer { schema, rows: frame.execute_stream().await? })
        }
        .boxed()
    }
}
