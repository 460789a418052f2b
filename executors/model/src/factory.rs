//! From the text of a `model` step to its executor.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rowmill_spec::{Diagnostic, ModelDevice, Step, StepKind};
use rowmill_step::{Fill, StepExecutor, StepFactory, batch_target, fill_with, refused, wrong_kind};

use crate::step::{ModelOptions, ModelStep};

/// Makes executors of `model` steps.
#[derive(Debug, Default, Clone)]
pub struct ModelFactory {
    library: Option<PathBuf>,
}

impl ModelFactory {
    /// A factory whose models are run by the ONNX Runtime in this file; it is looked for where absent.
    pub fn new(library: Option<&Path>) -> Self {
        Self { library: library.map(Path::to_owned) }
    }
}

impl StepFactory for ModelFactory {
    fn kind(&self) -> &'static str {
        "model"
    }

    fn build(&self, step: &Step, fill: Fill<'_>) -> Result<Arc<dyn StepExecutor>, Vec<Diagnostic>> {
        self.build_in(step, fill, Path::new(""))
    }

    fn build_in(&self, step: &Step, fill: Fill<'_>, base: &Path) -> Result<Arc<dyn StepExecutor>, Vec<Diagnostic>> {
        let StepKind::Model(model) = &step.kind else { return Err(wrong_kind(step, self.kind())) };
        let file = fill_with(&model.file, fill, |value| Ok(value.to_owned())).map_err(|report| vec![report])?;
        if file.trim().is_empty() {
            return Err(vec![refused(step, "file", "is empty; give the path of a model", model.place("file"))]);
        }
        if model.inputs.is_empty() {
            let message = "is empty; give the columns of each input of the model";
            return Err(vec![refused(step, "inputs", message, model.place("inputs"))]);
        }
        if let Some(effects) = &step.items.effects
            && effects.value != rowmill_spec::Effects::Pure
        {
            return Err(vec![refused(step, "effects", "a model has none; remove it", effects.span)]);
        }
        let named = |names: &[rowmill_spec::Spanned<String>]| names.iter().map(|name| name.value.clone()).collect();
        let inputs = model.inputs.iter().map(|(tensor, columns)| (tensor.clone(), named(columns))).collect();
        let output = model.output.as_ref().map(|output| {
            output.iter().map(|(column, tensor)| (column.clone(), tensor.value.clone())).collect::<Vec<_>>()
        });
        let options = ModelOptions {
            file: base.join(file),
            inputs,
            output,
            device: model.device.as_ref().map_or(ModelDevice::Cpu, |device| device.value),
            library: self.library.clone(),
            target: batch_target(step, ModelStep::TARGET),
        };
        Ok(Arc::new(ModelStep::new(options)))
    }
}
