//! What is special about SQLite: values have types of their own, and the file is read and not written.

use arrow::array::AsArray;
use arrow::datatypes::{DataType, Int64Type};
use rowmill_step::{FailureCode, Sent};
use rowmill_step_lookup::LookupOptions;
use serde_json::json;

use crate::support::{Place, Sqlite, context, keys, run, try_run};

#[tokio::test]
async fn the_meaning_is_the_same() {
    crate::meaning::check(&Sqlite::new()).await;
}

#[tokio::test]
async fn values_of_another_type_are_item_errors_and_not_zeros() {
    let place = Sqlite::new();
    place.run("insert into planes values ('BAD', 'bad', 'not a number', 1.0), ('INT', 'int', 3, 4)");
    let query = "select seats, weight from planes where tailnum = {tailnum}";
    let driven =
        run(LookupOptions::new("db", query), &context(place.settings()), keys(&[Some("N1"), Some("BAD"), Some("INT")]))
            .await;
    assert_eq!(driven.sources, [0, 2]);
    assert_eq!(driven.output.column(0).as_primitive::<Int64Type>().values(), &[10, 3]);
    assert_eq!((driven.failures[0].0, driven.failures[0].1.code()), (1, FailureCode::Decode));
    assert!(driven.failures[0].1.message().contains("`seats`"), "{}", driven.failures[0].1);
    // As a text, the same value is fine.
    let types = vec![("seats".to_owned(), DataType::Utf8)];
    let as_text = LookupOptions {
        types,
        ..LookupOptions::new("db", "select seats || '' as seats from planes where tailnum = {tailnum}")
    };
    let driven = run(as_text, &context(place.settings()), keys(&[Some("BAD")])).await;
    assert_eq!(driven.output.column(0).as_string::<i32>().value(0), "not a number");
}

#[tokio::test]
async fn the_file_must_exist_and_is_never_written() {
    let place = Sqlite::new();
    let missing = context(json!({"url": "sqlite:///no/such/file.db"}));
    let query = "select name from planes where tailnum = {tailnum}";
    let failure = try_run(LookupOptions::new("db", query), &missing, keys(&[Some("x")])).await.unwrap_err();
    assert_eq!((failure.code(), failure.how_far()), (FailureCode::Setup, Sent::Never));
    assert!(failure.message().contains("/no/such/file.db"), "{failure}");
    let before = std::fs::read(place.path()).unwrap();
    run(LookupOptions::new("db", query), &context(place.settings()), keys(&[Some("N1")])).await;
    assert_eq!(std::fs::read(place.path()).unwrap(), before);
}

#[tokio::test]
async fn wrong_settings_are_named() {
    let query = "select name from planes where tailnum = {tailnum}";
    for (settings, word) in [
        (json!({"url": "postgres://me:hunter2@localhost/db"}), "`password`"),
        (json!({"url": "oracle://localhost"}), "oracle"),
        (json!({"url": "sqlite://x", "pool_sise": 1}), "pool_sise"),
        (json!({"url": "sqlite:///x", "pool_size": 0}), "pool_size"),
        (json!({"url": "postgres://localhost/db", "password": "hunter2"}), "env:NAME"),
    ] {
        let failure =
            try_run(LookupOptions::new("db", query), &context(settings), keys(&[Some("x")])).await.unwrap_err();
        assert_eq!(failure.code(), FailureCode::Setup);
        assert!(failure.message().contains(word) && !failure.message().contains("hunter2"), "{failure}");
    }
}
