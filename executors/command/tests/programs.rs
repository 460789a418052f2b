//! Programs that answer, crash, hang, talk nonsense and flood.

use std::time::{Duration, Instant};

use rowmill_step::conformance::Options;
use rowmill_step::{Cardinality, Effects, FailureCode, Outcome, Sent};
use rowmill_step_command::{CommandOptions, CommandStep};

use crate::support::{DOUBLE, context, doubled, numbers, options, python, run, run_with, shell};

#[tokio::test]
async fn answers_errors_and_skips() {
    let program = python(
        r#"
def handle(item):
    if item["n"] == 3: raise ValueError("three \x1b[31mis bad")
    if item["n"] == 4: raise Skip()
    if item["n"] == 5: return {"doubled": "text"}
    if item["n"] == 6: return 7
    return {"doubled": item["n"] * 2}
"#,
    );
    let driven = run(options(&program), numbers(1..=8)).await;
    assert_eq!(doubled(&driven), [Some(2), Some(4), Some(14), Some(16)]);
    assert_eq!(driven.outcomes.get(Outcome::Skipped), 1);
    let failures: Vec<_> = driven.failures.iter().map(|(row, f)| (*row, f.code(), f.how_far())).collect();
    let answered = |row, code| (row, code, Sent::Answered);
    assert_eq!(
        failures,
        [answered(2, FailureCode::Rejected), answered(4, FailureCode::Decode), answered(5, FailureCode::Decode)]
    );
    assert_eq!(driven.failures[0].1.message(), "three \\u{1b}[31mis bad");
}

#[tokio::test]
async fn a_crash_is_the_failure_of_the_item_that_caused_it() {
    let program = python(
        r#"
def handle(item):
    if item["n"] == 3:
        print("about to die of three", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    if item["n"] == 6: os._exit(7)
    return {"doubled": item["n"] * 2}
"#,
    );
    for effects in [Effects::Idempotent, Effects::Once] {
        let driven = run(CommandOptions { effects, ..options(&program) }, numbers(0..10)).await;
        let rows: Vec<_> = driven.failures.iter().map(|(row, f)| (*row, f.code())).collect();
        assert_eq!(rows, [(3, FailureCode::Crashed), (6, FailureCode::Crashed)]);
        let first = &driven.failures[0].1;
        assert!(first.message().contains("signal 11") && first.message().contains("about to die"), "{first}");
        assert!(first.fields().iter().any(|(name, text)| *name == "stderr" && text.contains("of three")));
        assert!(driven.failures[1].1.message().contains("status 7"), "{}", driven.failures[1].1);
        assert_eq!((driven.outcomes.get(Outcome::Ok), driven.attempts), (8, 1));
        let outcome = if effects == Effects::Once { Outcome::Unknown } else { Outcome::Failed };
        assert_eq!(driven.outcomes.get(outcome), 2);
    }
}

#[tokio::test]
async fn a_program_that_cannot_work_is_not_started_for_every_item() {
    let driven = run(shell("echo broken >&2; exit 1"), numbers(0..1000)).await;
    assert_eq!(driven.failures.len(), 1000);
    let tried = driven.failures.iter().filter(|(_, f)| f.how_far() == Sent::Maybe).count();
    assert_eq!(tried, 5);
    assert!(driven.failures[0].1.message().contains("broken"), "{}", driven.failures[0].1);
    assert!(driven.failures[999].1.message().contains("again and again"));
}

#[tokio::test]
async fn a_hanging_item_fails_at_its_timeout_and_the_rest_goes_on() {
    let program = python(
        r#"
def handle(item):
    if item["n"] == 2: time.sleep(600)
    return {"doubled": item["n"] * 2}
"#,
    );
    let started = Instant::now();
    let slow = CommandOptions { item_timeout: Some(Duration::from_secs(2)), ..options(&program) };
    let driven = run(slow, numbers(0..6)).await;
    assert_eq!(
        driven.failures.iter().map(|(row, f)| (*row, f.code())).collect::<Vec<_>>(),
        [(2, FailureCode::Timeout)]
    );
    assert_eq!(driven.outcomes.get(Outcome::Ok), 5);
    assert!(started.elapsed() < Duration::from_secs(20));
    // The group's deadline ends the group; what was answered before stays answered.
    let how = Options { timeout: Some(Duration::from_secs(2)), ..Options::default() };
    let driven = run_with(options(&program), numbers(0..6), &how).await;
    assert_eq!(doubled(&driven), [Some(0), Some(2)]);
    let ends: Vec<_> = driven.failures.iter().map(|(_, f)| (f.code(), f.how_far())).collect();
    let late = |sent| (FailureCode::Timeout, sent);
    assert_eq!(ends, [late(Sent::Maybe), late(Sent::Never), late(Sent::Never), late(Sent::Never)]);
}

#[tokio::test]
async fn nonsense_is_the_items_failure_and_ends_the_process() {
    let cases = [
        ("print('debugging', flush=True)", FailureCode::Decode),
        ("print('{\"id\": 999, \"ok\": {}}', flush=True)", FailureCode::Decode),
        ("print('{\"id\": 0, \"ok\": {}, \"error\": \"x\"}', flush=True)", FailureCode::Decode),
        ("print('x' * 100000, flush=True)", FailureCode::TooLarge),
        ("sys.stdout.write('x' * 100000); sys.stdout.flush(); time.sleep(600)", FailureCode::TooLarge),
    ];
    for (nonsense, code) in cases {
        let program = python(&format!(
            "def handle(item):\n    if item['n'] == 1: {nonsense}\n    return {{'doubled': item['n'] * 2}}"
        ));
        let small = CommandOptions { max_answer_bytes: 4096, ..options(&program) };
        let driven = run(small, numbers(0..4)).await;
        let failures: Vec<_> = driven.failures.iter().map(|(row, f)| (*row, f.code())).collect();
        assert_eq!(failures, [(1, code)], "{nonsense}: {:?}", driven.failures);
        assert_eq!(doubled(&driven), [Some(0), Some(4), Some(6)], "{nonsense}");
    }
}

#[tokio::test]
async fn a_flood_of_lines_and_of_errors_hurts_nobody() {
    // Two answers for one item: the answer stands, the process goes.
    let twice = r#"while read line; do printf '{"id":0,"ok":{"doubled":1}}\n{"id":0,"ok":{"doubled":1}}\n'; done"#;
    let one_by_one = CommandOptions { effects: Effects::Once, ..shell(twice) };
    let driven = run(one_by_one, numbers(0..3)).await;
    assert_eq!(doubled(&driven), [Some(1); 3], "{:?}", driven.failures);
    // A megabyte on standard error while working: nobody blocks, only its end is kept.
    let program = python(
        "def handle(item):\n    sys.stderr.write('e' * 1000000 + 'the end'); sys.stderr.flush()\n    if item['n'] == 2: os._exit(1)\n    return {'doubled': 0}",
    );
    let driven = run(options(&program), numbers(0..4)).await;
    let failure = &driven.failures[0].1;
    assert_eq!(driven.failures.len(), 1);
    assert!(failure.message().len() < 5000 && failure.fields()[0].1.len() < 5000);
}

#[tokio::test]
async fn fan_out() {
    let program = python(
        "def handle(item):\n    if item['n'] == 2: raise ValueError('no')\n    return [{'doubled': item['n'] * 10 + k} for k in range(item['n'])]",
    );
    let fan = CommandOptions { cardinality: Cardinality::FanOut, ..options(&program) };
    let driven = run(fan, numbers(0..4)).await;
    assert_eq!(doubled(&driven), [10, 30, 31, 32].map(Some));
    assert_eq!(driven.sources, [1, 3, 3, 3]);
    assert_eq!(driven.failures.len(), 1);
}

#[tokio::test]
async fn one_process_serves_many_groups() {
    let program = python("seen = 0\ndef handle(item):\n    global seen; seen += 1\n    return {'doubled': seen}");
    let how = Options { group_rows: Some(3), ..Options::default() };
    let driven = run_with(options(&program), numbers(0..30), &how).await;
    assert_eq!(doubled(&driven), (1..=30).map(Some).collect::<Vec<_>>());
    assert_eq!(driven.attempts, 10);
}

#[tokio::test]
async fn wrong_options_and_missing_programs_are_named() {
    let wrong = |change: &dyn Fn(&mut CommandOptions)| {
        let mut options = options(DOUBLE);
        change(&mut options);
        CommandStep::try_new(options).unwrap_err().option
    };
    assert_eq!(wrong(&|o| o.argv.clear()), "argv");
    assert_eq!(wrong(&|o| o.argv.push("a\0b".to_owned())), "argv");
    assert_eq!(wrong(&|o| o.pass_env.push("A=B".to_owned())), "env");
    assert_eq!(wrong(&|o| drop(o.env.insert("PATH".to_owned(), "x".to_owned()))), "env");
    assert_eq!(wrong(&|o| o.target.in_flight = 0), "target");
    assert_eq!(wrong(&|o| o.item_timeout = Some(Duration::ZERO)), "item_timeout");
    let missing = CommandOptions { argv: vec!["no-such-program-here".to_owned()], ..options("") };
    let driven = run(missing, numbers(0..2)).await;
    let failure = &driven.failures[0].1;
    assert_eq!((failure.code(), failure.how_far(), driven.attempts), (FailureCode::Setup, Sent::Never, 1));
    assert!(failure.message().contains("no-such-program-here"));
    let _ = context();
}
