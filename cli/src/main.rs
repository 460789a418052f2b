//! The `rowmill` command.

use std::process::ExitCode;

// The system's allocator returns memory late and contends under many threads; operators allocate a batch at a time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    ExitCode::from(rowmill_cli::main_from(std::env::args_os()))
}
