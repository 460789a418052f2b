//! Sorts and joins against their CPU references.
use std::sync::Arc;

use arrow::array::*;
use arrow::compute::{SortColumn, lexsort_to_indices, take_record_batch};
use arrow::datatypes::{Field, Schema};
use proptest::prelude::*;
use rowmill_gpu::batch::DeviceBatch;
use rowmill_gpu::expr::column;
use rowmill_gpu::ops::join::{Join, JoinKind};
use rowmill_gpu::ops::sort::{Sort, SortKey};

use crate::data::{self, at};
use crate::emulator;

pub(crate) fn sort(keys: &[(&str, bool, bool)], limit: Option<usize>) -> Sort {
    let key = |&(name, descending, nulls_first): &(&str, bool, bool)| SortKey {
        expr: column(at(name)),
        descending,
        nulls_first,
    };
    Sort::try_new(data::schema(), keys.iter().map(key).collect(), limit).unwrap()
}

#[test]
fn sorted_rows_equal_the_reference() {
    let device = emulator::device();
    let queries: [&[(&str, bool, bool)]; 8] = [
        &[("i8", false, false)],
        &[("f64", true, true)],
        &[("f32", false, true)],
        &[("bool", true, false), ("u16", false, false)],
        &[("huge", false, false)],
        &[("date", true, true), ("i64", false, false)],
        &[("u64", true, false)],
        &[],
    ];
    for (index, keys) in queries.into_iter().enumerate() {
        let limit = (index % 2 == 1).then_some(100);
        let query = sort(keys, limit);
        for rows in [0, 1, 31, 33, 1025, 4097] {
            if rows > 1025 && index > 1 {
                continue;
            }
            let batch = data::batch(rows, rows as u64 + 3);
            let on_device = DeviceBatch::upload(&device.device, &batch).unwrap();
            let found = query.run(&device.device, &on_device).unwrap().download(&device.device).unwrap();
            data::assert_equal(&query.run_on_cpu(&batch).unwrap(), &found, &format!("{keys:?}, {rows} rows"));
        }
    }
}

/// All rows in a certain order: joins promise none.
fn ordered(batch: &RecordBatch) -> RecordBatch {
    if batch.num_rows() == 0 {
        return batch.clone();
    }
    let columns: Vec<SortColumn> =
        batch.columns().iter().map(|c| SortColumn { values: c.clone(), options: None }).collect();
    take_record_batch(batch, &lexsort_to_indices(&columns, None).unwrap()).unwrap()
}

/// A few columns of the test data, with keys from a small domain so that rows meet.
fn side(rows: usize, seed: u64) -> RecordBatch {
    let full = data::batch(rows, seed);
    let small = |name: &str| {
        let values = full.column(at(name)).as_primitive::<arrow::datatypes::Int64Type>();
        Arc::new(values.unary::<_, arrow::datatypes::Int64Type>(|value| value.rem_euclid(23))) as ArrayRef
    };
    let names = ["money", "bool", "f64"];
    let mut fields = vec![
        Field::new("k1", arrow::datatypes::DataType::Int64, true),
        Field::new("k2", arrow::datatypes::DataType::Int64, true),
    ];
    fields.extend(names.iter().map(|name| data::schema().field(at(name)).clone()));
    let mut columns = vec![small("i64"), small("i64b")];
    columns.extend(names.iter().map(|name| full.column(at(name)).clone()));
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
}

pub(crate) fn join(kind: JoinKind, keys: usize) -> Join {
    let schema = side(0, 1).schema();
    Join::try_new(schema.clone(), schema, (0..keys).map(|at| (column(at), column(at))).collect(), kind).unwrap()
}

#[test]
fn joined_rows_equal_the_reference() {
    let device = emulator::device();
    for kind in [JoinKind::Inner, JoinKind::Left, JoinKind::LeftSemi, JoinKind::LeftAnti] {
        for keys in [1, 2] {
            let query = join(kind, keys);
            let check = |left: usize, right: usize, seed: u64| {
                let (left, right) = (side(left, seed), side(right, seed ^ 77));
                let upload = |batch| DeviceBatch::upload(&device.device, batch).unwrap();
                let found = query.run(&device.device, &upload(&left), &upload(&right)).unwrap();
                let found = found.download(&device.device).unwrap();
                let expected = query.run_on_cpu(&left, &right).unwrap();
                let what = format!("{kind:?}, {keys} keys, {} x {}", left.num_rows(), right.num_rows());
                data::assert_equal(&ordered(&expected), &ordered(&found), &what);
            };
            for (left, right) in [(0, 0), (0, 5), (5, 0), (1, 1), (33, 31), (1025, 40), (40, 1025)] {
                check(left, right, (left + right) as u64);
            }
            let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
                cases: emulator::cases(8),
                failure_persistence: None,
                ..ProptestConfig::default()
            });
            runner
                .run(&(0..200_usize, 0..200_usize, any::<u64>()), |(left, right, seed)| {
                    check(left, right, seed);
                    Ok(())
                })
                .unwrap();
        }
    }
}

#[test]
fn joins_that_have_no_kernel_are_refused_in_words() {
    let schema = data::schema();
    let on = vec![(column(at("f64")), column(at("f64")))];
    let error = Join::try_new(schema.clone(), schema.clone(), on, JoinKind::Inner).err().unwrap();
    assert_eq!(error.to_string(), "not offloaded: a join on floats");
    let on = vec![(column(at("i64")), column(at("i32")))];
    let error = Join::try_new(schema.clone(), schema, on, JoinKind::Inner).err().unwrap();
    assert_eq!(error.to_string(), "a join compares Int64 with Int32; cast one of them first");
}
