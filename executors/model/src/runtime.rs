//! ONNX Runtime: one library and one environment for the process, and models loaded by it.

use std::path::Path;

use ort::environment::Environment;
use ort::ep::{self, ExecutionProvider as _};
use ort::session::Session;
use parking_lot::Mutex;
use rowmill_spec::ModelDevice;

/// The name that the system's loader looks for.
const LIBRARY: &str = "libonnxruntime.so";

/// The process has one environment; the first library that is asked for is the one.
static ENVIRONMENT: Mutex<Option<Environment>> = Mutex::new(None);

fn environment(library: Option<&Path>) -> Result<Environment, String> {
    let mut environment = ENVIRONMENT.lock();
    if let Some(environment) = environment.as_ref() {
        return Ok(environment.clone());
    }
    let named = std::env::var_os("ORT_DYLIB_PATH").filter(|path| !path.is_empty()).map(Into::into);
    let path = library.map(Path::to_owned).or(named).unwrap_or_else(|| LIBRARY.into());
    let builder = ort::init_from(&path).map_err(|error| {
        format!(
            "ONNX Runtime cannot be loaded: {error}; install it (`pip install onnxruntime` brings one) and say where its \
             `{LIBRARY}` is: setting `model.library`, or `ORT_DYLIB_PATH`"
        )
    })?;
    let made = builder.with_name("rowmill").with_telemetry(false).build().map_err(|error| error.to_string())?;
    Ok(environment.insert(made).clone())
}

/// Loads a model.
///
/// # Errors
/// Why it cannot be loaded, or cannot run on the device that was asked for.
pub(crate) fn load(file: &Path, device: ModelDevice, library: Option<&Path>) -> Result<Session, String> {
    let environment = environment(library)?;
    let unusable = |error: &dyn std::fmt::Display| format!("the model {} cannot be used: {error}", file.display());
    let mut builder = Session::builder(&environment).map_err(|error| unusable(&error))?;
    // A library without CUDA takes the request and runs on the CPU without a word, so it is asked first.
    let has_cuda = || ep::CUDA::is_available().unwrap_or(false);
    let cuda = match device {
        ModelDevice::Cpu => false,
        ModelDevice::Auto => has_cuda(),
        ModelDevice::Cuda if has_cuda() => true,
        ModelDevice::Cuda => {
            return Err("`device: cuda` needs an ONNX Runtime with CUDA, and this one runs on the CPU only; install \
                 `onnxruntime-gpu`, or write `device: auto`"
                .to_owned());
        }
    };
    if cuda {
        let provider = ep::CUDA::default().build();
        let provider = if device == ModelDevice::Cuda { provider.error_on_failure() } else { provider };
        builder = builder.with_execution_providers([provider]).map_err(|error| unusable(&error))?;
    }
    builder.commit_from_file(file).map_err(|error| unusable(&error))
}
