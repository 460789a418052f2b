//! `rowmill executor`

use std::sync::Arc;
use std::time::Duration;

use rowmill_cluster::failure::describe;
use rowmill_cluster::stores::Stores;
use rowmill_executor::{Error, Options, run};
use rowmill_wire::name::ExecutorName;

use super::steps::Steps;
use super::{asked_to_stop, environment, security, usage};
use crate::args::ExecutorArguments;
use crate::exit;
use crate::output::failure;
use crate::settings::Settings;

pub(crate) async fn executor(arguments: &ExecutorArguments, settings: &Settings) -> u8 {
    let refuse = |reports| failure(&reports, settings.is_json(), settings.is_colored());
    let options = match options(arguments, settings) {
        Ok(options) => options,
        Err(reports) => return refuse(reports),
    };
    match run(options, Box::pin(asked_to_stop())).await {
        Ok(()) => exit::SUCCESS,
        Err(error) => refuse(match &error {
            Error::Transport(error) => security::refused(error),
            Error::Refused(_) => {
                environment("RM0708", error.to_string(), "are token, certificates and build the cluster's?")
            }
            Error::WorkDir { .. } => environment("RM0703", error.to_string(), "give another folder with --work-dir"),
            _ => environment("RM0704", error.to_string(), "start it again when that is mended"),
        }),
    }
}

fn options(arguments: &ExecutorArguments, settings: &Settings) -> Result<Options, rowmill::Diagnostics> {
    let name = ExecutorName::try_new(&arguments.classes)
        .map_err(|error| usage(error.to_string(), "such as --class cpu --class io"))?;
    let slots = arguments.slots.unwrap_or_else(|| u32::try_from(settings.threads()).unwrap_or(1));
    if slots == 0 {
        return Err(usage("an executor without slots runs nothing", "give it --slots 1 or more"));
    }
    let session = settings.session_options()?;
    Ok(Options {
        name,
        slots,
        listen: arguments.listen,
        host: arguments.host.clone().unwrap_or_else(|| arguments.listen.to_string()),
        flight_port: arguments.result_port,
        task_port: arguments.task_port,
        schedulers: arguments.schedulers.clone(),
        handshake: security::server(security::token(arguments.token_file.as_deref())?, settings)?,
        work_dir: arguments.work_dir.clone(),
        memory_bytes: session.memory_bytes,
        drain: Duration::from_secs(arguments.drain_s),
        heartbeat: Duration::from_secs(1),
        stores: Some(Arc::new(Stores::new(session.stores.clone()))),
        describe: Some(Arc::new(describe)),
        steps: Some(Steps::try_new(session)?),
    })
}
