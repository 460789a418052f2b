//! The caches that steps name: opened once for the process, shared by all steps.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use rowmill_cache::{CacheTier as Tier, DiskOptions, DiskTier, MemoryTier, RedisOptions, RedisTier, ResultCache};
use rowmill_spec::{CachePolicy, CacheTier};
use tokio::sync::Mutex;

/// Bytes in memory where nothing else is said.
const MEMORY_BYTES: usize = 256 << 20;
/// Bytes on disk where nothing else is said.
const DISK_BYTES: u64 = 10 << 30;

/// The folder of whole results, below that of the cache.
pub const RESULTS: &str = "results";

/// Where caches live.
#[derive(Debug, Clone)]
pub struct CacheOptions {
    /// The folder of the disk tier.
    pub folder: PathBuf,
    /// Bytes in memory.
    pub memory_bytes: Option<u64>,
    /// Bytes on disk.
    pub disk_bytes: Option<u64>,
    /// URLs of Redis connections by name; secrets, never shown.
    pub redis: HashMap<String, RedisUrl>,
}

impl Default for CacheOptions {
    fn default() -> Self {
        CacheOptions {
            folder: PathBuf::from(".rowmill/cache"),
            memory_bytes: None,
            disk_bytes: None,
            redis: HashMap::new(),
        }
    }
}

/// The URL of a Redis server, password included.
#[derive(Clone)]
pub struct RedisUrl(pub String);

impl std::fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RedisUrl")
    }
}

/// The caches of the process.
#[derive(Debug, Clone, Default)]
pub struct Caches {
    options: Arc<CacheOptions>,
    open: Arc<Mutex<HashMap<String, Arc<dyn Tier>>>>,
}

impl Caches {
    /// Caches that are opened as steps ask for them.
    pub fn new(options: CacheOptions) -> Self {
        Caches { options: Arc::new(options), open: Arc::default() }
    }

    /// Where caches live.
    pub fn options(&self) -> &CacheOptions {
        &self.options
    }

    /// Bytes of the shared disk tier at most.
    pub fn disk_limit(&self) -> u64 {
        self.options.disk_bytes.unwrap_or(DISK_BYTES)
    }

    /// The tiers that a step asks for: memory alone, or memory above another.
    ///
    /// # Errors
    /// A sentence, when one cannot be opened.
    pub async fn of_step(&self, step: &str, policy: &CachePolicy) -> Result<ResultCache, String> {
        let tier = policy.tier.as_ref().map_or(CacheTier::Memory, |tier| tier.value);
        let own = policy.max_size.as_ref().map(|size| size.value);
        let memory_bytes = self.options.memory_bytes.and_then(|bytes| usize::try_from(bytes).ok());
        let memory_bytes = memory_bytes.unwrap_or(MEMORY_BYTES);
        let memory = match (tier, own) {
            // A step with a size of its own has a tier of its own.
            (CacheTier::Memory, Some(bytes)) => {
                let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
                self.tier(&format!("memory {step} {bytes}"), || async move { Ok(memory(bytes)) }).await?
            }
            _ => self.tier("memory", || async move { Ok(memory(memory_bytes)) }).await?,
        };
        let below = match tier {
            CacheTier::Memory => return Ok(ResultCache::new(vec![memory])),
            CacheTier::Disk => self.disk(step, own).await?,
            CacheTier::Redis => self.redis(policy, own).await?,
        };
        Ok(ResultCache::new(vec![memory, below]))
    }

    /// The shared tiers as they stand, for `rowmill cache`.
    ///
    /// # Errors
    /// A sentence, when the disk tier cannot be opened.
    pub async fn shared_disk(&self) -> Result<Arc<dyn Tier>, String> {
        self.disk("", None).await
    }

    async fn disk(&self, step: &str, own: Option<u64>) -> Result<Arc<dyn Tier>, String> {
        let (folder, bytes) = match own {
            Some(bytes) => (self.options.folder.join("steps").join(step), bytes),
            None => (self.options.folder.clone(), self.disk_limit()),
        };
        let name = format!("disk {}", folder.display());
        self.tier(&name, || async move {
            let opened = DiskTier::open(DiskOptions::new(folder, bytes)).await;
            opened.map(|tier| Arc::new(tier) as Arc<dyn Tier>).map_err(|error| error.to_string())
        })
        .await
    }

    async fn redis(&self, policy: &CachePolicy, own: Option<u64>) -> Result<Arc<dyn Tier>, String> {
        if own.is_some() {
            return Err("`max_size` does not apply to Redis, whose server bounds its own memory".to_owned());
        }
        let Some(connection) = &policy.connection else {
            return Err("the tier `redis` needs a `connection`".to_owned());
        };
        let Some(url) = self.options.redis.get(&connection.value).cloned() else {
            return Err(format!("there is no Redis connection `{}`", connection.value));
        };
        self.tier(&format!("redis {}", connection.value), || async move {
            let opened = RedisTier::new(RedisOptions::new(url.0));
            opened.map(|tier| Arc::new(tier) as Arc<dyn Tier>).map_err(|error| error.to_string())
        })
        .await
    }

    async fn tier<F>(&self, name: &str, make: impl FnOnce() -> F) -> Result<Arc<dyn Tier>, String>
    where
        F: Future<Output = Result<Arc<dyn Tier>, String>>,
    {
        let mut open = self.open.lock().await;
        if let Some(tier) = open.get(name) {
            return Ok(Arc::clone(tier));
        }
        let tier = make().await?;
        open.insert(name.to_owned(), Arc::clone(&tier));
        Ok(tier)
    }
}

fn memory(bytes: usize) -> Arc<dyn Tier> {
    Arc::new(MemoryTier::new(bytes))
}
