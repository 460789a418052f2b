//! Limits as steps use them: many tasks, real time.
#![allow(clippy::allow_attributes)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rowmill_limits::{Admission, BreakerSettings, BreakerState, ConnectionLimits, LimitRegistry, LimitSettings};
use rowmill_step::{CallCost, Failure, FailureCode, Sent};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

const ONE: CallCost = CallCost { requests: 1, tokens: 0 };

fn limits(settings: LimitSettings) -> ConnectionLimits {
    ConnectionLimits::new("service", settings).unwrap()
}

fn rate(requests_per_second: f64) -> LimitSettings {
    LimitSettings { requests_per_second: Some(requests_per_second), ..LimitSettings::default() }
}

fn slots(max_in_flight: usize) -> LimitSettings {
    LimitSettings { max_in_flight: Some(max_in_flight), ..LimitSettings::default() }
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn lost() -> Failure {
    Failure::fixed(FailureCode::Connect, "nobody there").sent(Sent::Never)
}

/// Waits until so many calls wait.
async fn until_waiting(limits: &ConnectionLimits, waiting: usize) {
    timeout(Duration::from_secs(20), async {
        while limits.state().waiting != waiting {
            sleep(ms(1)).await;
        }
    })
    .await
    .unwrap();
}

async fn soon(limits: &ConnectionLimits) -> Admission {
    timeout(Duration::from_secs(20), limits.admit(ONE)).await.expect("every wait ends")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cap_of_a_thousand_is_reached_and_never_passed() {
    for burst in [None, Some(1)] {
        let limits = limits(LimitSettings { burst, ..rate(1000.0) });
        let started = Instant::now();
        let left = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = JoinSet::new();
        for _ in 0..256 {
            let (limits, left) = (limits.clone(), left.clone());
            tasks.spawn(async move {
                while started.elapsed() < Duration::from_secs(3) {
                    let admission = limits.admit(ONE).await;
                    left.lock().push(started.elapsed());
                    sleep(ms(10)).await;
                    admission.finish(None);
                }
            });
        }
        tasks.join_all().await;
        let mut left = std::mem::take(&mut *left.lock());
        left.sort_unstable();
        let seconds = left.last().unwrap().as_secs_f64();
        let reached = left.len() as f64 / (seconds * 1000.0);
        let mut from = 0;
        let mut fullest = 0;
        for (index, at) in left.iter().enumerate() {
            while *at - left[from] >= Duration::from_secs(1) {
                from += 1;
            }
            fullest = fullest.max(index - from + 1);
        }
        println!("burst {burst:?}: {:.2}% of the cap, the fullest second saw {fullest}", reached * 100.0);
        assert!(reached >= 0.99, "{reached}");
        assert!(fullest as f64 <= 1010.0 + f64::from(burst.unwrap_or(10)), "{fullest}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_are_never_passed_and_all_calls_end() {
    let limits = limits(LimitSettings { requests_per_second: Some(50_000.0), ..slots(7) });
    let under_way = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..500 {
        let (limits, under_way) = (limits.clone(), under_way.clone());
        tasks.spawn(async move {
            let admission = soon(&limits).await;
            assert!(under_way.fetch_add(1, Ordering::SeqCst) < 7);
            sleep(ms(1)).await;
            under_way.fetch_sub(1, Ordering::SeqCst);
            admission.finish(None);
        });
    }
    tasks.join_all().await;
    assert_eq!(limits.state(), rowmill_limits::LimitState::default());
}

#[tokio::test]
async fn first_come_first_served() {
    let limits = limits(rate(2000.0));
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = JoinSet::new();
    for number in 0..100 {
        let (calling, order) = (limits.clone(), order.clone());
        tasks.spawn(async move {
            let _admission = calling.admit(ONE).await;
            order.lock().push(number);
        });
        tokio::task::yield_now().await;
    }
    tasks.join_all().await;
    let order = order.lock();
    assert!(order.is_sorted(), "{order:?}");
}

#[tokio::test]
async fn who_gives_up_gives_the_place_back() {
    let limits = limits(slots(1));
    let held = soon(&limits).await;
    let mut tasks = JoinSet::new();
    for _ in 0..50 {
        let limits = limits.clone();
        tasks.spawn(async move { drop(limits.admit(ONE).await) });
    }
    until_waiting(&limits, 50).await;
    tasks.shutdown().await;
    assert_eq!(limits.state().waiting, 0);
    // One that was let through, and given up before it noticed.
    let mut chosen = Box::pin(limits.admit(ONE));
    assert!(futures_now(&mut chosen).await.is_none());
    held.finish(None);
    assert_eq!(limits.state().in_flight, 1);
    drop(chosen);
    assert_eq!(limits.state().in_flight, 0);
    soon(&limits).await.finish(None);
}

/// Polls once.
async fn futures_now<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    let mut future = std::pin::Pin::new(future);
    std::future::poll_fn(|cx| {
        std::task::Poll::Ready(match future.as_mut().poll(cx) {
            std::task::Poll::Ready(value) => Some(value),
            std::task::Poll::Pending => None,
        })
    })
    .await
}

#[tokio::test]
async fn who_waits_and_is_not_polled_holds_up_only_itself() {
    let limits = limits(LimitSettings { burst: Some(1), ..rate(100.0) });
    let mut first = Box::pin(limits.admit(ONE));
    assert!(futures_now(&mut first).await.is_none());
    for _ in 0..5 {
        soon(&limits).await.finish(None);
    }
    first.await.finish(None);
}

#[test]
fn the_queue_survives_the_runtime_that_kept_its_time() {
    let limits = limits(LimitSettings { burst: Some(1), ..rate(10.0) });
    let short = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let long = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let head = limits.clone();
    short.spawn(async move { drop(head.admit(ONE).await) });
    let waiting = long.spawn(async move { soon(&limits).await.finish(None) });
    std::thread::sleep(ms(20));
    short.shutdown_background();
    long.block_on(waiting).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_breaker_makes_calls_wait_without_slots_and_one_finds_out() {
    let breaker = BreakerSettings { failures: 3, window: ms(10_000), cool_down: ms(150) };
    let limits = limits(LimitSettings { breaker: Some(breaker), ..slots(4) });
    for _ in 0..3 {
        soon(&limits).await.finish(Some(&lost()));
    }
    let opened = Instant::now();
    let BreakerState::Open { reason, .. } = limits.state().breaker else { panic!("it is open") };
    assert!(reason.contains("nobody there"));
    let calls = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = JoinSet::new();
    for _ in 0..20 {
        let (limits, calls) = (limits.clone(), calls.clone());
        tasks.spawn(async move {
            let admission = soon(&limits).await;
            calls.lock().push(opened.elapsed());
            sleep(ms(20)).await;
            // The first two find it still unwell.
            let unwell = calls.lock().len() <= 2;
            admission.finish(unwell.then(lost).as_ref());
        });
    }
    until_waiting(&limits, 20).await;
    assert_eq!(limits.state().in_flight, 0);
    tasks.join_all().await;
    let calls = calls.lock();
    assert_eq!(limits.state().breaker, BreakerState::Closed);
    assert!(calls[0] >= ms(140) && calls[1] >= calls[0] + ms(150) && calls[2] >= calls[1] + ms(150), "{calls:?}");
    assert!(calls[3] >= calls[2] + ms(20), "nobody went before the third had found out: {calls:?}");
}

#[tokio::test]
async fn an_answer_that_asks_for_a_wait_holds_the_others() {
    let limits = limits(LimitSettings { pause_on_retry_after: true, ..slots(9) });
    let busy = Failure::fixed(FailureCode::RateLimited, "busy").sent(Sent::Refused).retry_after(Some(ms(200)));
    soon(&limits).await.finish(Some(&busy));
    let paused = Instant::now();
    assert!(limits.state().paused_for.unwrap() > ms(100));
    assert!(limits.try_admit(ONE).is_none());
    soon(&limits).await.finish(None);
    assert!(paused.elapsed() >= ms(190));
}

#[tokio::test]
async fn tokens_of_large_calls_hold_on_average() {
    let limits = limits(LimitSettings { tokens_per_minute: Some(60_000.0), ..LimitSettings::default() });
    let started = Instant::now();
    for _ in 0..4 {
        // Larger than the bucket: it leaves when the bucket is full, and the next one waits until it is paid for.
        limits.admit(CallCost { requests: 1, tokens: 800 }).await.finish(None);
    }
    let took = started.elapsed();
    assert!(took >= ms(2990) && took < ms(4000), "{took:?}");
}

#[tokio::test]
async fn steps_share_by_tenant_and_name() {
    let registry = LimitRegistry::default();
    let (a, b) = (registry.get("t", "api", &slots(1)).unwrap(), registry.get("t", "api", &slots(1)).unwrap());
    let other = registry.get("u", "api", &slots(1)).unwrap();
    let held = a.try_admit(ONE).unwrap();
    assert!(b.try_admit(ONE).is_none() && other.try_admit(ONE).is_some());
    let states = registry.states();
    assert_eq!(states.iter().map(|(tenant, ..)| &**tenant).collect::<Vec<_>>(), ["t", "u"]);
    assert_eq!((states[0].2.in_flight, states[1].2.in_flight), (1, 0));
    held.finish(None);
    assert!(b.try_admit(ONE).is_some());
    let changed = registry.get("t", "api", &slots(2)).unwrap();
    assert_eq!(changed.settings(), &slots(2));
    let wrong = registry.get("t", "api", &slots(0)).unwrap_err();
    assert!(wrong.to_string().contains("`api`") && wrong.to_string().contains("max_in_flight"));
    assert_eq!(registry.get("t", "api", &slots(2)).unwrap().settings(), &slots(2));
}
