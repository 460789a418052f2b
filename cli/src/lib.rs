//! The `rowmill` command as a function: [`main_from`]. The binary calls it, and so does the Python package.

mod args;
mod commands;
mod exit;
mod output;
mod progress;
mod settings;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Parser;
use rowmill::{Diagnostics, RunsOptions, SessionOptions};

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

/// The same, for a session whose workflows run on a cluster: HOST:PORT of its scheduler, or `local`. Its token is in
/// `token_file`, or in the environment.
///
/// # Errors
/// As [`session_options`]; also when the address or the token is wrong. Nothing is asked of the cluster yet.
pub fn session_options_on(
    cluster: &str,
    token_file: Option<PathBuf>,
    file: Option<PathBuf>,
    settings: Vec<(String, String)>,
) -> Result<SessionSettings, Diagnostics> {
    let file = file.or_else(|| std::env::var_os("ROWMILL_CONFIG").map(PathBuf::from));
    let settings = settings::Settings::from_layers(file.as_deref(), settings)?;
    let elsewhere = commands::cluster_at(cluster, token_file, &settings)?;
    let options = SessionOptions { elsewhere: Some(Arc::new(elsewhere)), ..settings.session_options()? };
    Ok(SessionSettings { options, threads: settings.threads() })
}

/// Where durable runs live, by the same configuration.
///
/// # Errors
/// As [`session_options`].
pub fn runs_options(file: Option<PathBuf>, settings: Vec<(String, String)>) -> Result<RunsOptions, Diagnostics> {
    let file = file.or_else(|| std::env::var_os("ROWMILL_CONFIG").map(PathBuf::from));
    settings::Settings::from_layers(file.as_deref(), settings)?.runs_options()
}

/// The interpreter that this command runs in, where it does.
static OWN_PYTHON: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();

/// Says that this command runs in a Python interpreter: it is the one of Python steps where nothing else is configured.
pub fn runs_in_python(interpreter: PathBuf) {
    // The first one stays; a process has one interpreter.
    let _ = OWN_PYTHON.set(interpreter);
}

/// Runs the command that `arguments` (the program's name first) ask for, to its end, and gives the exit code. It
/// writes to standard output and error, and takes Ctrl-C and SIGTERM for itself; the process should end with it.
pub fn main_from(arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> u8 {
    mind_standard_output();
    let arguments: Vec<OsString> = arguments.into_iter().map(Into::into).collect();
    let json = wants_json(&arguments);
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => return misunderstood(&error, json),
    };
    if let Command::Completions { shell } = &arguments.command {
        commands::completions(*shell);
        return exit::SUCCESS;
    }
    let settings = match settings::Settings::load(&arguments) {
        Ok(settings) => settings,
        Err(reports) => {
            let json = arguments.global.output == Some(args::OutputFormat::Json) || json;
            return output::failure(&reports, json, exit::is_colored(None));
        }
    };
    settings.start_logging();
    // Plans are trees, and DataFusion walks them by recursion: planning gets a stack that a query of thousands of
    // operators does not end. Pages of it that are not used cost nothing.
    let planning = std::thread::Builder::new().stack_size(PLANNING_STACK_BYTES).spawn(move || run(arguments, settings));
    match planning.map(std::thread::JoinHandle::join) {
        Ok(Ok(code)) => code,
        // The panic's message was printed.
        Ok(Err(_)) => exit::INTERNAL,
        Err(error) => {
            eprintln!("error: cannot start a thread: {error}");
            exit::ENVIRONMENT
        }
    }
}

/// Stack of the thread that plans.
const PLANNING_STACK_BYTES: usize = 256 << 20;
/// Stack of the threads that run plans.
const WORKER_STACK_BYTES: usize = 64 << 20;

/// Tells what is wrong with the command line, in the form that it asks for; help is no error.
fn misunderstood(error: &clap::Error, json: bool) -> u8 {
    if !error.use_stderr() || !json {
        // Help and version are no errors: clap says where they go, and with which code.
        if let Err(unwritten) = error.print() {
            eprintln!("error: {unwritten}");
        }
        return u8::try_from(error.exit_code()).unwrap_or(exit::USAGE);
    }
    let text = error.to_string();
    let text = text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ");
    let report = rowmill::spec::Diagnostic::error("RM0420", text.split_whitespace().collect::<Vec<_>>().join(" "))
        .help("look at `rowmill help COMMAND`");
    let reports = Diagnostics { reports: vec![report], ..Diagnostics::default() };
    output::failure(&reports, true, false)
}

/// Whether JSON is asked for by flag or environment, before either was checked.
fn wants_json(arguments: &[OsString]) -> bool {
    arguments.iter().any(|argument| argument == "--output=json")
        || arguments.windows(2).any(|pair| pair[0] == "--output" && pair[1] == "json")
        || std::env::var_os("ROWMILL_OUTPUT__FORMAT").is_some_and(|format| format == "json")
}

fn run(arguments: Arguments, settings: settings::Settings) -> u8 {
    let threads = |name: &str| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(settings.threads())
            .thread_name(name)
            .thread_stack_size(WORKER_STACK_BYTES)
            .enable_all()
            .build()
    };
    match threads("rowmill").and_then(|runtime| Ok((runtime, threads("compute")?))) {
        Ok((runtime, compute)) => {
            let settings = settings.computing_on(compute.handle());
            let code = runtime.block_on(commands::dispatch(arguments, settings));
            // A step may still be inside a blocking read, or compute: the process does not wait for it.
            compute.shutdown_background();
            runtime.shutdown_background();
            code
        }
        Err(error) => {
            eprintln!("error: cannot start the runtime: {error}");
            exit::ENVIRONMENT
        }
    }
}
