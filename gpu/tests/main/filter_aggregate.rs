//! The fused filter, projection and aggregate against its CPU reference, and that against Arrow's own aggregates.
use std::sync::Arc;

use arrow::array::*;
use arrow::compute;
use arrow::datatypes::{DataType, Float64Type, Int64Type};
use proptest::prelude::*;
use rowmill_gpu::Error;
use rowmill_gpu::device::DeviceOptions;
use rowmill_gpu::expr::{BinaryOp, GpuExpr, column, literal};
use rowmill_gpu::ops::aggregate::{Aggregate, AggregateFunction};
use rowmill_gpu::ops::filter_aggregate::FilterAggregate;

use crate::data::{self, at};
use crate::emulator;

/// Every function over every type it takes. Float sums are left out: they are compared within a tolerance below.
pub(crate) fn exact_aggregates() -> Vec<Aggregate> {
    use AggregateFunction::*;
    let mut all = vec![Aggregate::count_rows("rows")];
    for field in data::schema().fields() {
        for function in [Count, Min, Max, Sum, Avg] {
            let argument = column(at(field.name()));
            let float_sum = matches!(function, Sum | Avg)
                && !(field.data_type().is_integer() && function == Sum
                    || matches!(field.data_type(), DataType::Decimal128(..)));
            let aggregate = Aggregate::new(function, argument, format!("{function:?}_{}", field.name()));
            let planned = FilterAggregate::try_new(data::schema(), None, std::slice::from_ref(&aggregate));
            if !float_sum && planned.is_ok() {
                all.push(aggregate);
            }
        }
    }
    all
}

pub(crate) fn filter() -> GpuExpr {
    let small = column(at("f64")).binary(BinaryOp::Less, literal(Float64Array::new_scalar(2.0)).unwrap());
    small.binary(BinaryOp::Or, column(at("bool")))
}

fn check(device: &emulator::Emulated, query: &FilterAggregate, batch: &RecordBatch, what: &str) {
    let expected = query.finish(&query.run_on_cpu(batch).unwrap());
    let found = query.finish(&query.run_host(&device.device, batch).unwrap());
    match (expected, found) {
        (Ok(expected), Ok(found)) => data::assert_equal(&expected, &found, what),
        (Err(Error::Data(_)), Err(Error::Data(_))) => {}
        (expected, found) => panic!("{what}: expected {expected:?}, found {found:?}"),
    }
}

#[test]
fn exact_aggregates_equal_the_reference() {
    let device = emulator::device();
    let aggregates = exact_aggregates();
    assert!(aggregates.len() > 60, "{}", aggregates.len());
    for filter in [None, Some(filter())] {
        let query = FilterAggregate::try_new(data::schema(), filter, &aggregates).unwrap();
        for rows in data::ROWS {
            check(&device, &query, &data::batch(rows, rows as u64), &format!("{rows} rows"));
        }
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
            cases: emulator::cases(24),
            failure_persistence: None,
            ..ProptestConfig::default()
        });
        runner
            .run(&(0..700_usize, any::<u64>()), |(rows, seed)| {
                check(&device, &query, &data::batch(rows, seed), &format!("{rows} rows, seed {seed}"));
                Ok(())
            })
            .unwrap();
    }
}

/// The reference is not its own judge: Arrow's aggregate kernels are.
#[test]
fn the_reference_equals_arrow() {
    let query = FilterAggregate::try_new(data::schema(), None, &exact_aggregates()).unwrap();
    let batch = data::batch(1000, 3);
    let found = query.finish(&query.run_on_cpu(&batch).unwrap()).unwrap();
    let i64s = batch.column(at("i64")).as_primitive::<Int64Type>();
    let f64s = batch.column(at("f64")).as_primitive::<Float64Type>();
    let get = |name: &str| found.column_by_name(name).unwrap().clone();
    assert_eq!(get("Sum_i64").as_primitive::<Int64Type>().value(0), compute::sum(i64s).unwrap());
    assert_eq!(get("Min_i64").as_primitive::<Int64Type>().value(0), compute::min(i64s).unwrap());
    assert_eq!(get("Count_i64").as_primitive::<Int64Type>().value(0), (1000 - i64s.null_count()) as i64);
    let largest = get("Max_f64").as_primitive::<Float64Type>().value(0);
    assert_eq!(largest.to_bits(), compute::max(f64s).unwrap().to_bits());
    let smallest = get("Min_f64").as_primitive::<Float64Type>().value(0);
    assert_eq!(smallest.to_bits(), compute::min(f64s).unwrap().to_bits());
}

#[test]
fn float_sums_are_repeatable_and_close() {
    let device = emulator::device();
    let schema = data::schema();
    let sum = [
        Aggregate::new(AggregateFunction::Sum, column(at("f64")), "sum"),
        Aggregate::new(AggregateFunction::Avg, column(at("i64")), "avg"),
    ];
    let query = FilterAggregate::try_new(schema.clone(), None, &sum).unwrap();
    let mut random = data::Random::new(5);
    let rows = 5000;
    let values: Vec<f64> = (0..rows).map(|_| (random.next() as f64 / 1e19 - 0.9) * 1e6).collect();
    let columns = schema
        .fields()
        .iter()
        .map(|field| match field.name().as_str() {
            "f64" => Arc::new(Float64Array::from(values.clone())) as ArrayRef,
            "id" | "i64" => Arc::new(Int64Array::from_iter_values((0..rows).map(|row| row as i64 * 3))) as ArrayRef,
            _ => new_null_array(field.data_type(), rows),
        })
        .collect();
    let batch = RecordBatch::try_new(schema, columns).unwrap();
    let first = query.run_host(&device.device, &batch).unwrap();
    assert_eq!(first, query.run_host(&device.device, &batch).unwrap());
    let found = query.finish(&first).unwrap();
    let found_sum = found.column(0).as_primitive::<Float64Type>().value(0);
    // A compensated sum (Neumaier) as the reference; the bound is n·ε·Σ|x|.
    let (mut total, mut lost) = (0.0_f64, 0.0_f64);
    for &value in &values {
        let next = total + value;
        lost += if total.abs() >= value.abs() { (total - next) + value } else { (value - next) + total };
        total = next;
    }
    let bound = rows as f64 * f64::EPSILON * values.iter().map(|value| value.abs()).sum::<f64>();
    assert!((found_sum - (total + lost)).abs() <= bound);
    let average = found.column(1).as_primitive::<Float64Type>().value(0);
    assert!((average - (rows as f64 - 1.0) * 1.5).abs() < 1e-6);
}

#[test]
fn a_batch_that_does_not_fit_is_halved() {
    let budget_bytes = Some(40_000);
    let device = emulator::open(&DeviceOptions { budget_bytes, ..DeviceOptions::default() });
    let aggregates = [Aggregate::new(AggregateFunction::Sum, column(at("i64")), "sum")];
    let query = FilterAggregate::try_new(data::schema(), None, &aggregates).unwrap();
    // 8,000 rows take about 65,000 bytes, a half fits.
    check(&device, &query, &data::batch(8_000, 1), "halved");
    assert_eq!(device.device.memory().reserved_bytes(), 0, "everything is given back");
    // Eight times as much does not fit after three halvings either.
    let error = query.run_host(&device.device, &data::batch(80_000, 1)).unwrap_err();
    assert!(matches!(error, Error::OutOfMemory { .. }) && error.falls_back_to_cpu(), "{error}");
}

#[test]
fn a_row_that_fails_is_an_error_only_behind_the_filter() {
    let device = emulator::device();
    let quotient = literal(Int64Array::new_scalar(10)).unwrap().binary(BinaryOp::Divide, column(at("i64")));
    let sum = [Aggregate::new(AggregateFunction::Sum, quotient, "sum")];
    let nonzero = column(at("i64")).binary(BinaryOp::NotEqual, literal(Int64Array::new_scalar(0)).unwrap());
    let batch = data::batch(500, 2);
    let open = FilterAggregate::try_new(data::schema(), None, &sum).unwrap();
    assert!(matches!(open.run_host(&device.device, &batch), Err(Error::Data(_))));
    let guarded = FilterAggregate::try_new(data::schema(), Some(nonzero), &sum).unwrap();
    check(&device, &guarded, &batch, "guarded");
}

#[test]
fn what_has_no_kernel_is_refused_in_words() {
    let text = Arc::new(arrow::datatypes::Schema::new(vec![arrow::datatypes::Field::new("t", DataType::Utf8, true)]));
    let aggregates = [Aggregate::new(AggregateFunction::Min, column(0), "min")];
    let error = FilterAggregate::try_new(text, None, &aggregates).err().unwrap();
    assert_eq!(error.to_string(), "not offloaded: type Utf8 has no kernels");
    let error = FilterAggregate::try_new(data::schema(), Some(column(at("i64"))), &[]).err().unwrap();
    assert_eq!(error.to_string(), "a filter is boolean");
}
