//! Every file of testdata/slt on a cluster, with the rows and the errors that it expects of this process alone
//! (`engine/session/tests/slt.rs`).

#[path = "../../engine/session/tests/slt/runner.rs"]
mod runner;

use std::sync::Arc;
use std::time::Duration;

use rowmill::{Session, SessionOptions, StoreOptions};
use rowmill_cluster::{Cluster, Options};
use rowmill_wire::handshake::{Handshake, TenantName, Token};

use crate::cluster::Cluster as Processes;

#[tokio::test(flavor = "multi_thread")]
async fn every_file() {
    let processes = Processes::start("cpu=1,io=1");
    let cluster = Cluster::try_new(Options {
        schedulers: vec![processes.record()["address"].as_str().unwrap().to_owned()],
        handshake: Handshake::new(Token::try_new(&processes.token()).unwrap()),
        queue: "default".to_owned(),
        tenant: TenantName::default(),
        partitions: 2,
        stores: StoreOptions::default(),
        patience: Duration::from_secs(20),
        routing: rowmill_cluster::Routing::RoundRobin,
    });
    let cluster = cluster.unwrap();
    let options = SessionOptions { elsewhere: Some(Arc::new(cluster.clone())), ..SessionOptions::default() };
    let session = Session::try_new(options).unwrap();
    for file in runner::files() {
        let before = cluster.finished_jobs();
        runner::run(&session, &file, "cluster").await;
        let jobs = cluster.finished_jobs() - before;
        // What there is to see: a file whose queries all ran here would show nothing about a cluster.
        println!("{}: {jobs} jobs on the cluster", file.display());
        assert!(jobs > 0, "no query of {} went to the cluster", file.display());
    }
}
