//! Logs of services and tasks, gathered from every node.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use http::StatusCode;
use shoal_model::cluster_state::ClusterState;
use shoal_model::log::{LogSelection, LogsOf, TaskLog, TaskLogLine};
use shoal_model::object::Task;

use super::{log_selection, services, tasks};
use crate::error::ApiResult;
use crate::http::Call;
use crate::http::answer::{self, Answer};
use crate::http::frame::{self, Channel};

/// `GET /services/{id}/logs`.
///
/// # Errors
/// 503 if this node is no manager, 404, 400 if neither stream is wanted.
pub async fn of_service(call: Call) -> ApiResult<Answer> {
    let query = log_selection(&call.query)?;
    let state = call.state.control()?.state();
    let service = services::resolve(&state, call.param("id"))?;
    let tty = has_tty(service.spec.task_template.container_spec.as_ref());
    let any = state.tasks.values().find(|t| t.service_id.as_ref() == Some(&service.id)).cloned();
    send(call, LogsOf::Service(service.id.clone()), query, Shape { tty, any }).await
}

/// `GET /tasks/{id}/logs`.
///
/// # Errors
/// As [`of_service`].
pub async fn of_task(call: Call) -> ApiResult<Answer> {
    let query = log_selection(&call.query)?;
    let state: Arc<ClusterState> = call.state.control()?.state();
    let task = tasks::resolve(&state, call.param("id"))?;
    let tty = has_tty(task.spec.container_spec.as_ref());
    send(call, LogsOf::Task(task.id.clone()), query, Shape { tty, any: Some(task) }).await
}

fn has_tty(spec: Option<&shoal_model::spec::task::ContainerSpec>) -> bool {
    spec.and_then(|spec| spec.tty).unwrap_or(false)
}

/// What decides the form of the lines.
struct Shape {
    /// Raw output, without frames.
    tty: bool,
    /// A task that warnings can be shown under.
    any: Option<Arc<Task>>,
}

async fn send(call: Call, of: LogsOf, query: LogSelection, shape: Shape) -> ApiResult<Answer> {
    let (timestamps, details) = (call.query.flag("timestamps"), call.query.flag("details"));
    let now = (call.state.clock)();
    let content_type = frame::content_type(shape.tty, call.version);
    let items = call.state.control()?.logs(of, query).await?;
    let stopping = call.state.sessions.stopping();
    let pieces = items.take_until(stopping.cancelled_owned()).map(move |item| {
        let line = match item {
            TaskLog::Line(line) => line,
            TaskLog::Warning(text) => match warning(&shape, now, &text) {
                Some(line) => line,
                // No task has ever been: the client ends with this text as its error.
                None => return Ok(frame::encode(Channel::SystemErr, text.as_bytes())),
            },
        };
        Ok(encode(&shape, &line, timestamps, details))
    });
    Ok(answer::with_type(StatusCode::OK, content_type, answer::streamed(pieces)))
}

/// The CLI refuses a line without its three ids, so a warning is shown as a line of some task.
fn warning(shape: &Shape, time: shoal_model::time::Timestamp, text: &str) -> Option<TaskLogLine> {
    let task = shape.any.as_ref()?;
    Some(TaskLogLine {
        task_id: task.id.clone(),
        service_id: task.service_id.clone(),
        node_id: task.node_id.clone()?,
        time,
        stderr: true,
        line: format!("{text}\n").into_bytes(),
    })
}

fn encode(shape: &Shape, line: &TaskLogLine, timestamps: bool, details: bool) -> Bytes {
    let mut text = Vec::with_capacity(line.line.len() + 160);
    if timestamps {
        text.extend_from_slice(log_time(line.time).as_bytes());
        text.push(b' ');
    }
    if details {
        let service = line.service_id.as_ref().map_or("", |id| id.as_str());
        let ids = format!(
            "com.docker.swarm.node.id={},com.docker.swarm.service.id={service},\
             com.docker.swarm.task.id={} ",
            line.node_id, line.task_id
        );
        text.extend_from_slice(ids.as_bytes());
    }
    text.extend_from_slice(&line.line);
    if shape.tty {
        return Bytes::from(text);
    }
    let channel = if line.stderr { Channel::Stderr } else { Channel::Stdout };
    frame::encode(channel, &text)
}

/// Times in logs always have nine digits, so that columns line up.
pub(crate) fn log_time(time: shoal_model::time::Timestamp) -> String {
    let text = shoal_model::time::Timestamp::from_secs(time.secs()).to_string();
    let whole = text.strip_suffix('Z').unwrap_or(&text);
    format!("{whole}.{:09}Z", time.subsec_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_model::time::Timestamp;

    #[test]
    fn lines_carry_the_ids_that_the_cli_needs() {
        let line = TaskLogLine {
            task_id: "t1".into(),
            service_id: Some("s1".into()),
            node_id: "n1".into(),
            time: Timestamp(1_500_000_000_000_000_007),
            stderr: false,
            line: b"hello\n".to_vec(),
        };
        let shape = Shape { tty: true, any: None };
        let text = encode(&shape, &line, true, true);
        assert_eq!(
            &text[..],
            b"2017-07-14T02:40:00.000000007Z com.docker.swarm.node.id=n1,\
              com.docker.swarm.service.id=s1,com.docker.swarm.task.id=t1 hello\n"
        );
    }
}
