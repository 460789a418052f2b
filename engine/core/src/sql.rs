//! Free SQL over files, on the same engine: what `rowmill sql` runs.
//!
//! Not part of a workflow: here a quoted path is a table, and statements may define views and write files.

use std::fmt;

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::catalog::DynamicFileCatalog;
use datafusion::common::{Result, plan_err};
use datafusion::datasource::MemTable;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::context::SessionContext;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::sql::parser::{DFParser, Statement};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};
use futures::FutureExt as _;
use futures::future::BoxFuture;

use crate::runtime::Engine;
use crate::sources::named_files::NamedFiles;
pub use crate::wrong_answers::plan_statement;

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

/// Operators that one query may have. Each may be a level of the plan: plans are walked by recursion, and a stack ends;
/// and planning grows with the square of a long chain of them.
pub const MAX_OPERATORS: usize = 2_000;
/// Set operations (`UNION`, `INTERSECT`, `EXCEPT`) that one query may have: planning grows with their square, and so
/// many take seconds.
pub const MAX_SET_OPERATIONS: usize = 1_000;

/// What `text` has too many of, in words.
pub fn too_many(text: &str) -> Option<String> {
    // An operator and its operand are two bytes at least, a set operation and a query more than fourteen.
    if text.len() < MAX_OPERATORS {
        return None;
    }
    // What is no SQL is told by the parser.
    let tokens = Tokenizer::new(&GenericDialect {}, text).tokenize().ok()?;
    let is_set_operation = |token: &&Token| match token {
        Token::Word(word) => matches!(word.keyword, Keyword::UNION | Keyword::INTERSECT | Keyword::EXCEPT),
        _ => false,
    };
    if tokens.iter().filter(is_set_operation).count() > MAX_SET_OPERATIONS {
        return Some(format!("more than {MAX_SET_OPERATIONS} set operations (UNION, INTERSECT, EXCEPT)"));
    }
    let is_operator = |token: &&Token| match token {
        Token::Word(word) => matches!(word.keyword, Keyword::AND | Keyword::OR | Keyword::NOT),
        Token::Comma | Token::Period | Token::Whitespace(_) | Token::EOF => false,
        Token::LParen | Token::RParen | Token::SemiColon => false,
        Token::Number(..) | Token::SingleQuotedString(_) | Token::Placeholder(_) => false,
        _ => true,
    };
    (tokens.iter().filter(is_operator).count() > MAX_OPERATORS).then(|| format!("more than {MAX_OPERATORS} operators"))
}

/// Parses a text of statements.
///
/// # Errors
/// When it is not SQL, or too deep.
pub fn split_statements(text: &str) -> Result<Vec<SqlStatement>> {
    if let Some(what) = too_many(text) {
        return plan_err!("the SQL has {what}; an IN list or a join with a table has no operators");
    }
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
        let state = engine.session(false);
        let files = NamedFiles::new(state.clone(), engine.options().stores.clone());
        let catalogs = DynamicFileCatalog::new(Arc::clone(state.catalog_list()), Arc::new(files));
        let state = SessionStateBuilder::new_from_existing(state).with_catalog_list(Arc::new(catalogs)).build();
        SqlContext { context: SessionContext::new_with_state(state) }
    }

    /// Makes batches readable under a name.
    ///
    /// # Errors
    /// When their columns do not fit `schema`.
    pub fn register(&self, name: &str, schema: SchemaRef, batches: Vec<RecordBatch>) -> Result<()> {
        let table = MemTable::try_new(schema, vec![batches])?;
        self.context.register_table(name, Arc::new(table)).map(drop)
    }

    /// Runs one statement.
    ///
    /// # Errors
    /// When it cannot be planned or started; later errors come with the rows.
    pub fn execute(&self, statement: SqlStatement) -> BoxFuture<'_, Result<Answer>> {
        async move {
            let plan = plan_statement(&self.context.state(), statement.0).await?;
            let frame = self.context.execute_logical_plan(plan).await?;
            let schema = SchemaRef::new(frame.schema().as_arrow().clone());
            Ok(Answer { schema, rows: frame.execute_stream().await? })
        }
        .boxed()
    }
}
