//! From the text of a `lookup` step to its executor.

use std::sync::Arc;

use rowmill_spec::{Diagnostic, Span, Step, StepKind};
use rowmill_step::{Fill, StepExecutor, StepFactory, arrow_type, batch_target, refused, wrong_kind};

use crate::options::{LookupOptions, Matches, OnMissing};
use crate::step::LookupStep;

/// Makes executors of `lookup` steps. Their queries take no parameters of the workflow, so nothing is filled in.
#[derive(Debug, Default, Clone, Copy)]
pub struct LookupFactory;

impl StepFactory for LookupFactory {
    fn kind(&self) -> &'static str {
        "lookup"
    }

    fn build(&self, step: &Step, _fill: Fill<'_>) -> Result<Arc<dyn StepExecutor>, Vec<Diagnostic>> {
        let StepKind::Lookup(lookup) = &step.kind else { return Err(wrong_kind(step, self.kind())) };
        let mut options = LookupOptions::new(&lookup.connection, &lookup.query.text);
        options.types = lookup.types.iter().map(|(name, kind)| (name.clone(), arrow_type(kind))).collect();
        if let Some(policy) = &lookup.on_missing {
            options.on_missing = match policy.value {
                rowmill_spec::OnMissing::Null => OnMissing::Null,
                rowmill_spec::OnMissing::Skip => OnMissing::Skip,
                rowmill_spec::OnMissing::Fail => OnMissing::Fail,
            };
        }
        if let Some(policy) = &lookup.matches {
            options.matches = match policy.value {
                rowmill_spec::Matches::All => Matches::All,
                rowmill_spec::Matches::First => Matches::First,
                rowmill_spec::Matches::One => Matches::One,
            };
        }
        if let Some(effects) = &step.items.effects {
            options.effects = effects.value.into();
        }
        options.target = batch_target(step, options.target);
        match LookupStep::try_new(options) {
            Ok(executor) => Ok(Arc::new(executor)),
            Err(error) => {
                let place = match error.option {
                    "query" => lookup.query.span,
                    "target" => step.items.place("batch"),
                    _ => Span::NONE,
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

    fn build(text: &str) -> Result<Arc<dyn StepExecutor>, Vec<Diagnostic>> {
        let text = format!("rowmill: 1\nname: f\nsteps:\n  s:\n{text}");
        let workflow = rowmill_spec::parse_yaml("t.yaml", &text).unwrap_or_else(|reports| panic!("{reports}"));
        LookupFactory.build(&workflow.steps["s"], &|_| Ok(String::new()))
    }

    #[test]
    fn an_executor_is_made_of_the_text() {
        let text = "    lookup: {from: t, connection: fleet, query: 'SELECT seats FROM planes WHERE tail = {tail}', matches: first}\n    batch: {rows: 5, bytes: 1KiB}\n    in_flight: 2\n    effects: pure\n";
        let executor = build(text).unwrap();
        let description = executor.describe();
        assert_eq!((description.kind, description.reads.as_slice()), ("lookup", &["tail".to_owned()][..]));
        assert_eq!(description.target, BatchTarget { rows: 5, bytes: 1024, in_flight: 2 });
        assert_eq!(description.effects, Effects::Pure);
        assert_eq!(&*description.connections[0], "fleet");
    }

    #[test]
    fn refusals_point_at_the_query() {
        let reports = build("    lookup: {from: t, connection: c, query: DELETE FROM t}\n").unwrap_err();
        assert_eq!(reports.len(), 1);
        let span = reports[0].labels[0].0;
        assert_eq!(span.end - span.start, "DELETE FROM t".len() as u32);
    }
}
