//! Object stores of an executor: this machine's files as the engine reads them, and every other store made when a plan
//! first names it, with the executor's own credentials.

use std::sync::Arc;

use datafusion::common::{DataFusionError, Result};
use datafusion::execution::object_store::{DefaultObjectStoreRegistry, ObjectStoreRegistry};
use object_store::ObjectStore;
use rowmill_engine::sources::local_files::LocalFiles;
use rowmill_engine::sources::stores::{StoreOptions, build};
use url::Url;

/// Makes stores when they are asked for.
#[derive(Debug)]
pub struct Stores {
    known: DefaultObjectStoreRegistry,
    options: StoreOptions,
}

impl Stores {
    /// Stores with these settings.
    pub fn new(options: StoreOptions) -> Self {
        let known = DefaultObjectStoreRegistry::new();
        if let Ok(files) = Url::parse("file://") {
            known.register_store(&files, Arc::new(LocalFiles::default()));
        }
        Self { known, options }
    }
}

impl ObjectStoreRegistry for Stores {
    fn register_store(&self, url: &Url, store: Arc<dyn ObjectStore>) -> Option<Arc<dyn ObjectStore>> {
        self.known.register_store(url, store)
    }

    fn deregister_store(&self, url: &Url) -> Result<Arc<dyn ObjectStore>> {
        self.known.deregister_store(url)
    }

    fn get_store(&self, url: &Url) -> Result<Arc<dyn ObjectStore>> {
        if let Ok(store) = self.known.get_store(url) {
            return Ok(store);
        }
        let store = build(&self.options, url).map_err(|error| DataFusionError::ObjectStore(Box::new(error)))?;
        self.known.register_store(url, Arc::clone(&store));
        Ok(store)
    }
}
