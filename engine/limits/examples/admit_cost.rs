//! What does it cost to ask a connection's limits? Prints nanoseconds per call, medians of 11 rounds.

use std::time::Instant;

use rowmill_limits::{BreakerSettings, ConnectionLimits, LimitError, LimitSettings};
use rowmill_step::CallCost;

const CALLS: u32 = 200_000;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), LimitError> {
    let none = LimitSettings::default;
    let second = std::time::Duration::from_secs(1);
    let breaker = BreakerSettings { failures: 5, window: second, cool_down: second };
    for (name, settings) in [
        ("no limits", none()),
        ("slots", LimitSettings { max_in_flight: Some(64), ..none() }),
        ("breaker", LimitSettings { breaker: Some(breaker), ..none() }),
        ("a rate that never makes anybody wait", LimitSettings { requests_per_second: Some(1e9), ..none() }),
        ("a rate of 100,000/s, waits included", LimitSettings { requests_per_second: Some(1e5), ..none() }),
    ] {
        let limits = ConnectionLimits::new("bench", settings)?;
        let cost = CallCost { requests: 1, tokens: 10 };
        let mut rounds = Vec::new();
        for _ in 0..11 {
            let calls = if name.contains("waits") { CALLS / 20 } else { CALLS };
            let started = Instant::now();
            for _ in 0..calls {
                limits.admit(cost).await.finish(None);
            }
            rounds.push(started.elapsed().as_secs_f64() * 1e9 / f64::from(calls));
        }
        rounds.sort_by(f64::total_cmp);
        println!("{name:40} {:8.1} ns per call", rounds[5]);
    }
    Ok(())
}
