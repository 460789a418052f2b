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

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Command::Completions { shell } = &arguments.command {
        commands::completions(*shell);
        return ExitCode::SUCCESS;
    }
    let settings = match settings::Settings::load(&arguments) {
        Ok(settings) => settings,
        Err(reports) => {
            eprint!("{}", reports.render(exit::is_colored(None)));
            return ExitCode::from(exit::USAGE);
        }
    };
    settings.start_logging();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(settings.threads())
        // Plans are trees, and DataFusion walks them by recursion.
        .thread_stack_size(16 << 20)
        .enable_all()
        .build();
    let code = match runtime {
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
    };
    ExitCode::from(code)
}
