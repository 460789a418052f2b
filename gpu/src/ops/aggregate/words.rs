//! Accumulators: what a row adds to a group's state, and how two of them become one.

/// How an accumulator takes a value in; the kernels have a struct of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WordOp {
    AddU64,
    AddF64,
    MinU64,
    MaxU64,
    AddI128,
    MinI128,
    MaxI128,
}

/// What is taken from an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Take {
    One,
    Integer,
    Double,
    Ordered,
    Wide,
}

/// One accumulator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Word {
    pub(crate) op: WordOp,
    /// Its argument among those of the plan; none where rows are counted.
    pub(crate) argument: Option<usize>,
    pub(crate) take: Take,
    /// Its first 64-bit word in a state.
    pub(crate) offset: usize,
}

impl WordOp {
    pub(crate) fn is_wide(self) -> bool {
        matches!(self, Self::AddI128 | Self::MinI128 | Self::MaxI128)
    }

    /// 64-bit words.
    pub(crate) fn width(self) -> usize {
        if self.is_wide() { 2 } else { 1 }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::AddU64 => "AddU64",
            Self::AddF64 => "AddF64",
            Self::MinU64 => "MinU64",
            Self::MaxU64 => "MaxU64",
            Self::AddI128 => "AddI128",
            Self::MinI128 => "MinI128",
            Self::MaxI128 => "MaxI128",
        }
    }

    pub(crate) fn identity(self) -> i128 {
        match self {
            Self::AddU64 | Self::AddF64 | Self::MaxU64 | Self::AddI128 => 0,
            Self::MinU64 => i128::from(u64::MAX),
            Self::MinI128 => i128::MAX,
            Self::MaxI128 => i128::MIN,
        }
    }

    pub(crate) fn combine(self, a: i128, b: i128) -> i128 {
        let (x, y) = (a as u64, b as u64);
        match self {
            Self::AddU64 => i128::from(x.wrapping_add(y)),
            Self::AddF64 => i128::from((f64::from_bits(x) + f64::from_bits(y)).to_bits()),
            Self::MinU64 => i128::from(x.min(y)),
            Self::MaxU64 => i128::from(x.max(y)),
            Self::AddI128 => a.wrapping_add(b),
            Self::MinI128 => a.min(b),
            Self::MaxI128 => a.max(b),
        }
    }
}

/// A 128-bit value of its two words.
pub(super) fn join(low: u64, high: u64) -> i128 {
    i128::from(high as i64) << 64 | i128::from(low)
}

/// Appends a value to a state.
pub(super) fn push(state: &mut Vec<u64>, op: WordOp, value: i128) {
    state.push(value as u64);
    if op.is_wide() {
        state.push((value >> 64) as u64);
    }
}

/// The value of a word in a state.
pub(super) fn read(state: &[u64], word: &Word) -> i128 {
    match word.op.is_wide() {
        true => join(state[word.offset], state[word.offset + 1]),
        false => i128::from(state[word.offset]),
    }
}

/// Sets the value of a word in a state.
pub(super) fn write(state: &mut [u64], word: &Word, value: i128) {
    state[word.offset] = value as u64;
    if word.op.is_wide() {
        state[word.offset + 1] = (value >> 64) as u64;
    }
}
