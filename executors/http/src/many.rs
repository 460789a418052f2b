//! One request for many items: which result of the answer is whose.

use std::collections::HashMap;

use serde_json::Value;

use crate::plan::ManyPlan;

/// An item's part of an answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Part<'a> {
    /// Its result.
    Result(&'a Value),
    /// The service's error for it.
    Error(String),
    /// The answer leaves it out.
    Absent,
}

/// Assigns results to items. `keys` holds each item's key as JSON, if results are matched by key.
///
/// # Errors
/// The answer is not what was declared, so that no result can be given to any item.
pub(crate) fn assign<'a>(
    plan: &ManyPlan,
    answer: &'a Value,
    items: usize,
    keys: &[Vec<u8>],
) -> Result<Vec<Part<'a>>, String> {
    let Some(Value::Array(results)) = plan.results.find(answer) else {
        return Err("the answer has no array of results where one was declared".to_owned());
    };
    let Some((_, pointer)) = &plan.key else {
        if results.len() != items {
            return Err(format!("the answer has {} results for {items} items", results.len()));
        }
        return Ok(results.iter().map(|result| part(plan, result)).collect());
    };
    let mut by_key: HashMap<Vec<u8>, Vec<&Value>> = HashMap::with_capacity(results.len());
    for result in results {
        let Some(key) = pointer.find(result).filter(|key| !key.is_null()) else {
            return Err("a result of the answer names no item".to_owned());
        };
        by_key.entry(key.to_string().into_bytes()).or_default().push(result);
    }
    // Items of one key were each sent: either each has its result, in order, or one result is for all of them.
    let mut asked: HashMap<&[u8], usize> = HashMap::with_capacity(keys.len());
    for key in keys {
        *asked.entry(key).or_default() += 1;
    }
    for (key, found) in &by_key {
        if found.len() > 1 && asked.get(key.as_slice()) != Some(&found.len()) {
            let key = String::from_utf8_lossy(key);
            return Err(format!("the answer has {} results for the key {}", found.len(), cut(&key)));
        }
    }
    let mut turn: HashMap<&[u8], usize> = HashMap::new();
    Ok(keys
        .iter()
        .map(|key| {
            let Some(found) = by_key.get(key) else { return Part::Absent };
            let turn = turn.entry(key).or_default();
            let result = found.get(*turn).or(found.first());
            *turn += 1;
            result.map_or(Part::Absent, |result| part(plan, result))
        })
        .collect())
}

fn part<'a>(plan: &ManyPlan, result: &'a Value) -> Part<'a> {
    let error = plan.error.as_ref().and_then(|pointer| pointer.find(result));
    match error {
        None | Some(Value::Null | Value::Bool(false)) => Part::Result(result),
        Some(Value::String(text)) if text.is_empty() => Part::Result(result),
        Some(Value::String(text)) => Part::Error(text.clone()),
        Some(other) => Part::Error(other.to_string()),
    }
}

fn cut(text: &str) -> &str {
    text.char_indices().nth(80).map_or(text, |(end, _)| &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pointer::Pointer;
    use serde_json::json;

    fn plan(key: Option<&str>) -> ManyPlan {
        ManyPlan {
            max_items: 10,
            max_bytes: 100,
            envelope: None,
            results: Pointer::parse("many", "/r").unwrap(),
            key: key.map(|pointer| (0, Pointer::parse("many", pointer).unwrap())),
            error: Some(Pointer::parse("many", "/error").unwrap()),
        }
    }

    #[test]
    fn by_order() {
        let answer = json!({"r": [{"v": 1}, {"error": "bad"}, {"error": {"code": 7}}, {"error": null}]});
        let parts = assign(&plan(None), &answer, 4, &[]).unwrap();
        assert_eq!(parts[0], Part::Result(&json!({"v": 1})));
        assert_eq!(parts[1], Part::Error("bad".to_owned()));
        assert_eq!(parts[2], Part::Error("{\"code\":7}".to_owned()));
        assert!(matches!(parts[3], Part::Result(_)));
        assert!(assign(&plan(None), &answer, 3, &[]).unwrap_err().contains("4 results for 3 items"));
        assert!(assign(&plan(None), &json!([]), 0, &[]).is_err());
    }

    #[test]
    fn by_key_with_duplicates_and_gaps() {
        let answer = json!({"r": [{"id": "b", "v": 2}, {"id": "a", "v": 1}]});
        let keys = [b"\"a\"".to_vec(), b"\"x\"".to_vec(), b"\"a\"".to_vec()];
        let parts = assign(&plan(Some("/id")), &answer, 3, &keys).unwrap();
        assert_eq!(parts[0], parts[2]);
        assert_eq!(parts[1], Part::Absent);
        let twice = json!({"r": [{"id": 1}, {"id": 1}]});
        assert!(assign(&plan(Some("/id")), &twice, 0, &[]).unwrap_err().contains("2 results"));
        let each = json!({"r": [{"id": "a", "v": 1}, {"id": "a", "v": 2}]});
        let keys = [b"\"a\"".to_vec(), b"\"a\"".to_vec()];
        let parts = assign(&plan(Some("/id")), &each, 2, &keys).unwrap();
        assert_eq!(parts, [Part::Result(&each["r"][0]), Part::Result(&each["r"][1])]);
        assert!(assign(&plan(Some("/id")), &each, 1, &keys[..1]).is_err());
        assert!(assign(&plan(Some("/id")), &json!({"r": [{}]}), 0, &[]).is_err());
    }
}
