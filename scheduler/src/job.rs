//! A submitted job: waiting for its end and reading its result.

use std::sync::Arc;

use ballista_core::JobId;
use ballista_core::client::BallistaClient;
use ballista_core::extension::BallistaConfigGrpcEndpoint;
use ballista_core::serde::protobuf::job_status::Status;
use ballista_core::serde::protobuf::{JobStatus, PartitionLocation};
use datafusion::arrow::array::RecordBatch;
use futures::TryStreamExt;
use rowmill_wire::MESSAGE_BYTES;
use rowmill_wire::handshake::Handshake;
use tokio::sync::mpsc;

use crate::error::Error;
use crate::watch::Watch;

/// How often a broken fetch is tried again, and how long is waited before it, in milliseconds.
const FETCH_RETRIES: u8 = 3;
const FETCH_WAIT_MS: u64 = 100;

/// One partition of a result, on the executor that made it.
#[derive(Debug, Clone)]
pub struct Partition {
    location: PartitionLocation,
}

impl Partition {
    /// The executor that holds it.
    pub fn executor(&self) -> &str {
        self.location.executor_meta.as_ref().map_or("", |executor| executor.id.as_str())
    }

    /// Reads it.
    ///
    /// # Errors
    /// The executor is gone, or its file is.
    pub async fn read(&self, handshake: &Handshake) -> Result<Vec<RecordBatch>, Error> {
        let layout = self.location.layout();
        let missing = || Error::Failed { job: String::new(), reason: "a result has no address".to_owned() };
        let executor = self.location.executor_meta.as_ref().ok_or_else(missing)?;
        let partition = self.location.partition_id.clone().ok_or_else(missing)?;
        let port = u16::try_from(executor.port).map_err(|_| missing())?;
        let endpoint = Arc::new(BallistaConfigGrpcEndpoint::new(handshake.override_fn()));
        let mut client = BallistaClient::try_new(
            &executor.host,
            port,
            MESSAGE_BYTES,
            false,
            Some(endpoint),
            FETCH_RETRIES,
            FETCH_WAIT_MS,
            0,
            0,
        )
        .await?;
        let stream =
            client.fetch_partition(&executor.id, &partition.into(), self.location.file_id, layout, false).await?;
        Ok(stream.try_collect().await?)
    }
}

/// A job that was submitted.
#[derive(Debug)]
pub struct Job {
    pub(crate) id: JobId,
    pub(crate) updates: mpsc::Receiver<JobStatus>,
    pub(crate) watch: Arc<Watch>,
    pub(crate) handshake: Handshake,
}

impl Job {
    /// Ballista's name of the job.
    pub fn id(&self) -> &JobId {
        &self.id
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// The job failed, was cancelled, or was lost with its scheduler.
    pub async fn wait(&mut self) -> Result<Vec<Partition>, Error> {
        while let Some(update) = self.updates.recv().await {
            match update.status {
                Some(Status::Successful(done)) => {
                    return Ok(done.partition_location.into_iter().map(|location| Partition { location }).collect());
                }
                Some(Status::Failed(failed)) => {
                    let reason = self.watch.take_reason(&self.id).unwrap_or(failed.error);
                    return Err(Error::Failed { job: self.id.to_string(), reason });
                }
                _ => {}
            }
        }
        Err(Error::Lost { job: self.id.to_string() })
    }

    /// Waits for the end and reads the whole result, partition by partition.
    ///
    /// # Errors
    /// As [`Self::wait`] and [`Partition::read`].
    pub async fn collect(mut self) -> Result<Vec<RecordBatch>, Error> {
        let mut batches = Vec::new();
        for partition in self.wait().await? {
            batches.extend(partition.read(&self.handshake).await?);
        }
        Ok(batches)
    }
}
