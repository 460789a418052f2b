//! The examples run, on the data that comes with them.

use crate::support::{Scratch, checkout};

fn copy_flights(scratch: &Scratch) {
    for entry in std::fs::read_dir(checkout().join("examples/flights")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::create_dir_all(scratch.path("flights")).unwrap();
            std::fs::copy(&path, scratch.path("flights").join(path.file_name().unwrap())).unwrap();
        }
    }
}

#[test]
fn flights_in_yaml_and_in_sql_agree() {
    let scratch = Scratch::new();
    copy_flights(&scratch);
    scratch.rowmill(&["check", "flights/flights.yaml"]).ok();
    scratch.rowmill(&["run", "flights/flights.yaml", "--preview"]).ok();
    let from_yaml = scratch.names("flights/out");
    assert!(!from_yaml.is_empty());
    scratch.rowmill(&["run", "flights/flights.sql"]).ok();
    let reports = ["worst_carriers.csv", "delays_by_weather.csv"];
    for name in reports {
        assert!(from_yaml.iter().any(|other| other == name), "{from_yaml:?}");
        let read = |folder: &str| std::fs::read_to_string(scratch.path(&format!("flights/{folder}/{name}"))).unwrap();
        assert_eq!(read("out"), read("out/sql"), "{name}");
    }
}
