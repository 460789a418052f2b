//! Snapshots of `rowmill explain`: the graph, the stages and the physical plans, in every form.

use crate::support::{Scratch, checkout};

/// `explain` in one form, on two threads, with what varies between machines taken out.
fn explained(scratch: &Scratch, path: &str, format: &str) -> String {
    let arguments = ["explain", path, "--format", format, "--threads", "2", "--option", "execution.partitions=2"];
    let text = scratch.rowmill(&arguments).ok().out;
    let places = [scratch.path("").canonicalize().unwrap(), scratch.path(""), checkout()];
    let mut text = text;
    for place in places {
        let place = place.display().to_string();
        text = text.replace(place.trim_end_matches('/').trim_start_matches('/'), "PLACE");
    }
    text
}

/// Three steps in one query, and one in a class of its own.
const CHAIN: &str = "rowmill: 1
name: chain
params:
  least: {type: int64, default: 10}
sources:
  orders: {path: orders.csv}
steps:
  kept: {sql: \"SELECT customer, amount FROM orders WHERE amount > $least\"}
  doubled: {sql: \"SELECT customer, amount * 2 AS amount FROM kept\"}
  totals:
    sql: SELECT customer, sum(amount) AS total FROM doubled GROUP BY customer
    resources: {class: memory}
  unused: {sql: SELECT 1 AS one}
sinks:
  out: {from: totals, path: out/totals.parquet}
";

/// One step that two others read, which a last one joins; a sink in folders.
const DIAMOND: &str = "rowmill: 1
name: diamond
sources:
  numbers: {range: {start: 0, end: 1000}}
steps:
  base: {sql: \"SELECT value, value % 7 AS k FROM numbers\"}
  low: {sql: \"SELECT k, min(value) AS low FROM base GROUP BY k\"}
  high: {sql: \"SELECT k, max(value) AS high FROM base GROUP BY k\"}
  both: {sql: \"SELECT low.k, low, high FROM low JOIN high ON low.k = high.k\"}
sinks:
  both: {from: both, path: out/both/, format: csv, partition_by: [k]}
  base: {from: base, path: out/base.arrow}
";

fn scratch() -> Scratch {
    let scratch = Scratch::new();
    scratch.write("orders.csv", "customer,amount\nada,12.5\ngrace,7\n");
    scratch.write("chain.yaml", CHAIN);
    scratch.write("diamond.yaml", DIAMOND);
    scratch
}

#[test]
fn text_shows_stages_and_plans() {
    let scratch = scratch();
    insta::assert_snapshot!("chain_text", explained(&scratch, "chain.yaml", "text"));
    insta::assert_snapshot!("diamond_text", explained(&scratch, "diamond.yaml", "text"));
    let flights = checkout().join("examples/flights/flights.yaml");
    insta::assert_snapshot!("flights_text", explained(&scratch, flights.to_str().unwrap(), "text"));
}

#[test]
fn graphs_hold_every_node_and_edge() {
    let scratch = scratch();
    for format in ["mermaid", "dot"] {
        insta::assert_snapshot!(format!("chain_{format}"), explained(&scratch, "chain.yaml", format));
        insta::assert_snapshot!(format!("diamond_{format}"), explained(&scratch, "diamond.yaml", format));
    }
    // Names that are one identifier once their special characters are gone, and a word that Mermaid keeps.
    scratch.write(
        "names.yaml",
        "rowmill: 1\nname: names\nsources:\n  n: {range: {start: 0, end: 3}}\nsteps:\n  end: {sql: SELECT value FROM n}\n  sink_end: {sql: SELECT value FROM end}\nsinks:\n  end: {from: sink_end, path: o.csv}\n",
    );
    insta::assert_snapshot!("names_mermaid", explained(&scratch, "names.yaml", "mermaid"));
}

#[test]
fn json_is_for_machines() {
    let scratch = scratch();
    insta::assert_snapshot!("diamond_json", explained(&scratch, "diamond.yaml", "json"));
}
