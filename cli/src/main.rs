//! The `rowmill` command.

mod args;
mod commands;
mod exit;
mod output;
mod progress;
mod settings;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Arguments, Command};

// The system's allocator returns memory late and contends under many threads; operators allocate a batch at a time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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

/// Stack of the thread that plans.
const PLANNING_STACK_BYTES: usize = 256 << 20;
/// Stack of the threads that run plans.
const WORKER_STACK_BYTES: usize = 64 << 20;

fn main() -> ExitCode {
    mind_standard_output();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return ExitCode::from(misunderstood(&error)),
    };
    if let Command::Completions { shell } = &arguments.command {
        commands::completions(*shell);
        return ExitCode::SUCCESS;
    }
    let settings = match settings::Settings::load(&arguments) {
        Ok(settings) => settings,
        Err(reports) => {
            let json = arguments.global.output == Some(args::OutputFormat::Json) || wants_json();
            return ExitCode::from(output::failure(&reports, json, exit::is_colored(None)));
        }
    };
    settings.start_logging();
    // Plans are trees, and DataFusion walks them by recursion: planning gets a stack that a query of thousands of
    // operators does not end. Pages of it that are not used cost nothing.
    let planning = std::thread::Builder::new().stack_size(PLANNING_STACK_BYTES).spawn(move || run(arguments, settings));
    let code = match planning.map(std::thread::JoinHandle::join) {
        Ok(Ok(code)) => code,
        // The panic's message was printed.
        Ok(Err(_)) => exit::INTERNAL,
        Err(error) => {
            eprintln!("error: cannot start a thread: {error}");
            exit::ENVIRONMENT
        }
    };
    ExitCode::from(code)
}

/// Tells what is wrong with the command line, in the form that it asks for; help is no error.
fn misunderstood(error: &clap::Error) -> u8 {
    if !error.use_stderr() || !wants_json() {
        error.exit();
    }
    let text = error.to_string();
    let text = text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ");
    let report = rowmill::spec::Diagnostic::error("RM0420", text.split_whitespace().collect::<Vec<_>>().join(" "))
        .help("look at `rowmill help COMMAND`");
    let reports = rowmill::Diagnostics { reports: vec![report], ..rowmill::Diagnostics::default() };
    output::failure(&reports, true, false)
}

/// Whether JSON is asked for by flag or environment, before either was checked.
fn wants_json() -> bool {
    let arguments: Vec<_> = std::env::args_os().collect();
    arguments.iter().any(|argument| argument == "--output=json")
        || arguments.windows(2).any(|pair| pair[0] == "--output" && pair[1] == "json")
        || std::env::var_os("ROWMILL_OUTPUT__FORMAT").is_some_and(|format| format == "json")
}

fn run(arguments: Arguments, settings: settings::Settings) -> u8 {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(settings.threads())
        .thread_stack_size(WORKER_STACK_BYTES)
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
