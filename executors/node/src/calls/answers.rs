//! Answers on their way to a client: several that are ready go in one message.

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use prost::Message as _;
use rowmill_step::{BatchReply, Failure, FailureCode, Sent};
use rowmill_wire::MESSAGE_BYTES;
use rowmill_wire::calls::{OutcomeMessage, ROWS_BYTES, Results, pack};

/// A group's number, and what became of it.
pub(super) type Answer = (u64, Result<BatchReply, Failure>);

/// Bytes after which a message takes no further answer, as Arrow counts them.
pub(super) const ENOUGH_BYTES: usize = 1 << 20;
/// Answers of one message.
pub(super) const ENOUGH_ANSWERS: usize = 512;

/// How much an answer adds to a message.
pub(super) fn bytes_of(answer: &Answer) -> usize {
    answer.1.as_ref().map_or(0, BatchReply::output_bytes)
}

/// The messages that carry these answers: one, unless it would be too large.
pub(super) fn messages(answers: Vec<Answer>, schema: &SchemaRef) -> Vec<Results> {
    if let [_] = answers.as_slice() {
        return answers.into_iter().map(|(id, result)| alone(id, result, schema)).collect();
    }
    if let Some(results) = together(&answers, schema) {
        return vec![results];
    }
    answers.into_iter().map(|(id, result)| alone(id, result, schema)).collect()
}

/// All answers in one message; `None` where that is too large or their rows cannot be put together.
fn together(answers: &[Answer], schema: &SchemaRef) -> Option<Results> {
    let (mut outcomes, mut batches) = (Vec::with_capacity(answers.len()), Vec::new());
    for (id, result) in answers {
        let (outcome, rows) = OutcomeMessage::new(*id, result.clone());
        outcomes.push(outcome);
        batches.extend(rows.filter(|rows| rows.num_rows() > 0));
    }
    let rows = rows_of(&batches, schema).ok()?;
    let results = Results { outcomes, rows };
    (results.rows.len() <= ROWS_BYTES && results.encoded_len() <= MESSAGE_BYTES).then_some(results)
}

/// One answer. What no message holds is a failure that says so: the call was made.
fn alone(id: u64, result: Result<BatchReply, Failure>, schema: &SchemaRef) -> Results {
    let (outcome, rows) = OutcomeMessage::new(id, result);
    let batches: Vec<RecordBatch> = rows.into_iter().filter(|rows| rows.num_rows() > 0).collect();
    let failure = match rows_of(&batches, schema) {
        Ok(rows) => {
            let results = Results { outcomes: vec![outcome], rows };
            if results.rows.len() <= ROWS_BYTES && results.encoded_len() <= MESSAGE_BYTES {
                return results;
            }
            Failure::fixed(FailureCode::TooLarge, "the answer for a group is larger than an executor may send (56 MiB)")
        }
        Err(error) => Failure::received(FailureCode::Internal, &format!("an answer cannot be sent: {error}")),
    };
    let (outcome, _) = OutcomeMessage::new(id, Err(failure.retryable(false).sent(Sent::Answered)));
    Results { outcomes: vec![outcome], rows: Vec::new() }
}

fn rows_of(batches: &[RecordBatch], schema: &SchemaRef) -> Result<Vec<u8>, datafusion::arrow::error::ArrowError> {
    // Rows without columns need no bytes: the heads count them.
    if batches.is_empty() { Ok(Vec::new()) } else { pack(schema, batches) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use datafusion::arrow::array::{ArrayRef, BinaryArray, Int64Array};
    use datafusion::arrow::datatypes::{DataType, Field, Schema};
    use rowmill_step::Redactor;
    use rowmill_wire::calls::unpack;

    use super::*;

    fn answer(id: u64, column: ArrayRef, schema: &SchemaRef) -> Answer {
        (id, Ok(BatchReply::all_ok(RecordBatch::try_new(schema.clone(), vec![column]).unwrap())))
    }

    #[test]
    fn answers_share_a_message_and_keep_their_rows_and_failures() {
        let schema: SchemaRef = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, true)]));
        let numbers = |numbers: Vec<i64>| Arc::new(Int64Array::from(numbers)) as ArrayRef;
        let answers = vec![
            answer(7, numbers(vec![1, 2]), &schema),
            (8, Err(Failure::fixed(FailureCode::Timeout, "late"))),
            answer(9, numbers(vec![]), &schema),
            answer(4, numbers(vec![3]), &schema),
        ];
        let sent = messages(answers, &schema);
        assert_eq!(sent.len(), 1);
        let ids: Vec<(u64, u32)> = sent[0].outcomes.iter().map(|outcome| (outcome.id, outcome.rows)).collect();
        assert_eq!(ids, [(7, 2), (8, 0), (9, 0), (4, 1)]);
        let rows = unpack(&sent[0].rows, &schema).unwrap();
        assert_eq!(rows.column(0).as_ref(), numbers(vec![1, 2, 3]).as_ref());
    }

    #[test]
    fn an_answer_that_no_message_holds_is_a_failure_and_the_others_arrive() {
        let schema: SchemaRef = Arc::new(Schema::new(vec![Field::new("b", DataType::Binary, true)]));
        let bytes = |count: usize| Arc::new(BinaryArray::from(vec![vec![0u8; count].as_slice()])) as ArrayRef;
        let answers = vec![answer(1, bytes(10), &schema), answer(2, bytes(ROWS_BYTES + 1), &schema)];
        let sent = messages(answers, &schema);
        assert_eq!(sent.len(), 2);
        assert_eq!(unpack(&sent[0].rows, &schema).unwrap().num_rows(), 1);
        let failure = sent[1].outcomes[0].failure.clone().unwrap().into_failure(&Redactor::new());
        assert_eq!((failure.code(), failure.how_far()), (FailureCode::TooLarge, Sent::Answered));
    }
}
