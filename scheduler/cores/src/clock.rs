//! Time that never runs backwards, made from readings of a clock that might.

/// Turns a clock's readings into milliseconds that only grow. A jump back counts as no time at all; a jump ahead counts
/// as it stands, so that leases end early, which is safe: what ran under them is cancelled and fenced off.
#[derive(Debug, Clone, Copy, Default)]
pub struct Steady {
    last_reading_ms: Option<u64>,
    steady_ms: u64,
}

impl Steady {
    /// The steady time of this reading.
    pub fn read(&mut self, reading_ms: u64) -> u64 {
        if let Some(last_ms) = self.last_reading_ms {
            self.steady_ms = self.steady_ms.saturating_add(reading_ms.saturating_sub(last_ms));
        }
        self.last_reading_ms = Some(reading_ms);
        self.steady_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_back_are_no_time() {
        let mut clock = Steady::default();
        assert_eq!([1_000, 1_010, 200, 205, 9_205].map(|reading| clock.read(reading)), [0, 10, 10, 15, 9_015]);
    }
}
