//! The configuration of this process: files, environment and flags, in rising strength.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use rowmill::spec::config::{self, Color, Config, OutputFormat, Progress, Secret, StateStore};
use rowmill::spec::{Diagnostic, Diagnostics, Fault};
use rowmill::{CacheOptions, RunsOptions, SessionOptions, StoreOptions, read_text};

use crate::args::{Arguments, Command};

/// The project's configuration, beside the workflows.
const PROJECT_FILE: &str = "rowmill.yaml";

/// The configuration, read and checked.
#[derive(Debug)]
pub(crate) struct Settings {
    config: Config,
    compute: Option<tokio::runtime::Handle>,
    inherited: Vec<String>,
}

impl Settings {
    /// With threads that compute.
    pub(crate) fn computing_on(mut self, threads: &tokio::runtime::Handle) -> Settings {
        self.compute = Some(threads.clone());
        self
    }

    /// Reads every layer.
    pub(crate) fn load(arguments: &Arguments) -> Result<Settings, Diagnostics> {
        let mut flags = arguments.global.options.clone();
        let mut flag = |key: &str, value: Option<String>| flags.extend(value.map(|value| (key.to_owned(), value)));
        flag("execution.memory", arguments.global.memory.clone());
        flag("execution.threads", arguments.global.threads.clone());
        flag(
            "output.format",
            arguments.global.output.map(|format| match format {
                crate::args::OutputFormat::Table => "table".to_owned(),
                crate::args::OutputFormat::Json => "json".to_owned(),
            }),
        );
        if let Command::Run { progress, queue, .. } = &arguments.command {
            flag("output.progress", progress.clone());
            flag("cluster.queue", queue.clone());
        }
        let file = arguments.global.config.as_deref();
        let mut inherited = Vec::new();
        if let Some(file) = file {
            let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
            inherited.extend(["--config".to_owned(), file.display().to_string()]);
        }
        for (key, value) in &arguments.global.options {
            inherited.extend(["--option".to_owned(), format!("{key}={value}")]);
        }
        Ok(Settings { inherited, ..Settings::from_layers(file, flags)? })
    }

    /// What a process of this program is started with, so that it is configured as this one.
    pub(crate) fn inherited(&self) -> &[String] {
        &self.inherited
    }

    /// Reads every layer; `flags` are settings by key, the strongest layer.
    pub(crate) fn from_layers(file: Option<&Path>, flags: Vec<(String, String)>) -> Result<Settings, Diagnostics> {
        let project = match file {
            Some(path) => Some(named(path)?),
            None => Path::new(PROJECT_FILE).is_file().then(|| named(Path::new(PROJECT_FILE))).transpose()?,
        };
        let user = match user_file() {
            Some(path) if path.is_file() => Some(named(&path)?),
            _ => None,
        };
        let config = Config::load(&config::Inputs {
            user,
            project,
            env: std::env::vars_os()
                .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
                .collect(),
            reserved_env: ["ROWMILL_CONFIG", "ROWMILL_CLUSTER", "ROWMILL_CLUSTER_TOKEN"].map(str::to_owned).to_vec(),
            flags,
        })?;
        Ok(Settings { config, compute: None, inherited: Vec::new() })
    }

    /// The configuration itself.
    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// Threads that compute.
    pub(crate) fn threads(&self) -> usize {
        self.config.execution.threads.unwrap_or_else(rowmill::options::cores)
    }

    /// Whether results are printed as JSON.
    pub(crate) fn is_json(&self) -> bool {
        self.config.output.format == OutputFormat::Json
    }

    /// Whether standard error takes colours.
    pub(crate) fn is_colored(&self) -> bool {
        crate::exit::is_colored(match self.config.output.color {
            Color::Auto => None,
            Color::Always => Some(true),
            Color::Never => Some(false),
        })
    }

    /// How progress is shown, decided.
    pub(crate) fn progress(&self) -> Progress {
        match self.config.output.progress {
            Progress::Auto if std::io::stderr().is_terminal() => Progress::Bar,
            Progress::Auto => Progress::Plain,
            other => other,
        }
    }

    /// Sends log lines to standard error.
    pub(crate) fn start_logging(&self) {
        // Libraries below warn about what is reported as an error anyway.
        let level = &self.config.log.level;
        let filter = match level.as_str() {
            "debug" | "trace" => level.clone(),
            level => format!(
                "error,rowmill={level},rowmill_engine={level},rowmill_cli={level},rowmill_gpu={level},\
                 rowmill_gpu_plan={level},rowmill_cluster={level},rowmill_scheduler={level},rowmill_executor={level}"
            ),
        };
        let started = tracing_subscriber::fmt()
            .with_writer(std::io::stderr)
            .with_ansi(self.is_colored())
            .with_env_filter(filter)
            .with_target(false)
            .try_init();
        if let Err(error) = started {
            eprintln!("warning: no log is written: {error}");
        }
    }

    /// How a session uses this machine.
    ///
    /// # Errors
    /// When a secret that the configuration names is not there.
    pub(crate) fn session_options(&self) -> Result<SessionOptions, Diagnostics> {
        let execution = &self.config.execution;
        Ok(SessionOptions {
            memory_bytes: execution.memory_bytes,
            partitions: Some(execution.partitions.unwrap_or_else(|| self.threads())),
            batch_rows: execution.batch_rows,
            temp_dir: execution.temp_dir.clone(),
            max_temp_bytes: execution.max_temp_bytes,
            stores: self.store_options()?,
            connections: self.config.connections.values().cloned().collect(),
            python: self.python(),
            cache: CacheOptions {
                folder: self.config.cache.dir.clone().unwrap_or_else(|| self.config.state.dir.join("cache")),
                memory_bytes: self.config.cache.memory_bytes,
                disk_bytes: self.config.cache.disk_bytes,
                ..CacheOptions::default()
            },
            gpu: self.gpu_options(),
            model_library: self.config.model.library.clone(),
            compute: self.compute.clone(),
            ..SessionOptions::default()
        })
    }

    /// How the GPU is used.
    pub(crate) fn gpu_options(&self) -> rowmill::GpuOptions {
        rowmill::gpu::options(&self.config.gpu, &self.config.state.dir)
    }

    /// The interpreter of Python steps: as configured, or the one that this command runs in.
    fn python(&self) -> Option<String> {
        let said = self.config.python.interpreter.as_ref().or_else(|| crate::OWN_PYTHON.get());
        said.map(|path| path.display().to_string())
    }

    /// Where this machine's state lives.
    pub(crate) fn state_dir(&self) -> &Path {
        &self.config.state.dir
    }

    /// Where durable runs live.
    ///
    /// # Errors
    /// When the secret that the configuration names is not there.
    pub(crate) fn runs_options(&self) -> Result<RunsOptions, Diagnostics> {
        let state = &self.config.state;
        let mut options = RunsOptions::folder(&state.dir);
        if let StateStore::Postgres(url) = &state.store {
            options.postgres = resolve("state.store", Some(url))?;
        }
        options.chunk_rows = state.chunk_rows;
        Ok(options)
    }

    fn store_options(&self) -> Result<StoreOptions, Diagnostics> {
        let store = &self.config.object_store;
        let mut options = StoreOptions::default();
        let mut set = |target: &str, key: &str, value: Option<String>| {
            let map = match target {
                "s3" => &mut options.s3,
                "gcs" => &mut options.gcs,
                "azure" => &mut options.azure,
                _ => &mut options.http,
            };
            if let Some(value) = value {
                map.insert(key.to_owned(), value);
            }
        };
        let yes = |flag: bool| flag.then(|| "true".to_owned());
        set("s3", "endpoint", store.s3.endpoint.clone());
        set("s3", "region", store.s3.region.clone());
        set("s3", "access_key_id", resolve("object_store.s3.access_key_id", store.s3.access_key_id.as_ref())?);
        set(
            "s3",
            "secret_access_key",
            resolve("object_store.s3.secret_access_key", store.s3.secret_access_key.as_ref())?,
        );
        set("s3", "session_token", resolve("object_store.s3.session_token", store.s3.session_token.as_ref())?);
        set("s3", "allow_http", yes(store.s3.allow_http));
        set("s3", "virtual_hosted_style_request", yes(store.s3.virtual_hosted));
        set("gcs", "google_base_url", store.gcs.endpoint.clone());
        set(
            "gcs",
            "google_service_account_key",
            resolve("object_store.gcs.service_account_key", store.gcs.service_account_key.as_ref())?,
        );
        set("gcs", "allow_http", yes(store.gcs.allow_http));
        set("azure", "azure_storage_account_name", store.azure.account.clone());
        set("azure", "azure_storage_endpoint", store.azure.endpoint.clone());
        set(
            "azure",
            "azure_storage_account_key",
            resolve("object_store.azure.access_key", store.azure.access_key.as_ref())?,
        );
        set("azure", "allow_http", yes(store.azure.allow_http));
        set("http", "allow_http", yes(store.http.allow_http));
        Ok(options)
    }
}

fn resolve(key: &str, secret: Option<&Secret>) -> Result<Option<String>, Diagnostics> {
    let Some(secret) = secret else { return Ok(None) };
    let resolved = secret.resolve(|name| std::env::var(name).ok(), |path| std::fs::read_to_string(path));
    resolved.map(Some).map_err(|error| Diagnostics {
        reports: vec![Diagnostic::error("RM0410", format!("{key}: {error}")).fault(Fault::Environment)],
        ..Diagnostics::default()
    })
}

fn named(path: &Path) -> Result<(String, String), Diagnostics> {
    Ok((path.display().to_string(), read_text(path)?))
}

/// `$XDG_CONFIG_HOME/rowmill/config.yaml`, or the same under `~/.config`.
fn user_file() -> Option<PathBuf> {
    let folder = match std::env::var_os("XDG_CONFIG_HOME").filter(|folder| !folder.is_empty()) {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(std::env::var_os("HOME")?).join(".config"),
    };
    Some(folder.join("rowmill").join("config.yaml"))
}
