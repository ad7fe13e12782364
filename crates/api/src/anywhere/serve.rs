//! The node's side: answers what a manager asks of the containers of this node's tasks.

use std::convert::Infallible;
use std::sync::Arc;

use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{is_among, is_exec};
use crate::backend::ApiState;
use crate::error::{ApiError, ApiResult};
use crate::http::answer::{self, Answer};
use crate::http::version;
use crate::server::router::{Router, Target};
use crate::server::{HEAD_BYTES_MAX, HEADERS_MAX, dispatch};

/// The label by which a task's container is known as one.
const TASK_LABEL: &str = "com.docker.swarm.task.id";
/// How long a manager may take for the head of its request.
const HEAD_MAX: std::time::Duration = std::time::Duration::from_secs(30);

/// Answers one request on `stream`, which a manager has asked for. Only containers of tasks are
/// there, and only what does not touch their life. A stream that became a plain one goes on when
/// this returns.
pub async fn serve<S>(state: Arc<ApiState>, stream: S)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let routes = Arc::new(crate::routes::table());
    let visitors = crate::routes::all().into_iter().filter(is_among).collect();
    let visitors = Arc::new(Router::new(visitors));
    let stopping = state.sessions.stopping();
    let service = service_fn(move |request| {
        let (state, routes, visitors) = (state.clone(), routes.clone(), visitors.clone());
        async move {
            let answer = match check(&state, &visitors, &request).await {
                Ok(()) => dispatch::answer(state, routes, request).await,
                Err(error) => answer::failure(&error),
            };
            Ok::<Answer, Infallible>(answer)
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_MAX)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let ended = stopping.run_until_cancelled(connection).await;
    if let Some(Err(error)) = ended {
        // A manager's client that goes away in the middle is not our failure.
        tracing::debug!(error = %shoal_model::fault::chain(&error), "a manager's stream ended");
    }
}

/// Whether a manager may ask that here.
async fn check(state: &ApiState, visitors: &Router, request: &Request<Incoming>) -> ApiResult<()> {
    let (_, path) = version::split(request.uri().path())?;
    let Target::Found(route, params) = visitors.find(request.method(), path) else {
        let text = format!("'{} {path}' is not for managers of other nodes", request.method());
        return Err(ApiError::forbidden(text));
    };
    let id = params.iter().find(|(name, _)| *name == "id").map_or("", |(_, id)| id);
    let container = if is_exec(&route) {
        let exec = state.containers.exec_inspect(id).await?;
        exec["ContainerID"].as_str().unwrap_or_default().to_owned()
    } else {
        id.to_owned()
    };
    let facts = state.containers.inspect(&container, false).await?;
    // Containers that somebody made here by hand are nobody's business elsewhere.
    if facts["Config"]["Labels"][TASK_LABEL].as_str().is_none() {
        return Err(ApiError::not_found(format!("No such container: {container}")));
    }
    Ok(())
}
