//! The executor: an http step as the engine sees it.

use std::sync::Arc;

use arrow::datatypes::{DataType, SchemaRef};
use async_trait::async_trait;
use rowmill_step::{
    BatchTarget, CallCost, Cardinality, Failure, FailureCode, FingerprintBuilder, ItemBatch, Sent, StepContext,
    StepDescription, StepExecutor, StepSession, StepShape,
};

use crate::client::HttpClient;
use crate::connection::HttpConnection;
use crate::options::{HttpOptions, OptionsError};
use crate::plan::{Body, Plan};
use crate::session::HttpSession;
use crate::values::has_text;

/// An http step, checked and compiled. Sessions share one client per connection and process.
#[derive(Debug)]
pub struct HttpStep {
    plan: Arc<Plan>,
    description: StepDescription,
}

impl HttpStep {
    /// Checks the options and compiles them.
    ///
    /// # Errors
    /// The first option that is wrong, by name.
    pub fn try_new(options: HttpOptions) -> Result<Self, OptionsError> {
        let plan = Plan::compile(options)?;
        let options = &plan.options;
        let (rows, bytes) = plan.many.as_ref().map_or((1, 1 << 20), |many| (many.max_items, many.max_bytes));
        // `in_flight`, `timeout` and `retry_statuses` change when an answer comes, not what it is.
        let mut fingerprint = FingerprintBuilder::new("http", 1)
            .field("connection", &options.connection)
            .field("method", &options.method)
            .field("path", &options.path)
            .field("not_found", format!("{:?} {:?}", options.not_found, options.not_found_statuses))
            .field("ok", format!("{:?}", options.ok))
            .field("body", format!("{:?}", options.body))
            .field("many", format!("{:?}", options.many));
        for (name, value) in options.query.iter().chain(&options.headers) {
            fingerprint = fingerprint.field(name, value);
        }
        for column in &options.response {
            fingerprint = fingerprint.field("column", format!("{column:?}"));
        }
        let description = StepDescription {
            kind: "http",
            summary: format!("{} {}{}", options.method, options.connection, options.path),
            reads: plan.columns.clone(),
            effects: plan.effects,
            cardinality: Cardinality::OneToOne,
            target: BatchTarget { rows, bytes, in_flight: options.in_flight },
            connections: vec![Arc::from(options.connection.as_str())],
            fingerprint: fingerprint.finish(),
        };
        Ok(Self { plan: Arc::new(plan), description })
    }
}

#[async_trait]
impl StepExecutor for HttpStep {
    fn describe(&self) -> &StepDescription {
        &self.description
    }

    async fn output_schema(&self, input: &SchemaRef, context: &StepContext) -> Result<SchemaRef, Failure> {
        let wrong = |message: String| Err(context.failure(FailureCode::Setup, message).sent(Sent::Never));
        if input.fields().len() != self.plan.columns.len() {
            return wrong(format!("the step reads {} columns, {} came", self.plan.columns.len(), input.fields().len()));
        }
        let typed: Vec<usize> = match &self.plan.body {
            Body::Json(template) => {
                let text: Vec<usize> = template.text_columns().collect();
                template.typed_columns().filter(|column| !text.contains(column)).collect()
            }
            Body::Column(column, _) => vec![*column],
            _ => Vec::new(),
        };
        for (index, (name, field)) in self.plan.columns.iter().zip(input.fields()).enumerate() {
            if field.name() != name {
                return wrong(format!("the step reads column `{name}`, `{}` came", field.name()));
            }
            let whole_body = matches!(self.plan.body, Body::Column(column, _) if column == index);
            let bytes = matches!(field.data_type(), DataType::Binary | DataType::LargeBinary);
            if whole_body && !bytes && !has_text(field.data_type()) {
                return wrong(format!("column `{name}` is a {} and cannot be a body", field.data_type()));
            }
            if !typed.contains(&index) && !has_text(field.data_type()) {
                return wrong(format!(
                    "column `{name}` is a {}, which has no text; convert it in the step before",
                    field.data_type()
                ));
            }
        }
        Ok(self.plan.output.clone())
    }

    async fn open(&self, context: &StepContext, shape: &StepShape) -> Result<Box<dyn StepSession>, Failure> {
        let name = &self.plan.options.connection;
        let client = context
            .client(name, || async { HttpClient::try_new(name, &context.connection::<HttpConnection>(name)?, context) })
            .await?;
        for (header, _) in &self.plan.headers {
            if client.headers.get(header).is_some_and(reqwest::header::HeaderValue::is_sensitive) {
                let message =
                    format!("header `{header}` carries the credentials of connection `{name}` and cannot be set");
                return Err(context.failure(FailureCode::Setup, message).sent(Sent::Never));
            }
        }
        Ok(Box::new(HttpSession::try_new(self.plan.clone(), client, context.clone(), shape.clone())?))
    }

    fn cost(&self, batch: &ItemBatch) -> CallCost {
        let requests =
            if self.plan.many.is_some() { 1 } else { u32::try_from(batch.columns.num_rows()).unwrap_or(u32::MAX) };
        CallCost { requests, tokens: 0 }
    }
}
