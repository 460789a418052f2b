//! What leaves and what is read: templates, bodies, keys, statuses, many items in one request.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Int32Type, Int64Type};
use rowmill_step::{FailureCode, Outcome};
use rowmill_step_http::{BodyTemplate, HttpOptions, Many, Matching, NotFound, ResponseColumn, Source};
use serde_json::{Value, json};

use crate::server::{Reply, Server, json as reply};
use crate::support::{base, context, run, texts};

fn status() -> ResponseColumn {
    ResponseColumn { name: "status".to_owned(), data_type: DataType::Int32, nullable: false, source: Source::Status }
}

fn input() -> RecordBatch {
    let id: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), Some(2), None]));
    let name: ArrayRef = Arc::new(StringArray::from(vec![Some("ann & co"), None, Some("z")]));
    RecordBatch::try_from_iter_with_nullable([("id", id, true), ("name", name, true)]).unwrap()
}

#[tokio::test]
async fn every_place_is_filled() {
    let server = Server::start(|_| reply(200, &json!({"ok": true}))).await;
    let options = HttpOptions {
        query: vec![("q".to_owned(), "{name}".to_owned()), ("fixed".to_owned(), "a b".to_owned())],
        headers: vec![("X-Name".to_owned(), "n={name}".to_owned())],
        body: Some(BodyTemplate::Json(json!({"id": "{id}", "text": "{name}?"}))),
        response: vec![status()],
        ..HttpOptions::new("api", "POST", "/things/{id}/sub")
    };
    let driven = run(options, &context(base(&format!("{}/v1/", server.url()))), input()).await;
    let seen = server.requests();
    assert_eq!(seen.len(), 2, "the item without an id has no path");
    let first = seen.iter().find(|s| s.target.contains("/1/")).unwrap();
    assert_eq!(first.target, "/v1/things/1/sub?q=ann%20%26%20co&fixed=a%20b");
    assert_eq!(first.header("x-name"), Some("n=ann & co"));
    assert_eq!(first.header("content-type"), Some("application/json"));
    assert_eq!(serde_json::from_slice::<Value>(&first.body).unwrap(), json!({"id": 1, "text": "ann & co?"}));
    assert_eq!(first.header("idempotency-key").map(str::len), Some(32));
    let second = seen.iter().find(|s| s.target.contains("/2/")).unwrap();
    assert_eq!(second.target, "/v1/things/2/sub?fixed=a%20b", "a NULL leaves its parameter out");
    assert_eq!(second.header("x-name"), None, "and its header");
    assert_ne!(first.header("idempotency-key"), second.header("idempotency-key"));
    assert_eq!(driven.output.column(0).as_primitive::<Int32Type>().values(), &[200, 200]);
    assert_eq!((driven.failures[0].0, driven.failures[0].1.code()), (2, FailureCode::BadInput));
}

#[tokio::test]
async fn forms_raw_bodies_and_gets_without_keys() {
    let server = Server::start(|_| reply(200, &json!({}))).await;
    let context = context(base(&server.url()));
    let form = BodyTemplate::Form(vec![("a b".to_owned(), "{x}".to_owned()), ("c".to_owned(), "1".to_owned())]);
    let post = HttpOptions { response: vec![status()], ..HttpOptions::new("api", "POST", "/") };
    run(HttpOptions { body: Some(form), ..post.clone() }, &context, texts(&[Some("x&y=z")])).await;
    let raw = BodyTemplate::Column { name: "x".to_owned(), content_type: "text/csv".to_owned() };
    run(HttpOptions { body: Some(raw), ..post }, &context, texts(&[Some("a,b\r\n1,2")])).await;
    let get = HttpOptions { response: vec![status()], ..HttpOptions::new("api", "GET", "/{x}") };
    run(get, &context, texts(&[Some("g")])).await;
    let seen = server.requests();
    assert_eq!(seen[0].body, b"a%20b=x%26y%3Dz&c=1");
    assert_eq!((seen[1].body.as_slice(), seen[1].header("content-type")), (b"a,b\r\n1,2".as_slice(), Some("text/csv")));
    assert_eq!(seen[2].header("idempotency-key"), None);
    assert!(seen.iter().all(|s| s.header("authorization").is_some_and(|a| a.starts_with("Bearer "))));
}

#[tokio::test]
async fn answers_become_typed_columns() {
    let server = Server::start(|seen| match seen.target.as_str() {
        "/gone" => reply(404, &json!({"error": "no such thing"})),
        "/text" => Reply::Full(200, vec![("x-kind", "plain".to_owned())], b"not json".to_vec()),
        _ => Reply::Full(
            200,
            vec![("x-kind", "fine".to_owned())],
            json!({"main": {"temp": 3.5, "list": [{"n": 7}]}, "name": "here"}).to_string().into_bytes(),
        ),
    })
    .await;
    let context = context(base(&server.url()));
    let options = |not_found| HttpOptions {
        response: vec![
            ResponseColumn::json("temp", "/main/temp", DataType::Float64),
            ResponseColumn::json("n", "/main/list/0/n", DataType::Int64),
            ResponseColumn { source: Source::Body, ..ResponseColumn::json("raw", "", DataType::Utf8) },
            ResponseColumn {
                source: Source::Header("X-Kind".to_owned()),
                ..ResponseColumn::json("kind", "", DataType::Utf8)
            },
            status(),
        ],
        not_found,
        ..HttpOptions::new("api", "GET", "/{x}")
    };
    let input = || texts(&[Some("a"), Some("gone"), Some("text"), Some("b")]);
    let driven = run(options(NotFound::Null), &context, input()).await;
    assert_eq!(driven.sources, [0, 1, 3]);
    assert_eq!(
        driven.output.column(1).as_primitive::<Int64Type>().iter().collect::<Vec<_>>(),
        [Some(7), None, Some(7)]
    );
    assert_eq!(driven.output.column(3).as_string::<i32>().value(0), "fine");
    assert!(driven.output.column(2).is_null(1));
    assert_eq!(driven.output.column(4).as_primitive::<Int32Type>().values(), &[200, 404, 200]);
    assert_eq!((driven.failures[0].0, driven.failures[0].1.code()), (2, FailureCode::Decode));
    assert!(driven.failures[0].1.message().contains("not json"), "the message shows what came");
    let driven = run(options(NotFound::Skip), &context, input()).await;
    assert_eq!(driven.sources, [0, 3]);
    assert_eq!(driven.outcomes.get(Outcome::Skipped), 1);
    let driven = run(options(NotFound::Fail), &context, input()).await;
    assert_eq!(driven.failures[0].1.code(), FailureCode::NotFound);
    assert!(driven.failures[0].1.message().contains("no such thing"));
}

fn many(matching: Matching) -> HttpOptions {
    HttpOptions {
        body: Some(BodyTemplate::Json(json!({"id": "{x}"}))),
        response: vec![ResponseColumn::json("v", "/v", DataType::Int64)],
        effects: Some(rowmill_step::Effects::Pure),
        many: Some(Many {
            max_items: 4,
            max_bytes: 1 << 20,
            envelope: Some(json!({"model": "m", "inputs": "{items}"})),
            results: "/results".to_owned(),
            matching,
            error: Some("/error".to_owned()),
        }),
        ..HttpOptions::new("api", "POST", "/batch")
    }
}

#[tokio::test]
async fn many_items_in_one_request() {
    let server = Server::start(|seen| {
        let body: Value = serde_json::from_slice(&seen.body).unwrap();
        assert_eq!(body["model"], "m");
        let mut results: Vec<Value> = body["inputs"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|item| item["id"] != "absent")
            .map(|item| match item["id"].as_str() {
                Some("bad") => json!({"id": "bad", "error": "cannot"}),
                Some("odd") => json!({"id": "odd", "v": "text"}),
                _ => json!({"id": item["id"], "v": 1}),
            })
            .collect();
        results.reverse();
        results.dedup();
        reply(200, &json!({"results": results}))
    })
    .await;
    let context = context(base(&server.url()));
    let key = Matching::Key { column: "x".to_owned(), pointer: "/id".to_owned() };
    let options = HttpOptions { not_found: NotFound::Skip, ..many(key) };
    let input = texts(&[Some("a"), Some("bad"), Some("b"), Some("b"), Some("odd"), Some("absent"), Some("c")]);
    let driven = run(options, &context, input).await;
    assert_eq!(server.requests().len(), 2, "four items, then three");
    assert_eq!(driven.sources, [0, 2, 3, 6]);
    assert_eq!(driven.outcomes.get(Outcome::Skipped), 1);
    let failures: Vec<_> = driven.failures.iter().map(|(row, f)| (*row, f.code())).collect();
    assert_eq!(failures, [(1, FailureCode::Rejected), (4, FailureCode::Decode)]);
    assert_eq!(driven.failures[0].1.message(), "cannot");
    let seen = server.requests();
    assert_ne!(seen[0].header("idempotency-key"), seen[1].header("idempotency-key"));
}

#[tokio::test]
async fn an_answer_of_the_wrong_length_is_given_to_nobody() {
    let server = Server::start(|_| reply(200, &json!({"results": [{"v": 1}]}))).await;
    let options = many(Matching::Order);
    let driven = run(options, &context(base(&server.url())), texts(&[Some("a"), Some("b")])).await;
    // The pair fails whole; cut in two, each alone is answered with one result.
    assert_eq!(driven.sources, [0, 1]);
    assert_eq!(driven.attempts, 3);
    let once = HttpOptions { effects: Some(rowmill_step::Effects::Once), ..many(Matching::Order) };
    let driven = run(once, &context(base(&server.url())), texts(&[Some("a"), Some("b")])).await;
    assert_eq!(
        (driven.attempts, driven.outcomes.get(Outcome::Failed)),
        (1, 2),
        "answered, so known, and never repeated"
    );
}

#[tokio::test]
async fn columns_without_a_text_are_refused_before_anything_runs() {
    let server = Server::start(|_| reply(200, &json!({}))).await;
    let column: ArrayRef = Arc::new(arrow::array::BinaryArray::from(vec![b"x".as_slice()]));
    let input = RecordBatch::try_from_iter([("x", column)]).unwrap();
    let options = HttpOptions { response: vec![status()], ..HttpOptions::new("api", "GET", "/{x}") };
    let failure = crate::support::try_run(options, &context(base(&server.url())), input).await.unwrap_err();
    assert!(failure.code() == FailureCode::Setup && failure.message().contains("`x`"), "{failure}");
}
