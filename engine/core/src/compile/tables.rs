//! The schema that SQL steps are planned against: sources and steps by name, whatever the case.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::{SchemaProvider, TableProvider};
use datafusion::common::Result;
use parking_lot::RwLock;

/// Tables by name, found regardless of case: the reader of workflows refuses two names that differ in case only.
#[derive(Debug, Default)]
pub struct StepTables {
    tables: RwLock<HashMap<String, Arc<dyn TableProvider>>>,
}

impl StepTables {
    /// The table of a name.
    pub fn get(&self, name: &str) -> Option<Arc<dyn TableProvider>> {
        self.tables.read().get(&name.to_lowercase()).cloned()
    }

    /// Adds a table.
    pub fn insert(&self, name: &str, table: Arc<dyn TableProvider>) {
        self.tables.write().insert(name.to_lowercase(), table);
    }
}

#[async_trait]
impl SchemaProvider for StepTables {
    fn table_names(&self) -> Vec<String> {
        self.tables.read().keys().cloned().collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        Ok(self.tables.read().get(&name.to_lowercase()).cloned())
    }

    fn table_exist(&self, name: &str) -> bool {
        self.tables.read().contains_key(&name.to_lowercase())
    }
}
