//! The conformance suite, for one request per item, for many items per request, and for `once`.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Int64Type};
use async_trait::async_trait;
use parking_lot::Mutex;
use rowmill_step::conformance::{Fault, Fixture, check_all};
use rowmill_step::{Effects, StepContext, StepExecutor};
use rowmill_step_http::{BodyTemplate, HttpOptions, HttpStep, Many, Matching, ResponseColumn};
use serde_json::{Value, json};

use crate::server::{Reply, Seen, Server, json as reply};
use crate::support::{base, context};

struct World {
    fault: Fault,
    fired: u64,
    items: u64,
}

struct Doubling {
    server: Server,
    world: Arc<Mutex<World>>,
    many: bool,
    effects: Effects,
}

/// The service: doubles `n`, which comes in the path or in the items of the body.
fn serve(world: &Mutex<World>, seen: &Seen) -> Reply {
    let mut world = world.lock();
    let numbers: Vec<Value> = match seen.target.strip_prefix("/double/") {
        Some(n) => vec![json!(n.parse::<i64>().unwrap())],
        None => {
            serde_json::from_slice::<Vec<Value>>(&seen.body).unwrap().iter().map(|item| item["n"].clone()).collect()
        }
    };
    world.items += numbers.len() as u64;
    let poisoned = match world.fault {
        Fault::Poison(row) => Some(json!(row)),
        Fault::Transient(left) => {
            world.fault = if left > 1 { Fault::Transient(left - 1) } else { Fault::None };
            world.fired += 1;
            return Reply::Full(429, vec![("retry-after", "0".to_owned())], b"later".to_vec());
        }
        Fault::Stall => {
            world.fired += 1;
            return Reply::Hang;
        }
        _ => None,
    };
    let hit = |n: &Value| poisoned.as_ref() == Some(n);
    world.fired += u64::from(numbers.iter().any(hit));
    let double = |n: &Value| n.as_i64().map_or(Value::Null, |n| json!(n * 2));
    if seen.target.starts_with("/double/") {
        if numbers.iter().any(hit) {
            return reply(400, &json!({"error": "poisoned"}));
        }
        return reply(200, &json!({"doubled": double(&numbers[0])}));
    }
    let results: Vec<_> = numbers
        .iter()
        .map(|n| if hit(n) { json!({"error": "poisoned"}) } else { json!({"doubled": double(n)}) })
        .collect();
    reply(200, &Value::Array(results))
}

async fn fixture(many: bool, effects: Effects) -> Doubling {
    let world = Arc::new(Mutex::new(World { fault: Fault::None, fired: 0, items: 0 }));
    let shared = world.clone();
    Doubling { server: Server::start(move |seen| serve(&shared, seen)).await, world, many, effects }
}

#[async_trait]
impl Fixture for Doubling {
    fn context(&self) -> StepContext {
        context(base(&self.server.url()))
    }

    async fn executor(&self) -> Arc<dyn StepExecutor> {
        let options = HttpOptions {
            response: vec![ResponseColumn::json("doubled", "/doubled", DataType::Int64)],
            effects: Some(self.effects),
            in_flight: 16,
            ..HttpOptions::new("api", "GET", "/double/{n}")
        };
        let many = Many {
            max_items: 50,
            max_bytes: 1 << 20,
            envelope: None,
            results: String::new(),
            matching: Matching::Order,
            error: Some("/error".to_owned()),
        };
        let options = if self.many {
            HttpOptions {
                method: "POST".to_owned(),
                path: "/many".to_owned(),
                body: Some(BodyTemplate::Json(json!({"n": "{n}"}))),
                many: Some(many),
                ..options
            }
        } else {
            options
        };
        Arc::new(HttpStep::try_new(options).unwrap())
    }

    fn input(&self, rows: Range<u64>) -> RecordBatch {
        let column: ArrayRef = Arc::new(Int64Array::from_iter_values(rows.map(|n| n as i64)));
        RecordBatch::try_from_iter_with_nullable([("n", column, true)]).unwrap()
    }

    fn input_with_nulls(&self, rows: Range<u64>) -> Option<RecordBatch> {
        let column: ArrayRef = Arc::new(rows.map(|n| (n % 3 != 1).then_some(n as i64)).collect::<Int64Array>());
        // A NULL in a path is an item error; in a body it is null.
        self.many.then(|| RecordBatch::try_from_iter_with_nullable([("n", column, true)]).unwrap())
    }

    fn expected(&self, input: &RecordBatch) -> RecordBatch {
        let numbers = input.column(0).as_primitive::<Int64Type>();
        let column: ArrayRef = Arc::new(numbers.iter().map(|n| n.map(|n| n * 2)).collect::<Int64Array>());
        RecordBatch::try_from_iter_with_nullable([("doubled", column, true)]).unwrap()
    }

    fn items_seen(&self) -> u64 {
        self.world.lock().items
    }

    fn inject(&self, fault: Fault) -> bool {
        if matches!(fault, Fault::Crash(_)) {
            return false;
        }
        self.world.lock().fault = fault;
        true
    }

    fn fired(&self) -> u64 {
        self.world.lock().fired
    }
}

#[tokio::test]
async fn one_request_per_item() {
    assert_eq!(check_all(&fixture(false, Effects::Idempotent).await).await, ["nulls", "crash"]);
}

#[tokio::test]
async fn many_items_per_request() {
    assert_eq!(check_all(&fixture(true, Effects::Pure).await).await, ["crash"]);
}

#[tokio::test]
async fn many_items_per_request_once() {
    assert_eq!(check_all(&fixture(true, Effects::Once).await).await, ["crash"]);
}
