//! Tests of the decisions on a simulated clock.

use proptest::prelude::*;

use std::time::SystemTime;

use super::*;
use crate::BreakerSettings;

const ONE: CallCost = CallCost { requests: 1, tokens: 0 };

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn go(core: &mut Core, now: Instant) -> Pass {
    match core.try_admit(now, ONE) {
        Decision::Go(pass) => pass,
        other => panic!("the call may leave, not {other:?}"),
    }
}

fn timeout() -> Failure {
    Failure::fixed(FailureCode::Timeout, "late")
}

fn with_breaker() -> Core {
    let breaker = BreakerSettings { failures: 3, window: ms(1000), cool_down: ms(500) };
    Core::new(&LimitSettings { breaker: Some(breaker), ..LimitSettings::default() }, Instant::now())
}

#[test]
fn slots_are_counted_and_come_back() {
    let now = Instant::now();
    let mut core = Core::new(&LimitSettings { max_in_flight: Some(2), ..LimitSettings::default() }, now);
    let (first, second) = (go(&mut core, now), go(&mut core, now));
    assert_eq!(core.try_admit(now, ONE), Decision::WhenOneEnds);
    core.end(first, None, now);
    let third = go(&mut core, now);
    assert_eq!(core.try_admit(now, ONE), Decision::WhenOneEnds);
    core.abandon(second, now);
    core.undo(third, ONE, now);
    assert_eq!(core.in_flight(), 0);
}

#[test]
fn a_call_that_never_left_gives_its_tokens_back() {
    let start = Instant::now();
    let settings = LimitSettings {
        requests_per_second: Some(10.0),
        tokens_per_minute: Some(6000.0),
        burst: Some(1),
        ..LimitSettings::default()
    };
    let mut core = Core::new(&settings, start);
    let cost = CallCost { requests: 1, tokens: 50 };
    let later = start + ms(500);
    // 50 tokens at 100 a second: not before half a second, though the request could have left after 100 ms.
    assert!(matches!(core.try_admit(start + ms(490), cost), Decision::At(_)));
    let Decision::Go(pass) = core.try_admit(later, cost) else { panic!("50 tokens are there") };
    assert!(matches!(core.try_admit(later, cost), Decision::At(_)));
    core.undo(pass, cost, later);
    assert!(matches!(core.try_admit(later, cost), Decision::Go(_)));
}

#[test]
fn a_breaker_opens_lets_one_through_and_closes() {
    let mut core = with_breaker();
    let start = Instant::now();
    let stale = go(&mut core, start);
    for at in [0, 100, 200] {
        let pass = go(&mut core, start + ms(at));
        core.end(pass, Some(&timeout()), start + ms(at));
    }
    let opened = start + ms(200);
    let BreakerState::Open { reason, since } = core.breaker(opened) else { panic!("it is open") };
    assert!(reason.contains("timeout") && since <= SystemTime::now(), "{reason}");
    assert_eq!(core.try_admit(opened, ONE), Decision::At(opened + ms(500)));
    // A call that left before it opened neither closes nor keeps it open.
    core.end(stale, None, opened);
    assert_eq!(core.try_admit(opened + ms(1), ONE), Decision::At(opened + ms(500)));
    let half = opened + ms(500);
    assert!(matches!(core.breaker(half), BreakerState::HalfOpen { .. }));
    let probe = go(&mut core, half);
    assert_eq!(core.try_admit(half, ONE), Decision::At(half + ms(500)), "one at a time");
    core.end(probe, Some(&timeout()), half + ms(10));
    assert_eq!(core.try_admit(half + ms(10), ONE), Decision::At(half + ms(510)), "open again");
    let probe = go(&mut core, half + ms(510));
    core.abandon(probe, half + ms(520));
    let probe = go(&mut core, half + ms(520));
    // The service answered: 404 is the item's fault.
    let missing = Failure::fixed(FailureCode::NotFound, "none").status(404).sent(Sent::Answered);
    core.end(probe, Some(&missing), half + ms(530));
    assert_eq!(core.breaker(half + ms(530)), BreakerState::Closed);
    for _ in 0..10 {
        go(&mut core, half + ms(530));
    }
}

#[test]
fn a_probe_that_never_ends_blocks_nobody() {
    let mut core = with_breaker();
    let start = Instant::now();
    let passes = [go(&mut core, start), go(&mut core, start), go(&mut core, start)];
    for pass in passes {
        core.end(pass, Some(&timeout()), start);
    }
    let _lost = go(&mut core, start + ms(500));
    let second = go(&mut core, start + ms(1000));
    core.end(second, None, start + ms(1001));
    assert_eq!(core.breaker(start + ms(1001)), BreakerState::Closed);
}

#[test]
fn failures_far_apart_and_those_of_items_do_not_open_it() {
    let mut core = with_breaker();
    let start = Instant::now();
    for nth in 0..20u64 {
        let pass = go(&mut core, start + ms(nth * 501));
        core.end(pass, Some(&timeout()), start + ms(nth * 501));
        let pass = go(&mut core, start + ms(nth * 501));
        let limited = Failure::fixed(FailureCode::RateLimited, "slow down").status(429).sent(Sent::Refused);
        core.end(pass, Some(&limited), start + ms(nth * 501));
        let pass = go(&mut core, start + ms(nth * 501));
        core.end(pass, Some(&Failure::fixed(FailureCode::BadInput, "no").sent(Sent::Never)), start + ms(nth * 501));
    }
    assert_eq!(core.breaker(start + ms(99_999)), BreakerState::Closed);
}

#[test]
fn statuses_of_500_count_against_the_connection() {
    let mut core = with_breaker();
    let now = Instant::now();
    for _ in 0..3 {
        let pass = go(&mut core, now);
        core.end(pass, Some(&Failure::fixed(FailureCode::Status, "busy").status(503)), now);
    }
    assert!(matches!(core.breaker(now), BreakerState::Open { .. }));
}

#[test]
fn a_wait_that_was_asked_for_pauses_the_connection_only_where_that_is_set() {
    let now = Instant::now();
    let limited = |seconds| {
        let wait = Some(Duration::from_secs(seconds));
        Failure::fixed(FailureCode::RateLimited, "slow down").sent(Sent::Refused).retry_after(wait)
    };
    for pause_on_retry_after in [false, true] {
        let settings = LimitSettings { pause_on_retry_after, max_in_flight: Some(9), ..LimitSettings::default() };
        let mut core = Core::new(&settings, now);
        let passes = [go(&mut core, now), go(&mut core, now)];
        core.end(passes[0], Some(&limited(60)), now);
        core.end(passes[1], Some(&limited(1)), now);
        let expected =
            if pause_on_retry_after { Decision::At(now + ms(60_000)) } else { Decision::Go(Pass::default()) };
        assert_eq!(core.try_admit(now, ONE), expected);
        assert_eq!(core.paused_for(now).is_some(), pause_on_retry_after);
        let pass = go(&mut core, now + ms(60_000));
        core.end(pass, Some(&limited(u64::MAX)), now + ms(60_000));
        assert!(matches!(core.try_admit(now + ms(60_000) + MAX_PAUSE, ONE), Decision::Go(_)), "every wait ends");
    }
}

/// Drives a queue that is never empty: sleeps until it is told, wakes as late as `lateness` says, idles as `idle` says.
/// Returns when calls left, in seconds from the start.
fn drive(settings: &LimitSettings, lateness_us: &[u64], idle_ms: &[u64], seconds: f64) -> Vec<f64> {
    let start = Instant::now();
    let mut core = Core::new(settings, start);
    let mut now = start;
    let mut left = Vec::new();
    let (mut late, mut idle) = (lateness_us.iter().cycle(), idle_ms.iter().cycle());
    while (now - start).as_secs_f64() < seconds {
        match core.try_admit(now, ONE) {
            Decision::Go(pass) => {
                left.push((now - start).as_secs_f64());
                core.end(pass, None, now);
                if left.len().is_multiple_of(1000) {
                    now += ms(*idle.next().unwrap());
                }
            }
            Decision::At(at) => {
                // As tokio's timer: rounded up to whole milliseconds, and then some.
                let micros = u64::try_from((at - start).as_micros()).unwrap().next_multiple_of(1000);
                now = (start + Duration::from_micros(micros + late.next().unwrap())).max(now + Duration::from_nanos(1));
            }
            Decision::WhenOneEnds => panic!("slots are not limited"),
        }
    }
    left
}

/// The most calls in any window of one second.
fn fullest_second(left: &[f64]) -> usize {
    let mut from = 0;
    let mut most = 0;
    for (index, at) in left.iter().enumerate() {
        while at - left[from] >= 1.0 {
            from += 1;
        }
        most = most.max(index - from + 1);
    }
    most
}

proptest! {
    #[test]
    fn no_second_sees_more_than_the_cap_and_the_burst(
        rate in 0.5f64..20_000.0,
        burst in proptest::option::of(1u32..200),
        late in proptest::collection::vec(0u64..200_000, 1..20),
        idle in proptest::collection::vec(0u64..3_000, 1..5),
    ) {
        let settings = LimitSettings { requests_per_second: Some(rate), burst, ..LimitSettings::default() };
        let left = drive(&settings, &late, &idle, 5.0);
        let burst = burst.map_or((rate / 100.0).ceil().max(1.0), f64::from);
        prop_assert!(fullest_second(&left) as f64 <= rate * 1.01 + burst, "{}", fullest_second(&left));
    }

    #[test]
    fn nearly_all_of_the_cap_is_reached_when_timers_are_a_little_late(
        rate in 1.0f64..20_000.0,
        burst in proptest::option::of(1u32..200),
        late in proptest::collection::vec(0u64..3_500, 1..20),
    ) {
        let settings = LimitSettings { requests_per_second: Some(rate), burst, ..LimitSettings::default() };
        let left = drive(&settings, &late, &[0], 10.0);
        // One call less for the bucket that starts empty.
        prop_assert!(left.len() as f64 >= rate * 10.0 * 0.995 - 1.0, "{} of {}", left.len(), rate * 10.0);
    }
}
