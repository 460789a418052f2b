//! Reading what a job has made from the executors that hold it.

use std::sync::Arc;

use ballista_core::client::BallistaClient;
use ballista_core::error::BallistaError;
use ballista_core::extension::BallistaConfigGrpcEndpoint;
use ballista_core::serde::protobuf::PartitionLocation;
use datafusion::execution::SendableRecordBatchStream;

use crate::MESSAGE_BYTES;
use crate::handshake::Handshake;

/// How often a broken fetch is begun again, and how long is waited before it, in milliseconds.
const RETRIES: u8 = 2;
const WAIT_MS: u64 = 100;

/// One file of a result, on the executor that made it.
#[derive(Debug, Clone)]
pub struct ResultFile {
    location: PartitionLocation,
}

impl From<PartitionLocation> for ResultFile {
    fn from(location: PartitionLocation) -> Self {
        Self { location }
    }
}

impl ResultFile {
    /// The executor that holds it.
    pub fn executor(&self) -> &str {
        self.location.executor_meta.as_ref().map_or("", |executor| executor.id.as_str())
    }

    /// The partition of the result that its rows belong to.
    pub fn partition(&self) -> usize {
        self.location.partition_id.as_ref().map_or(0, |partition| partition.partition_id as usize)
    }

    /// Where it lies, as the scheduler says it.
    pub fn location(&self) -> &PartitionLocation {
        &self.location
    }

    /// Begins to read it.
    ///
    /// # Errors
    /// The executor is gone, or its file is. Later errors come with the stream.
    pub async fn read(&self, handshake: &Handshake) -> Result<SendableRecordBatchStream, BallistaError> {
        let layout = self.location.layout();
        let missing = || BallistaError::Internal("a file of a result has no address".to_owned());
        let executor = self.location.executor_meta.as_ref().ok_or_else(missing)?;
        let partition = self.location.partition_id.clone().ok_or_else(missing)?;
        let port = u16::try_from(executor.port).map_err(|_| missing())?;
        let endpoint = Arc::new(BallistaConfigGrpcEndpoint::new(handshake.override_fn()));
        let mut client =
            BallistaClient::try_new(&executor.host, port, MESSAGE_BYTES, false, Some(endpoint), RETRIES, WAIT_MS, 0, 0)
                .await?;
        client.fetch_partition(&executor.id, &partition.into(), self.location.file_id, layout, false).await
    }
}
