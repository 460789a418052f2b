//! The caches of steps, looked at from outside: what they hold, cleared, filled ahead of a run.

use std::path::PathBuf;
use std::sync::Arc;

use rowmill_cache::{CacheTier as Tier, DiskOptions, DiskTier, RedisOptions, RedisTier};
use rowmill_engine::calls::caches::RESULTS;
use rowmill_engine::compile::{Inputs, compile};
use rowmill_engine::local::{Observer, RunError, RunReport};
use rowmill_engine::plan::kept::holdings;
use rowmill_spec::{CacheTier, Diagnostic, Diagnostics, Fault, Format, Sink, Spanned, StepKind, Template, Workflow};
use tokio_util::sync::CancellationToken;

use crate::Session;

/// One place in which results are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachePlace {
    /// The folder, or the connection.
    pub place: String,
    /// `disk`, `redis`, or `results`: whole results of SQL steps.
    pub tier: &'static str,
    /// Entries, where the place counts them.
    pub entries: Option<u64>,
    /// Bytes, where the place counts them.
    pub bytes: Option<u64>,
    /// Bytes at most; None where the place bounds itself.
    pub limit: Option<u64>,
}

fn environment(message: String) -> Diagnostics {
    let report = Diagnostic::error("RM0705", message).fault(Fault::Environment);
    Diagnostics { reports: vec![report], ..Diagnostics::default() }
}

fn wrong(report: Diagnostic) -> Diagnostics {
    Diagnostics { reports: vec![report], ..Diagnostics::default() }
}

impl Session {
    /// What the places hold that outlive a process: the folder of the cache, those of steps with a size of their own,
    /// and the Redis servers of the configuration.
    ///
    /// # Errors
    /// When a place cannot be opened.
    pub async fn cache_stats(&self) -> Result<Vec<CachePlace>, Diagnostics> {
        let mut places = Vec::new();
        for (place, limit, tier) in self.cache_tiers().await? {
            let stats = tier.stats().await;
            places.push(CachePlace { place, tier: stats.tier, entries: stats.entries, bytes: stats.bytes, limit });
        }
        let results = self.engine().host().caches.options().folder.join(RESULTS);
        if results.is_dir() {
            let (entries, bytes) = holdings(&results);
            let limit = Some(self.engine().host().caches.disk_limit());
            let place = results.display().to_string();
            places.push(CachePlace { place, tier: "results", entries: Some(entries), bytes: Some(bytes), limit });
        }
        Ok(places)
    }

    /// Forgets everything in those places.
    ///
    /// # Errors
    /// When a place cannot be opened or cleared.
    pub async fn cache_clear(&self) -> Result<(), Diagnostics> {
        for (place, _, tier) in self.cache_tiers().await? {
            tier.clear(None).await.map_err(|error| environment(format!("{place}: {error}")))?;
        }
        let results = self.engine().host().caches.options().folder.join(RESULTS);
        match std::fs::remove_dir_all(&results) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(environment(format!("{}: {error}", results.display())))
            }
            _ => Ok(()),
        }
    }

    /// Forgets the results of the workflow's steps, or of one of them, as the steps are now; gives the steps' names.
    ///
    /// # Errors
    /// What is wrong with the workflow; when it has no such step with a cache; when a tier cannot be cleared.
    pub async fn cache_clear_steps(
        &self,
        workflow: Arc<Workflow>,
        inputs: &Inputs,
        step: Option<&str>,
    ) -> Result<Vec<String>, Diagnostics> {
        let cached = cached_steps(&workflow, step)?;
        let engine = self.engine();
        let inputs = Inputs { everything: true, ..inputs.clone() };
        let state = engine.session(false);
        let compiled = compile(workflow, &inputs, state, &engine.options().stores, engine.host()).await?;
        for name in &cached {
            if let Some(kept) = compiled.steps.get(name).and_then(|step| step.kept.as_ref()) {
                let place = engine.host().caches.options().folder.join(RESULTS).join(&kept.key);
                match std::fs::remove_dir_all(&place) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(environment(format!("{}: {error}", place.display())));
                    }
                    _ => continue,
                }
            }
            let call = compiled.steps.get(name).and_then(|step| step.call());
            let Some((cache, _)) = call.and_then(|call| call.cache.as_ref()) else { continue };
            if let Some(error) = cache.clear().await.first() {
                return Err(environment(format!("step `{name}`: {error}")));
            }
        }
        Ok(cached)
    }

    /// Runs the workflow's steps that have a cache on disk or in Redis, so that a later run finds their results. Sinks
    /// are left alone.
    ///
    /// # Errors
    /// As [`Session::run`]; also when no step has such a cache, since one in memory ends with the process.
    pub async fn cache_warm(
        &self,
        workflow: &Workflow,
        inputs: &Inputs,
        step: Option<&str>,
        cancel: &CancellationToken,
        observer: &dyn Observer,
    ) -> Result<RunReport, RunError> {
        let mut kept = cached_steps(workflow, step)?;
        kept.retain(|name| {
            let step = workflow.steps.get(name);
            if step.is_some_and(|step| matches!(step.kind, StepKind::Sql(_))) {
                return true;
            }
            let policy = step.and_then(|step| step.items.cache.as_ref());
            policy.and_then(|policy| policy.value.tier.as_ref()).is_some_and(|tier| tier.value != CacheTier::Memory)
        });
        if kept.is_empty() {
            let report = Diagnostic::error("RM0706", "the caches are in memory, and end with the process".to_owned());
            return Err(wrong(report.help("say `cache: {tier: disk}`")).into());
        }
        // The rows go nowhere: into files that are gone when this ends.
        let folder = tempfile::Builder::new().prefix("rowmill-warm-").tempdir();
        let folder = folder.map_err(|error| environment(format!("a folder for rows that nobody wants: {error}")))?;
        let mut workflow = workflow.clone();
        workflow.sinks.clear();
        for (at, name) in kept.iter().enumerate() {
            let sink = format!("warm_{at}");
            let path = folder.path().join(format!("{at}.arrow")).display().to_string();
            workflow.sinks.insert(
                sink.clone(),
                Sink {
                    name: Spanned::bare(sink),
                    from: Spanned::bare(name.clone()),
                    path: Template::literal(path),
                    format: Some(Spanned::bare(Format::Arrow)),
                    compression: None,
                    partition_by: Vec::new(),
                    csv: Default::default(),
                },
            );
        }
        self.run_observed(Arc::new(workflow), inputs, cancel, observer).await
    }

    async fn cache_tiers(&self) -> Result<Vec<(String, Option<u64>, Arc<dyn Tier>)>, Diagnostics> {
        let caches = self.engine().host().caches.clone();
        let options = caches.options();
        let mut tiers: Vec<(String, Option<u64>, Arc<dyn Tier>)> = Vec::new();
        if options.folder.is_dir() {
            let tier = caches.shared_disk().await.map_err(environment)?;
            tiers.push((options.folder.display().to_string(), Some(caches.disk_limit()), tier));
        }
        for folder in folders_below(&options.folder.join("steps")) {
            let shown = folder.display().to_string();
            // The step's own bound is not known here; nothing is to make room.
            let tier = DiskTier::open(DiskOptions::new(folder, u64::MAX)).await;
            let tier = tier.map_err(|error| environment(format!("{shown}: {error}")))?;
            tiers.push((shown, None, Arc::new(tier)));
        }
        let mut redis: Vec<_> = options.redis.iter().collect();
        redis.sort_by_key(|(name, _)| name.as_str());
        for (name, url) in redis {
            let tier = RedisTier::new(RedisOptions::new(url.0.clone()));
            let tier = tier.map_err(|error| environment(format!("connection `{name}`: {error}")))?;
            tiers.push((format!("connection {name}"), None, Arc::new(tier)));
        }
        Ok(tiers)
    }
}

/// The steps that have a cache: all, or the one that is named.
fn cached_steps(workflow: &Workflow, step: Option<&str>) -> Result<Vec<String>, Diagnostics> {
    let steps = workflow.steps.values().filter(|step| step.items.cache.is_some()).map(|step| step.name.value.clone());
    let cached: Vec<String> =
        steps.filter(|name| step.is_none_or(|wanted| name.eq_ignore_ascii_case(wanted))).collect();
    if !cached.is_empty() {
        return Ok(cached);
    }
    let message = match step {
        Some(step) => format!("workflow `{}` has no step `{step}` with a cache", workflow.name.value),
        None => format!("no step of workflow `{}` has a cache", workflow.name.value),
    };
    Err(wrong(Diagnostic::error("RM0706", message).help("a step has one with `cache: {...}`")))
}

fn folders_below(folder: &std::path::Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut folders: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    folders.sort();
    folders
}
