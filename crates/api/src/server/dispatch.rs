//! One request from its first to its last byte: version, route, handler, panic fence, headers.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt;
use http::{HeaderValue, Method, Request, StatusCode};
use hyper::body::Incoming;

use crate::anywhere;
use crate::backend::ApiState;
use crate::error::{ApiError, RequestFault};
use crate::http::Call;
use crate::http::answer::{self, Answer};
use crate::http::query::Query;
use crate::http::version::{self, VERSION_MAX};
use crate::server::router::{Conduct, Router, Target};

/// Answers one request. Never fails: whatever goes wrong is an answer too.
pub async fn answer(
    state: Arc<ApiState>,
    routes: Arc<Router>,
    request: Request<Incoming>,
) -> Answer {
    let route = format!("{} {}", request.method(), request.uri().path());
    let head_only = request.method() == Method::HEAD;
    let version = state.facts.version.clone();
    let handled = AssertUnwindSafe(handle(state, routes, request)).catch_unwind().await;
    let result = handled.unwrap_or_else(|panic| {
        let problem = panic_text(&*panic);
        tracing::error!(%route, %problem, "a request handler panicked");
        Err(RequestFault::Panicked { route: route.clone(), problem }.into())
    });
    let mut reply = result.unwrap_or_else(|error| {
        let (status, message) = (error.status.as_u16(), &error.message);
        tracing::debug!(%route, status, %message, "refused");
        answer::failure(&error)
    });
    if head_only && reply.status() != StatusCode::SWITCHING_PROTOCOLS {
        *reply.body_mut() = answer::full(bytes::Bytes::new());
    }
    stamp(&mut reply, &version);
    reply
}

async fn handle(
    state: Arc<ApiState>,
    routes: Arc<Router>,
    request: Request<Incoming>,
) -> Result<Answer, ApiError> {
    let (head, body) = request.into_parts();
    let (version, path) = version::split(head.uri.path())?;
    let (route, params) = match routes.find(&head.method, path) {
        Target::Found(route, params) => (route, params),
        Target::OtherMethod => {
            let message = format!("method {} is not allowed for '{path}'", head.method);
            return Err(ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message));
        }
        Target::Unknown => return Err(ApiError::not_found("page not found")),
    };
    let query = Query::parse(head.uri.query().unwrap_or(""));
    let changes = state.changes.clone();
    let call = Call { state, version, query, params, head, body: Some(body) };
    let work = anywhere::direct(route, call).await?;
    match route.conduct {
        Conduct::Change => changes.see_through(work).await?,
        Conduct::Read | Conduct::Stream => work.await,
    }
}

/// The headers that every answer has.
fn stamp(reply: &mut Answer, version: &str) {
    let headers = reply.headers_mut();
    let mut set = |name: &'static str, value: String| {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    };
    set("api-version", VERSION_MAX.to_string());
    set("docker-experimental", "false".into());
    set("ostype", "linux".into());
    set("server", format!("Docker/{version} (linux)"));
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no text".to_owned())
}
