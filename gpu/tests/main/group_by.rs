//! The group-by against its CPU reference: every way a key is laid out, one group to all rows distinct.
use arrow::array::*;
use arrow::compute::{SortColumn, lexsort_to_indices, take_record_batch};
use proptest::prelude::*;
use rowmill_gpu::expr::{BinaryOp, GpuExpr, column, literal};
use rowmill_gpu::ops::aggregate::{Aggregate, AggregateFunction::*};
use rowmill_gpu::ops::group_by::GroupBy;
use rowmill_gpu::{DataFault, Error};

use crate::data::{self, at};
use crate::emulator;
use crate::filter_aggregate::filter;

/// Key columns by the way they are laid out.
pub(crate) const KEYS: [&[&str]; 8] = [
    &["i64"],
    &["id"],
    &["f64"],
    &["bool"],
    &["i8", "u16", "bool"],
    &["i32", "date"],
    &["i64", "i64b", "f32"],
    &["huge", "bool"],
];

pub(crate) fn aggregates() -> Vec<Aggregate> {
    vec![
        Aggregate::count_rows("rows"),
        Aggregate::new(Sum, column(at("i64")), "sum"),
        Aggregate::new(Min, column(at("u16")), "min"),
        Aggregate::new(Max, column(at("i32b")), "max"),
        Aggregate::new(Sum, column(at("huge")), "wide"),
        Aggregate::new(Avg, column(at("money")), "avg"),
        Aggregate::new(Count, column(at("u8")), "count"),
    ]
}

pub(crate) fn query(keys: &[&str], filter: Option<GpuExpr>, aggregates: &[Aggregate]) -> GroupBy {
    let keys = keys.iter().map(|name| ((*name).to_owned(), column(at(name)))).collect();
    GroupBy::try_new(data::schema(), filter, keys, aggregates).unwrap()
}

/// Rows in the order of their keys, which are the first columns.
fn sorted(batch: &RecordBatch, keys: usize) -> RecordBatch {
    if batch.num_rows() == 0 {
        return batch.clone();
    }
    let columns: Vec<SortColumn> =
        batch.columns()[..keys].iter().map(|values| SortColumn { values: values.clone(), options: None }).collect();
    take_record_batch(batch, &lexsort_to_indices(&columns, None).unwrap()).unwrap()
}

pub(crate) fn check(device: &emulator::Emulated, query: &GroupBy, keys: usize, batch: &RecordBatch, what: &str) {
    let expected = query.run_on_cpu(batch);
    let found = query.upload(&device.device, batch).and_then(|batch| query.run(&device.device, &batch));
    match (expected, found) {
        (Ok(expected), Ok(found)) => data::assert_equal(&sorted(&expected, keys), &sorted(&found, keys), what),
        (Err(Error::Data(_)), Err(Error::Data(_))) => {}
        (expected, found) => panic!("{what}: expected {expected:?}, found {found:?}"),
    }
}

#[test]
fn groups_equal_the_reference() {
    let device = emulator::device();
    for keys in KEYS {
        let query = query(keys, Some(filter()), &aggregates());
        for rows in data::ROWS {
            check(&device, &query, keys.len(), &data::batch(rows, rows as u64), &format!("{keys:?}, {rows} rows"));
        }
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
            cases: emulator::cases(8),
            failure_persistence: None,
            ..ProptestConfig::default()
        });
        runner
            .run(&(0..400_usize, any::<u64>()), |(rows, seed)| {
                check(
                    &device,
                    &query,
                    keys.len(),
                    &data::batch(rows, seed),
                    &format!("{keys:?}, {rows} rows, seed {seed}"),
                );
                Ok(())
            })
            .unwrap();
    }
}

/// Beyond two samples of 65,536 rows the table is sized by the sample and rebuilt when it is too small.
#[test]
fn large_inputs_take_the_sampled_path() {
    let device = emulator::device();
    let rows = 140_000;
    let schema = std::sync::Arc::new(arrow::datatypes::Schema::new(vec![
        arrow::datatypes::Field::new("k", arrow::datatypes::DataType::Int64, true),
        arrow::datatypes::Field::new("v", arrow::datatypes::DataType::Int64, true),
    ]));
    let aggregates = [Aggregate::new(Sum, column(1), "sum"), Aggregate::count_rows("rows")];
    let query = GroupBy::try_new(schema.clone(), None, vec![("k".into(), column(0))], &aggregates).unwrap();
    // One group; a few; so many that no row repeats; and few in the sample but many behind it.
    let keys: [&dyn Fn(i64) -> i64; 4] = [&|_| 7, &|row| row % 1000, &|row| row.wrapping_mul(0x9E37_79B9), &|row| {
        if row < 65_536 { row % 10 } else { row }
    }];
    for (index, key) in keys.into_iter().enumerate() {
        let k = Int64Array::from_iter_values((0..rows).map(key));
        let v = Int64Array::from_iter_values(0..rows);
        let batch = RecordBatch::try_new(schema.clone(), vec![std::sync::Arc::new(k), std::sync::Arc::new(v)]).unwrap();
        check(&device, &query, 1, &batch, &format!("distribution {index}"));
    }
}

/// Keys that collide with the mark of an empty slot, and negative zero.
#[test]
fn special_keys_have_their_groups() {
    let device = emulator::device();
    let field = |name: &str, t| arrow::datatypes::Field::new(name, t, true);
    let schema = std::sync::Arc::new(arrow::datatypes::Schema::new(vec![
        field("k", arrow::datatypes::DataType::Int64),
        field("f", arrow::datatypes::DataType::Float64),
    ]));
    let k = Int64Array::from(vec![
        Some(i64::MIN + 0xffff_ffff),
        None,
        Some(i64::MIN + 0xffff_ffff),
        Some(0),
        None,
        Some(i64::MIN),
    ]);
    let f = Float64Array::from(vec![Some(0.0), Some(-0.0), Some(f64::NAN), Some(f64::NAN), None, Some(1.0)]);
    let batch = RecordBatch::try_new(schema.clone(), vec![std::sync::Arc::new(k), std::sync::Arc::new(f)]).unwrap();
    for (at, groups) in [(0, 4), (1, 4)] {
        let query =
            GroupBy::try_new(schema.clone(), None, vec![("k".into(), column(at))], &[Aggregate::count_rows("n")])
                .unwrap();
        let on_device = query.upload(&device.device, &batch).unwrap();
        assert_eq!(query.run(&device.device, &on_device).unwrap().num_rows(), groups);
        check(&device, &query, 1, &batch, "special keys");
    }
}

#[test]
fn keys_may_be_expressions_and_may_fail() {
    let device = emulator::device();
    let seven = literal(Int64Array::new_scalar(7)).unwrap();
    for divisor in [seven, column(at("i64b"))] {
        let key = column(at("id")).binary(BinaryOp::Remainder, divisor);
        let query =
            GroupBy::try_new(data::schema(), None, vec![("k".into(), key)], &[Aggregate::count_rows("n")]).unwrap();
        check(&device, &query, 1, &data::batch(300, 9), "an expression as key");
    }
}

/// With a NaN or a -0.0 the smallest and the largest float of a group hang on the order of the rows: that is not answered.
#[test]
fn floats_without_an_order_are_refused() {
    let device = emulator::device();
    for data_type in [arrow::datatypes::DataType::Float64, arrow::datatypes::DataType::Float32] {
        let field = |name: &str, data_type| arrow::datatypes::Field::new(name, data_type, true);
        let schema = std::sync::Arc::new(arrow::datatypes::Schema::new(vec![
            field("k", arrow::datatypes::DataType::Int64),
            field("v", data_type.clone()),
        ]));
        let aggregates = [Aggregate::new(Min, column(1), "min"), Aggregate::new(Max, column(1), "max")];
        let query = GroupBy::try_new(schema.clone(), None, vec![("k".into(), column(0))], &aggregates).unwrap();
        for last in [Some(2.5), None, Some(f64::NAN), Some(-f64::NAN), Some(-0.0), Some(f64::NEG_INFINITY)] {
            let values =
                Float64Array::from_iter((0..40).map(|row| if row == 33 { last } else { Some(f64::from(row)) }));
            let v = arrow::compute::cast(&values, &data_type).unwrap();
            let k = std::sync::Arc::new(Int64Array::from_iter_values((0..40).map(|row| row % 3)));
            let batch = RecordBatch::try_new(schema.clone(), vec![k, v]).unwrap();
            let found = query.upload(&device.device, &batch).and_then(|batch| query.run(&device.device, &batch));
            let refused = last.is_some_and(|last| last.is_nan() || last.to_bits() == (-0.0_f64).to_bits());
            assert_eq!(refused, matches!(found, Err(Error::Data(DataFault::Unordered))), "{data_type} {last:?}");
            check(&device, &query, 1, &batch, &format!("{data_type} {last:?}"));
        }
    }
}

#[test]
fn grouped_float_sums_are_close() {
    let device = emulator::device();
    let schema = data::schema();
    let sum = [Aggregate::new(Sum, column(at("f64")), "sum")];
    let query = query(&["bool"], None, &sum);
    let mut random = data::Random::new(3);
    let rows = 2000;
    let columns = schema
        .fields()
        .iter()
        .map(|field| match field.name().as_str() {
            "f64" => std::sync::Arc::new(Float64Array::from_iter_values(
                (0..rows).map(|_| random.next() as f64 / 1e15 - 9e3),
            )) as ArrayRef,
            "id" => std::sync::Arc::new(Int64Array::from(vec![0; rows])) as ArrayRef,
            _ => new_null_array(field.data_type(), rows),
        })
        .collect();
    let batch = RecordBatch::try_new(schema, columns).unwrap();
    let found = query.run(&device.device, &query.upload(&device.device, &batch).unwrap()).unwrap();
    let expected = query.run_on_cpu(&batch).unwrap();
    let get = |batch: &RecordBatch| batch.column(1).as_primitive::<arrow::datatypes::Float64Type>().value(0);
    assert!((get(&found) - get(&expected)).abs() < 1e-3);
}
