//! Workflows built in Rust, held to the same rules as those read from text.

mod steps;

use std::sync::Arc;

use indexmap::IndexMap;

use crate::codes;
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::model::{
    Compression, CsvOptions, FileSource, Format, ItemPolicy, Param, ResourceClass, Resources, SchemaPolicy, Sink,
    Source, SourceKind, SqlStep, Step, StepKind, Variable, Workflow,
};
use crate::names::normalize;
use crate::read::finish;
use crate::report::Reporter;
use crate::span::{MappedText, Span, Spanned, Texts};
use crate::template::Template;
use crate::types::{LogicalType, Value};

/// Builds a workflow; errors are gathered until [`WorkflowBuilder::build`].
///
/// ```
/// use rowmill_spec::{LogicalType, Value, Workflow};
///
/// let workflow = Workflow::builder("flight-delays")
///     .param("month", LogicalType::Int64, Some(Value::from(1_i64)))
///     .source_files("flights", ["data/flights.parquet"])
///     .sql("clean", "SELECT * FROM flights WHERE month = $month")
///     .sink("report", "clean", "out/clean.parquet")
///     .build()?;
/// assert_eq!(workflow.steps.len(), 1);
/// # Ok::<(), rowmill_spec::Diagnostics>(())
/// ```
#[derive(Debug)]
pub struct WorkflowBuilder {
    workflow: Workflow,
    reporter: Reporter,
}

impl Workflow {
    /// Begins a workflow of this name.
    pub fn builder(name: impl Into<String>) -> WorkflowBuilder {
        WorkflowBuilder {
            workflow: Workflow {
                name: Spanned::bare(normalize(&name.into())),
                description: None,
                params: IndexMap::new(),
                vars: IndexMap::new(),
                sources: IndexMap::new(),
                steps: IndexMap::new(),
                sinks: IndexMap::new(),
                durable: false,
                texts: Arc::default(),
                warnings: Vec::new(),
            },
            reporter: Reporter::default(),
        }
    }
}

fn bare(name: impl Into<String>) -> Spanned<String> {
    Spanned::bare(normalize(&name.into()))
}

impl WorkflowBuilder {
    /// With a sentence for people.
    pub fn description(mut self, text: impl Into<String>) -> Self {
        self.workflow.description = Some(text.into());
        self
    }

    /// With a parameter; one without a default must be set for each run.
    pub fn param(mut self, name: impl Into<String>, kind: LogicalType, default: Option<Value>) -> Self {
        let name = bare(name);
        let default = default.map(|value| Spanned::bare(adapt(value, &kind)));
        let param = Param { name: name.clone(), kind: Spanned::bare(kind), default, description: None };
        if self.workflow.params.insert(name.value.clone(), param).is_some() {
            self.twice("parameter", &name);
        }
        self
    }

    /// With a variable of the environment.
    pub fn var(mut self, name: impl Into<String>, kind: LogicalType, default: Option<Value>) -> Self {
        let name = bare(name);
        let default = default.map(|value| Spanned::bare(adapt(value, &kind)));
        let variable = Variable { name: name.clone(), kind: Spanned::bare(kind), default, description: None };
        if self.workflow.vars.insert(name.value.clone(), variable).is_some() {
            self.twice("variable", &name);
        }
        self
    }

    /// With a source of files; paths may hold `${params.x}` and `${vars.x}`.
    pub fn source_files<P: Into<String>>(self, name: impl Into<String>, paths: impl IntoIterator<Item = P>) -> Self {
        self.source_files_with(name, paths, |files| files)
    }

    /// With a source of files, and settings of it.
    pub fn source_files_with<P: Into<String>>(
        mut self,
        name: impl Into<String>,
        paths: impl IntoIterator<Item = P>,
        settings: impl FnOnce(FileOptions) -> FileOptions,
    ) -> Self {
        let name = bare(name);
        let paths = paths.into_iter().filter_map(|path| self.template(&name, path.into())).collect();
        let files = settings(FileOptions(FileSource::new(paths))).0;
        self.source(name, SourceKind::Files(Box::new(files)))
    }

    /// With a source that generates the values `start` to `end` (exclusive).
    pub fn range(self, name: impl Into<String>, start: i64, end: i64) -> Self {
        let kind = SourceKind::Range { start: Spanned::bare(start), end: Spanned::bare(end) };
        self.source(bare(name), kind)
    }

    /// With a source whose batches the program provides under this name.
    pub fn source_provided(self, name: impl Into<String>) -> Self {
        self.source(bare(name), SourceKind::Provided)
    }

    /// With a step of one query.
    pub fn sql(self, name: impl Into<String>, text: impl Into<String>) -> Self {
        self.sql_with(name, text, Resources::default())
    }

    /// With a step of one query that needs something.
    pub fn sql_with(self, name: impl Into<String>, text: impl Into<String>, resources: Resources) -> Self {
        let kind = StepKind::Sql(SqlStep { text: MappedText::bare(text) });
        self.step(name, kind, ItemPolicy::default(), resources)
    }

    /// With a step of any kind, what it does about its items, and what it needs.
    ///
    /// ```
    /// use rowmill_spec::{HttpStep, ItemPolicy, LogicalType, MaxErrors, Resources, Template, Workflow};
    ///
    /// let workflow = Workflow::builder("weather")
    ///     .source_files("airports", ["airports.csv"])
    ///     .step(
    ///         "weather",
    ///         HttpStep::new("airports", "weather", Template::of("/v1/{faa}/today"))
    ///             .json("temp", "/main/temp", LogicalType::Float64),
    ///         ItemPolicy::default().skip_errors().max_errors(MaxErrors::Count(100)).in_flight(32),
    ///         Resources::default(),
    ///     )
    ///     .build()?;
    /// assert_eq!(workflow.steps["weather"].kind.key(), "http");
    /// # Ok::<(), rowmill_spec::Diagnostics>(())
    /// ```
    pub fn step(
        mut self,
        name: impl Into<String>,
        kind: impl Into<StepKind>,
        items: ItemPolicy,
        resources: Resources,
    ) -> Self {
        let name = bare(name);
        let step = Step { name: name.clone(), kind: kind.into(), items, resources, description: None };
        if self.workflow.steps.insert(name.value.clone(), step).is_some() {
            self.twice("step", &name);
        }
        self
    }

    /// Whose runs are durable: what was done is kept, and a run that was cut off can go on.
    pub fn durable(mut self) -> Self {
        self.workflow.durable = true;
        self
    }

    /// With a sink that writes the rows of a step or a source.
    pub fn sink(self, name: impl Into<String>, from: impl Into<String>, path: impl Into<String>) -> Self {
        self.sink_with(name, from, path, |sink| sink)
    }

    /// With a sink, and settings of it.
    pub fn sink_with(
        mut self,
        name: impl Into<String>,
        from: impl Into<String>,
        path: impl Into<String>,
        settings: impl FnOnce(SinkOptions) -> SinkOptions,
    ) -> Self {
        let name = bare(name);
        let Some(path) = self.template(&name, path.into()) else { return self };
        let sink = settings(SinkOptions(Sink {
            name: name.clone(),
            from: bare(from),
            path,
            format: None,
            compression: None,
            partition_by: Vec::new(),
            csv: CsvOptions::default(),
        }))
        .0;
        if self.workflow.sinks.insert(name.value.clone(), sink).is_some() {
            self.twice("sink", &name);
        }
        self
    }

    /// The workflow.
    ///
    /// # Errors
    /// Everything that is wrong with it, at once, as for a text.
    pub fn build(mut self) -> Result<Workflow, Diagnostics> {
        if self.workflow.steps.is_empty() && self.workflow.sinks.is_empty() {
            self.reporter.push(
                Diagnostic::error(codes::NOTHING_TO_DO, "the workflow has no steps")
                    .help("add one with `.sql(name, text)`"),
            );
        }
        finish(Some(self.workflow), self.reporter, Arc::new(Texts::new()))
    }

    fn source(mut self, name: Spanned<String>, kind: SourceKind) -> Self {
        let source = Source { name: name.clone(), kind, description: None };
        if self.workflow.sources.insert(name.value.clone(), source).is_some() {
            self.twice("source", &name);
        }
        self
    }

    fn twice(&mut self, what: &str, name: &str) {
        let report = Diagnostic::error(codes::DUPLICATE_NAME, format!("there are two {what}s named `{name}`"));
        self.reporter.push(report.help("rename one of the two"));
    }

    fn template(&mut self, name: &str, text: String) -> Option<Template> {
        match Template::parse(&MappedText::bare(text)) {
            Ok(template) if !template.text.trim().is_empty() => Some(template),
            Ok(_) => {
                let report = Diagnostic::error(codes::BAD_VALUE, format!("a path of `{name}` is empty"));
                self.reporter.push(report.help("write a path, such as `data/flights.parquet`"));
                None
            }
            Err(error) => {
                let report =
                    Diagnostic::error(codes::BAD_TEMPLATE, format!("in a path of `{name}`, {}", error.message));
                self.reporter
                    .push(report.help("write `${params.NAME}` or `${vars.NAME}`; for a literal `${` write `$${`"));
                None
            }
        }
    }
}

/// A whole number fits every type of numbers that can hold it, and a text whatever it can be read as, so that
/// `Value::from(1)` and `Value::from("2013-01-31")` will do for any of them.
fn adapt(value: Value, kind: &LogicalType) -> Value {
    let read = match &value {
        Value::Int(own, number)
            if own != kind
                && (kind.is_integer() || matches!(kind, LogicalType::Float64 | LogicalType::Decimal { .. })) =>
        {
            Value::parse(kind, &number.to_string()).ok()
        }
        Value::String(text)
            if matches!(kind, LogicalType::Date | LogicalType::Timestamp { .. } | LogicalType::Decimal { .. }) =>
        {
            Value::parse(kind, text).ok()
        }
        _ => None,
    };
    read.unwrap_or(value)
}

/// Settings of a source of files.
#[derive(Debug)]
pub struct FileOptions(FileSource);

impl FileOptions {
    /// The format, instead of what the file names tell.
    pub fn format(mut self, format: Format) -> Self {
        self.0.format = Some(Spanned::bare(format));
        self
    }

    /// Compression of text files, instead of what the file names tell.
    pub fn compression(mut self, compression: Compression) -> Self {
        self.0.compression = Some(Spanned::bare(compression));
        self
    }

    /// A declared column; the first one makes the schema declared rather than inferred.
    pub fn column(mut self, name: impl Into<String>, kind: LogicalType) -> Self {
        self.0.schema.get_or_insert_default().insert(normalize(&name.into()), Spanned::bare(kind));
        self
    }

    /// What to do when files disagree about the schema.
    pub fn schema_policy(mut self, policy: SchemaPolicy) -> Self {
        self.0.schema_policy = Spanned::bare(policy);
        self
    }

    /// A column found in directory names (`year=2013/`).
    pub fn partition(mut self, name: impl Into<String>, kind: LogicalType) -> Self {
        self.0.partitions.insert(normalize(&name.into()), Spanned::bare(kind));
        self
    }

    /// How CSV is written.
    pub fn csv(mut self, options: CsvOptions) -> Self {
        self.0.csv = options;
        self
    }
}

/// Settings of a sink.
#[derive(Debug)]
pub struct SinkOptions(Sink);

impl SinkOptions {
    /// The format, instead of what the path tells.
    pub fn format(mut self, format: Format) -> Self {
        self.0.format = Some(Spanned::bare(format));
        self
    }

    /// The compression, instead of what the path tells.
    pub fn compression(mut self, compression: Compression) -> Self {
        self.0.compression = Some(Spanned::bare(compression));
        self
    }

    /// Columns that become directories, in order.
    pub fn partition_by<C: Into<String>>(mut self, columns: impl IntoIterator<Item = C>) -> Self {
        self.0.partition_by = columns.into_iter().map(bare).collect();
        self
    }

    /// How CSV is written.
    pub fn csv(mut self, options: CsvOptions) -> Self {
        self.0.csv = options;
        self
    }
}

impl Resources {
    /// A class of executor.
    pub fn class(class: ResourceClass) -> Self {
        Resources { class: Some(Spanned::new(class, Span::NONE)), memory: None }
    }

    /// The same, and so many bytes of an executor's memory for each partition.
    pub fn memory(self, bytes: u64) -> Self {
        Resources { memory: Some(Spanned::new(bytes, Span::NONE)), ..self }
    }
}
