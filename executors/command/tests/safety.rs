//! Environment, limits, and who dies with whom.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rowmill_step::conformance::Options;
use rowmill_step::{FailureCode, ItemBatch, ItemIds, ItemKeys, SecretRef, StepExecutor, StepShape};
use rowmill_step_command::{CommandStep, Limits};

use crate::support::{context, doubled, numbers, options, output, python, run, run_with, shell};

#[tokio::test]
async fn the_environment_is_empty_but_for_what_is_allowed() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "c4nary-secret-value\n").unwrap();
    let program = python(
        r#"
def handle(item):
    if item["n"] == 1: raise ValueError("I have " + os.environ["TOKEN"])
    if item["n"] == 2:
        print(os.environ["TOKEN"], file=sys.stderr, flush=True); os._exit(1)
    known = {"PATH", "HOME", "MODE", "TOKEN", "LC_CTYPE", "PWD", "SHLVL", "_", "OLDPWD"}
    extra = [name for name in os.environ if name not in known and "PYENV" not in name]
    if extra: raise ValueError("extra: " + repr(extra))
    return {"doubled": (os.environ["MODE"] == "fast") * 10 + (os.environ["TOKEN"][:3] == "c4n")}
"#,
    );
    let mut options = options(&program);
    options.env.insert("MODE".to_owned(), "fast".to_owned());
    options.secret_env.insert("TOKEN".to_owned(), SecretRef::File(file.path().to_string_lossy().into_owned()));
    assert!(std::env::vars().count() > 4, "there is something to hand on");
    let driven = run(options, numbers(0..4)).await;
    assert_eq!(doubled(&driven), [Some(11), Some(11)], "{:?}", driven.failures);
    let text = format!("{:?}", driven.failures);
    assert!(text.contains("I have ***") && !text.contains("c4nary"), "{text}");
}

#[tokio::test]
async fn no_shell_looks_at_the_arguments() {
    let program = python("def handle(item):\n    return {'doubled': int(sys.argv[1] == '$(touch /tmp/evil); `id` *')}");
    let mut options = options(&program);
    options.argv.push("$(touch /tmp/evil); `id` *".to_owned());
    assert_eq!(doubled(&run(options, numbers(0..1)).await), [Some(1)]);
}

#[tokio::test]
async fn limits_hold() {
    let directory = tempfile::tempdir().unwrap();
    let program = python(
        r#"
def handle(item):
    n = item["n"]
    if n == 1: data = bytearray(1 << 30)
    if n == 2:
        files = [open("/dev/null") for _ in range(100)]
    if n == 3:
        with open("big", "wb") as file: file.write(b"x" * (2 << 20))
    if n == 4:
        while True: pass
    return {"doubled": n}
"#,
    );
    let limits =
        Limits { memory_bytes: Some(512 << 20), cpu_seconds: Some(2), open_files: Some(50), file_bytes: Some(1 << 20) };
    let mut options = options(&program);
    options.limits = limits;
    options.working_directory = Some(directory.path().to_owned());
    let driven = run(options, numbers(0..6)).await;
    let failures: Vec<_> = driven.failures.iter().map(|(row, f)| (*row, f.code())).collect();
    assert_eq!(failures, [1, 2, 3, 4].map(|row| (row, FailureCode::Crashed)), "{:?}", driven.failures);
    for (index, word) in [(0, "MemoryError"), (1, "Too many open files"), (2, "File too large"), (3, "signal 9")] {
        let failure = &driven.failures[index].1;
        assert!(format!("{failure:?}").contains(word), "{word}: {failure}");
    }
    assert!(std::fs::metadata(directory.path().join("big")).unwrap().len() <= 1 << 20);
}

fn alive(pid: i32) -> bool {
    // A zombie is dead.
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap().trim_start().starts_with('Z'))
}

fn wait_until_dead(pids: &[i32]) {
    let started = Instant::now();
    while pids.iter().any(|pid| alive(*pid)) {
        assert!(started.elapsed() < Duration::from_secs(10), "still alive: {pids:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn pids(path: &std::path::Path, count: usize) -> Vec<i32> {
    let started = Instant::now();
    loop {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let pids: Vec<i32> = text.lines().filter_map(|line| line.parse().ok()).collect();
        if pids.len() >= count && text.ends_with('\n') {
            return pids;
        }
        assert!(started.elapsed() < Duration::from_secs(20), "the program starts");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn children_of_the_program_die_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pids");
    // The program starts a child that ignores hangups and outlives it, then hangs, or dies.
    let script = format!(
        "(trap '' HUP TERM; exec sleep 1000) & echo $! >> {0}; echo $$ >> {0}; read line; {{}}",
        path.display()
    );
    for (end, code) in [("sleep 1000", FailureCode::Cancelled), ("exit 3", FailureCode::Crashed)] {
        let _ = std::fs::remove_file(&path);
        let how = Options { cancel: tokio_util::sync::CancellationToken::new(), ..Options::default() };
        let cancel = how.cancel.clone();
        let cancelling = code == FailureCode::Cancelled;
        let seen = path.clone();
        let watcher = tokio::task::spawn_blocking(move || {
            let pids = pids(&seen, 2);
            if cancelling {
                assert!(pids.iter().all(|pid| alive(*pid)), "they run");
                cancel.cancel();
            }
            pids
        });
        let driven = run_with(shell(&script.replace("{}", end)), numbers(0..1), &how).await;
        assert_eq!(driven.failures[0].1.code(), code, "{:?}", driven.failures);
        let pids = watcher.await.unwrap();
        tokio::task::spawn_blocking(move || wait_until_dead(&pids)).await.unwrap();
    }
}

/// The helper: opens a session, whose program writes its pid to the file named in the environment, and sleeps.
#[test]
#[ignore = "runs only as the child of `the_program_dies_with_a_killed_parent`"]
fn helper_that_gets_killed() {
    let Ok(path) = std::env::var("ROWMILL_TEST_PIDS") else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let step = CommandStep::try_new(shell(&format!("echo $$ >> {path}; while true; do sleep 1; done"))).unwrap();
        let shape = StepShape { input: numbers(0..1).schema(), output: output() };
        let context = context();
        let mut session = step.open(&context, &shape).await.unwrap();
        println!("\nopen");
        let keys = ItemKeys::new(ItemIds::Range { file: 0, rows: 0..1 }, std::sync::Arc::new(context.keys()));
        let batch = ItemBatch {
            columns: numbers(0..1),
            keys,
            attempt: 1,
            deadline: None,
            stop: context.cancel.clone(),
            cancel: context.cancel.clone(),
            place: None,
        };
        let _ = session.execute(batch).await;
    });
}

#[test]
fn the_program_dies_with_a_killed_parent() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pids");
    let mut parent = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "safety::helper_that_gets_killed", "--ignored", "--nocapture"])
        .env("ROWMILL_TEST_PIDS", &path)
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(parent.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "open"), "the session opens");
    let pids = pids(&path, 1);
    // Threads of the runtime come and go meanwhile; the program must not go with one of them.
    std::thread::sleep(Duration::from_millis(300));
    assert!(alive(pids[0]), "the program runs as long as its parent does");
    parent.kill().unwrap();
    parent.wait().unwrap();
    wait_until_dead(&pids);
}
