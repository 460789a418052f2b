//! Every file of testdata/slt in this process. `cli/tests/slt.rs` runs them on a cluster.

mod runner;

use rowmill::{Session, SessionOptions};

#[tokio::test(flavor = "multi_thread")]
async fn every_file() {
    let session = Session::try_new(SessionOptions::default()).unwrap();
    for file in runner::files() {
        runner::run(&session, &file, "here").await;
    }
}
