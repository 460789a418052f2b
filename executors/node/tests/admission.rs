//! Queues, quotas and fair shares, with clients that speak to the scheduler as `rowmill run --cluster` does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ballista_core::extension::SessionConfigHelperExt as _;
use datafusion::execution::context::SessionContext;
use datafusion_proto::physical_plan::AsExecutionPlan as _;
use datafusion_proto::protobuf::PhysicalPlanNode;
use rowmill_scheduler::{AdmissionOptions, Options, QueueOptions, QuotaOptions, Scheduler};
use rowmill_wire::codec::RowmillCodec;
use rowmill_wire::handshake::{Handshake, Submitter, Token};
use rowmill_wire::jobs::{self, Event, Progress, RefusedFor, Setting, SubmitRequest};
use tonic::Streaming;
use tonic::transport::Channel;

use crate::support::{Process, handshake, options, session};

const LIMIT: Duration = Duration::from_secs(60);
const TINY: &str = "select count(*) from nation where n_nationkey > 3";

fn with(queues: &[(&str, QueueOptions)], quotas: &[(&str, QuotaOptions)]) -> Options {
    let admission = AdmissionOptions {
        queues: queues.iter().map(|(name, queue)| ((*name).into(), queue.clone())).collect(),
        quotas: quotas.iter().map(|(name, quota)| ((*name).to_owned(), quota.clone())).collect(),
        ..AdmissionOptions::default()
    };
    Options { admission, ..options() }
}

fn one_at_a_time() -> QueueOptions {
    QueueOptions { max_running: Some(1), ..QueueOptions::default() }
}

async fn channel(scheduler: &Scheduler, handshake: &Handshake) -> Channel {
    handshake.connect(&scheduler.address().to_string(), |endpoint| endpoint).await.unwrap()
}

pub(crate) async fn request(context: &Arc<SessionContext>, sql: &str, queue: &str, class: &str) -> SubmitRequest {
    let plan = context.sql(sql).await.unwrap().create_physical_plan().await.unwrap();
    let encoded = PhysicalPlanNode::try_from_physical_plan(plan, RowmillCodec::shared().as_ref()).unwrap();
    let mut bytes = Vec::new();
    encoded.try_encode(&mut bytes).unwrap();
    let pairs = context.copied_config().to_key_value_pairs();
    let settings = pairs.into_iter().filter_map(|pair| Some(Setting { key: pair.key, value: pair.value? })).collect();
    SubmitRequest {
        name: sql.to_owned(),
        plan: bytes,
        settings,
        class: class.to_owned(),
        slots: 1,
        queue: queue.to_owned(),
        ..SubmitRequest::default()
    }
}

/// The next event that is more than a sign of life; with the stream, which is the client's hold on its job.
pub(crate) async fn next(progress: &mut Streaming<Progress>) -> Event {
    loop {
        let message = tokio::time::timeout(LIMIT, progress.message()).await.expect("in time").unwrap();
        match message.expect("the stream goes on").event {
            Some(Event::Beat(_) | Event::Waiting(_)) | None => {}
            Some(event) => return event,
        }
    }
}

async fn finished(progress: &mut Streaming<Progress>) {
    loop {
        match next(progress).await {
            Event::Accepted(_) => {}
            Event::Finished(_) => return,
            other => panic!("{other:?}"),
        }
    }
}

async fn queue(channel: &Channel, name: &str) -> jobs::QueueState {
    let status = jobs::status(channel.clone()).await.unwrap();
    status.queues.into_iter().find(|queue| queue.name == name).unwrap()
}

async fn until(channel: &Channel, name: &str, fits: impl Fn(&jobs::QueueState) -> bool) {
    let began = Instant::now();
    loop {
        let state = queue(channel, name).await;
        if fits(&state) {
            return;
        }
        assert!(began.elapsed() < LIMIT, "{state:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_jobs_of_a_queue_run_than_it_may_have() {
    let scheduler = Scheduler::start(with(&[("batch", one_at_a_time())], &[])).await.unwrap();
    let _executor = Process::start(&scheduler, &["cpu", "io"]);
    let (context, channel) = (session().await, channel(&scheduler, &handshake()).await);
    // Nobody serves its class: it runs until its client goes.
    let stuck = request(&context, TINY, "batch", "nobody").await;
    let mut holder = jobs::submit(channel.clone(), stuck).await.unwrap();
    assert!(matches!(next(&mut holder).await, Event::Accepted(_)));
    let mut waiting = Vec::new();
    for _ in 0..3 {
        let tiny = request(&context, TINY, "batch", "cpu").await;
        waiting.push(jobs::submit(channel.clone(), tiny).await.unwrap());
    }
    until(&channel, "batch", |queue| queue.waiting == 3 && queue.running == 1).await;
    // Another queue goes on beside it.
    let other = request(&context, TINY, "", "cpu").await;
    finished(&mut jobs::submit(channel.clone(), other).await.unwrap()).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(queue(&channel, "batch").await.waiting, 3);
    // The client goes, and with it its place; the others follow one by one.
    drop(holder);
    let watching = async {
        let mut most = 0;
        loop {
            let state = queue(&channel, "batch").await;
            most = most.max(state.running);
            if state.running + state.waiting == 0 {
                return most;
            }
        }
    };
    let ending = futures::future::join_all(waiting.iter_mut().map(finished));
    let (most, _) = tokio::time::timeout(LIMIT, futures::future::join(watching, ending)).await.unwrap();
    assert_eq!(most, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_dies_frees_its_place() {
    let scheduler = Scheduler::start(with(&[("batch", one_at_a_time())], &[])).await.unwrap();
    let _executor = Process::start(&scheduler, &["cpu", "io"]);
    let (context, own) = (session().await, channel(&scheduler, &handshake()).await);
    // Its runtime goes as its process would: the connection is cut, and nothing is said.
    let (address, stuck) = (scheduler.address().to_string(), request(&context, TINY, "batch", "nobody").await);
    let (told, accepted) = std::sync::mpsc::channel();
    let client = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let channel = handshake().connect(&address, |endpoint| endpoint).await.unwrap();
            let mut holder = jobs::submit(channel, stuck).await.unwrap();
            assert!(matches!(next(&mut holder).await, Event::Accepted(_)));
            told.send(()).unwrap();
            std::mem::forget(holder);
        });
        runtime.shutdown_background();
    });
    tokio::task::block_in_place(|| accepted.recv().unwrap());
    client.join().unwrap();
    let tiny = request(&context, TINY, "batch", "cpu").await;
    finished(&mut jobs::submit(own.clone(), tiny).await.unwrap()).await;
    until(&own, "batch", |queue| queue.waiting + queue.running == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_high_queue_goes_first() {
    let high = QueueOptions { priority: 5, ..QueueOptions::default() };
    let quota = QuotaOptions { jobs: Some(1), ..QuotaOptions::default() };
    let scheduler = Scheduler::start(with(&[("high", high)], &[("*", quota)])).await.unwrap();
    let _executor = Process::start(&scheduler, &["cpu", "io"]);
    let (context, channel) = (session().await, channel(&scheduler, &handshake()).await);
    let stuck = request(&context, TINY, "", "nobody").await;
    let mut holder = jobs::submit(channel.clone(), stuck).await.unwrap();
    assert!(matches!(next(&mut holder).await, Event::Accepted(_)));
    let low = request(&context, TINY, "", "cpu").await;
    let mut low = jobs::submit(channel.clone(), low).await.unwrap();
    until(&channel, "default", |queue| queue.waiting == 1).await;
    let high = request(&context, TINY, "high", "cpu").await;
    let mut high = jobs::submit(channel.clone(), high).await.unwrap();
    until(&channel, "high", |queue| queue.waiting == 1).await;
    drop(holder);
    let low = async {
        assert!(matches!(next(&mut low).await, Event::Accepted(_)));
        let began = Instant::now();
        finished(&mut low).await;
        began
    };
    let high = async {
        assert!(matches!(next(&mut high).await, Event::Accepted(_)));
        let began = Instant::now();
        finished(&mut high).await;
        began
    };
    let (low, high) = tokio::join!(low, high);
    assert!(high < low, "the high queue began first");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_says_so_at_once_and_loses_nothing() {
    let small = QueueOptions { max_queued: 2, ..one_at_a_time() };
    let scheduler = Scheduler::start(with(&[("small", small)], &[])).await.unwrap();
    let _executor = Process::start(&scheduler, &["cpu", "io"]);
    let (context, channel) = (session().await, channel(&scheduler, &handshake()).await);
    let stuck = request(&context, TINY, "small", "nobody").await;
    let mut holder = jobs::submit(channel.clone(), stuck).await.unwrap();
    assert!(matches!(next(&mut holder).await, Event::Accepted(_)));
    let tiny = request(&context, TINY, "small", "cpu").await;
    let mut kept = Vec::new();
    for _ in 0..2 {
        kept.push(jobs::submit(channel.clone(), tiny.clone()).await.unwrap());
    }
    let began = Instant::now();
    let mut one_more = jobs::submit(channel.clone(), tiny).await.unwrap();
    match next(&mut one_more).await {
        Event::Refused(refused) => {
            assert_eq!(refused.kind(), RefusedFor::Full);
            assert!(refused.reason.contains("`small`"), "{refused:?}");
        }
        other => panic!("{other:?}"),
    }
    assert!(began.elapsed() < Duration::from_secs(1));
    let unknown = request(&context, TINY, "nightly", "cpu").await;
    match next(&mut jobs::submit(channel.clone(), unknown).await.unwrap()).await {
        Event::Refused(refused) => assert_eq!(refused.kind(), RefusedFor::Never, "{refused:?}"),
        other => panic!("{other:?}"),
    }
    drop(holder);
    for progress in &mut kept {
        finished(progress).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_too_long_is_told_why() {
    let queue = QueueOptions { timeout: Duration::from_millis(700), ..one_at_a_time() };
    let scheduler = Scheduler::start(with(&[("batch", queue)], &[])).await.unwrap();
    let (context, channel) = (session().await, channel(&scheduler, &handshake()).await);
    let stuck = request(&context, TINY, "batch", "cpu").await;
    let mut holder = jobs::submit(channel.clone(), stuck.clone()).await.unwrap();
    assert!(matches!(next(&mut holder).await, Event::Accepted(_)));
    let began = Instant::now();
    let mut late = jobs::submit(channel.clone(), stuck).await.unwrap();
    match next(&mut late).await {
        Event::Refused(refused) => {
            assert_eq!(refused.kind(), RefusedFor::Late);
            assert!(refused.reason.contains("`batch`") && refused.reason.contains("class cpu"), "{refused:?}");
        }
        other => panic!("{other:?}"),
    }
    let waited = began.elapsed();
    assert!(waited > Duration::from_millis(600) && waited < Duration::from_secs(5), "{waited:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_submissions_at_once_and_none_is_lost() {
    let scheduler = Scheduler::start(with(&[], &[])).await.unwrap();
    let _executors = [Process::start(&scheduler, &["cpu", "io"]), Process::start(&scheduler, &["cpu", "io"])];
    let context = session().await;
    let tiny = request(&context, TINY, "", "cpu").await;
    // A few connections, as several clients have.
    let mut channels = Vec::new();
    for _ in 0..8 {
        channels.push(channel(&scheduler, &handshake()).await);
    }
    let began = Instant::now();
    let all = (0..1_000).map(|number| {
        let (channel, tiny) = (channels[number % channels.len()].clone(), tiny.clone());
        async move {
            let mut progress = jobs::submit(channel, tiny).await.unwrap();
            finished(&mut progress).await;
        }
    });
    tokio::time::timeout(Duration::from_secs(180), futures::future::join_all(all)).await.expect("none is lost");
    println!("1,000 tiny jobs at once: {} ms", began.elapsed().as_millis());
    let state = queue(&channels[0], "default").await;
    assert_eq!((state.waiting, state.running), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_submits_for_whom_it_was_given_to() {
    let token = "a-token-that-submits-0123456789";
    let submitters = Submitter::read(&format!("{token} acme/data")).unwrap();
    let quotas = BTreeMap::from([("acme/data".to_owned(), QuotaOptions { jobs: Some(1), ..QuotaOptions::default() })]);
    let admission = AdmissionOptions { quotas, ..AdmissionOptions::default() };
    let own = handshake().with_submitters(submitters);
    let scheduler = Scheduler::start(Options { handshake: own, admission, ..options() }).await.unwrap();
    let context = session().await;
    let channel = channel(&scheduler, &Handshake::new(Token::try_new(token).unwrap())).await;
    let plain = request(&context, TINY, "", "nobody").await;
    let other = SubmitRequest { organisation: "globex".to_owned(), ..plain.clone() };
    match next(&mut jobs::submit(channel.clone(), other).await.unwrap()).await {
        Event::Refused(refused) => assert!(refused.reason.contains("acme/data"), "{refused:?}"),
        other => panic!("{other:?}"),
    }
    let mut first = jobs::submit(channel.clone(), plain.clone()).await.unwrap();
    assert!(matches!(next(&mut first).await, Event::Accepted(_)));
    let _second = jobs::submit(channel.clone(), plain).await.unwrap();
    until(&channel, "default", |queue| queue.waiting == 1 && queue.running == 1).await;
    let status = jobs::status(channel).await.unwrap();
    let tenants: Vec<(&str, u64)> = status.tenants.iter().map(|own| (own.name.as_str(), own.jobs)).collect();
    assert_eq!(tenants, [("acme/data", 1)]);
}

/// What one large job holds of the cluster it does not keep from small ones that come later.
#[tokio::test(flavor = "multi_thread")]
async fn small_jobs_pass_a_large_one() {
    let scheduler = Scheduler::start(with(&[], &[])).await.unwrap();
    let _executor = Process::start(&scheduler, &["cpu", "io"]);
    let context = session().await;
    let channel = channel(&scheduler, &handshake()).await;
    // Many partitions, each of some length.
    let large = "select sum(l_quantity * n_nationkey * r_regionkey) from lineitem cross join nation cross join region";
    let sql = (0..40).map(|_| large).collect::<Vec<_>>().join(" union all ");
    let large = request(&context, &sql, "", "cpu").await;
    let mut progress = jobs::submit(channel.clone(), large).await.unwrap();
    let large = async {
        finished(&mut progress).await;
        Instant::now()
    };
    let small = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        for _ in 0..5 {
            let tiny = request(&context, TINY, "", "cpu").await;
            finished(&mut jobs::submit(channel.clone(), tiny).await.unwrap()).await;
        }
        Instant::now()
    };
    let (large, small) = tokio::join!(large, small);
    assert!(small < large, "small jobs waited for the whole of a large one");
}
