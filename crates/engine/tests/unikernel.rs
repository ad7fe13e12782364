//! Containers whose image is a unikernel: what is accepted, what is refused and with which words.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{Daemon, Host, UNIKERNEL};
use serde_json::{Value, json};
use shoal_engine::error::EngineError;
use shoal_engine::request::{CreateOptions, ExecCreate};
use shoal_model::fault::Fault;
use shoal_model::spec::container::Words;

async fn create(daemon: &Daemon, name: &str, more: Value) -> Result<String, EngineError> {
    let mut body = more;
    body["Image"] = json!(UNIKERNEL);
    let options = CreateOptions { name: Some(name.into()), ..CreateOptions::default() };
    let body = serde_json::from_value(body).unwrap();
    daemon.engine.create(body, options).await.map(|created| created.id)
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_with_what_serves_instead() {
    let host = Host::new();
    let daemon = host.open().await;
    for (number, (wish, says)) in [
        (json!({"Tty": true}), "docker logs -f"),
        (json!({"Entrypoint": ["sh"]}), "arguments only"),
        (json!({"Healthcheck": {"Test": ["CMD-SHELL", "true"]}}), "shoal.health.tcp=PORT"),
        (json!({"HostConfig": {"Binds": ["/tmp:/www"]}}), "readonly"),
        (json!({"HostConfig": {"NetworkMode": "host"}}), "--publish"),
        // No container can have it either; for a unikernel it is said what serves instead.
        (json!({"HostConfig": {"Devices": [{"PathOnHost": "/dev/kvm"}]}}), "target /dev/NAME"),
    ]
    .into_iter()
    .enumerate()
    {
        let error = create(&daemon, &format!("u{number}"), wish).await.unwrap_err();
        assert_eq!(error.id().unwrap().0, "SH-ENG-007", "{error}");
        assert!(error.to_string().contains(says), "{error}");
    }
    let id = create(
        &daemon,
        "web",
        json!({"Cmd": ["--root", "/www"], "Labels": {"shoal.health.http": "/"},
            "HostConfig": {"Binds": ["/tmp:/www:ro", "data:/dev/data"], "Memory": 32 << 20}}),
    )
    .await
    .unwrap();
    let exec =
        ExecCreate { cmd: Some(Words::List(vec!["sh".to_owned()])), ..ExecCreate::default() };
    let engine = &daemon.engine;
    let refused = [
        engine.exec_create(&id, exec).await.unwrap_err(),
        engine.top(&id, None).await.unwrap_err(),
        engine.archive_stat(&id, "/").await.unwrap_err(),
        engine.fs_changes(&id).await.unwrap_err(),
        engine.kill(&id, Some("SIGUSR1")).await.unwrap_err(),
    ];
    for error in refused {
        assert_eq!(error.id().unwrap().0, "SH-ENG-007", "{error}");
        assert!(error.to_string().contains("; use "), "{error}");
    }
    assert_eq!(daemon.phase(&id).await, "created");
    daemon.close().await;
}

#[tokio::test]
async fn an_image_that_is_none_is_named() {
    let host = Host::new();
    let daemon = host.open().await;
    let id = create(&daemon, "broken", json!({})).await.unwrap();
    let error = daemon.engine.start(&id).await.unwrap_err();
    assert_eq!(error.id().unwrap().0, "SH-ENG-008", "{error}");
    let said = daemon.engine.inspect(&id, false).await.unwrap().state.error;
    assert!(said.contains(UNIKERNEL), "{said}");
    // What the start had made is taken back.
    assert!(host.notes.take().iter().any(|note| note == "detach"));
    daemon.close().await;
}
