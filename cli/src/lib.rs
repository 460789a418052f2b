//! The `rowmill` command as a function: [`main_from`]. The binary calls it, and so does the Python package.

mod args;
mod commands;
mod exit;
mod output;
mod progress;
mod settings;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Parser;
use rowmill::{Diagnostics, SessionOptions};

use crate::args::{Arguments, Command};

/// A reader that leaves (`| head`) ends the command quietly; standard output that cannot be written is the
/// environment's fault. `println!` knows only to panic, so this is where the two are told from a bug.
fn mind_standard_output() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let message = panic.payload().downcast_ref::<String>().map_or("", String::as_str);
        if message.starts_with("failed printing to stdout") {
            if message.contains("Broken pipe") {
                std::process::exit(i32::from(exit::SUCCESS));
            }
            eprintln!("error: {message}");
            std::process::exit(i32::from(exit::ENVIRONMENT));
        }
        usual(panic);
    }));
}

/// What a configuration says about a session.
#[derive(Debug)]
pub struct SessionSettings {
    /// How the session uses its machine.
    pub options: SessionOptions,
    /// Threads that compute.
    pub threads: usize,
}

/// Reads the configuration as the command does (`file`, or the project's and the user's where absent, then the
/// environment, then `settings` by key) and gives what a session needs of it.
///
/// # Errors
/// When a file cannot be read, a setting is wrong, or a secret that is named is not there.
pub fn session_options(file: Option<PathBuf>, settings: Vec<(String, String)>) -> Result<SessionSettings, Diagnostics> {
    let file = file.or_else(|| std::env::var_os("ROWMILL_CONFIG").map(PathBuf::from));
    let settings = settings::Settings::from_layers(file.as_deref(), settings)?;
    Ok(SessionSettings { options: settings.session_options()?, threads: settings.threads() })
}

/// Runs the command that `arguments` (the program's name first) ask for, to its end, and gives the exit code. It
/// writes to standard output and error, and takes Ctrl-C and SIGTERM for itself; the process should end with it.
pub fn main_from(arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> u8 {
    mind_standard_output();
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are no errors: clap says where they go, and with which code.
            if let Err(unwritten) = error.print() {
                eprintln!("error: {unwritten}");
            }
            return u8::try_from(error.exit_code()).unwrap_or(exit::USAGE);
        }
    };
    if let Command::Completions { shell } = &arguments.command {
        commands::completions(*shell);
        return exit::SUCCESS;
    }
    let settings = match settings::Settings::load(&arguments) {
        Ok(settings) => settings,
        Err(reports) => {
            eprint!("{}", reports.render(exit::is_colored(None)));
            return exit::USAGE;
        }
    };
    settings.start_logging();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(settings.threads())
        // Plans are trees, and DataFusion walks them by recursion.
        .thread_stack_size(16 << 20)
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => {
            let code = runtime.block_on(commands::dispatch(arguments, settings));
            // A step may still be inside a blocking read: the process does not wait for it.
            runtime.shutdown_background();
            code
        }
        Err(error) => {
            eprintln!("error: cannot start the runtime: {error}");
            exit::ENVIRONMENT
        }
    }
}
