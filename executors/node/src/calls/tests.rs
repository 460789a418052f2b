//! The service over a socket, with a step that does what the test says: what a client relies on, and what strangers and
//! clients out of step are told.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use datafusion::arrow::array::{ArrayRef, AsArray as _, Int64Array, RecordBatch};
use datafusion::arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use futures::StreamExt as _;
use rowmill_step::{
    BatchReply, BatchTarget, Cardinality, Effects, Failure, FailureCode, FingerprintBuilder, ItemBatch, Redactor, Sent,
    StepContext, StepDescription, StepExecutor, StepSession, StepShape,
};
use rowmill_wire::calls::{
    Ask, CallsServer, Cancel, ClientMessage, ExecutorMessage, GroupHead, Groups, OpenStep, OutcomeMessage, Tell,
    attempts, pack, write_schema,
};
use rowmill_wire::handshake::{Handshake, Right, Token};
use rowmill_wire::name::ExecutorName;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Streaming};

use super::{BuildsSteps, BuiltStep, Calls, Taker};

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("x", DataType::Int64, true)]))
}

/// Adds one to each item; waits until it is cancelled for 13; fails for 7.
#[derive(Debug)]
struct Toy {
    description: StepDescription,
    opened: Arc<AtomicUsize>,
    at_once: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

#[async_trait::async_trait]
impl StepExecutor for Toy {
    fn describe(&self) -> &StepDescription {
        &self.description
    }

    async fn output_schema(&self, input: &SchemaRef, _: &StepContext) -> Result<SchemaRef, Failure> {
        Ok(input.clone())
    }

    async fn open(&self, _: &StepContext, _: &StepShape) -> Result<Box<dyn StepSession>, Failure> {
        self.opened.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(Session(Arc::clone(&self.at_once), Arc::clone(&self.most))))
    }
}

struct Session(Arc<AtomicUsize>, Arc<AtomicUsize>);

#[async_trait::async_trait]
impl StepSession for Session {
    async fn execute(&mut self, batch: ItemBatch) -> Result<BatchReply, Failure> {
        let values: Vec<i64> = batch.columns.column(0).as_primitive::<Int64Type>().values().to_vec();
        self.1.fetch_max(self.0.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(5)).await;
        self.0.fetch_sub(1, Ordering::SeqCst);
        if values.contains(&13) {
            batch.cancel.cancelled().await;
            return Err(Failure::fixed(FailureCode::Cancelled, "stopped in the middle").sent(Sent::Maybe));
        }
        if values.contains(&7) {
            return Err(Failure::fixed(FailureCode::Rejected, "not seven").sent(Sent::Answered));
        }
        let output: ArrayRef = Arc::new(Int64Array::from_iter_values(values.iter().map(|value| value + 1)));
        Ok(BatchReply::all_ok(RecordBatch::try_new(schema(), vec![output]).unwrap()))
    }
}

#[derive(Debug, Default)]
struct Builder {
    built: Arc<AtomicUsize>,
    opened: Arc<AtomicUsize>,
    at_once: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

impl BuildsSteps for Builder {
    fn build(&self, step: &OpenStep, _: &CancellationToken) -> Result<BuiltStep, Failure> {
        self.built.fetch_add(1, Ordering::SeqCst);
        let description = StepDescription {
            kind: "toy",
            summary: String::new(),
            reads: vec!["x".to_owned()],
            effects: Effects::Once,
            cardinality: Cardinality::OneToOne,
            target: BatchTarget { rows: 1, bytes: 1 << 20, in_flight: 4 },
            connections: Vec::new(),
            fingerprint: FingerprintBuilder::new("toy", 1).finish(),
        };
        let (opened, at_once, most) = (self.opened.clone(), self.at_once.clone(), self.most.clone());
        let executor = Arc::new(Toy { description, opened, at_once, most });
        Ok(BuiltStep { executor, context: StepContext::new("", &step.step, &step.tenant) })
    }
}

struct Server {
    calls: Arc<Calls>,
    address: String,
    _serving: JoinSet<()>,
}

fn handshake(token: &str) -> Handshake {
    Handshake::new(Token::try_new(token).unwrap())
}

const TOKEN: &str = "a-token-of-the-tests-0123456789";

async fn server(builder: Builder) -> Server {
    let name = ExecutorName::try_new(&["io", "cpu"]).unwrap();
    let calls = Calls::new(name, 2, Some(Arc::new(builder)));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let service = CallsServer::new(Arc::new(Taker(Arc::clone(&calls))));
    let router = tonic::transport::Server::builder()
        .add_service(InterceptedService::new(service, handshake(TOKEN).guard(Right::Submit)));
    let mut serving = JoinSet::new();
    serving.spawn(async move { router.serve_with_incoming(TcpIncoming::from(listener)).await.unwrap() });
    Server { calls, address, _serving: serving }
}

async fn channel(server: &Server, handshake: Handshake) -> Channel {
    handshake.connect(&server.address, |endpoint| endpoint).await.unwrap()
}

fn open(class: &str) -> OpenStep {
    OpenStep {
        step: "toy".to_owned(),
        class: class.to_owned(),
        in_flight: 4,
        run: "run-1".to_owned(),
        input: write_schema(&schema()).unwrap(),
        output: write_schema(&schema()).unwrap(),
        ..OpenStep::default()
    }
}

/// A client by hand.
struct Client {
    asks: mpsc::UnboundedSender<ClientMessage>,
    tells: Streaming<ExecutorMessage>,
}

impl Client {
    async fn start(server: &Server, open: OpenStep) -> Client {
        let (asks, queue) = mpsc::unbounded_channel();
        asks.send(Ask::Open(open).into()).unwrap();
        let queue = futures::stream::unfold(queue, |mut queue| async move { Some((queue.recv().await?, queue)) });
        let tells = attempts(channel(server, handshake(TOKEN)).await, queue.boxed()).await.unwrap();
        Client { asks, tells }
    }

    /// What comes next, beats aside; `None` at the end of the stream.
    async fn next(&mut self) -> Option<Tell> {
        loop {
            let next = tokio::time::timeout(Duration::from_secs(20), self.tells.message()).await.unwrap();
            match next.unwrap()?.tell.unwrap() {
                Tell::Beat(_) => {}
                tell => return Some(tell),
            }
        }
    }

    fn send(&self, groups: &[(u64, &[i64])]) {
        let batches: Vec<RecordBatch> = groups
            .iter()
            .map(|(_, values)| {
                RecordBatch::try_new(schema(), vec![Arc::new(Int64Array::from(values.to_vec()))]).unwrap()
            })
            .collect();
        let head = |(id, values): &(u64, &[i64])| GroupHead {
            id: *id,
            rows: values.len() as u32,
            attempt: 1,
            ..GroupHead::default()
        };
        let message = Groups { heads: groups.iter().map(head).collect(), rows: pack(&schema(), &batches).unwrap() };
        self.asks.send(Ask::Groups(message).into()).unwrap();
    }

    async fn outcomes(&mut self, count: usize) -> Vec<OutcomeMessage> {
        let mut outcomes = Vec::new();
        while outcomes.len() < count {
            match self.next().await {
                Some(Tell::Results(results)) => outcomes.extend(results.outcomes),
                Some(Tell::Draining(_)) => {}
                other => panic!("{other:?}"),
            }
        }
        outcomes.sort_by_key(|outcome| outcome.id);
        outcomes
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_get_nothing() {
    let server = server(Builder::default()).await;
    let ask = || futures::stream::iter([ClientMessage::from(Ask::Open(open("io")))]);
    let wrong = channel(&server, handshake("another-token-0123456789abcdef")).await;
    assert_eq!(attempts(wrong, ask()).await.unwrap_err().code(), Code::Unauthenticated);
    let other = handshake(TOKEN).with_build(rowmill_wire::handshake::Build::named("99.0.0"));
    let other = channel(&server, other).await;
    assert_eq!(attempts(other, ask()).await.unwrap_err().code(), Code::FailedPrecondition);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_group_is_answered_once_and_steps_stay_warm() {
    let builder = Builder::default();
    let (built, opened) = (builder.built.clone(), builder.opened.clone());
    let server = server(builder).await;
    for run in ["run-1", "run-2"] {
        let mut client = Client::start(&server, OpenStep { run: run.to_owned(), ..open("io") }).await;
        assert!(matches!(client.next().await, Some(Tell::Opened(opened)) if opened.most == 4));
        client.send(&[(1, &[1, 2]), (2, &[7]), (3, &[13]), (4, &[])]);
        let first = client.outcomes(3).await;
        assert_eq!(
            first.iter().map(|outcome| (outcome.id, outcome.rows)).collect::<Vec<_>>(),
            [(1, 2), (2, 0), (4, 0)]
        );
        let failure = first[1].failure.clone().unwrap().into_failure(&Redactor::new());
        assert_eq!(
            (failure.code(), failure.how_far(), failure.is_lost()),
            (FailureCode::Rejected, Sent::Answered, false)
        );
        // It was begun, so it goes on when its run stops, until it is cancelled.
        client.asks.send(Ask::Cancel(Cancel { ids: vec![3], begun_go_on: true }).into()).unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(100), client.outcomes(1)).await.is_err());
        client.asks.send(Ask::Cancel(Cancel { ids: vec![3, 99], begun_go_on: false }).into()).unwrap();
        let cancelled = client.outcomes(1).await.remove(0).failure.unwrap().into_failure(&Redactor::new());
        assert_eq!((cancelled.code(), cancelled.how_far()), (FailureCode::Cancelled, Sent::Maybe));
    }
    assert_eq!(built.load(Ordering::SeqCst), 1, "the second run found the step warm");
    assert!(opened.load(Ordering::SeqCst) <= 4, "and its sessions");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_computes_is_bounded_by_slots_over_all_streams() {
    let builder = Builder::default();
    let most = builder.most.clone();
    let server = server(builder).await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = Client::start(&server, open("cpu")).await;
        assert!(matches!(client.next().await, Some(Tell::Opened(opened)) if opened.most == 2));
        client.send(&[(1, &[1]), (2, &[2])]);
        clients.push(client);
    }
    for client in &mut clients {
        client.outcomes(2).await;
    }
    assert!(most.load(Ordering::SeqCst) <= 2, "{most:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_out_of_step_lose_their_stream() {
    let server = server(Builder::default()).await;
    let mut client = Client::start(&server, open("gpu")).await;
    match client.next().await {
        Some(Tell::Refused(refused)) => assert!(refused.failure.unwrap().message.contains("class gpu")),
        other => panic!("{other:?}"),
    }
    let mut client = Client::start(&server, open("io")).await;
    client.next().await;
    client.send(&[(1, &[13]), (2, &[13]), (3, &[13]), (4, &[13]), (5, &[13])]);
    let ended = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            if let Err(status) = client.tells.message().await {
                return status;
            }
        }
    });
    assert_eq!(ended.await.unwrap().code(), Code::InvalidArgument, "more groups than it was told");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_executor_that_leaves_answers_what_it_has_and_hands_back_the_rest() {
    let server = server(Builder::default()).await;
    let mut client = Client::start(&server, open("io")).await;
    client.next().await;
    client.send(&[(1, &[1]), (2, &[13])]);
    server.calls.drain();
    let first = client.outcomes(1).await;
    assert_eq!(first[0].id, 1);
    let mut late = Client::start(&server, open("io")).await;
    assert!(matches!(late.next().await, Some(Tell::Refused(refused)) if refused.draining));
    drop(late);
    assert!(!server.calls.is_idle(), "somebody waits for an answer");
    let stopping = server.calls.stop();
    let rest = async {
        let rest = client.outcomes(1).await.remove(0).failure.unwrap().into_failure(&Redactor::new());
        // It may have been made: whoever sends it once does not send it again, others do.
        assert_eq!((rest.is_lost(), rest.is_retryable(), rest.how_far()), (true, true, Sent::Maybe));
        drop(client);
    };
    tokio::join!(stopping, rest);
    assert!(server.calls.is_idle() && server.calls.running() == 0);
}
