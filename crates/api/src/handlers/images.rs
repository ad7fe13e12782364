//! `/images` and `/auth`.

use futures::StreamExt;
use futures::future::ready;
use futures::stream;
use http::StatusCode;
use serde_json::Value;

use crate::backend::image::{ImportRequest, Progress, PullRequest};
use crate::decode::networks::CREDENTIALS;
use crate::error::{ApiError, ApiResult};
use crate::http::Call;
use crate::http::answer::{self, Answer};
use crate::http::body::Upload;

/// `GET /images/json`.
///
/// # Errors
/// 400 for unknown filters.
pub async fn list(call: Call) -> ApiResult<Answer> {
    let filters = call.query.filters()?;
    let all = call.query.flag("all");
    answer::json(&call.state.images.list(all, &filters).await?)
}

/// `GET /images/{name}/json`.
///
/// # Errors
/// 404 `No such image: x`.
pub async fn inspect(call: Call) -> ApiResult<Answer> {
    answer::json(&call.state.images.inspect(call.param("name")).await?)
}

/// `GET /images/{name}/history`.
///
/// # Errors
/// 404.
pub async fn history(call: Call) -> ApiResult<Answer> {
    answer::json(&call.state.images.history(call.param("name")).await?)
}

/// `POST /images/create`: a pull with `fromImage`, an import with `fromSrc=-`.
///
/// # Errors
/// 400 for broken references and parameters; what fails before any progress has its own status.
pub async fn create(mut call: Call) -> ApiResult<Answer> {
    let platform = call.query.text("platform").map(str::to_owned);
    if let Some(image) = call.query.text("fromImage") {
        let pull = PullRequest {
            reference: join_reference(image, call.query.text("tag")),
            auth: registry_auth(&call),
            platform,
        };
        return send(&call, call.state.images.pull(pull).await?).await;
    }
    match call.query.text("fromSrc") {
        Some("-") => {}
        Some(_) => return Err(ApiError::missing("importing from a URL")),
        None => return Err(ApiError::invalid("either 'fromImage' or 'fromSrc' is needed")),
    }
    let repository = call.query.text("repo");
    let import = ImportRequest {
        reference: repository.map(|repo| join_reference(repo, call.query.text("tag"))),
        changes: call.query.all("changes").to_vec(),
        message: call.query.get("message").unwrap_or("").to_owned(),
        platform,
    };
    let archive = Box::pin(Upload::new(call.take_body()?));
    let progress = call.state.images.import(import, archive).await?;
    send(&call, call.state.changes.follow(progress)).await
}

/// `name` and `tag` (which may be a digest) as one reference.
fn join_reference(name: &str, tag: Option<&str>) -> String {
    match tag {
        None => name.to_owned(),
        Some(digest) if digest.contains(':') => format!("{name}@{digest}"),
        Some(tag) => format!("{name}:{tag}"),
    }
}

fn registry_auth(call: &Call) -> Option<String> {
    let auth = call.header("x-registry-auth")?;
    (!matches!(auth, "" | "e30=" | "e30")).then(|| auth.to_owned())
}

/// Sends progress. What fails first of all has a status of its own; what fails later is a line.
async fn send(call: &Call, mut progress: Progress) -> ApiResult<Answer> {
    let first = match progress.next().await {
        None => return Ok(answer::json_lines(stream::empty())),
        Some(first) => first?,
    };
    let stopping = call.state.sessions.stopping();
    let rest = progress.map(|line| line.unwrap_or_else(|error| answer::stream_error(&error)));
    let all = stream::once(ready(first)).chain(rest);
    Ok(answer::json_lines(all.take_until(stopping.cancelled_owned())))
}

/// `POST /images/load`.
///
/// # Errors
/// 400 for a broken archive; nothing is changed then.
pub async fn load(mut call: Call) -> ApiResult<Answer> {
    let quiet = call.query.flag("quiet");
    let archive = Box::pin(Upload::new(call.take_body()?));
    let progress = call.state.images.load(quiet, archive).await?;
    send(&call, call.state.changes.follow(progress)).await
}

/// `GET /images/{name}/get`.
///
/// # Errors
/// 404.
pub async fn save_one(call: Call) -> ApiResult<Answer> {
    let names = [call.param("name").to_owned()];
    save(&call, &names).await
}

/// `GET /images/get`.
///
/// # Errors
/// 404, 400 without a name.
pub async fn save_many(call: Call) -> ApiResult<Answer> {
    let names: Vec<String> = call
        .query
        .all("names")
        .iter()
        .flat_map(|names| names.split(','))
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect();
    if names.is_empty() {
        return Err(ApiError::invalid("parameter 'names' must name an image"));
    }
    save(&call, &names).await
}

async fn save(call: &Call, names: &[String]) -> ApiResult<Answer> {
    let archive = call.state.images.save(names).await?;
    Ok(answer::with_type(StatusCode::OK, "application/x-tar", answer::streamed(archive)))
}

/// `POST /images/{name}/tag`.
///
/// # Errors
/// 404, 400 for a broken reference.
pub async fn tag(call: Call) -> ApiResult<Answer> {
    let repository = call.query.text("repo");
    let repository =
        repository.ok_or_else(|| ApiError::invalid("parameter 'repo' must not be empty"))?;
    let target = join_reference(repository, call.query.text("tag"));
    call.state.images.tag(call.param("name"), &target).await?;
    Ok(answer::empty(StatusCode::CREATED))
}

/// `POST /images/{name}/push`.
///
/// # Errors
/// 404, 400 for a broken reference.
pub async fn push(call: Call) -> ApiResult<Answer> {
    let reference = join_reference(call.param("name"), call.query.text("tag"));
    let progress = call.state.images.push(&reference, registry_auth(&call)).await?;
    send(&call, progress).await
}

/// `DELETE /images/{name}`.
///
/// # Errors
/// 404, 409 if a container uses it.
pub async fn remove(call: Call) -> ApiResult<Answer> {
    let (force, noprune) = (call.query.flag("force"), call.query.flag("noprune"));
    answer::json(&call.state.images.remove(call.param("name"), force, noprune).await?)
}

/// `POST /images/prune`.
///
/// # Errors
/// 400 for unknown filters.
pub async fn prune(call: Call) -> ApiResult<Answer> {
    let filters = call.query.filters()?;
    answer::json(&call.state.images.prune(&filters).await?)
}

/// `POST /auth`.
///
/// # Errors
/// 401 if the registry refuses the credentials.
pub async fn login(mut call: Call) -> ApiResult<Answer> {
    let credentials: Value = call.json(&CREDENTIALS).await?;
    answer::json(&call.state.images.login(credentials).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_and_digests_join_names() {
        assert_eq!(join_reference("a/b", Some("1")), "a/b:1");
        assert_eq!(join_reference("a", Some("sha256:00")), "a@sha256:00");
        assert_eq!(join_reference("a:2", None), "a:2");
    }
}
