//! How physical plans travel: our operators under a magic tag, everything else as Ballista encodes it.
//!
//! Scheduler, executors and clients use the same codec; the handshake compares its version.

use std::sync::Arc;

use ballista_core::serde::BallistaPhysicalExtensionCodec;
use datafusion::common::{DataFusionError, Result, internal_err};
use datafusion::execution::TaskContext;
use datafusion::logical_expr::AggregateUDF;
use datafusion::physical_plan::ExecutionPlan;
use datafusion_proto::physical_plan::{PhysicalExtensionCodec, PhysicalProtoConverterExtension};
use prost::Message;

use crate::class::{ClassExec, Demand};
use crate::single_value::{self, single_value};
use crate::step::CountExec;

/// No protobuf message begins so: the first byte would be field 26 with wire type 2, which none of Ballista's has.
const CLASS: &[u8] = b"\xd2rowmill:class\0";
const STEP: &[u8] = b"\xd2rowmill:step\0";

#[derive(Clone, PartialEq, Message)]
struct ClassMessage {
    #[prost(string, tag = "1")]
    class: String,
    #[prost(uint32, tag = "2")]
    slots: u32,
    #[prost(uint64, tag = "3")]
    memory_bytes: u64,
}

/// The codec of a cluster's plans.
#[derive(Debug, Default)]
pub struct RowmillCodec {
    ballista: BallistaPhysicalExtensionCodec,
}

impl RowmillCodec {
    /// The codec as Ballista's configuration takes it.
    pub fn shared() -> Arc<dyn PhysicalExtensionCodec> {
        Arc::new(Self::default())
    }
}

impl PhysicalExtensionCodec for RowmillCodec {
    fn try_decode(
        &self,
        buffer: &[u8],
        inputs: &[Arc<dyn ExecutionPlan>],
        context: &TaskContext,
        converter: &dyn PhysicalProtoConverterExtension,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if let Some(step) = buffer.strip_prefix(STEP) {
            let step = std::str::from_utf8(step).map_err(|error| DataFusionError::External(Box::new(error)))?;
            return match inputs {
                [input] => Ok(Arc::new(CountExec::new(step.into(), Arc::clone(input)))),
                _ => internal_err!("a step boundary has one input, not {}", inputs.len()),
            };
        }
        let Some(own) = buffer.strip_prefix(CLASS) else {
            return self.ballista.try_decode(buffer, inputs, context, converter);
        };
        let ClassMessage { class, slots, memory_bytes } =
            ClassMessage::decode(own).map_err(|error| DataFusionError::External(Box::new(error)))?;
        match inputs {
            [input] => {
                let demand = Demand { class: class.into(), slots, memory_bytes };
                Ok(Arc::new(ClassExec::new(demand, Arc::clone(input))))
            }
            _ => internal_err!("a class marker has one input, not {}", inputs.len()),
        }
    }

    fn try_encode(
        &self,
        node: Arc<dyn ExecutionPlan>,
        buffer: &mut Vec<u8>,
        converter: &dyn PhysicalProtoConverterExtension,
    ) -> Result<()> {
        if let Some(count) = node.downcast_ref::<CountExec>() {
            buffer.extend_from_slice(STEP);
            buffer.extend_from_slice(count.step().as_bytes());
            return Ok(());
        }
        let Some(marker) = node.downcast_ref::<ClassExec>() else {
            return self.ballista.try_encode(node, buffer, converter);
        };
        buffer.extend_from_slice(CLASS);
        let Demand { class, slots, memory_bytes } = marker.demand();
        let message = ClassMessage { class: class.to_string(), slots: *slots, memory_bytes: *memory_bytes };
        message.encode(buffer).map_err(|error| DataFusionError::External(Box::new(error)))
    }
    fn try_decode_udaf(&self, name: &str, buffer: &[u8]) -> Result<Arc<AggregateUDF>> {
        match name {
            single_value::NAME => Ok(single_value()),
            _ => self.ballista.try_decode_udaf(name, buffer),
        }
    }
}
