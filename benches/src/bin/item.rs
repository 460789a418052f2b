//! The plain item, for `benches/peers`: `x + 1` over float64 with a checksum, Arrow in, Arrow out.

use std::time::Instant;

use clap::Parser;
use rowmill_benches::{Error, numbers, plus_one, plus_one_plain, session};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures x + 1 per item.
#[derive(Debug, Parser)]
struct Arguments {
    /// Items.
    #[arg(long, default_value_t = 10_000_000)]
    rows: usize,
    /// Rows of a batch of the input; the default suits the cache.
    #[arg(long, default_value_t = 65_536)]
    batch_rows: usize,
    /// Runs.
    #[arg(long, default_value_t = 11)]
    runs: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let arguments = Arguments::parse();
    let table = numbers(arguments.rows, arguments.batch_rows)?;
    let session = session(None)?;
    let (mut ours, mut plain) = (Vec::new(), Vec::new());
    let mut sum = 0.0;
    for _ in 0..arguments.runs.max(1) {
        let started = Instant::now();
        let (rows, checksum) = plus_one(&session, table.clone()).await?;
        ours.push(started.elapsed().as_secs_f64());
        if rows != arguments.rows {
            return Err(format!("{rows} rows came out of {}", arguments.rows).into());
        }
        sum = checksum;
        let started = Instant::now();
        plus_one_plain(arguments.batch_rows, table.clone()).await?;
        plain.push(started.elapsed().as_secs_f64());
    }
    if arguments.json {
        println!("{}", serde_json::json!({"seconds": ours, "plain_datafusion_seconds": plain, "checksum": sum}));
        return Ok(());
    }
    let median = |seconds: &mut Vec<f64>| {
        seconds.sort_by(f64::total_cmp);
        seconds[seconds.len() / 2]
    };
    let (ours, plain) = (median(&mut ours), median(&mut plain));
    let rate = |seconds: f64| arguments.rows as f64 / seconds / 1e6;
    println!("rowmill           {:8.1} M items/s", rate(ours));
    println!("plain datafusion  {:8.1} M items/s   (rowmill / plain {:.3})", rate(plain), plain / ours);
    Ok(())
}
