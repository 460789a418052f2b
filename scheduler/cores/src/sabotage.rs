//! Planted faults, for the tests alone: a check that never fires proves nothing, so the simulation runs again with each
//! of these mistakes built in and must find every one. Outside of tests the switch is a constant `false`.

/// A mistake that the tests can plant in a core.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// The journal takes a second commit of a chunk.
    CommitTwice,
    /// The journal does not look at the fence.
    IgnoreFence,
    /// A lease that changes hands keeps its fence.
    KeepFence,
    /// An attempt whose lease has run out is never given up.
    ImmortalLease,
    /// A lost executor's reservations stay taken.
    LeakReservation,
    /// A reservation that is returned twice is counted twice.
    ReleaseTwice,
    /// A quota lets one task too many through.
    QuotaOffByOne,
    /// A cancelled run keeps launching.
    LaunchAfterCancel,
    /// A wide stage starts with the first of its inputs.
    EagerBarrier,
    /// A failed attempt is not tried again.
    DropRetry,
    /// A low queue waits for as long as a high one has work.
    NoAgeing,
    /// A resumed run does not know what was committed.
    ForgetJournal,
    /// Producers run ahead without bound.
    NoWindow,
    /// A request for a class that nobody serves waits for ever.
    BlindWatchdog,
    /// A task is placed on an executor without asking for room.
    Overcommit,
    /// A late result of an attempt that was given up is taken.
    TrustLateResult,
}

/// Which mistake is planted, if any.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sabotage {
    #[cfg(test)]
    planted: Option<Mutant>,
}

impl Sabotage {
    #[cfg(test)]
    pub(crate) fn plant(mutant: Option<Mutant>) -> Self {
        Self { planted: mutant }
    }

    #[cfg(test)]
    pub(crate) fn is(&self, mutant: Mutant) -> bool {
        self.planted == Some(mutant)
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, reason = "the tests' version looks at it")]
    pub(crate) const fn is(&self, _: Mutant) -> bool {
        false
    }
}
