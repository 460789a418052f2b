//! Pools, TLS, HTTP/2 and proxies.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrow::array::AsArray;
use arrow::datatypes::{DataType, Int64Type};
use rowmill_step::{FailureCode, Sent};
use rowmill_step_http::{HttpOptions, ResponseColumn};
use serde_json::json;
use tokio_rustls::rustls;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::server::{Server, json as reply};
use crate::support::{base, context, failure, run, texts};

fn get() -> HttpOptions {
    HttpOptions {
        response: vec![ResponseColumn::json("v", "/v", DataType::Int64)],
        ..HttpOptions::new("api", "GET", "/{x}")
    }
}

#[tokio::test]
async fn one_slot_keeps_one_connection() {
    let server = Server::start(|_| reply(200, &json!({"v": 1}))).await;
    let values: Vec<String> = (0..100).map(|n| n.to_string()).collect();
    let values: Vec<_> = values.iter().map(|v| Some(v.as_str())).collect();
    let options = HttpOptions { in_flight: 1, ..get() };
    let driven = run(options, &context(base(&server.url())), texts(&values)).await;
    assert_eq!((driven.output.num_rows(), driven.most_in_flight), (100, 1));
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
    assert_eq!(driven.calls, 100);
}

fn testdata(name: &str) -> String {
    format!("{}/testdata/{name}", env!("CARGO_MANIFEST_DIR"))
}

async fn tls_server(certificate: &str) -> Server {
    let certificates =
        CertificateDer::pem_file_iter(testdata(&format!("{certificate}.pem"))).unwrap().map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_file(testdata(&format!("{certificate}.key"))).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .unwrap();
    Server::start_with(|_| reply(200, &json!({"v": 1})), Some(tokio_rustls::TlsAcceptor::from(Arc::new(config)))).await
}

#[tokio::test]
async fn only_good_certificates_are_taken() {
    for (certificate, good) in [("good", true), ("expired", false), ("wronghost", false), ("selfsigned", false)] {
        let server = tls_server(certificate).await;
        let mut settings = base(&format!("https://localhost:{}", server.port));
        settings["tls"] = json!({"ca_file": testdata("ca.pem")});
        let context = context(settings.clone());
        if good {
            assert!(run(get(), &context, texts(&[Some("1")])).await.failures.is_empty());
            continue;
        }
        let failure = failure(get(), &context).await;
        assert_eq!(
            (failure.code(), failure.how_far()),
            (FailureCode::Connect, Sent::Never),
            "{certificate}: {failure}"
        );
        assert!(!failure.is_retryable() && failure.message().contains("certificate"), "{certificate}: {failure}");
        assert_eq!(server.requests().len(), 0, "{certificate}: no request, so no credentials, went out");
        settings["tls"] = json!({"danger_accept_any_certificate": true});
        let driven = run(get(), &crate::support::context(settings), texts(&[Some("1")])).await;
        assert!(driven.failures.is_empty(), "{certificate}: turned off loudly");
    }
}

#[tokio::test]
async fn http2_by_prior_knowledge() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move {
        let mut open = tokio::task::JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            open.spawn(async move {
                let service = hyper::service::service_fn(|request: hyper::Request<hyper::body::Incoming>| async move {
                    assert_eq!(request.version(), hyper::Version::HTTP_2);
                    let body = http_body_util::Full::new(bytes::Bytes::from_static(b"{\"v\": 2}"));
                    Ok::<_, std::convert::Infallible>(hyper::Response::new(body))
                });
                let io = hyper_util::rt::TokioIo::new(stream);
                let _ = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new())
                    .serve_connection(io, service)
                    .await;
            });
        }
    });
    let mut settings = base(&format!("http://127.0.0.1:{port}"));
    settings["http_version"] = json!("http2");
    let driven = run(get(), &context(settings), texts(&[Some("a"), Some("b"), Some("c")])).await;
    assert!(driven.failures.is_empty(), "{:?}", driven.failures);
    assert_eq!(driven.output.column(0).as_primitive::<Int64Type>().values(), &[2, 2, 2]);
}

#[tokio::test]
async fn a_proxy_gets_the_request_and_its_own_credentials() {
    let proxy = Server::start(|_| reply(200, &json!({"v": 3}))).await;
    let path = std::env::temp_dir().join(format!("rowmill-http-proxy-{}", std::process::id()));
    std::fs::write(&path, "me:pr0xy-secret").unwrap();
    let mut settings = base("http://service.example/v1");
    settings["proxy"] = json!(proxy.url());
    settings["proxy_auth"] = json!(format!("file:{}", path.display()));
    let driven = run(get(), &context(settings), texts(&[Some("a")])).await;
    assert!(driven.failures.is_empty(), "{:?}", driven.failures);
    let seen = proxy.requests();
    assert_eq!(seen[0].target, "http://service.example/v1/a");
    assert!(seen[0].header("proxy-authorization").unwrap().starts_with("Basic "));
}
