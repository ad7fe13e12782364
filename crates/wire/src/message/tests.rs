#![allow(clippy::unwrap_used, clippy::expect_used)]

use proptest::prelude::*;

use super::*;

fn hello() -> Hello {
    Hello {
        version: PROTOCOL_VERSION,
        oldest: Some(OLDEST_VERSION),
        node_id: "n1".into(),
        description: NodeDescription { hostname: "host".into(), ..Default::default() },
        advertise_addr: Some(IpAddr::from([10, 0, 0, 1])),
        data_path_addr: None,
        revision: Some(Revision(7)),
        previous_session: None,
    }
}

#[test]
fn messages_read_back_as_written() {
    let line = LogLine { time: Timestamp(1), source: LogSource::Stdout, line: vec![0, 255] };
    for message in [
        NodeMessage::Hello(Box::new(hello())),
        NodeMessage::Heartbeat(Heartbeat { number: 3 }),
        NodeMessage::LogChunk(LogChunk { stream: 1, lines: vec![line] }),
        NodeMessage::Leave(Leave {}),
        NodeMessage::BackSoon(BackSoon { within_s: 30 }),
        NodeMessage::AttachmentSet(AttachmentSet { tasks: vec!["t1".into()] }),
    ] {
        let json = serde_json::to_string(&message).unwrap();
        assert_eq!(serde_json::from_str::<NodeMessage>(&json).unwrap(), message, "{json}");
    }
    let bye =
        ManagerMessage::Bye(Bye { reason: ByeReason::Removed, message: "x".into(), leader: None });
    let json = serde_json::to_string(&bye).unwrap();
    assert_eq!(json, r#"{"type":"bye","body":{"reason":"removed","message":"x"}}"#);
    let all = ManagerMessage::Converged(AckRevision { revision: Revision(9) });
    for message in [bye, all] {
        let json = serde_json::to_string(&message).unwrap();
        assert_eq!(serde_json::from_str::<ManagerMessage>(&json).unwrap(), message, "{json}");
    }
}

#[test]
fn what_a_later_version_adds_is_ignored() {
    let mut json = serde_json::to_value(NodeMessage::Hello(Box::new(hello()))).unwrap();
    json["body"]["moods"] = serde_json::json!(["good", {"a": 1}]);
    json["extra"] = serde_json::json!(5);
    let read: NodeMessage = serde_json::from_value(json).unwrap();
    assert_eq!(read, NodeMessage::Hello(Box::new(hello())));
    let swapped = r#"{"body":{"number":4},"type":"heartbeat"}"#;
    assert_eq!(
        serde_json::from_str::<NodeMessage>(swapped).unwrap(),
        NodeMessage::Heartbeat(Heartbeat { number: 4 })
    );
    for broken in [
        r#"{"type":"detach","body":{}}"#,
        r#"{"type":"detach"}"#,
        r#"{"body":{}}"#,
        r#"{"type":"heartbeat","body":{"number":"x"}}"#,
        "[]",
    ] {
        assert!(serde_json::from_str::<NodeMessage>(broken).is_err(), "{broken}");
    }
    for unknown in [
        r#"{"type":"dance","body":{"steps":[1,2,{"x":null}]}}"#,
        r#"{"type":"dance"}"#,
        r#"{"body":{"steps":3},"type":"dance"}"#,
    ] {
        assert_eq!(
            serde_json::from_str::<NodeMessage>(unknown).unwrap(),
            NodeMessage::Unknown,
            "{unknown}"
        );
        assert_eq!(
            serde_json::from_str::<ManagerMessage>(unknown).unwrap(),
            ManagerMessage::Unknown
        );
    }
    let bye: Bye = serde_json::from_str(r#"{"reason":"moon_phase"}"#).unwrap();
    assert_eq!(bye.reason, ByeReason::Unknown);
}

#[test]
fn what_an_earlier_version_did_not_send_has_a_default() {
    let hello: NodeMessage =
        serde_json::from_str(r#"{"type":"hello","body":{"version":1,"node_id":"n1"}}"#).unwrap();
    let NodeMessage::Hello(hello) = hello else { panic!() };
    assert_eq!(hello.revision, None);
}

#[test]
fn secrets_stay_out_of_debug_output() {
    let request = IssueCertificate {
        version: 1,
        csr_pem: "csr".into(),
        token: "SWMTKN-1-secret".into(),
        facts: NodeFacts::default(),
    };
    assert!(!format!("{request:?}").contains("SWMTKN"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_text_makes_the_reader_panic(
        kind in "hello|heartbeat|log_chunk|attach|task_statuses|x",
        body in "\\{?\"?[a-z_]{0,8}\"?:?[\\[\\]{}0-9\",]{0,20}\\}?",
    ) {
        let text = format!("{{\"type\":\"{kind}\",\"body\":{body}}}");
        // Ignored because: only that it returns counts.
        let _ = serde_json::from_str::<NodeMessage>(&text);
        let _ = serde_json::from_str::<ManagerMessage>(&text);
    }

    #[test]
    fn any_log_line_survives(line in proptest::collection::vec(any::<u8>(), 0..100)) {
        let chunk = LogLine { time: Timestamp(5), source: LogSource::Stdout, line };
        let json = serde_json::to_string(&chunk).unwrap();
        prop_assert_eq!(serde_json::from_str::<LogLine>(&json).unwrap(), chunk);
    }
}
