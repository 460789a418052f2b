//! What a lookup means, the same for every database: each function is run on each of them.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Date32Array, Float64Array, Int32Array, Int64Array, RecordBatch,
};
use arrow::datatypes::{DataType, Float64Type, Int64Type};
use rowmill_step::{FailureCode, Outcome, Sent};
use rowmill_step_lookup::{LookupOptions, Matches, OnMissing};

use crate::support::{Place, context, keys, run, texts, try_run};

const QUERY: &str = "select name, seats, weight from planes where tailnum = {tailnum} order by seats";

/// Everything that is the same.
pub(crate) async fn check(place: &dyn Place) {
    duplicates_nulls_and_many_matches(place).await;
    what_is_missing_or_too_much(place).await;
    aggregates_and_limits_count_per_item(place).await;
    values_are_bound(place).await;
    types_come_and_go(place).await;
    one_query_for_many_items(place).await;
    wrong_queries_are_named(place).await;
    one_bad_row_fails_alone(place).await;
}

async fn duplicates_nulls_and_many_matches(place: &dyn Place) {
    let input = keys(&[Some("N2"), None, Some("N1"), Some("nope"), Some("N2"), Some("N1")]);
    let driven = run(LookupOptions::new("db", QUERY), &context(place.settings()), input).await;
    assert!(driven.failures.is_empty(), "{:?}", driven.failures);
    assert_eq!(driven.sources, [0, 0, 1, 2, 3, 4, 4, 5]);
    let expected =
        [Some("two"), Some("two again"), None, Some("one"), None, Some("two"), Some("two again"), Some("one")];
    assert_eq!(texts(&driven, 0), expected.map(|name| name.map(str::to_owned)));
    let weights: Vec<_> = driven.output.column(2).as_primitive::<Float64Type>().iter().collect();
    assert_eq!(weights, [Some(2.5), None, None, Some(1.5), None, Some(2.5), None, Some(1.5)]);
    assert_eq!(driven.outcomes.get(Outcome::Ok), 6);
}

async fn what_is_missing_or_too_much(place: &dyn Place) {
    let options = |on_missing, matches| LookupOptions { on_missing, matches, ..LookupOptions::new("db", QUERY) };
    let input = || keys(&[Some("N1"), None, Some("N2"), Some("nope")]);
    let context = context(place.settings());
    let driven = run(options(OnMissing::Skip, Matches::All), &context, input()).await;
    assert_eq!((driven.sources.as_slice(), driven.outcomes.get(Outcome::Skipped)), ([0, 2, 2].as_slice(), 2));
    let driven = run(options(OnMissing::Fail, Matches::First), &context, input()).await;
    assert_eq!(texts(&driven, 0), [Some("one".to_owned()), Some("two".to_owned())]);
    let failures: Vec<_> = driven.failures.iter().map(|(row, f)| (*row, f.code())).collect();
    assert_eq!(failures, [(1, FailureCode::NotFound), (3, FailureCode::NotFound)]);
    let driven = run(options(OnMissing::Null, Matches::One), &context, input()).await;
    assert_eq!(driven.sources, [0, 1, 3]);
    assert_eq!(driven.failures.iter().map(|(row, f)| (*row, f.code())).collect::<Vec<_>>(), [(2, FailureCode::Decode)]);
}

async fn aggregates_and_limits_count_per_item(place: &dyn Place) {
    let query = "select n, s from (select count(*) as n, cast(sum(seats) as integer) as s from planes where tailnum = {tailnum}) x";
    let query = if place.settings()["url"].as_str().unwrap().starts_with("mysql") {
        query.replace("as integer", "as signed integer")
    } else {
        query.to_owned()
    };
    let options = LookupOptions {
        types: vec![("n".to_owned(), DataType::Int64), ("s".to_owned(), DataType::Int64)],
        ..LookupOptions::new("db", &query)
    };
    let driven = run(options, &context(place.settings()), keys(&[Some("N2"), Some("nope"), Some("N1")])).await;
    assert_eq!(driven.output.column(0).as_primitive::<Int64Type>().values(), &[2, 0, 1]);
    assert_eq!(
        driven.output.column(1).as_primitive::<Int64Type>().iter().collect::<Vec<_>>(),
        [Some(41), None, Some(10)]
    );
    let limited = "select name from planes where tailnum = {tailnum} order by seats desc limit 1";
    let driven =
        run(LookupOptions::new("db", limited), &context(place.settings()), keys(&[Some("N2"), Some("N1"), Some("N2")]))
            .await;
    assert_eq!(texts(&driven, 0).into_iter().flatten().collect::<Vec<_>>(), ["two again", "one", "two again"]);
}

async fn values_are_bound(place: &dyn Place) {
    let long = "x".repeat(1 << 20);
    let attacks = [
        Some("O'Hare"),
        Some("'; drop table planes; --"),
        Some("\\'; drop table planes; --"),
        Some("N1' or '1'='1"),
        Some("{tailnum} $1 ? /* -- "),
        Some(long.as_str()),
        Some("a\0b"),
        Some("\u{feff}ü😀"),
    ];
    let driven = run(LookupOptions::new("db", QUERY), &context(place.settings()), keys(&attacks)).await;
    let found: Vec<_> = driven.sources.iter().zip(texts(&driven, 0)).filter(|(_, name)| name.is_some()).collect();
    assert_eq!(found, [(&0, Some("quoted".to_owned()))]);
    for (row, failure) in &driven.failures {
        assert_eq!(
            (*row, failure.code(), failure.how_far()),
            (6, FailureCode::BadInput, Sent::Never),
            "only a NUL may fail"
        );
    }
    let all = run(
        LookupOptions::new("db", "select count(*) as n from planes where tailnum is not null or {tailnum} = ''"),
        &context(place.settings()),
        keys(&[Some("x")]),
    )
    .await;
    assert_eq!(all.output.num_rows(), 1, "the table is still there");
}

async fn types_come_and_go(place: &dyn Place) {
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("i", Arc::new(Int32Array::from(vec![Some(7), None, Some(-1)]))),
        ("l", Arc::new(Int64Array::from(vec![Some(i64::MAX), Some(0), None]))),
        ("f", Arc::new(Float64Array::from(vec![Some(0.1), None, Some(-2.5)]))),
        ("b", Arc::new(BooleanArray::from(vec![Some(true), Some(false), None]))),
        ("d", Arc::new(Date32Array::from(vec![Some(19_000), None, Some(0)]))),
    ];
    let input = RecordBatch::try_from_iter_with_nullable(columns.iter().map(|(n, c)| (*n, c.clone(), true))).unwrap();
    let types = columns.iter().map(|(name, column)| (format!("o{name}"), column.data_type().clone())).collect();
    let query = "select {i} as oi, {l} as ol, {f} as \"of\", {b} as ob, {d} as od";
    let query = if place.settings()["url"].as_str().unwrap().starts_with("mysql") {
        query.replace('"', "`")
    } else {
        query.to_owned()
    };
    let driven =
        run(LookupOptions { types, ..LookupOptions::new("db", &query) }, &context(place.settings()), input).await;
    assert!(driven.failures.is_empty(), "{:?}", driven.failures);
    for (index, (name, column)) in columns.iter().enumerate() {
        assert_eq!(driven.output.column(index), column, "{name}");
    }
}

async fn one_query_for_many_items(place: &dyn Place) {
    let values: Vec<String> = (0..1000).map(|n| format!("N{}", n % 4)).collect();
    let values: Vec<_> = values.iter().map(|text| Some(text.as_str())).collect();
    let driven = run(LookupOptions::new("db", QUERY), &context(place.settings()), keys(&values)).await;
    assert_eq!(driven.output.num_rows(), 1250, "N2 matches twice, N0 nothing");
    assert_eq!(driven.calls as usize, 1000usize.div_ceil(place.most()));
}

async fn wrong_queries_are_named(place: &dyn Place) {
    let context = context(place.settings());
    let failure = |query: &'static str| {
        let context = context.clone();
        async move { try_run(LookupOptions::new("db", query), &context, keys(&[Some("x")])).await.unwrap_err() }
    };
    for (query, word) in [
        ("select name from no_such_table where tailnum = {tailnum}", "no_such_table"),
        ("select no_such_column from planes where tailnum = {tailnum}", "no_such_column"),
        ("select name, name from planes where tailnum = {tailnum}", "two columns `name`"),
        ("select name from planes where tailnum = {tailnum} where", ""),
        ("select 1) q; drop table planes; select ({tailnum}", ""),
    ] {
        if let Err(error) = rowmill_step_lookup::LookupStep::try_new(LookupOptions::new("db", query)) {
            assert!(error.message.contains("one statement"), "{error}");
            continue;
        }
        let failure = failure(query).await;
        assert!(failure.how_far() == Sent::Never && failure.message().contains(word), "{query}: {failure}");
    }
}

/// A value that makes the query itself fail spoils its group; cutting the group in two finds it.
async fn one_bad_row_fails_alone(place: &dyn Place) {
    let url = place.settings()["url"].as_str().unwrap().to_owned();
    let query = if url.starts_with("postgres") {
        "select 10 / {n} as q"
    } else if url.starts_with("sqlite") {
        // SQLite's json functions refuse what is not JSON.
        "select json_extract(case when {n} = 0 then '{' else '{}' end, '$') as q"
    } else {
        // MariaDB: a scalar subquery with two rows.
        "select (select seats from planes where {n} = 0 or seats = 10) as q"
    };
    let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values((0..64).map(|n| n - 37)));
    let input = RecordBatch::try_from_iter([("n", numbers)]).unwrap();
    let driven = run(LookupOptions::new("db", query), &context(place.settings()), input).await;
    assert_eq!(driven.failures.iter().map(|(row, _)| *row).collect::<Vec<_>>(), [37], "{:?}", driven.failures);
    assert_eq!(driven.failures[0].1.code(), FailureCode::Rejected);
    assert_eq!(driven.outcomes.get(Outcome::Ok), 63);
}
