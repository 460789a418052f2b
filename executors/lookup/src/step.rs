//! The executor: a lookup step as the engine sees it.

use std::sync::Arc;

use arrow::datatypes::{Field, Schema, SchemaRef};
use async_trait::async_trait;
use rowmill_step::{
    Cardinality, Failure, FailureCode, FingerprintBuilder, Sent, StepContext, StepDescription, StepExecutor,
    StepSession, StepShape,
};

use crate::bind::Binding;
use crate::connection::DatabaseConnection;
use crate::database::Database;
use crate::options::{LookupOptions, Matches, OptionsError};
use crate::query::Query;
use crate::session::{LookupSession, describe};

/// A lookup step, checked. Sessions share one pool per connection and process.
#[derive(Debug)]
pub struct LookupStep {
    options: Arc<LookupOptions>,
    query: Arc<Query>,
    description: StepDescription,
}

impl LookupStep {
    /// Checks the options.
    ///
    /// # Errors
    /// The first option that is wrong, by name.
    pub fn try_new(options: LookupOptions) -> Result<Self, OptionsError> {
        let query = Query::parse(&options.query).map_err(|message| OptionsError { option: "query", message })?;
        if options.target.rows == 0 || options.target.in_flight == 0 {
            let message = "groups of at least one item, and at least one query".to_owned();
            return Err(OptionsError { option: "target", message });
        }
        let mut fingerprint = FingerprintBuilder::new("lookup", 1)
            .field("connection", &options.connection)
            .field("query", &options.query)
            .field("on_missing", format!("{:?}", options.on_missing))
            .field("matches", format!("{:?}", options.matches));
        for (name, data_type) in &options.types {
            fingerprint = fingerprint.field(name, data_type.to_string());
        }
        let description = StepDescription {
            kind: "lookup",
            summary: format!(
                "{}: {}",
                options.connection,
                options.query.split_whitespace().collect::<Vec<_>>().join(" ")
            ),
            reads: query.columns.clone(),
            effects: options.effects,
            cardinality: if options.matches == Matches::All { Cardinality::FanOut } else { Cardinality::OneToOne },
            target: options.target,
            connections: vec![Arc::from(options.connection.as_str())],
            fingerprint: fingerprint.finish(),
        };
        Ok(Self { options: Arc::new(options), query: Arc::new(query), description })
    }

    async fn database(&self, context: &StepContext) -> Result<Arc<Database>, Failure> {
        let name = &self.options.connection;
        let database = context
            .client(name, || async {
                Database::try_new(name, &context.connection::<DatabaseConnection>(name)?, context)
            })
            .await?;
        self.query
            .check(database.dialect())
            .map_err(|message| context.failure(FailureCode::Setup, format!("`query`: {message}")).sent(Sent::Never))?;
        Ok(database)
    }

    fn bindings(&self, input: &Schema, context: &StepContext) -> Result<Vec<Binding>, Failure> {
        let wrong = |message: String| context.failure(FailureCode::Setup, message).sent(Sent::Never);
        let came: Vec<_> = input.fields().iter().map(|field| field.name().as_str()).collect();
        if came != self.query.columns {
            return Err(wrong(format!("the step reads columns {:?}, {came:?} came", self.query.columns)));
        }
        let bind = |field: &Arc<Field>| {
            Binding::of(field.data_type()).ok_or_else(|| {
                wrong(format!("column `{}` is a {}, which cannot be bound", field.name(), field.data_type()))
            })
        };
        input.fields().iter().map(bind).collect()
    }
}

#[async_trait]
impl StepExecutor for LookupStep {
    fn describe(&self) -> &StepDescription {
        &self.description
    }

    async fn output_schema(&self, input: &SchemaRef, context: &StepContext) -> Result<SchemaRef, Failure> {
        let bindings = self.bindings(input, context)?;
        let database = self.database(context).await?;
        let columns = Box::pin(describe(&database, &self.query, &bindings, &self.options, context)).await?;
        let fields: Vec<_> =
            columns.iter().map(|(column, _)| Field::new(&column.name, column.data_type.clone(), true)).collect();
        Ok(Arc::new(Schema::new(fields)))
    }

    async fn open(&self, context: &StepContext, shape: &StepShape) -> Result<Box<dyn StepSession>, Failure> {
        let bindings = self.bindings(&shape.input, context)?;
        let database = self.database(context).await?;
        let columns = Box::pin(describe(&database, &self.query, &bindings, &self.options, context)).await?;
        // The plan's columns were agreed while compiling; a table that changed since is not read as something else.
        let same = columns.len() == shape.output.fields().len()
            && columns
                .iter()
                .zip(shape.output.fields())
                .all(|((column, _), field)| column.name == *field.name() && column.data_type == *field.data_type());
        if !same {
            let message = "the query's columns have changed since the workflow was compiled; compile it again";
            return Err(context.failure(FailureCode::Setup, message).sent(Sent::Never));
        }
        Ok(Box::new(LookupSession::new(
            self.options.clone(),
            self.query.clone(),
            database,
            bindings,
            columns,
            context.clone(),
            shape.clone(),
        )))
    }
}
