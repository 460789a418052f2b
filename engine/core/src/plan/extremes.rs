//! `max` and `min` that put NaN in the same place with groups and without.
//!
//! NaN is the largest value, as sorting and a `max` without groups have it. DataFusion's grouped accumulators compare
//! floats by their partial order, where what comes after a NaN replaces it: their result hangs on the order of rows.
//! Here floats are compared by their total order; everything else is DataFusion's own.

use std::sync::Arc;

use arrow::datatypes::{ArrowPrimitiveType, DataType, Float16Type, Float32Type, Float64Type};
use datafusion::common::{Result, ScalarValue};
use datafusion::functions_aggregate::min_max::{max_udaf, min_udaf};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::AggregateOrderSensitivity;
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, Documentation, GroupsAccumulator, ReversedUDAF, SetMonotonicity,
    Signature, StatisticsArgs,
};
use datafusion_functions_aggregate_common::aggregate::groups_accumulator::prim_op::PrimitiveGroupsAccumulator;

/// The two functions.
pub(crate) fn extremes() -> [Arc<AggregateUDF>; 2] {
    [(max_udaf(), true), (min_udaf(), false)]
        .map(|(inner, largest)| Arc::new(AggregateUDF::new_from_impl(Extreme { inner, largest })))
}

/// `max` or `min`.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Extreme {
    inner: Arc<AggregateUDF>,
    largest: bool,
}

/// A grouped accumulator that keeps the value that `wins` against the one before; groups begin with `first`, which
/// loses against everything.
fn by_total_order<T: ArrowPrimitiveType + Send>(
    first: T::Native,
    wins: impl Fn(&T::Native, &T::Native) -> bool + Send + Sync + 'static,
) -> Box<dyn GroupsAccumulator> {
    let keep = move |held: &mut T::Native, new: T::Native| {
        if wins(&new, held) {
            *held = new;
        }
    };
    Box::new(PrimitiveGroupsAccumulator::<T, _>::new(&T::DATA_TYPE, keep).with_starting_value(first))
}

impl AggregateUDFImpl for Extreme {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        self.inner.return_type(arguments)
    }

    fn accumulator(&self, arguments: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        self.inner.accumulator(arguments)
    }

    fn state_fields(&self, arguments: StateFieldsArgs<'_>) -> Result<Vec<arrow::datatypes::FieldRef>> {
        self.inner.state_fields(arguments)
    }

    fn groups_accumulator_supported(&self, arguments: AccumulatorArgs<'_>) -> bool {
        self.inner.groups_accumulator_supported(arguments)
    }

    fn create_groups_accumulator(&self, arguments: AccumulatorArgs<'_>) -> Result<Box<dyn GroupsAccumulator>> {
        // In the total order the NaN of all ones is the largest of all, and the same below zero the smallest.
        let largest = self.largest;
        Ok(match arguments.return_field.data_type() {
            DataType::Float64 => {
                let first = f64::from_bits(if largest { u64::MAX } else { u64::MAX >> 1 });
                by_total_order::<Float64Type>(first, move |new, held| match largest {
                    true => new.total_cmp(held).is_gt(),
                    false => new.total_cmp(held).is_lt(),
                })
            }
            DataType::Float32 => {
                let first = f32::from_bits(if largest { u32::MAX } else { u32::MAX >> 1 });
                by_total_order::<Float32Type>(first, move |new, held| match largest {
                    true => new.total_cmp(held).is_gt(),
                    false => new.total_cmp(held).is_lt(),
                })
            }
            DataType::Float16 => {
                type Half = <Float16Type as ArrowPrimitiveType>::Native;
                let first = Half::from_bits(if largest { u16::MAX } else { u16::MAX >> 1 });
                by_total_order::<Float16Type>(first, move |new, held| match largest {
                    true => new.total_cmp(held).is_gt(),
                    false => new.total_cmp(held).is_lt(),
                })
            }
            _ => return self.inner.create_groups_accumulator(arguments),
        })
    }

    fn create_sliding_accumulator(&self, arguments: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        self.inner.create_sliding_accumulator(arguments)
    }

    fn coerce_types(&self, arguments: &[DataType]) -> Result<Vec<DataType>> {
        self.inner.coerce_types(arguments)
    }

    fn is_descending(&self) -> Option<bool> {
        self.inner.is_descending()
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        self.inner.order_sensitivity()
    }

    fn reverse_expr(&self) -> ReversedUDAF {
        self.inner.reverse_udf()
    }

    fn value_from_stats(&self, arguments: &StatisticsArgs<'_>) -> Option<ScalarValue> {
        self.inner.value_from_stats(arguments)
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.inner.documentation()
    }

    fn set_monotonicity(&self, kind: &DataType) -> SetMonotonicity {
        self.inner.inner().set_monotonicity(kind)
    }
}
