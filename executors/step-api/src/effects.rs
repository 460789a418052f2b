//! What running a step again means.

use serde::{Deserialize, Serialize};

/// What running a step again means; it decides what may be repeated, cached, deduplicated and bisected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effects {
    /// The same input gives the same output, and nothing outside changes.
    Pure,
    /// Something outside is read or written, and doing it twice is as good as doing it once.
    Idempotent,
    /// Something outside happens each time: an item whose fate is not known is never sent again on its own.
    Once,
}

impl Effects {
    /// Whether equal items may share one call, results may be cached, and a group that failed may be cut in two and
    /// sent again.
    pub const fn repeatable(self) -> bool {
        !matches!(self, Self::Once)
    }

    /// Whether results must be in the effect log before they count: everything that is not pure.
    pub const fn logged(self) -> bool {
        !matches!(self, Self::Pure)
    }

    /// Whether the intent must be logged before the call leaves: `once` only.
    pub const fn intent_first(self) -> bool {
        matches!(self, Self::Once)
    }

    /// The word used in workflow text, `explain` and the ledger.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pure => "pure",
            Self::Idempotent => "idempotent",
            Self::Once => "once",
        }
    }
}

impl std::fmt::Display for Effects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
