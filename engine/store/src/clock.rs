//! The clock of a SQLite store. Its file lives on one machine, so the machine's clocks are the store's.
//!
//! Two readings serve two purposes. Times that people read come from the wall clock, which an administrator or NTP may
//! set at any moment. Leases must not feel such jumps: they are counted in milliseconds since the machine started, which
//! includes suspended time and is never set, and they name the start they are counted from. After a restart of the
//! machine every earlier lease has expired, which is right: its holder died with the machine. Where the system does not
//! say when it started, leases fall back to the wall clock. (A PostgreSQL store uses the server's clock for both.)

use std::fmt::Debug;
use std::time::{SystemTime, UNIX_EPOCH};

/// One reading of a store's clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds since 1970, for people and for retention.
    pub wall_ms: i64,
    /// Milliseconds on the clock that leases are counted on.
    pub lease_ms: i64,
    /// What `lease_ms` is counted from. Leases of another epoch have expired.
    pub epoch: String,
}

/// A source of [`Now`]. Only tests need another than [`SystemClock`].
pub trait Clock: Debug + Send + Sync {
    /// Reads the clock.
    fn now(&self) -> Now;
}

/// The machine's clocks.
#[derive(Debug)]
pub struct SystemClock {
    /// The identity of the machine's last start, or `None` where the system does not tell.
    boot: Option<String>,
}

impl SystemClock {
    /// Finds out which clocks this machine has.
    pub fn new() -> Self {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|id| id.trim().to_owned());
        SystemClock { boot: boot.filter(|id| !id.is_empty() && uptime_ms().is_some()) }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        SystemClock::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Now {
        let wall_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis() as i64);
        match (&self.boot, uptime_ms()) {
            (Some(boot), Some(lease_ms)) => Now { wall_ms, lease_ms, epoch: boot.clone() },
            _ => Now { wall_ms, lease_ms: wall_ms, epoch: "wall".to_owned() },
        }
    }
}

/// Milliseconds since the machine started, suspended time included, to 10 ms (`/proc/uptime` of Linux).
fn uptime_ms() -> Option<i64> {
    let text = std::fs::read_to_string("/proc/uptime").ok()?;
    let seconds: f64 = text.split_whitespace().next()?.parse().ok()?;
    Some((seconds * 1000.0) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lease_clock_moves_forward_and_keeps_its_epoch() {
        let clock = SystemClock::new();
        let first = clock.now();
        std::thread::sleep(std::time::Duration::from_millis(30));
        let second = clock.now();
        assert_eq!(first.epoch, second.epoch);
        assert!(second.lease_ms > first.lease_ms, "{first:?} {second:?}");
        assert_eq!(SystemClock::new().now().epoch, first.epoch, "two readers must agree on the epoch");
    }
}
