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

fn main() -> ExitCode {
    mind_standard_output();
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
