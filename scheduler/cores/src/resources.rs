//! Amounts of resources: what an executor has, what a task needs, what a tenant may hold at a time.

/// An amount of each resource. `slots` are the executor's units of concurrency; a heavy task takes several of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, PartialOrd, Ord, Hash)]
pub struct Resources {
    /// Task slots.
    pub slots: u32,
    /// Thousandths of a processor core.
    pub cpu_milli: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Thousandths of a GPU; 1000 is the whole device.
    pub gpu_milli: u64,
}

impl Resources {
    /// Slots of a task that wants an executor to itself, however large that is.
    pub const WHOLE: u32 = u32::MAX;

    /// One slot and one core: a plain task.
    pub const PLAIN: Self = Self { slots: 1, cpu_milli: 1000, memory_bytes: 0, gpu_milli: 0 };

    /// What these needs come to on something that has `capacity`: [`Self::WHOLE`] slots are all of its slots, and its
    /// other amounts no more than it has.
    pub fn on(&self, capacity: &Self) -> Self {
        if self.slots != Self::WHOLE {
            return *self;
        }
        Self {
            slots: capacity.slots,
            cpu_milli: self.cpu_milli.min(capacity.cpu_milli),
            memory_bytes: self.memory_bytes.min(capacity.memory_bytes),
            gpu_milli: self.gpu_milli.min(capacity.gpu_milli),
        }
    }

    /// Whether each amount of `self` is at most that of `room`.
    pub fn fits_in(&self, room: &Self) -> bool {
        self.slots <= room.slots
            && self.cpu_milli <= room.cpu_milli
            && self.memory_bytes <= room.memory_bytes
            && self.gpu_milli <= room.gpu_milli
    }

    /// `self` and `other` together; amounts stop at the largest number.
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            slots: self.slots.saturating_add(other.slots),
            cpu_milli: self.cpu_milli.saturating_add(other.cpu_milli),
            memory_bytes: self.memory_bytes.saturating_add(other.memory_bytes),
            gpu_milli: self.gpu_milli.saturating_add(other.gpu_milli),
        }
    }

    /// `self` without `other`; amounts stop at zero.
    pub fn minus(&self, other: &Self) -> Self {
        Self {
            slots: self.slots.saturating_sub(other.slots),
            cpu_milli: self.cpu_milli.saturating_sub(other.cpu_milli),
            memory_bytes: self.memory_bytes.saturating_sub(other.memory_bytes),
            gpu_milli: self.gpu_milli.saturating_sub(other.gpu_milli),
        }
    }
}

/// What a tenant may hold at a time. `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Quota {
    /// Runs that are started and not ended.
    pub runs: Option<u64>,
    /// Tasks that hold a reservation.
    pub tasks: Option<u64>,
    /// Thousandths of a core over all reservations.
    pub cpu_milli: Option<u64>,
    /// Bytes over all reservations.
    pub memory_bytes: Option<u64>,
    /// Thousandths of a GPU over all reservations.
    pub gpu_milli: Option<u64>,
}

/// What a tenant holds now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Runs that are started and not ended.
    pub runs: u64,
    /// Tasks that hold a reservation.
    pub tasks: u64,
    /// Their resources, together.
    pub held: Resources,
}

/// Which limit stands in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Concurrent runs.
    Runs,
    /// Concurrent tasks.
    Tasks,
    /// Processor cores.
    Cpu,
    /// Memory.
    Memory,
    /// GPU.
    Gpu,
}

impl Quota {
    /// The first limit that one more run would break.
    pub fn refuses_run(&self, usage: &Usage) -> Option<Limit> {
        (usage.runs.saturating_add(1) > self.runs.unwrap_or(u64::MAX)).then_some(Limit::Runs)
    }

    /// The first limit that a task with these needs would break.
    pub fn refuses_task(&self, usage: &Usage, needs: &Resources) -> Option<Limit> {
        let after = usage.held.plus(needs);
        let over = |amount: u64, limit: Option<u64>| amount > limit.unwrap_or(u64::MAX);
        if over(usage.tasks.saturating_add(1), self.tasks) {
            Some(Limit::Tasks)
        } else if over(after.cpu_milli, self.cpu_milli) && needs.cpu_milli > 0 {
            Some(Limit::Cpu)
        } else if over(after.memory_bytes, self.memory_bytes) && needs.memory_bytes > 0 {
            Some(Limit::Memory)
        } else if over(after.gpu_milli, self.gpu_milli) && needs.gpu_milli > 0 {
            Some(Limit::Gpu)
        } else {
            None
        }
    }

    /// The first limit that the needs of one task break on their own: such a task can never run.
    pub fn never_allows(&self, needs: &Resources) -> Option<Limit> {
        self.refuses_task(&Usage::default(), needs)
    }

    /// Whether this much is within the limits: what the tests hold after every step.
    pub fn allows(&self, usage: &Usage) -> bool {
        let within = |amount: u64, limit: Option<u64>| amount <= limit.unwrap_or(u64::MAX);
        within(usage.runs, self.runs)
            && within(usage.tasks, self.tasks)
            && within(usage.held.cpu_milli, self.cpu_milli)
            && within(usage.held.memory_bytes, self.memory_bytes)
            && within(usage.held.gpu_milli, self.gpu_milli)
    }
}
