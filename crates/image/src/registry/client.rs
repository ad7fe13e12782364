//! Requests to one repository of one registry: addresses, authentication, redirects, refusals.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt};
use http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, LOCATION, USER_AGENT,
};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use tokio::sync::{Mutex, OnceCell};
use tokio::time::timeout;

use super::auth::RegistryAuth;
use super::challenge::{Challenge, encode};
use super::connect::{Body, Door, Failed};
use super::lookup::is_loopback;
use super::tls::client_config;
use crate::error::ImageError;
use crate::reference::Reference;

/// Redirects followed for one request; blobs usually need one.
const MAX_REDIRECTS: usize = 5;
/// How long a registry may be silent within an answer.
const SILENCE: Duration = Duration::from_secs(30);
/// How much of a refusal or a token is read.
const MAX_SMALL: usize = 64 * 1024;
/// The default registry's API is not at the host that its images are called by.
const DEFAULT_API: &str = "registry-1.docker.io";

/// A client for one repository.
pub(super) struct Client {
    /// `host[:port]` as in the reference, for messages.
    host: String,
    /// `host[:port]` of the API.
    api: String,
    /// `/v2/<path>/`.
    base: String,
    /// The repository, familiar form.
    repository: String,
    insecure: bool,
    auth: Option<RegistryAuth>,
    /// The value of `Authorization` that the registry accepted last.
    proof: Mutex<Option<String>>,
    /// Whether the registry speaks HTTPS; found out by the first connection.
    https: OnceCell<bool>,
    /// The ways to the hosts that were asked: the registry's, and those that it sends us to.
    doors: Mutex<HashMap<String, Door>>,
}

/// An answer whose body is still on the wire.
pub(super) type Answer = Response<Incoming>;

/// What to send.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub method: Method,
    /// Below the repository (`manifests/latest`), or absolute.
    pub target: String,
    pub accept: String,
    pub content_type: Option<String>,
    /// For messages: "get the manifest".
    pub action: String,
}

impl Call {
    pub(super) fn get(target: String, accept: &str, action: &str) -> Self {
        Self {
            method: Method::GET,
            target,
            accept: accept.into(),
            content_type: None,
            action: action.into(),
        }
    }
}

/// A body that can be sent again after a refusal.
pub(super) type MakeBody<'a> = &'a (dyn Fn() -> io::Result<(u64, Body)> + Send + Sync);

/// A body without bytes.
pub(super) fn no_body() -> io::Result<(u64, Body)> {
    bytes_body(Bytes::new())
}

/// A body of these bytes.
pub(super) fn bytes_body(bytes: Bytes) -> io::Result<(u64, Body)> {
    let size = bytes.len() as u64;
    Ok((size, Full::new(bytes).map_err(|never| match never {}).boxed_unsync()))
}

impl Client {
    pub(super) fn new(
        reference: &Reference,
        auth: Option<RegistryAuth>,
        insecure_registries: &[String],
    ) -> Self {
        let host = reference.host().to_owned();
        let api = if host == "docker.io" { DEFAULT_API.to_owned() } else { host.clone() };
        let (name, _) = split_port(&host, 0);
        let insecure = is_loopback(&name) || insecure_registries.contains(&host);
        let proof = auth.as_ref().map(|auth| auth.registrytoken.as_str()).filter(|t| !t.is_empty());
        Self {
            base: format!("/v2/{}/", reference.path()),
            repository: reference.familiar_name(),
            proof: Mutex::new(proof.map(|token| format!("Bearer {token}"))),
            insecure,
            auth,
            host,
            api,
            https: OnceCell::new(),
            doors: Mutex::default(),
        }
    }

    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// Sends a request, proves who we are if asked to, follows redirects of `GET`, and turns
    /// refusals into errors.
    pub(super) async fn send(&self, call: &Call, body: MakeBody<'_>) -> Result<Answer, ImageError> {
        let answer = self.try_send(call, body).await?;
        if answer.status() != StatusCode::UNAUTHORIZED {
            return self.judge(call, answer).await;
        }
        let header = answer.headers().get(http::header::WWW_AUTHENTICATE);
        let challenge = header.and_then(|h| h.to_str().ok()).and_then(Challenge::parse);
        let proof = match challenge {
            Some(Challenge::Basic) => self.auth.as_ref().and_then(RegistryAuth::basic),
            Some(Challenge::Bearer { realm, service, scope }) => {
                Some(self.token(&realm, service.as_deref(), scope.as_deref()).await?)
            }
            None => None,
        };
        if proof.is_none() {
            return self.judge(call, answer).await;
        }
        *self.proof.lock().await = proof;
        let answer = self.try_send(call, body).await?;
        self.judge(call, answer).await
    }

    async fn try_send(&self, call: &Call, body: MakeBody<'_>) -> Result<Answer, ImageError> {
        let scheme = if self.speaks_https().await? { "https" } else { "http" };
        let mut url = match call.target.split_once("://") {
            Some(_) => call.target.clone(),
            None if call.target.starts_with('/') => {
                format!("{scheme}://{}{}", self.api, call.target)
            }
            None => format!("{scheme}://{}{}{}", self.api, self.base, call.target),
        };
        for _ in 0..MAX_REDIRECTS {
            let own = self.is_own(&url);
            let proof = if own { self.proof.lock().await.clone() } else { None };
            let answer = self.exchange(call, &url, proof, body).await?;
            let status = answer.status();
            let location = answer.headers().get(LOCATION).and_then(|l| l.to_str().ok());
            match location {
                Some(location) if status.is_redirection() && call.method == Method::GET => {
                    url = resolve_url(&url, location);
                }
                _ => return Ok(answer),
            }
        }
        let source = io::Error::other(format!("more than {MAX_REDIRECTS} redirects"));
        Err(self.broken(&call.action, source))
    }

    /// Whether a URL is the registry's own: credentials go nowhere else.
    fn is_own(&self, url: &str) -> bool {
        url.parse::<Uri>().is_ok_and(|url| {
            url.authority().is_some_and(|authority| authority.as_str() == self.api)
        })
    }

    async fn exchange(
        &self,
        call: &Call,
        url: &str,
        proof: Option<String>,
        body: MakeBody<'_>,
    ) -> Result<Answer, ImageError> {
        let url: Uri = url.parse().map_err(|e| self.broken(&call.action, io::Error::other(e)))?;
        let door = self.door(&url).await?;
        let mut again = call.method.is_safe();
        loop {
            let request = self.request(call, &url, proof.as_deref(), body)?;
            let authority = || url.authority().map(|a| a.as_str()).unwrap_or_default().to_owned();
            match door.exchange(request).await {
                Ok(answer) => return Ok(answer),
                // It waited in the pool until the registry closed it.
                Err(Failed::Ended(_)) if again => again = false,
                Err(Failed::Ended(source) | Failed::Broken(source)) => {
                    return Err(self.broken(&call.action, source));
                }
                Err(Failed::Network(source) | Failed::Tls(source)) => {
                    return Err(ImageError::Connect { host: authority(), source });
                }
            }
        }
    }

    fn request(
        &self,
        call: &Call,
        url: &Uri,
        proof: Option<&str>,
        body: MakeBody<'_>,
    ) -> Result<Request<Body>, ImageError> {
        let broken = |source: io::Error| self.broken(&call.action, source);
        let (size, body) = body().map_err(broken)?;
        let host = url.authority().map(|a| a.as_str()).unwrap_or_default();
        let mut request = Request::builder()
            .method(call.method.clone())
            .uri(url.clone())
            .header(HOST, host)
            .header(USER_AGENT, concat!("shoal/", env!("CARGO_PKG_VERSION")))
            .header(CONTENT_LENGTH, size);
        if !call.accept.is_empty() {
            request = request.header(ACCEPT, &call.accept);
        }
        if let Some(kind) = &call.content_type {
            request = request.header(CONTENT_TYPE, kind);
        }
        if let Some(proof) = proof {
            request = request.header(AUTHORIZATION, proof);
        }
        request.body(body).map_err(|e| broken(io::Error::other(e)))
    }

    /// The way to a URL's host.
    async fn door(&self, url: &Uri) -> Result<Door, ImageError> {
        let host = url.authority().map(|a| a.as_str()).unwrap_or_default().to_owned();
        let failed = |source| ImageError::Connect { host: host.clone(), source };
        if url.scheme_str() != Some("https") && !self.insecure {
            // A registry that speaks HTTPS must not send us where everybody can change the answer.
            let text = "refused to leave HTTPS for plain HTTP";
            return Err(failed(io::Error::new(io::ErrorKind::PermissionDenied, text)));
        }
        let mut doors = self.doors.lock().await;
        if let Some(door) = doors.get(&host) {
            return Ok(door.clone());
        }
        let (name, verify) = (split_port(&host, 0).0, !self.insecure);
        // Which certificates are believed stands in files.
        let read = tokio::task::spawn_blocking(move || client_config(&name, verify));
        let config = read.await.map_err(io::Error::other).and_then(|config| config);
        let door = Door::new(config.map_err(failed)?);
        doors.insert(host.clone(), door.clone());
        Ok(door)
    }

    /// Finds out once whether the registry speaks HTTPS. Only insecure ones may not.
    async fn speaks_https(&self) -> Result<bool, ImageError> {
        if !self.insecure {
            return Ok(true);
        }
        let find = || async {
            let failed = |source| ImageError::Connect { host: self.api.clone(), source };
            let url: Uri = format!("https://{}/v2/", self.api)
                .parse()
                .map_err(|e| failed(io::Error::other(e)))?;
            match self.door(&url).await?.knock(url).await {
                Ok(()) => Ok(true),
                Err(Failed::Network(_)) if !has_port(&self.api) => Ok(false),
                Err(Failed::Network(error)) => Err(failed(error)),
                Err(_) => Ok(false),
            }
        };
        self.https.get_or_try_init(find).await.copied()
    }

    /// Gets a token for a bearer challenge.
    async fn token(
        &self,
        realm: &str,
        service: Option<&str>,
        scope: Option<&str>,
    ) -> Result<String, ImageError> {
        let action = "get a token";
        let mut query = Vec::new();
        query.extend(service.map(|s| format!("service={}", encode(s))));
        query.extend(scope.map(|s| format!("scope={}", encode(s))));
        let refresh =
            self.auth.as_ref().map(|a| a.identitytoken.as_str()).filter(|t| !t.is_empty());
        let mut call = Call::get(realm.into(), "application/json", action);
        let mut form = Bytes::new();
        if let Some(token) = refresh {
            query.push("grant_type=refresh_token&client_id=shoal".into());
            query.push(format!("refresh_token={}", encode(token)));
            call.method = Method::POST;
            call.content_type = Some("application/x-www-form-urlencoded".into());
            form = query.join("&").into();
        } else if !query.is_empty() {
            let mark = if realm.contains('?') { '&' } else { '?' };
            call.target = format!("{realm}{mark}{}", query.join("&"));
        }
        let proof =
            if refresh.is_none() { self.auth.as_ref().and_then(RegistryAuth::basic) } else { None };
        let url = call.target.clone();
        let answer = self.exchange(&call, &url, proof, &|| bytes_body(form.clone())).await?;
        let status = answer.status();
        let body = self.small(action, answer).await?;
        if !status.is_success() {
            let reason = refusal(status, &body);
            return Err(ImageError::LoginRefused { host: self.host.clone(), reason });
        }
        #[derive(serde::Deserialize)]
        struct Token {
            token: Option<String>,
            access_token: Option<String>,
        }
        let token: Option<Token> = serde_json::from_slice(&body).ok();
        let token = token.and_then(|t| t.token.or(t.access_token));
        let missing = || self.broken(action, io::Error::other("the answer has no token"));
        token.map(|token| format!("Bearer {token}")).ok_or_else(missing)
    }

    /// Passes successes on; reads why a request was refused.
    async fn judge(&self, call: &Call, answer: Answer) -> Result<Answer, ImageError> {
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let reason = refusal(status, &self.small(&call.action, answer).await?);
        let reference = self.repository.clone();
        Err(match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                ImageError::Denied { reference, reason }
            }
            StatusCode::NOT_FOUND if call.target.starts_with("manifests/") => {
                let name = call.target.trim_start_matches("manifests/");
                let mark = if name.contains(':') { '@' } else { ':' };
                ImageError::ManifestUnknown {
                    reference: format!("{reference}{mark}{name}"),
                    reason,
                }
            }
            _ => ImageError::RegistryAnswer {
                host: self.host.clone(),
                status: status.as_u16(),
                action: call.action.clone(),
                reason,
            },
        })
    }

    /// Reads a short body; what is beyond the limit is left out.
    async fn small(&self, action: &str, answer: Answer) -> Result<Vec<u8>, ImageError> {
        self.read(action, answer, MAX_SMALL).await.map(|(_, bytes)| bytes)
    }

    /// Reads a body up to `limit` bytes.
    pub(super) async fn read(
        &self,
        action: &str,
        answer: Answer,
        limit: usize,
    ) -> Result<(HeaderMap, Vec<u8>), ImageError> {
        let (headers, mut body) = self.stream(answer);
        let mut bytes = Vec::new();
        while let Some(piece) = body.next().await {
            bytes.extend_from_slice(&piece.map_err(|error| self.broken(action, error))?);
            if bytes.len() > limit {
                bytes.truncate(limit);
                break;
            }
        }
        Ok((headers, bytes))
    }

    /// The pieces of a body; silence of [`SILENCE`] is an error.
    #[allow(clippy::unused_self)] // Reads well beside `read`.
    pub(super) fn stream(
        &self,
        answer: Answer,
    ) -> (HeaderMap, BoxStream<'static, io::Result<Bytes>>) {
        let (parts, body) = answer.into_parts();
        let pieces = futures::stream::try_unfold(body, |mut body| async move {
            loop {
                let frame = timeout(SILENCE, body.frame()).await.map_err(|_| {
                    io::Error::new(io::ErrorKind::TimedOut, "nothing came for 30 s")
                })?;
                let Some(frame) = frame else { return Ok(None) };
                if let Ok(bytes) = frame.map_err(io::Error::other)?.into_data() {
                    return Ok(Some((bytes, body)));
                }
            }
        });
        (parts.headers, pieces.boxed())
    }

    /// An exchange that broke off.
    pub(super) fn broken(&self, action: &str, source: io::Error) -> ImageError {
        ImageError::Exchange {
            host: self.host.clone(),
            action: action.into(),
            source: Box::new(source),
        }
    }
}

fn has_port(authority: &str) -> bool {
    split_port(authority, 0).1 != 0
}

/// Host and port of `host[:port]`.
fn split_port(authority: &str, default: u16) -> (String, u16) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => {
            (host.into(), port.parse().unwrap_or(default))
        }
        _ => (authority.into(), default),
    }
}

/// The URL that a `Location` means, relative to the URL that was asked.
pub(super) fn resolve_url(asked: &str, location: &str) -> String {
    if location.contains("://") {
        return location.into();
    }
    let origin = asked.splitn(4, '/').take(3).collect::<Vec<_>>().join("/");
    match location.strip_prefix('/') {
        Some(path) => format!("{origin}/{path}"),
        None => format!("{origin}/{location}"),
    }
}

/// The registry's own words for a refusal: `manifest unknown: manifest unknown`.
fn refusal(status: StatusCode, body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Refusal {
        #[serde(default)]
        errors: Vec<Reason>,
        details: Option<String>,
    }
    #[derive(serde::Deserialize)]
    struct Reason {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(refusal) = serde_json::from_slice::<Refusal>(body) else { return status.to_string() };
    let words: Vec<String> = refusal
        .errors
        .iter()
        .map(|r| format!("{}: {}", r.code.to_lowercase().replace('_', " "), r.message))
        .collect();
    match refusal.details {
        _ if !words.is_empty() => words.join("; "),
        Some(details) => details,
        None => status.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_have_the_registrys_words() {
        let body = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#;
        assert_eq!(refusal(StatusCode::NOT_FOUND, body), "manifest unknown: manifest unknown");
        assert_eq!(refusal(StatusCode::BAD_GATEWAY, b"<html>"), "502 Bad Gateway");
    }

    #[test]
    fn locations_may_be_relative() {
        assert_eq!(resolve_url("http://a:1/v2/x", "/y?z"), "http://a:1/y?z");
        assert_eq!(resolve_url("http://a:1/v2/x", "https://b/y"), "https://b/y");
        assert_eq!(split_port("[::1]:5000", 443), ("[::1]".into(), 5000));
        assert_eq!(split_port("[::1]", 443), ("[::1]".into(), 443));
    }
}
