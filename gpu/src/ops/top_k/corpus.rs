//! A corpus for callers who do not mind where it is searched: on the device once that pays, else in memory.
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arrow::array::{Array, FixedSizeListArray};
use parking_lot::Mutex;
use rayon::prelude::*;

use super::{Metric, Neighbour, Vectors, check_queries, cpu, gpu, score_again};
use crate::device::Device;
use crate::error::Result;

/// A corpus that is searched on a device where there is one and it pays, and on the CPU where there is none or the device
/// has no room, no kernel for the request, or was lost.
pub struct Corpus {
    list: FixedSizeListArray,
    vectors: Vectors,
    metric: Metric,
    place: Mutex<Place>,
    on_cpu: OnceLock<cpu::CpuCorpus>,
}

/// Where a corpus is, and what searches took there.
enum Place {
    /// In memory for good.
    Memory,
    /// In memory until the searches there have taken `after`.
    Earning { device: Arc<Device>, after: Duration, spent: Duration, pace: Pace },
    /// On the device. `watched` where the device has to be faster than memory was.
    Device { corpus: Arc<gpu::GpuCorpus>, watched: Option<Pace> },
}

/// Times of searches by the number of their queries, to the next power of two: the last one in memory and on the device.
#[derive(Debug, Default, Clone)]
struct Pace([(Option<Duration>, Option<Duration>); 24]);

impl Pace {
    fn place(&self, queries: usize) -> usize {
        let at = queries.saturating_sub(1).checked_ilog2().map_or(0, |log| log as usize + 1);
        at.min(self.0.len() - 1)
    }

    fn of(&mut self, queries: usize) -> &mut (Option<Duration>, Option<Duration>) {
        let at = self.place(queries);
        &mut self.0[at]
    }

    /// Whether memory was faster for so many queries.
    fn prefers_memory(&self, queries: usize) -> bool {
        matches!(self.0[self.place(queries)], (Some(memory), Some(device)) if memory < device)
    }
}

impl Corpus {
    /// Takes a column of embeddings and puts it on `device` if it is given and has room.
    ///
    /// # Errors
    /// As for a column that is not a list of floats.
    pub fn try_new(list: &FixedSizeListArray, metric: Metric, device: Option<&Arc<Device>>) -> Result<Self> {
        Self::once_it_pays(list, metric, device.map(|device| (Arc::clone(device), Duration::ZERO)))
    }

    /// The same, but the corpus goes to the device once the searches in memory have taken so long. From then on a number
    /// of queries that memory was faster for is searched there.
    ///
    /// # Errors
    /// As for a column that is not a list of floats.
    pub fn once_it_pays(
        list: &FixedSizeListArray,
        metric: Metric,
        device: Option<(Arc<Device>, Duration)>,
    ) -> Result<Self> {
        let vectors = Vectors::try_new(list)?;
        let place = match device {
            None => Place::Memory,
            Some((device, Duration::ZERO)) => match upload(&device, list, metric)? {
                Some(corpus) => Place::Device { corpus, watched: None },
                None => Place::Memory,
            },
            Some((device, after)) => Place::Earning { device, after, spent: Duration::ZERO, pace: Pace::default() },
        };
        let in_memory = !matches!(place, Place::Device { .. });
        let corpus = Self { list: list.clone(), vectors, metric, place: Mutex::new(place), on_cpu: OnceLock::new() };
        if in_memory {
            corpus.cpu()?;
        }
        Ok(corpus)
    }

    /// Whether the corpus is on a device.
    pub fn is_on_device(&self) -> bool {
        matches!(*self.place.lock(), Place::Device { .. })
    }

    /// The `k` best rows of each query, best first.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the queries' dimensions are not the corpus's.
    pub fn search(&self, queries: &FixedSizeListArray, k: usize) -> Result<Vec<Vec<Neighbour>>> {
        let started = Instant::now();
        if let Some(on_device) = self.on_device(queries.len()) {
            match on_device.search(queries, k) {
                Err(error) if error.falls_back_to_cpu() => {
                    tracing::warn!(%error, "a search is finished on the CPU");
                }
                found => {
                    let queries = check_queries(queries, self.vectors.dims)?;
                    let mut found = found?;
                    found.par_iter_mut().enumerate().for_each_init(Vec::new, |scratch, (query, found)| {
                        let query = queries.f32_rows(query, 1, scratch);
                        score_again(&self.vectors, self.metric, query, found);
                    });
                    if let Place::Device { watched: Some(pace), .. } = &mut *self.place.lock() {
                        pace.of(queries.rows).1 = Some(started.elapsed());
                    }
                    return Ok(found);
                }
            }
        }
        let found = self.cpu()?.search(queries, k)?;
        self.earned(queries.len(), started.elapsed());
        Ok(found)
    }

    /// The corpus on the device, if so many queries are to be searched there.
    fn on_device(&self, queries: usize) -> Option<Arc<gpu::GpuCorpus>> {
        match &*self.place.lock() {
            Place::Device { watched: Some(pace), .. } if pace.prefers_memory(queries) => None,
            Place::Device { corpus, .. } => Some(Arc::clone(corpus)),
            Place::Memory | Place::Earning { .. } => None,
        }
    }

    /// Takes notice of a search in memory, and puts the corpus on the device when enough was spent.
    fn earned(&self, queries: usize, took: Duration) {
        let mut place = self.place.lock();
        let Place::Earning { device, after, spent, pace } = &mut *place else { return };
        *spent += took;
        pace.of(queries).0 = Some(took);
        if *spent >= *after {
            let watched = Some(std::mem::take(pace));
            *place = match upload(device, &self.list, self.metric) {
                Ok(Some(corpus)) => Place::Device { corpus, watched },
                // Said where it was found; memory goes on.
                Ok(None) | Err(_) => Place::Memory,
            };
        }
    }

    fn cpu(&self) -> Result<&cpu::CpuCorpus> {
        if let Some(corpus) = self.on_cpu.get() {
            return Ok(corpus);
        }
        let made = cpu::CpuCorpus::try_new(&self.list, self.metric)?;
        Ok(self.on_cpu.get_or_init(|| made))
    }
}

/// The corpus on the device; `None`, with a warning, where it has to stay in memory.
fn upload(device: &Arc<Device>, list: &FixedSizeListArray, metric: Metric) -> Result<Option<Arc<gpu::GpuCorpus>>> {
    match gpu::GpuCorpus::upload(device, list, metric) {
        Ok(corpus) => Ok(Some(Arc::new(corpus))),
        Err(error) if error.falls_back_to_cpu() => {
            tracing::warn!(%error, "the corpus stays in memory; it is searched on the CPU");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_preferred_where_it_was_faster() {
        let mut pace = Pace::default();
        let ms = |ms| Some(Duration::from_millis(ms));
        assert!(!pace.prefers_memory(1));
        *pace.of(1) = (ms(1), ms(2));
        *pace.of(60) = (ms(90), ms(3));
        assert!(pace.prefers_memory(1) && !pace.prefers_memory(64) && !pace.prefers_memory(2));
        assert_eq!(pace.of(64).0, ms(90));
        *pace.of(usize::MAX / 2) = (ms(2), ms(1));
        assert!(!pace.prefers_memory(usize::MAX / 2));
    }
}
