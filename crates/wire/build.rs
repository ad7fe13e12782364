//! Declares the services; the messages are plain Rust types in `src/message.rs`.

use tonic_build::manual::{Builder, Method, MethodBuilder, Service};

const CODEC: &str = "crate::codec::JsonCodec";

fn method(name: &str, route: &str, input: &str, output: &str) -> MethodBuilder {
    Method::builder()
        .name(name)
        .route_name(route)
        .input_type(format!("crate::message::{input}"))
        .output_type(format!("crate::message::{output}"))
        .codec_path(CODEC)
}

fn main() {
    let join = Service::builder()
        .name("Join")
        .package("shoal.v1")
        .method(method("get_root_ca", "GetRootCa", "GetRootCa", "RootCaReply").build())
        .method(
            method("issue_certificate", "IssueCertificate", "IssueCertificate", "CertificateReply")
                .build(),
        )
        .method(
            method("renew_certificate", "RenewCertificate", "RenewCertificate", "CertificateReply")
                .build(),
        )
        .build();
    let dispatcher = Service::builder()
        .name("Dispatcher")
        .package("shoal.v1")
        .method(
            method("session", "Session", "NodeMessage", "ManagerMessage")
                .client_streaming()
                .server_streaming()
                .build(),
        )
        .build();
    let raft = Service::builder()
        .name("Raft")
        .package("shoal.v1")
        .method(method("call", "Call", "RaftCall", "PeerReply").build())
        .build();
    let control = Service::builder()
        .name("Control")
        .package("shoal.v1")
        .method(method("call", "Call", "ControlCall", "PeerReply").build())
        .build();
    let streams = Service::builder()
        .name("Streams")
        .package("shoal.v1")
        .method(
            Method::builder()
                .name("open")
                .route_name("Open")
                .input_type("crate::stream::Piece")
                .output_type("crate::stream::Piece")
                .codec_path("crate::stream::PieceCodec")
                .client_streaming()
                .server_streaming()
                .build(),
        )
        .build();
    Builder::new().compile(&[join, dispatcher, raft, control, streams]);
}
