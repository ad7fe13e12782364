//! The manager's side: a request as it goes to the node, and the node's answer on the way back.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use shoal_model::fault::chain;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::lines::{Follow, Shape};
use super::{AT, Place};
use crate::error::{ApiError, ApiResult, RequestFault};
use crate::http::answer::{self, Answer, Body};
use crate::http::body::{JSON_BODY_MAX, Upload, byte_stream, read_bytes};
use crate::http::frame::{MULTIPLEXED, RAW};
use crate::http::hijack::{Input, Output};
use crate::http::{Call, hijack};
use crate::render;
use crate::server::router::{Route, Verb};

/// Headers that are about one connection, and those that the other side writes itself.
const NOT_PASSED: [HeaderName; 6] = [
    header::HOST,
    header::TRANSFER_ENCODING,
    header::CONTENT_LENGTH,
    header::TE,
    header::TRAILER,
    header::EXPECT,
];
/// The facts of a path, for `docker cp`.
const PATH_STAT: HeaderName = HeaderName::from_static("x-docker-container-path-stat");
/// How long a node may take for the head of its answer. `stats` takes two seconds; whatever is long
/// begins at once.
const HEAD_MAX: Duration = Duration::from_secs(60);
/// The same where an archive is unpacked before. Nobody waits for hours to learn that it was lost:
/// a client that stops sending, and a node that dies, are noticed much earlier.
const UPLOAD_MAX: Duration = Duration::from_secs(24 * 3600);
/// Bytes of output that are read at once.
const PIECE: usize = 32 << 10;

/// Answers by what the node of `place` answers.
///
/// # Errors
/// 503 if the node does not answer, or not to the end of its head.
pub(super) async fn pass_on(route: Route, mut call: Call, place: Place) -> ApiResult<Answer> {
    let response = ask(&mut call, &place).await?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return joined(call, &place, response);
    }
    let ours = |pattern| route.pattern == pattern && response.status().is_success();
    let creates = ours("/containers/{id}/exec");
    if creates || ours("/exec/{id}/json") {
        let member = if creates { "Id" } else { "ID" };
        return rewritten(response, |value| {
            if let Some(id) = value[member].as_str() {
                value[member] = json!(exec_id(id, &place));
            }
        })
        .await;
    }
    if ours("/containers/{id}/json") {
        return rewritten(response, |value| name_execs(value, &place)).await;
    }
    let head_only = route.method == Verb::Head;
    let shape = Shape::of(&content_type(&response), call.version);
    Ok(passed_back(response, place, shape, head_only))
}

/// `GET /containers/{id}/json` where the word is a task's id: `docker inspect` asks for a container
/// of that name before it asks for a task. The answer is both: their members differ.
///
/// # Errors
/// 404 if the container cannot be had: then the task is what there is to be seen.
pub(super) async fn inspect_task(mut call: Call, place: Place, here: bool) -> ApiResult<Answer> {
    let control = call.state.control()?;
    let word = call.param("id").to_owned();
    let size = call.query.flag("size");
    let found = if here {
        call.state.containers.inspect(&place.id, size).await
    } else {
        inspect_elsewhere(&mut call, &place).await
    };
    let gone = |error: ApiError| {
        ApiError::not_found(format!("No such container: {word}: {}", error.message))
    };
    let mut container = found.map_err(gone)?;
    if let (Some(task), Some(members)) = (&place.task, container.as_object_mut())
        && let Value::Object(of_task) = render::task::task(&control.state(), task)
    {
        for (name, value) in of_task {
            // Clients that do not tell them apart by case would read the task's id.
            if name != "ID" {
                members.entry(name).or_insert(value);
            }
        }
    }
    answer::json(&container)
}

async fn inspect_elsewhere(call: &mut Call, place: &Place) -> ApiResult<Value> {
    let response = ask(call, place).await?;
    let status = response.status();
    let mut value = read_json(response).await?;
    if !status.is_success() {
        return Err(ApiError::new(status, value["message"].as_str().unwrap_or_default()));
    }
    name_execs(&mut value, place);
    Ok(value)
}

/// Sends the request to the node, and waits for the head of its answer.
async fn ask(call: &mut Call, place: &Place) -> ApiResult<Response<Incoming>> {
    let control = call.state.control()?;
    let stream = control.open_stream(&place.node).await?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(|e| lost(place, &e))?;
    let node = place.node.clone();
    call.state.sessions.spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%node, error = %chain(&error), "a stream to a node ended");
        }
    });
    let request = request(call, place)?;
    // An archive is answered when it is unpacked; the bounds of uploads are its own.
    let limit = if call.head.method == http::Method::PUT { UPLOAD_MAX } else { HEAD_MAX };
    let answer = tokio::time::timeout(limit, sender.send_request(request));
    let late = |_| {
        let problem = format!("no answer within {} s", limit.as_secs());
        RequestFault::NodeLost { node: place.name.clone(), problem }
    };
    answer.await.map_err(late)?.map_err(|e| lost(place, &e))
}

fn lost(place: &Place, error: &(dyn std::error::Error + 'static)) -> ApiError {
    RequestFault::NodeLost { node: place.name.clone(), problem: chain(error) }.into()
}

fn request(call: &mut Call, place: &Place) -> ApiResult<Request<Body>> {
    // `/v1.47/containers/web.1.x/logs` and the like; versions were read before.
    let (_, path) = crate::http::version::split(call.head.uri.path())?;
    let mut segments = path.trim_matches('/').splitn(3, '/');
    let kind = segments.next().unwrap_or_default();
    let rest = segments.nth(1).unwrap_or_default();
    let query = call.head.uri.query().map_or_else(String::new, |query| format!("?{query}"));
    let uri = format!("/v{}/{kind}/{}/{rest}{query}", call.version, place.id);
    let body = match call.body.take() {
        Some(body) if !hyper::body::Body::is_end_stream(&body) => upload(body),
        _ => Empty::new().map_err(|never: Infallible| match never {}).boxed_unsync(),
    };
    let mut request = Request::new(body);
    *request.method_mut() = call.head.method.clone();
    *request.uri_mut() = uri
        .parse()
        .map_err(|error| ApiError::invalid(format!("pass '{uri}' on to a node: {error}")))?;
    *request.headers_mut() = passed_headers(&call.head.headers);
    Ok(request)
}

/// The body of a request; what is left of it when the node has answered is read all the same.
fn upload(body: Incoming) -> Body {
    answer::streamed(Upload::new(body))
}

fn passed_headers(from: &HeaderMap) -> HeaderMap {
    let passed = from.iter().filter(|(name, _)| !NOT_PASSED.contains(name));
    let mut headers: HeaderMap = passed.map(|(n, v)| (n.clone(), v.clone())).collect();
    headers.insert(header::HOST, HeaderValue::from_static("node"));
    headers
}

/// The id by which every manager finds an exec.
fn exec_id(id: &str, place: &Place) -> String {
    format!("{id}{AT}{}", place.node)
}

fn name_execs(container: &mut Value, place: &Place) {
    for id in container["ExecIDs"].as_array_mut().into_iter().flatten() {
        if let Some(text) = id.as_str() {
            *id = json!(exec_id(text, place));
        }
    }
}

async fn read_json(response: Response<Incoming>) -> ApiResult<Value> {
    let bytes = read_bytes(response.into_body(), JSON_BODY_MAX).await?;
    serde_json::from_slice(&bytes)
        .map_err(|error| ApiError::internal(format!("read a node's answer: {error}")))
}

async fn rewritten(
    response: Response<Incoming>,
    edit: impl FnOnce(&mut Value),
) -> ApiResult<Answer> {
    let status = response.status();
    let mut value = read_json(response).await?;
    edit(&mut value);
    answer::json_status(status, &value)
}

fn content_type(response: &Response<Incoming>) -> String {
    let found = response.headers().get(header::CONTENT_TYPE);
    found.and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

/// The node's answer as this manager's.
fn passed_back(
    response: Response<Incoming>,
    place: Place,
    shape: Shape,
    head_only: bool,
) -> Answer {
    let follow = Follow::new(shape);
    let (head, incoming) = response.into_parts();
    let body =
        if head_only { answer::full(Bytes::new()) } else { followed(incoming, follow, place) };
    let mut answer = http::Response::new(body);
    *answer.status_mut() = head.status;
    for name in [header::CONTENT_TYPE, PATH_STAT] {
        if let Some(value) = head.headers.get(&name) {
            answer.headers_mut().insert(name, value.clone());
        }
    }
    answer
}

/// The body of an answer; one that breaks off says so, where the client can read it.
fn followed(body: Incoming, follow: Follow, place: Place) -> Body {
    let pieces = byte_stream(body).boxed();
    let state = (pieces, follow, place, false);
    answer::streamed(stream::unfold(state, |(mut pieces, mut follow, place, over)| async move {
        let piece = if over { None } else { pieces.next().await };
        match piece? {
            Ok(bytes) => {
                follow.passed(&bytes);
                Some((Ok(bytes), (pieces, follow, place, false)))
            }
            Err(error) => {
                let last = follow.last(&lost(&place, &error).message).ok_or(error);
                Some((last, (pieces, follow, place, true)))
            }
        }
    }))
}

/// Joins the client's connection, which becomes a plain stream, to the node's.
fn joined(call: Call, place: &Place, mut response: Response<Incoming>) -> ApiResult<Answer> {
    let content_type = if content_type(&response) == MULTIPLEXED { MULTIPLEXED } else { RAW };
    let upgrade = hyper::upgrade::on(&mut response);
    let shape = Shape::of(content_type, call.version);
    let place = place.clone();
    let session: hijack::Session = Box::new(move |input, output| {
        Box::pin(async move {
            match upgrade.await {
                Ok(remote) => copy(remote, input, output, shape, &place).await,
                Err(error) => say_lost(&Follow::new(shape), &place, &error, output).await,
            }
        })
    });
    hijack::hijack(call, content_type, session)
}

/// Says that the node is lost, and ends the client's output.
async fn say_lost(
    follow: &Follow,
    place: &Place,
    error: &(dyn std::error::Error + Send + Sync + 'static),
    mut output: Output,
) {
    if let Some(line) = follow.last(&lost(place, error).message) {
        hijack::say(&mut output, &line).await;
    }
}

/// Copies until the node's output ends or the client is gone. Each side's end of what it sends
/// reaches the other while that goes on.
async fn copy(remote: Upgraded, mut input: Input, mut output: Output, shape: Shape, place: &Place) {
    let (mut printed, mut typed) = tokio::io::split(TokioIo::new(remote));
    let feed = async {
        let mut buffer = vec![0_u8; PIECE];
        while let Ok(count @ 1..) = input.read(&mut buffer).await {
            let piece = buffer.get(..count).unwrap_or_default();
            if typed.write_all(piece).await.is_err() || typed.flush().await.is_err() {
                return;
            }
        }
        // Ignored because: a node that is gone needs no end of input.
        let _ = typed.shutdown().await;
    };
    let print = async {
        let mut follow = Follow::new(shape);
        let mut buffer = vec![0_u8; PIECE];
        loop {
            let bytes = match printed.read(&mut buffer).await {
                Ok(0) => break,
                Ok(count) => buffer.get(..count).unwrap_or_default(),
                Err(error) => return say_lost(&follow, place, &error, output).await,
            };
            if output.write_all(bytes).await.is_err() || output.flush().await.is_err() {
                return;
            }
            follow.passed(bytes);
        }
        // Ignored because: a client that is gone needs no end of output.
        let _ = output.shutdown().await;
    };
    tokio::pin!(feed, print);
    tokio::select! {
        () = &mut print => {}
        () = &mut feed => print.await,
    }
}
