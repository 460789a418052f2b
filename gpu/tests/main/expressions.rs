//! Expressions as CUDA C against Arrow's kernels: a written list of what matters and a generated corpus.
use arrow::array::*;
use arrow::datatypes::DataType;
use proptest::prelude::*;
use rowmill_gpu::Error;
use rowmill_gpu::expr::{BinaryOp, GpuExpr, column, literal, null};
use rowmill_gpu::ops::project::Project;

use crate::data::{self, Random, at};
use crate::emulator;

fn col(name: &str) -> GpuExpr {
    column(at(name))
}

fn int(value: i64) -> GpuExpr {
    literal(Int64Array::new_scalar(value)).unwrap()
}

pub(crate) fn project(expressions: Vec<GpuExpr>) -> Project {
    let named = expressions.into_iter().enumerate().map(|(i, expr)| (format!("e{i}"), expr)).collect();
    Project::try_new(&data::schema(), named).unwrap()
}

/// Both sides succeed with equal rows, or both fail.
fn check(device: &emulator::Emulated, project: &Project, batch: &RecordBatch, what: &str) {
    let device = &device.device;
    let expected = project.run_on_cpu(batch);
    let found = project
        .upload(device, batch)
        .and_then(|on_device| project.run(device, &on_device))
        .and_then(|result| result.download(device));
    match (expected, found) {
        (Ok(expected), Ok(found)) => data::assert_equal(&expected, &found, what),
        (Err(Error::Data(_)), Err(Error::Data(_))) => {}
        (expected, found) => panic!("{what}: expected {expected:?}, found {found:?}"),
    }
}

/// Expressions that cannot fail.
pub(crate) fn total() -> Vec<GpuExpr> {
    use BinaryOp::*;
    let mut all = Vec::new();
    for name in ["i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64", "f32", "f64"] {
        for op in [Add, Subtract, Multiply] {
            all.push(col(name).binary(op, col(name).binary(Add, col(name))));
        }
    }
    for name in ["f32", "f64"] {
        all.push(col(name).binary(Divide, col(name).binary(Add, col(name))));
        all.push(col(name).binary(Remainder, col(name).binary(Add, col(name))));
        all.push(GpuExpr::Negate(Box::new(col(name))));
    }
    for op in [Equal, NotEqual, Less, LessOrEqual, Greater, GreaterOrEqual] {
        all.push(col("f64").binary(op, col("f64b")));
        all.push(col("i64").binary(op, col("i64b")));
        all.push(col("bool").binary(op, col("boolb")));
        all.push(col("u64").binary(op, literal(UInt64Array::new_scalar(u64::MAX)).unwrap()));
        all.push(col("huge").binary(op, col("money").cast(DataType::Decimal128(38, 0))).binary(Or, col("bool")));
    }
    all.retain(|expr| expr.data_type(&data::schema()).is_ok());
    for op in [And, Or] {
        all.push(col("bool").binary(op, col("boolb")));
        all.push(col("bool").binary(op, null(&DataType::Boolean).unwrap()));
        all.push(col("id").binary(Less, int(7)).binary(op, col("id").binary(Greater, int(-7))));
    }
    all.push(GpuExpr::Not(Box::new(col("bool"))));
    all.push(GpuExpr::Negate(Box::new(col("i8"))));
    all.push(GpuExpr::Negate(Box::new(col("i64"))));
    all.push(GpuExpr::IsNull(Box::new(col("money"))));
    all.push(GpuExpr::IsNotNull(Box::new(col("i64").binary(Add, col("i64b")))));
    all.push(col("date").binary(Less, literal(Date32Array::new_scalar(9000)).unwrap()));
    all.push(col("time").binary(GreaterOrEqual, literal(TimestampMicrosecondArray::new_scalar(2)).unwrap()));
    for (from, to) in [
        ("i8", DataType::Int64),
        ("u32", DataType::Int64),
        ("i64", DataType::Float64),
        ("i64", DataType::Float32),
        ("u64", DataType::Float64),
        ("f32", DataType::Float64),
        ("f64", DataType::Float32),
        ("i8", DataType::Decimal128(20, 3)),
        ("rate", DataType::Decimal128(20, 6)),
        ("money", DataType::Float64),
    ] {
        all.push(col(from).cast(to));
    }
    all.push(GpuExpr::Case {
        branches: vec![(col("bool"), col("i64")), (col("boolb"), col("i64b").binary(Multiply, int(3)))],
        otherwise: None,
    });
    all.push(GpuExpr::Case {
        branches: vec![(col("f64").binary(Less, col("f64b")), col("f64"))],
        otherwise: Some(Box::new(col("f64b"))),
    });
    // Small decimals: never out of 128 bits.
    for op in [Add, Subtract, Multiply] {
        all.push(col("money").binary(op, col("rate")));
    }
    all
}

/// Expressions that fail on some rows, or are kept from failing by a guard.
pub(crate) fn fallible() -> Vec<Vec<GpuExpr>> {
    use BinaryOp::*;
    let guarded = |name: &str, zero: GpuExpr, op| {
        let nonzero = col(name).binary(NotEqual, zero.clone());
        let quotient = col("i64b").binary(op, col(name)).binary(Greater, int(1));
        nonzero.binary(And, quotient)
    };
    vec![
        vec![col("i64").binary(Divide, col("i64b"))],
        vec![
            col("i64").binary(Remainder, int(7)),
            col("u64").binary(Divide, literal(UInt64Array::new_scalar(3)).unwrap()),
        ],
        vec![guarded("i64", int(0), Remainder)],
        vec![col("huge").binary(Add, col("huge"))],
        vec![col("huge").binary(Multiply, col("rate"))],
        vec![col("huge").binary(Subtract, col("huge"))],
        vec![col("money").binary(Divide, col("rate"))],
        vec![
            col("money").binary(
                Remainder,
                literal(
                    Decimal128Array::new_scalar(7)
                        .into_inner()
                        .with_precision_and_scale(4, 2)
                        .map(Scalar::new)
                        .unwrap(),
                )
                .unwrap(),
            ),
        ],
        vec![col("f64").cast(DataType::Int64)],
        vec![col("i64").cast(DataType::Int8)],
        vec![col("u64").cast(DataType::Int64)],
        vec![col("i64").cast(DataType::Decimal128(38, 10))],
        vec![GpuExpr::Negate(Box::new(col("huge")))],
        vec![GpuExpr::Case {
            branches: vec![(col("i64b").binary(Greater, int(0)), col("i64").binary(Divide, col("i64b")))],
            otherwise: Some(Box::new(col("i64"))),
        }],
    ]
}

#[test]
fn expressions_that_cannot_fail_equal_arrow() {
    let device = emulator::device();
    // Few large kernels: compiling costs more than running.
    for (index, group) in total().chunks(12).enumerate() {
        let project = project(group.to_vec());
        for rows in data::ROWS {
            check(&device, &project, &data::batch(rows, 7 + rows as u64), &format!("group {index}, {rows} rows"));
        }
    }
}

#[test]
fn expressions_that_fail_do_so_on_both_sides() {
    let device = emulator::device();
    let mut failed = 0;
    for (index, group) in fallible().into_iter().enumerate() {
        let project = project(group);
        for rows in [1, 2, 3, 33, 300] {
            let batch = data::batch(rows, 11 + rows as u64);
            failed += usize::from(project.run_on_cpu(&batch).is_err());
            check(&device, &project, &batch, &format!("expression {index}, {rows} rows"));
        }
    }
    assert!(failed > 10, "the data does not provoke failures");
}

#[test]
fn a_division_behind_a_guard_does_not_fail() {
    let device = emulator::device();
    let x = col("i64").binary(BinaryOp::NotEqual, int(0));
    let guarded =
        x.binary(BinaryOp::And, int(10).binary(BinaryOp::Divide, col("i64")).binary(BinaryOp::Greater, int(1)));
    let schema = data::schema();
    let rows = 3;
    let columns = schema
        .fields()
        .iter()
        .map(|field| match field.name().as_str() {
            "i64" => std::sync::Arc::new(Int64Array::from(vec![Some(0), Some(5), None])) as ArrayRef,
            "id" => std::sync::Arc::new(Int64Array::from(vec![1; rows])) as ArrayRef,
            _ => new_null_array(field.data_type(), rows),
        })
        .collect();
    let batch = RecordBatch::try_new(schema, columns).unwrap();
    let project = project(vec![guarded]);
    let found = project.run(&device.device, &project.upload(&device.device, &batch).unwrap()).unwrap();
    let found = found.download(&device.device).unwrap();
    assert_eq!(found.column(0).as_boolean(), &BooleanArray::from(vec![Some(false), Some(true), None]));
}

/// A random expression of type `wanted` that cannot fail.
pub(crate) fn random_expr(random: &mut Random, wanted: &DataType, depth: usize) -> GpuExpr {
    use BinaryOp::*;
    let leaf = |random: &mut Random| match wanted {
        DataType::Boolean => col(["bool", "boolb"][random.below(2)]),
        DataType::Int64 if random.chance(30) => int(random.next() as i64 % 100),
        DataType::Int64 => col(["i64", "i64b", "id"][random.below(3)]),
        _ => col(["f64", "f64b"][random.below(2)]),
    };
    if depth == 0 {
        return leaf(random);
    }
    match random.below(6) {
        0 => GpuExpr::Case {
            branches: vec![(
                random_expr(random, &DataType::Boolean, depth - 1),
                random_expr(random, wanted, depth - 1),
            )],
            otherwise: random.chance(50).then(|| Box::new(random_expr(random, wanted, depth - 1))),
        },
        1 => leaf(random),
        _ if *wanted == DataType::Boolean => match random.below(4) {
            0 => GpuExpr::Not(Box::new(random_expr(random, wanted, depth - 1))),
            1 => GpuExpr::IsNull(Box::new(random_expr(random, &DataType::Int64, depth - 1))),
            2 => {
                let op = [And, Or][random.below(2)];
                random_expr(random, wanted, depth - 1).binary(op, random_expr(random, wanted, depth - 1))
            }
            _ => {
                let op = [Equal, NotEqual, Less, LessOrEqual, Greater, GreaterOrEqual][random.below(6)];
                let operand = [DataType::Int64, DataType::Float64][random.below(2)].clone();
                // Computed floats are not compared: which of two NaNs goes through an addition is up to the compiler.
                let depth = if operand == DataType::Float64 { 0 } else { depth - 1 };
                let left = random_expr(random, &operand, depth);
                left.binary(op, random_expr(random, &operand, depth))
            }
        },
        _ => {
            let op = [Add, Subtract, Multiply][random.below(3)];
            random_expr(random, wanted, depth - 1).binary(op, random_expr(random, wanted, depth - 1))
        }
    }
}

/// Kernels of random expressions; their number is the number of compilations.
pub(crate) fn random_projects(count: u64) -> Vec<Project> {
    (0..count)
        .map(|seed| {
            let random = &mut Random::new(seed + 1);
            let types = [DataType::Boolean, DataType::Int64, DataType::Float64];
            project((0..9).map(|i| random_expr(random, &types[i % 3], 3)).collect())
        })
        .collect()
}

#[test]
fn random_expressions_equal_arrow() {
    let device = emulator::device();
    let projects = random_projects(4);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: emulator::cases(64),
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    runner
        .run(&(0..projects.len(), 0..300_usize, any::<u64>()), |(at, rows, seed)| {
            check(&device, &projects[at], &data::batch(rows, seed), &format!("kernel {at}, {rows} rows, seed {seed}"));
            Ok(())
        })
        .unwrap();
}
