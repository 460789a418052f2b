//! From the text of a `python` step to its executor.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use arrow::datatypes::{Field, Schema};
use parking_lot::Mutex;
use rowmill_spec::{Diagnostic, Limit, Spanned, Step, StepKind};
use rowmill_step::{Fill, StepExecutor, StepFactory, arrow_type, batch_target, refused, wrong_kind};

use crate::options::{Function, Logging, Output, PythonOptions, Worker};
use crate::step::PythonStep;

/// The module of functions that a program brings: no module of that name can be imported.
pub const BROUGHT: &str = "__program__";
/// Bytes of a module that are read, to tell one version of it from another.
const SOURCE_BYTES: u64 = 16 << 20;

/// What a program that runs workflows brings to their Python steps.
#[derive(Debug, Clone, Default)]
pub struct Program(Arc<Mutex<Brought>>);

#[derive(Debug, Default)]
struct Brought {
    functions: HashMap<String, Arc<[u8]>>,
    folders: Vec<String>,
    logging: Option<Logging>,
}

impl Program {
    /// Adds a pickled function by the name that stands after `__program__:` in a workflow; one of the same name goes.
    pub fn add(&self, name: impl Into<String>, pickle: impl Into<Arc<[u8]>>) {
        self.0.lock().functions.insert(name.into(), pickle.into());
    }

    /// Says where modules are looked for, after the workflow's folder and before the interpreter's own.
    pub fn look_in(&self, folders: Vec<String>) {
        self.0.lock().folders = folders;
    }

    /// Says how the program logs.
    pub fn log_as(&self, logging: Option<Logging>) {
        self.0.lock().logging = logging;
    }

    fn logging(&self) -> Option<Logging> {
        self.0.lock().logging.clone()
    }

    fn function(&self, name: &str) -> Option<Arc<[u8]>> {
        self.0.lock().functions.get(name).cloned()
    }

    fn folders(&self) -> Vec<String> {
        self.0.lock().folders.clone()
    }
}

/// Makes executors of `python` steps.
#[derive(Debug, Clone)]
pub struct PythonFactory {
    /// The interpreter; one without `/` is looked for in `PATH`.
    pub python: String,
    /// What workers are started from.
    pub worker: Worker,
    /// What the program brings.
    pub program: Program,
    /// Where what workers print goes.
    pub printed: Output,
}

impl PythonFactory {
    /// With this interpreter, in which the package `rowmill` is installed.
    pub fn new(python: impl Into<String>) -> Self {
        Self {
            python: python.into(),
            worker: Worker::Installed,
            program: Program::default(),
            printed: Output::stderr(),
        }
    }
}

impl StepFactory for PythonFactory {
    fn kind(&self) -> &'static str {
        "python"
    }

    fn build(&self, step: &Step, fill: Fill<'_>) -> Result<Arc<dyn StepExecutor>, Vec<Diagnostic>> {
        self.build_in(step, fill, Path::new("."))
    }

    fn build_in(&self, step: &Step, _fill: Fill<'_>, base: &Path) -> Result<Arc<dyn StepExecutor>, Vec<Diagnostic>> {
        let StepKind::Python(python) = &step.kind else { return Err(wrong_kind(step, self.kind())) };
        let base = std::path::absolute(base).unwrap_or_else(|_| base.to_owned());
        let name = &python.function.value;
        let function = match name.strip_prefix(BROUGHT).and_then(|rest| rest.strip_prefix(':')) {
            None => Function::Named(name.clone()),
            Some(brought) => match self.program.function(brought) {
                Some(pickle) => Function::Pickled(pickle.to_vec()),
                None => {
                    let message =
                        format!("`{brought}` lives in the program that built the workflow, which this is not");
                    let report = refused(step, "function", &message, python.function.span);
                    return Err(vec![report.help("put the function into a module, and name it: `module:function`")]);
                }
            },
        };
        let fields: Vec<_> = python
            .output
            .iter()
            .map(|(name, column)| {
                let nullable = column.nullable.as_ref().is_none_or(|nullable| nullable.value);
                Field::new(name, arrow_type(&column.kind), nullable)
            })
            .collect();
        let reads: Vec<&str> = python.reads.iter().map(|name| name.value.as_str()).collect();
        let many = fields.len() != 1;
        let mut options = PythonOptions::new(function, &step.name.value, &reads, Arc::new(Schema::new(fields)));
        options.python = self.python.clone();
        options.worker = self.worker.clone();
        options.printed = self.printed.clone();
        options.kind = None;
        options.given = python.given.as_ref().map(|given| given.value.as_str());
        options.fan_out = python.fan_out.as_ref().is_some_and(|fan_out| fan_out.value);
        options.many = many;
        options.sys_path = std::iter::once(base.display().to_string()).chain(self.program.folders()).collect();
        options.source = Some(source(name, &options.sys_path, python.version.as_ref()));
        let size = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
        if let Some(calls) = &python.calls {
            options.in_flight = size(calls.value);
        }
        if let Some(time) = &python.start_timeout {
            options.start_timeout = time.value;
        }
        if let Some(bytes) = &python.max_answer_bytes {
            options.max_answer_bytes = size(bytes.value);
        }
        let limit = |limit: &Option<Spanned<Limit>>| match limit.as_ref().map(|limit| limit.value) {
            None | Some(Limit::None) => None,
            Some(Limit::Most(most)) => Some(most),
        };
        options.limits.memory_bytes = limit(&python.memory);
        options.limits.cpu_seconds = limit(&python.cpu_seconds);
        options.limits.open_files = limit(&python.open_files);
        if let Some(effects) = &step.items.effects {
            options.effects = effects.value.into();
        }
        options.logging = self.program.logging();
        // Who asks for retries of a function means its exceptions: nothing else tells of what passes.
        options.raised_passes = step.items.retry.is_some();
        if let Some(rate) = &python.rate_limit {
            // A group leaves together, so it holds no more than may leave in a tenth of a second.
            options.target.rows = options.target.rows.min((rate.value.per_second() / 10.0) as usize).max(1);
        }
        options.target = batch_target(step, options.target);
        match PythonStep::try_new(options) {
            Ok(executor) => Ok(Arc::new(executor)),
            Err(error) => {
                let place = match error.option {
                    "target" => step.items.place("batch"),
                    "in_flight" => python.place("calls"),
                    option => python.place(option),
                };
                Err(vec![refused(step, error.option, &error.message, place)])
            }
        }
    }
}

/// What tells one version of a function from another: the version that the workflow says, and the text of its module
/// where that lies in one of these folders.
fn source(function: &str, folders: &[String], version: Option<&Spanned<String>>) -> String {
    use std::io::Read as _;
    let module = function.split(':').next().unwrap_or_default().replace('.', "/");
    let files = [format!("{module}.py"), format!("{module}/__init__.py")];
    let paths = folders.iter().flat_map(|folder| files.iter().map(move |file| Path::new(folder).join(file)));
    let text = paths.into_iter().find_map(|path| {
        let mut text = Vec::new();
        std::fs::File::open(path).ok()?.take(SOURCE_BYTES).read_to_end(&mut text).ok()?;
        Some(String::from_utf8_lossy(&text).into_owned())
    });
    let version = version.map(|version| version.value.as_str()).unwrap_or_default();
    format!("{version}\n{}", text.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use rowmill_spec::Template;
    use rowmill_step::{BatchTarget, Cardinality, Effects};

    use super::*;

    fn build(text: &str, base: &Path) -> Result<Arc<dyn StepExecutor>, Vec<Diagnostic>> {
        let text = format!("rowmill: 1\nname: f\nsteps:\n  s:\n{text}");
        let workflow = rowmill_spec::parse_yaml("t.yaml", &text).unwrap_or_else(|reports| panic!("{reports}"));
        let fill = |template: &Template| Ok(template.text.clone());
        PythonFactory::new("python3").build_in(&workflow.steps["s"], &fill, base)
    }

    const STEP: &str = "    python:\n      from: t\n      function: lib.scores:Model.score\n      reads: [x]\n      output: {y: float64}\n      fan_out: true\n    batch: {rows: 3}\n    in_flight: 5\n    effects: pure\n";

    #[test]
    fn settings_reach_the_executor() {
        let executor = build(STEP, Path::new(".")).unwrap();
        let description = executor.describe();
        assert_eq!((description.kind, description.summary.as_str()), ("python", "lib.scores:Model.score"));
        assert_eq!((description.cardinality, description.effects), (Cardinality::FanOut, Effects::Pure));
        assert_eq!((description.target.rows, description.target.in_flight), (3, 5));
        let plain =
            STEP.replace("      fan_out: true\n    batch: {rows: 3}\n    in_flight: 5\n    effects: pure\n", "");
        let description = build(&plain, Path::new(".")).unwrap().describe().clone();
        assert_eq!((description.cardinality, description.effects), (Cardinality::OneToOne, Effects::Once));
        assert_eq!(
            BatchTarget { in_flight: 1, ..description.target },
            BatchTarget { rows: 4096, bytes: 16 << 20, in_flight: 1 }
        );
    }

    #[test]
    fn refusals_point_at_the_option() {
        for (from, to, option) in [
            ("lib.scores:Model.score", "lib.scores", "function"),
            ("lib.scores:Model.score", "lib/../scores:f", "function"),
            ("lib.scores:Model.score", "__program__:f", "function"),
            ("{y: float64}", "{__y: float64}", "output"),
        ] {
            let reports = build(&STEP.replace(from, to), Path::new(".")).unwrap_err();
            assert!(reports[0].message.contains(option) && !reports[0].labels.is_empty(), "{to}: {reports:?}");
        }
    }

    #[test]
    fn another_text_of_the_module_is_another_function() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("lib")).unwrap();
        let print = |text: &str, said: &str| {
            std::fs::write(folder.path().join("lib/scores.py"), text).unwrap();
            let said = STEP.replace("      fan_out: true\n", said);
            build(&said, folder.path()).unwrap().describe().fingerprint
        };
        let first = print("a", "");
        assert_eq!(first, print("a", ""));
        assert_ne!(first, print("b", ""));
        assert_ne!(first, print("a", "      version: '2'\n"));
    }
}
