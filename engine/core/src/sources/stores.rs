//! Object stores by URL, made once per scheme and authority and registered with DataFusion's runtime.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use datafusion::execution::runtime_env::RuntimeEnv;
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::http::HttpBuilder;
use object_store::{ClientOptions, ObjectStore};
use url::Url;

use super::locate::Location;

/// Settings of object stores, from the configuration; what is not set comes from the usual environment variables
/// (`AWS_*`, `GOOGLE_*`, `AZURE_*`). Values may be secrets, so `Debug` shows keys only.
#[derive(Clone, Default)]
pub struct StoreOptions {
    /// For `s3://`: keys as object_store names them (`endpoint`, `region`, `access_key_id` ...).
    pub s3: BTreeMap<String, String>,
    /// For `gs://`.
    pub gcs: BTreeMap<String, String>,
    /// For `az://`, `abfss://`.
    pub azure: BTreeMap<String, String>,
    /// For `http://`, `https://`.
    pub http: BTreeMap<String, String>,
}

impl fmt::Debug for StoreOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys = |options: &BTreeMap<String, String>| options.keys().cloned().collect::<Vec<_>>();
        f.debug_struct("StoreOptions")
            .field("s3", &keys(&self.s3))
            .field("gcs", &keys(&self.gcs))
            .field("azure", &keys(&self.azure))
            .field("http", &keys(&self.http))
            .finish()
    }
}

/// The store of a location, registered with `runtime` if it was not yet.
pub fn store_for(
    runtime: &RuntimeEnv,
    options: &StoreOptions,
    location: &Location,
) -> object_store::Result<Arc<dyn ObjectStore>> {
    if let Ok(store) = runtime.object_store(&location.store) {
        return Ok(store);
    }
    let store = build(options, &location.url)?;
    runtime.register_object_store(location.store.as_ref(), Arc::clone(&store));
    Ok(store)
}

/// Makes the store of a URL.
///
/// # Errors
/// When a setting is not one of its kind's, or is missing.
pub fn build(options: &StoreOptions, url: &Url) -> object_store::Result<Arc<dyn ObjectStore>> {
    macro_rules! with_options {
        ($builder:expr, $options:expr) => {{
            let mut builder = $builder;
            for (key, value) in $options {
                builder = builder.with_config(key.parse()?, value);
            }
            builder
        }};
    }
    Ok(match url.scheme() {
        "s3" | "s3a" => {
            let builder = AmazonS3Builder::from_env().with_url(url.as_str());
            Arc::new(with_options!(builder, &options.s3).build()?)
        }
        "gs" => {
            let builder = GoogleCloudStorageBuilder::from_env().with_url(url.as_str());
            Arc::new(with_options!(builder, &options.gcs).build()?)
        }
        "az" | "adl" | "azure" | "abfs" | "abfss" => {
            let builder = MicrosoftAzureBuilder::from_env().with_url(url.as_str());
            Arc::new(with_options!(builder, &options.azure).build()?)
        }
        _ => {
            let mut client = ClientOptions::new();
            for (key, value) in &options.http {
                client = client.with_config(key.parse()?, value);
            }
            let origin = &url[..url::Position::BeforePath];
            Arc::new(HttpBuilder::new().with_url(origin).with_client_options(client).build()?)
        }
    })
}
