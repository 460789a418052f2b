//! From the text of a `command` step to its executor.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::datatypes::{Field, Schema};
use rowmill_spec::{CommandFormat, Diagnostic, Limit, Spanned, Step, StepKind, Template};
use rowmill_step::{
    Cardinality, Fill, SecretRef, StepExecutor, StepFactory, arrow_type, batch_target, fill_with, refused, wrong_kind,
};

use crate::options::{CommandOptions, Format};
use crate::step::CommandStep;

/// Makes executors of `command` steps. A parameter's value is one argument, or part of one, whatever is in it: no
/// shell and no template looks at it again.
#[derive(Debug, Default, Clone, Copy)]
pub struct CommandFactory;

impl StepFactory for CommandFactory {
    fn kind(&self) -> &'static str {
        "command"
    }

    fn build(&self, step: &Step, fill: Fill<'_>) -> Result<Arc<dyn StepExecutor>, Vec<Diagnostic>> {
        let StepKind::Command(command) = &step.kind else { return Err(wrong_kind(step, self.kind())) };
        let mut reports = Vec::new();
        let mut text = |template: &Template| {
            fill_with(template, fill, |value| Ok(value.to_owned())).unwrap_or_else(|report| {
                reports.push(report);
                String::new()
            })
        };
        let fields: Vec<_> = command
            .output
            .iter()
            .map(|(name, column)| {
                let nullable = column.nullable.as_ref().is_none_or(|nullable| nullable.value);
                Field::new(name, arrow_type(&column.kind), nullable)
            })
            .collect();
        let mut options = CommandOptions::new(&[], &[], Arc::new(Schema::new(fields)));
        options.argv = command.argv.iter().map(&mut text).collect();
        options.env = command.env.iter().map(|(name, value)| (name.clone(), text(value))).collect();
        options.working_directory = command.working_directory.as_ref().map(|path| PathBuf::from(text(path)));
        options.reads = command.reads.iter().map(|name| name.value.clone()).collect();
        options.pass_env = command.pass_env.iter().map(|name| name.value.clone()).collect();
        for (name, secret) in &command.secret_env {
            match SecretRef::try_from(secret.value.to_string()) {
                Ok(reference) => {
                    options.secret_env.insert(name.clone(), reference);
                }
                Err(message) => reports.push(refused(step, "secret_env", &message, secret.span)),
            }
        }
        if !reports.is_empty() {
            return Err(reports);
        }
        if let Some(format) = &command.format {
            options.format = match format.value {
                CommandFormat::JsonLines => Format::JsonLines,
                CommandFormat::Arrow => Format::Arrow,
            };
        }
        if command.fan_out.as_ref().is_some_and(|fan_out| fan_out.value) {
            options.cardinality = Cardinality::FanOut;
        }
        let limit = |limit: &Option<Spanned<Limit>>, default: Option<u64>| match limit.as_ref().map(|limit| limit.value)
        {
            None => default,
            Some(Limit::None) => None,
            Some(Limit::Most(most)) => Some(most),
        };
        let limits = &mut options.limits;
        limits.memory_bytes = limit(&command.memory, limits.memory_bytes);
        limits.cpu_seconds = limit(&command.cpu_seconds, limits.cpu_seconds);
        limits.open_files = limit(&command.open_files, limits.open_files);
        limits.file_bytes = limit(&command.file_bytes, limits.file_bytes);
        if let Some(bytes) = &command.max_answer_bytes {
            options.max_answer_bytes = usize::try_from(bytes.value).unwrap_or(usize::MAX);
        }
        if let Some(version) = &command.version {
            options.version = version.value.clone();
        }
        if let Some(effects) = &step.items.effects {
            options.effects = effects.value.into();
        }
        options.item_timeout = step.items.timeout.as_ref().map(|timeout| timeout.value);
        options.target = batch_target(step, options.target);
        match CommandStep::try_new(options) {
            Ok(executor) => Ok(Arc::new(executor)),
            Err(error) => {
                let place = match error.option {
                    "item_timeout" => step.items.place("timeout"),
                    "target" => step.items.place("batch"),
                    option => command.place(option),
                };
                Err(vec![refused(step, error.option, &error.message, place)])
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rowmill_step::{BatchTarget, Effects};

    use super::*;

    fn build(text: &str, value: &str) -> Result<Arc<dyn StepExecutor>, Vec<Diagnostic>> {
        let text = format!("rowmill: 1\nname: f\nparams: {{p: string}}\nsteps:\n  s:\n{text}");
        let workflow = rowmill_spec::parse_yaml("t.yaml", &text).unwrap_or_else(|reports| panic!("{reports}"));
        let fill = |template: &Template| Ok(template.fill(|_| Some(value.to_owned())).unwrap());
        CommandFactory.build(&workflow.steps["s"], &fill)
    }

    const STEP: &str = "    command:\n      from: t\n      argv: [cat, 'a ${params.p}']\n      reads: [x]\n      output: {y: float64}\n      env: {A: '${params.p}'}\n      fan_out: true\n      memory: none\n    batch: {rows: 3}\n    in_flight: 5\n    timeout: 1s\n";

    #[test]
    fn an_argument_stays_one_argument() {
        let executor = build(STEP, "; rm {x} \"$HOME\"").unwrap();
        let description = executor.describe();
        assert!(description.summary.contains("\"a ; rm {x} \\\"$HOME\\\"\""), "{}", description.summary);
        assert_eq!(description.cardinality, Cardinality::FanOut);
        assert_eq!((description.target.rows, description.target.in_flight), (3, 5));
        assert_eq!((description.effects, description.reads.as_slice()), (Effects::Once, &["x".to_owned()][..]));
        let default = build("    command: {from: t, argv: [cat], reads: [x], output: {y: int8}}\n", "").unwrap();
        assert_eq!(default.describe().target, BatchTarget { rows: 1024, bytes: 4 << 20, in_flight: 2 });
    }

    #[test]
    fn a_changed_program_is_another_step() {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("score.py");
        let of = |more: &str| {
            let argv = format!("[python3, {}, data.csv]", script.display());
            let text = format!("    command: {{from: t, argv: {argv}, reads: [x], output: {{y: int8}}{more}}}\n");
            build(&text, "").unwrap().describe().fingerprint
        };
        let absent = of("");
        std::fs::write(&script, "print(1)").unwrap();
        let first = of("");
        assert!(first != absent && first == of(""));
        std::fs::write(&script, "print(2)").unwrap();
        assert_ne!(first, of(""));
        std::fs::write(&script, "print(1)").unwrap();
        assert_ne!(first, of(", version: '2'"));
    }

    #[test]
    fn refusals_point_at_the_option() {
        let reports = build(&STEP.replace("{y: float64}", "{__y: float64}"), "v").unwrap_err();
        assert!(reports[0].message.contains("`output`") && !reports[0].labels.is_empty(), "{reports:?}");
        assert!(build(STEP, "a\0b").unwrap_err()[0].message.contains("NUL"));
    }
}
