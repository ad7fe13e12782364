//! What SPEC.md says of images: each bound is met from both sides where that is cheap.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{Bench, Layer, docker_archive};
use shoal_image::progress::Progress;
use shoal_image::store::PullRequest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn layers_are_counted() {
    let layers: Vec<Vec<u8>> =
        (0..96).map(|n| Layer::new().file(&format!("f{n}"), "x").done()).collect();
    let bench = Bench::new();
    bench.load(docker_archive("most:1", &layers[..95])).await.unwrap();
    let error = bench.load(docker_archive("more:1", &layers)).await.unwrap_err();
    assert_eq!(error.to_string(), "the image has 96 layers, at most 95 can be mounted");
}

#[tokio::test]
async fn documents_are_not_read_without_end() {
    let manifest = br#"[{"Config":"config.json","RepoTags":["a:1"],"Layers":[]}]"#;
    let archive = Layer::new()
        .bytes("config.json", &vec![b' '; 8 * 1024 * 1024 + 1])
        .bytes("manifest.json", manifest)
        .done();
    let error = Bench::new().load(archive).await.unwrap_err().to_string();
    assert!(error.contains("'config.json' has more than 8388608 bytes"), "{error}");
}

#[tokio::test]
async fn an_index_has_a_bound() {
    let entry = serde_json::json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 1,
        "digest": format!("sha256:{}", "0".repeat(64)),
    });
    let index = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": vec![entry; 1001],
    });
    let archive = Layer::new().bytes("index.json", &serde_json::to_vec(&index).unwrap()).done();
    let error = Bench::new().load(archive).await.unwrap_err().to_string();
    assert!(error.contains("more than 1000 entries"), "{error}");
}

#[tokio::test]
async fn redirects_are_counted() {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&asked);
    let task = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = vec![0; 4096];
            let count = stream.read(&mut head).await.unwrap_or(0);
            if !head[..count].starts_with(b"GET ") {
                continue;
            }
            let turn = seen.fetch_add(1, Ordering::Relaxed);
            let answer = format!(
                "HTTP/1.1 302 Found\r\nLocation: /{turn}\r\nContent-Length: 0\r\n\
                 Connection: close\r\n\r\n"
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let request =
        PullRequest { reference: format!("127.0.0.1:{port}/a:1"), ..PullRequest::default() };
    let error = Bench::new().store.pull(request, Progress::none()).await.unwrap_err();
    task.abort();
    let report = shoal_model::fault::report(&error);
    assert!(report.contains("more than 5 redirects"), "{report}");
    assert_eq!(asked.load(Ordering::Relaxed), 5);
}
