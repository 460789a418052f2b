//! Queries made up at random, by seeds that stay the same: with the rule and without it they give the same rows.
use rowmill_gpu_plan::GpuContext;

use crate::data::Random;
use crate::emulator;
use crate::lowering::expression;
use crate::support::{always, assert_same, count, plans, rows, session, text};

const KEYS: &[&str] = &[
    "i8",
    "i16",
    "i32",
    "i64",
    "u8",
    "u16",
    "u32",
    "u64",
    "bool",
    "boolb",
    "date",
    "time",
    "money",
    "rate",
    "huge",
    "f64",
    "f32",
    "id",
    "i64 % 5",
    "CASE WHEN bool THEN i8 END",
    "i32 > 3",
    "date < DATE '1960-01-01'",
];

const COLUMNS: &[&str] = &["i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64", "money", "rate", "i64b", "id", "i32b"];

/// How many queries of each kind are tried; `GPU_RANDOM_QUERIES` asks for more, `GPU_RANDOM_SEED` for others.
fn seeds() -> std::ops::Range<u64> {
    let number = |name: &str, usual: u64| std::env::var(name).map_or(usual, |value| value.parse().unwrap());
    let (from, count) = (number("GPU_RANDOM_SEED", 1), number("GPU_RANDOM_QUERIES", 8));
    from..from + count
}

fn pick(random: &mut Random, from: &[&str]) -> String {
    from[random.below(from.len())].to_owned()
}

fn condition(random: &mut Random) -> String {
    match random.below(3) {
        0 => String::new(),
        _ => {
            let depth = 1 + random.below(2);
            format!(" WHERE {}", expression(random, "bool", depth))
        }
    }
}

fn aggregate(random: &mut Random, at: usize, grouped: bool) -> String {
    let column = pick(random, COLUMNS);
    let call = match random.below(11) {
        0 => "count(*)".to_owned(),
        1 => format!("count({})", pick(random, KEYS)),
        2 | 3 => format!("sum({column})"),
        4 => format!("sum({column} + {column})"),
        5 => format!("min({column})"),
        6 => format!("max({})", pick(random, &["date", "time", "bool", "money", "u64"])),
        7 => format!("avg({})", pick(random, &["money", "rate"])),
        8 if !grouped => format!("{}({})", pick(random, &["min", "max"]), pick(random, &["f64", "f32", "huge"])),
        8 => "sum(huge)".to_owned(),
        // Few of these columns have no NaN; what matters is that the sum is there.
        9 => {
            return format!(
                "{}(CASE WHEN f64 > -9 AND f64 < 9 THEN f64 END) AS about{at}",
                pick(random, &["sum", "avg"])
            );
        }
        _ => return format!("avg({}) AS about{at}", pick(random, &["i64", "u32", "i8"])),
    };
    let filter = if random.chance(20) { " FILTER (WHERE boolb)" } else { "" };
    format!("{call}{filter} AS a{at}")
}

fn aggregation(random: &mut Random) -> (String, &'static str) {
    let keys: Vec<String> = (0..random.below(4)).map(|_| pick(random, KEYS)).collect();
    let aggregates = (0..1 + random.below(4)).map(|at| aggregate(random, at, !keys.is_empty()));
    let named = keys.iter().enumerate().map(|(at, key)| format!("{key} AS k{at}"));
    let aggregates: Vec<String> = aggregates.collect();
    let select: Vec<String> = named.chain(aggregates).collect();
    let group = if keys.is_empty() { String::new() } else { format!(" GROUP BY {}", keys.join(", ")) };
    let node = if keys.is_empty() { "GpuFilterAggregateExec" } else { "GpuGroupByExec" };
    (format!("SELECT {} FROM t{}{group}", select.join(", "), condition(random)), node)
}

fn join(random: &mut Random) -> (String, &'static str) {
    let columns = ["i8", "i16", "bool", "date", "money", "huge", "i32", "u64", "time", "u8"];
    let on: Vec<String> = (0..1 + random.below(2))
        .map(|_| pick(random, &columns))
        .map(|column| format!("t.{column} = u.{column}"))
        .collect();
    let on = on.join(" AND ");
    let word = "arrow_cast(u.i8, 'Utf8') AS word";
    let sql = match random.below(6) {
        0 => format!("SELECT t.id, u.id AS other, {word}, u.f64 FROM t JOIN u ON {on}"),
        1 => format!("SELECT u.id AS other, t.id, t.bool, {word} FROM t LEFT JOIN u ON {on}"),
        2 => format!("SELECT t.id, {word}, u.money FROM t RIGHT JOIN u ON {on}"),
        3 => format!("SELECT id, i64 FROM t WHERE EXISTS (SELECT 1 FROM u WHERE {on})"),
        4 => format!("SELECT id, money FROM t WHERE NOT EXISTS (SELECT 1 FROM u WHERE {on})"),
        _ => format!("SELECT {word}, u.id FROM u WHERE EXISTS (SELECT 1 FROM t WHERE {on})"),
    };
    (sql, "GpuJoinExec")
}

fn sort(random: &mut Random) -> (String, &'static str) {
    let mut keys: Vec<String> = (0..1 + random.below(3))
        .map(|_| {
            let order = pick(random, &["", " DESC", " NULLS FIRST", " DESC NULLS LAST"]);
            format!("{}{order}", pick(random, KEYS))
        })
        .collect();
    keys.push("id".into());
    (
        format!("SELECT *, arrow_cast(i64, 'Utf8') AS word FROM t{} ORDER BY {}", condition(random), keys.join(", ")),
        "GpuSortExec",
    )
}

fn run(make: fn(&mut Random) -> (String, &'static str)) {
    let _alone = emulator::alone();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let gpu = GpuContext::new(always());
        let mut done = 0;
        for seed in seeds() {
            let random = &mut Random::new(seed);
            let (sql, node) = make(random);
            for (size, partitions) in [(0, 1), (1, 2), (33, 1), (1025, 1), (1300, 3)] {
                let context = session(size, partitions, seed + size as u64);
                // Some of what is made up is no SQL: decimals that are too wide, constants that divide by zero.
                let planned = match context.sql(&sql).await {
                    Ok(frame) => frame.create_physical_plan().await.is_ok(),
                    Err(_) => false,
                };
                if !planned {
                    continue;
                }
                let (plan, taken) = plans(&context, &gpu, &sql).await;
                // A condition that is false for certain leaves nothing to do.
                if text(&plan).contains("EmptyExec") || text(&plan).contains("PlaceholderRowExec") {
                    continue;
                }
                let what = format!("seed {seed}: {sql} over {size} rows in {partitions}");
                assert!(text(&taken.plan).contains(node), "{what}: {:#?}\n{}", taken.notes, text(&plan));
                // What fails on the CPU may go well on the device, which computes less; never the other way round.
                let Ok(expected) = rows(&context, &plan).await else { continue };
                let found = rows(&context, &taken.plan).await.unwrap_or_else(|error| panic!("{what}: {error}"));
                match node {
                    // `id` is not unique, but then whole rows are compared as bags.
                    "GpuSortExec" if size > 0 => {
                        let keys = crate::support::sorted_columns(&plan);
                        let (left, right) = (expected.project(&keys).unwrap(), found.project(&keys).unwrap());
                        crate::data::assert_equal(&left, &right, &what);
                    }
                    _ => {}
                }
                assert_same(&expected, &found, &what);
                let seen = count(&taken.plan, "gpu_rows") + count(&taken.plan, "cpu_rows");
                assert!(seen > 0 || expected.num_rows() <= 1, "{what}");
                done += 1;
            }
        }
        assert!(done > 0);
    });
}

#[test]
fn random_aggregates() {
    run(aggregation);
}

#[test]
fn random_joins() {
    run(join);
}

#[test]
fn random_sorts() {
    run(sort);
}
