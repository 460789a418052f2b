//! What the ledger holds, in memory and in its file.

use std::sync::Arc;

use arrow::array::{Array as _, ArrayRef, AsArray as _, RecordBatch, StringViewArray};
use arrow::datatypes::{Int64Type, UInt16Type, UInt32Type, UInt64Type};
use rowmill_step::{ItemIds, Outcome, Redactor};

use super::support::*;
use crate::unit::Loss;
use crate::*;

#[tokio::test]
async fn a_ledger_names_items_with_their_reasons_and_is_read_back() {
    let step = Arc::new(Scripted::new((10, 2), |call| async move {
        let redactor = Redactor::new();
        Ok(partly(&call.items, |x| (x % 10 == 4).then(|| rejected().status(422).field("trace", "line 1", &redactor))))
    }));
    let operator = operator(&step, policy(&step));
    let ran = drain(&operator, scope(&operator, 3, None), vec![numbers(0..100)]).await;
    assert_eq!(ran.ledger.rows(), 10);
    let path = ran.ledger.finish().unwrap().unwrap();
    assert_eq!(ran.ledger.finish().unwrap().as_ref(), Some(&path), "a second time it is there already");
    let (schema, batches) = read_ledger(&path).unwrap();
    assert_eq!(schema, ledger_schema(&input_schema()));
    assert_eq!(item_fields(&schema).unwrap(), input_schema().fields().clone());
    let all = arrow::compute::concat_batches(&schema, &batches).unwrap();
    assert_eq!(all.num_rows(), 10);
    assert!(all.column(0).as_primitive::<UInt32Type>().iter().all(|file| file == Some(3)));
    assert_eq!(all.column(1).as_primitive::<UInt64Type>().value(2), 24);
    assert_eq!(all.column(2).as_string::<i32>().value(2), "dead_lettered");
    assert_eq!(all.column(3).as_string::<i32>().value(2), "rejected");
    assert_eq!(all.column(4).as_string::<i32>().value(2), "no such thing");
    assert_eq!(all.column(5).as_primitive::<UInt32Type>().value(2), 1);
    assert_eq!(all.column(6).as_primitive::<UInt16Type>().value(2), 422);
    assert_eq!(all.column(7).as_string::<i32>().value(2), r#"{"trace":"line 1"}"#);
    assert_eq!(all.column(8).as_struct().column(1).as_primitive::<Int64Type>().value(2), 24);
    std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
    assert!(read_ledger(&path).unwrap_err().to_string().contains("ledger"));
}

fn losses(rows: std::ops::Range<u32>) -> Vec<Loss> {
    rows.map(|row| Loss { row, failure: Some(rejected()), attempts: 1, outcome: Outcome::Failed }).collect()
}

#[test]
fn a_ledger_without_rows_has_no_file_and_a_large_one_spills() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep").join("ledger.arrow");
    assert_eq!(Ledger::new(&input_schema(), path.clone()).finish().unwrap(), None);
    assert!(!path.exists());
    let ledger = Ledger::new(&input_schema(), path.clone());
    let input = numbers(0..8192);
    let ids = ItemIds::Range { file: 0, rows: 0..8192 };
    for _ in 0..20 {
        ledger.record(&input, &ids, None, &losses(0..8192)).unwrap();
    }
    assert!(path.metadata().unwrap().len() > 1 << 20, "it went to its file before it was finished");
    ledger.finish().unwrap();
    assert!(ledger.record(&input, &ids, None, &losses(0..1)).is_err(), "it is over");
    let (_, batches) = read_ledger(&path).unwrap();
    assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 20 * 8192);
    assert_eq!(ledger.samples().len(), 10);
}

#[test]
fn one_row_of_a_view_column_does_not_keep_the_others() {
    let text = "a text that is longer than what is inlined ".repeat(100);
    let column: ArrayRef = Arc::new(StringViewArray::from_iter_values((0..1000).map(|at| format!("{text}{at}"))));
    let input = RecordBatch::try_from_iter([("text", column)]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::new(&input.schema(), folder.path().join("ledger.arrow"));
    ledger.record(&input, &ItemIds::Range { file: 0, rows: 0..1000 }, None, &losses(7..8)).unwrap();
    let path = ledger.finish().unwrap().unwrap();
    assert!(path.metadata().unwrap().len() < 50_000);
    let (_, batches) = read_ledger(&path).unwrap();
    let item = batches[0].column(8).as_struct().column(0);
    assert!(item.as_string_view().value(0).ends_with(" 7"));
    assert!(crate::size::batch_bytes(&input) > 4_000_000, "what views point to counts");
    assert!(crate::size::batch_bytes(&input.slice(0, 1)) < 5000);
    assert_eq!(item.len(), 1);
}

#[test]
fn an_unwritable_ledger_names_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let ledger = Ledger::new(&input_schema(), file.join("ledger.arrow"));
    ledger.record(&numbers(0..1), &ItemIds::Range { file: 0, rows: 0..1 }, None, &losses(0..1)).unwrap();
    assert!(ledger.finish().unwrap_err().to_string().contains("ledger.arrow"));
}
