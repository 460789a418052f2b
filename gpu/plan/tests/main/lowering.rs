//! Generated SQL expressions: what is lowered gives on the device what DataFusion gives, for every row.
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{Field, Schema};
use datafusion::common::ToDFSchema as _;
use datafusion::prelude::SessionContext;
use proptest::prelude::*;
use rowmill_gpu::expr::GpuExpr;
use rowmill_gpu::ops::project::Project;
use rowmill_gpu_plan::lower::lower;

use crate::data::{self, Random};
use crate::emulator;

/// An expression of a kind, written in SQL.
pub(crate) fn expression(random: &mut Random, kind: &str, depth: usize) -> String {
    let column = |random: &mut Random, names: &[&str]| names[random.below(names.len())].to_owned();
    let sub = |random: &mut Random, kind: &str| expression(random, kind, depth.saturating_sub(1));
    if depth == 0 {
        return match kind {
            "bool" => column(random, &["bool", "boolb"]),
            "int" => match random.below(4) {
                0 => format!("{}", random.below(9)),
                _ => column(random, &["i8", "i16", "i32", "i64", "i64b", "u8", "u32", "id", "i32b"]),
            },
            "decimal" => column(random, &["money", "rate"]),
            _ => match random.below(4) {
                0 => "1.5e0".to_owned(),
                _ => column(random, &["f32", "f64", "f64b"]),
            },
        };
    }
    match kind {
        "bool" => {
            let kinds = ["int", "float", "decimal", "bool"];
            let of = kinds[random.below(3)];
            // Computed floats are not compared: which of two NaNs goes through an addition is up to the compiler.
            let depth = if of == "float" { 0 } else { depth - 1 };
            let (a, b) = (expression(random, of, depth), expression(random, of, depth));
            let (p, q) = (sub(random, "bool"), sub(random, "bool"));
            match random.below(9) {
                0 => format!("({a} < {b})"),
                1 => format!("({a} >= {b})"),
                2 => format!("({a} = {b})"),
                3 => format!("({a} <> {b})"),
                4 => format!("({p} AND {q})"),
                5 => format!("({p} OR {q})"),
                6 => format!("(NOT {p})"),
                7 => format!("({a} IS NULL)"),
                _ => format!("({a} IS NOT DISTINCT FROM {b})"),
            }
        }
        kind => {
            let (a, b, p) = (sub(random, kind), sub(random, kind), sub(random, "bool"));
            match random.below(8) {
                0 => format!("({a} + {b})"),
                1 => format!("({a} - {b})"),
                2 => format!("({a} * {b})"),
                3 if kind != "decimal" => format!("(- {a})"),
                4 => format!("CASE WHEN {p} THEN {a} ELSE {b} END"),
                5 => format!("CASE WHEN {p} THEN {a} END"),
                6 if kind == "int" => format!("CASE WHEN {b} <> 0 THEN {a} % {b} END"),
                _ if kind == "float" => format!("({a} / {b})"),
                _ => format!("CAST({a} AS DOUBLE)"),
            }
        }
    }
}

/// The expression on the device and what DataFusion makes of it, or why it is not lowered; or DataFusion fails on a row
/// (which the device may rightly pass over).
fn both(sql: &str, batch: &RecordBatch) -> Result<(GpuExpr, ArrayRef), String> {
    let context = SessionContext::new();
    let schema = batch.schema();
    let df_schema = schema.clone().to_dfschema().unwrap();
    let words = |error: datafusion::error::DataFusionError| error.strip_backtrace();
    let parsed = context.parse_sql_expr(sql, &df_schema).map_err(words)?;
    let physical = context.create_physical_expr(parsed, &df_schema).map_err(words)?;
    let lowered = lower(&physical, &schema).map_err(|reason| format!("{reason} ({physical:?})"))?;
    let expected = physical.evaluate(batch).and_then(|value| value.into_array(batch.num_rows())).map_err(words)?;
    Ok((lowered, expected))
}

/// Runs all expressions in one kernel.
fn compare(device: &emulator::Emulated, expressions: Vec<(String, GpuExpr, ArrayRef)>, batch: &RecordBatch) {
    if expressions.is_empty() {
        return;
    }
    let named = expressions.iter().map(|(sql, lowered, _)| (sql.clone(), lowered.clone())).collect();
    let project = Project::try_new(&batch.schema(), named).unwrap();
    let found = project
        .upload(&device.device, batch)
        .and_then(|rows| project.run(&device.device, &rows))
        .and_then(|rows| rows.download(&device.device))
        .unwrap_or_else(|error| panic!("{:?}: {error}", expressions.iter().map(|e| &e.0).collect::<Vec<_>>()));
    let fields = expressions.iter().map(|(sql, _, array)| Field::new(sql, array.data_type().clone(), true));
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let expected = RecordBatch::try_new(schema, expressions.into_iter().map(|(_, _, array)| array).collect()).unwrap();
    data::assert_equal(&expected, &found, "lowered");
}

#[test]
fn what_matters_is_lowered() {
    let device = emulator::device();
    for rows in [0, 1, 31, 32, 33, 1025] {
        let batch = data::batch(rows, rows as u64 + 1);
        let expressions = [
            "i64 * 2 + i64b",
            "f64 / f64b",
            "f64 = f64b",
            "f64 < f64b",
            "f32 >= 0.0",
            "f64 <> -0.0",
            "f64 IS NOT DISTINCT FROM 0.0",
            "f64 BETWEEN -0.0 AND 3.25",
            "f32 % 2.5",
            "CASE WHEN i64b <> 0 THEN i64 % i64b END",
            "i8 IN (1, 2, 3)",
            "i16 NOT IN (0, 7, NULL)",
            "i32 IN (0, 1, 2, 3, 7, NULL)",
            "i64 NOT IN (0, 1, 2, 3, 7)",
            "i64 = NULL OR bool",
            "date < DATE '1900-02-03'",
            "date < DATE '2001-02-03'",
            "money > 12.34",
            "money + rate",
            "CASE i8 WHEN 0 THEN f64 WHEN 1 THEN f64b ELSE 0.5 END",
            "bool IS DISTINCT FROM boolb",
            "CAST(i32 AS BIGINT) + u32",
            "i32 BETWEEN 1 AND 7 OR NOT bool",
        ];
        let expressions = expressions.map(|sql| {
            let (lowered, expected) = both(sql, &batch).unwrap_or_else(|why| panic!("`{sql}` is not lowered: {why}"));
            (sql.to_owned(), lowered, expected)
        });
        compare(&device, expressions.into(), &batch);
    }
}

proptest! {
    // Each case is compiled.
    #![proptest_config(ProptestConfig { cases: emulator::cases(5), failure_persistence: None, max_shrink_iters: 0, ..ProptestConfig::default() })]

    #[test]
    fn lowered_expressions_are_datafusions(seed in any::<u64>(), depth in 1_usize..4, rows in 0_usize..70) {
        let device = emulator::device();
        let random = &mut Random::new(seed);
        let batch = data::batch(rows, seed);
        let mut expressions = Vec::new();
        for at in 0..24 {
            let sql = expression(random, ["bool", "int", "float", "decimal"][at % 4], depth);
            if let Ok((lowered, expected)) = both(&sql, &batch) {
                expressions.push((sql, lowered, expected));
            }
        }
        prop_assert!(expressions.len() > 3, "hardly anything is lowered");
        compare(&device, expressions, &batch);
    }
}
