//! A cache of steps' results by item, columnar: whole batches of keys in, rows ready for `interleave` out.
//!
//! ```text
//!   key columns ── keys() ──▶ [CacheKey]  ── probe ──▶ memory ── misses ──▶ disk ── misses ──▶ Redis
//!                                                        ▲ hits are promoted  │                  │
//!                                                        └────────────────────┴──────────────────┘
//!   results of misses ── store ──▶ every tier
//! ```
//!
//! Nothing here makes a run fail: what is torn, corrupt, of another version or of another schema is a miss, and a tier
//! that is gone is a warning. Callers store ok results only. An entry is live if and only if it was stored later than
//! the run's start minus the time to live ([`Freshness`]).

mod disk;
mod ipc;
mod keys;
mod memory;
mod redis;
mod stack;
mod tier;

pub use disk::{DiskOptions, DiskTier};
pub use keys::{CacheKey, Scope, keys};
pub use memory::MemoryTier;
pub use redis::{RedisOptions, RedisTier};
pub use stack::ResultCache;
pub use tier::{CacheError, CacheTier, Entries, Freshness, Hit, Probe, StoredAt, TierStats, millis};
