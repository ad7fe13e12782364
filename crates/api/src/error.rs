//! Failures of requests: one type that carries the status and the text of the answer, and one
//! mapper from [`Fault`] to it.

use http::StatusCode;
use shoal_model::fault::{Fault, FaultId, FaultKind, report};

/// A refused or failed request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// The HTTP status of the answer.
    pub status: StatusCode,
    /// The whole text of `{"message": …}`.
    pub message: String,
}

/// The result of every handler and backend method.
pub type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    /// An error with any status.
    #[must_use]
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    /// 400: the request cannot be right.
    #[must_use]
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 403: the caller may not do this.
    #[must_use]
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, message)
    }

    /// 404: the named object does not exist.
    #[must_use]
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// 409: the request clashes with what is there.
    #[must_use]
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, message)
    }

    /// 503: nobody here can answer right now.
    #[must_use]
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }

    /// 500.
    #[must_use]
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// 501: Shoal does not have `what` yet.
    #[must_use]
    pub fn missing(what: &str) -> Self {
        RequestFault::NotImplemented { what: what.to_owned() }.into()
    }

    /// 304: it is already so.
    #[must_use]
    pub fn not_modified() -> Self {
        Self::new(StatusCode::NOT_MODIFIED, "")
    }

    /// Whether the named object does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.status == StatusCode::NOT_FOUND
    }
}

/// The status that a kind of failure has on the wire.
#[must_use]
pub fn status_of(kind: FaultKind) -> StatusCode {
    match kind {
        FaultKind::NotFound => StatusCode::NOT_FOUND,
        FaultKind::Invalid => StatusCode::BAD_REQUEST,
        FaultKind::Conflict => StatusCode::CONFLICT,
        FaultKind::Forbidden => StatusCode::FORBIDDEN,
        FaultKind::Unauthorized => StatusCode::UNAUTHORIZED,
        FaultKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        FaultKind::NotModified => StatusCode::NOT_MODIFIED,
        FaultKind::NotImplemented => StatusCode::NOT_IMPLEMENTED,
        FaultKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The one mapper: whatever a crate below reports becomes status and text.
impl<F: Fault> From<F> for ApiError {
    fn from(fault: F) -> Self {
        Self { status: status_of(fault.kind()), message: report(&fault) }
    }
}

/// What can be wrong with a request before any backend sees it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestFault {
    /// The body is not JSON.
    #[error("invalid JSON: {problem}")]
    MalformedJson {
        /// What the parser says, with line and column.
        problem: String,
    },
    /// A field has a value of another type.
    #[error("invalid JSON: field '{path}': expected {expected}, found {found}")]
    WrongType {
        /// Dotted path of the field.
        path: String,
        /// What belongs there, in words.
        expected: String,
        /// What was there, in words.
        found: String,
    },
    /// The body exceeds its bound.
    #[error("request body is larger than {limit} bytes")]
    BodyTooLarge {
        /// The bound.
        limit: usize,
    },
    /// The content type is not what the route reads.
    #[error("unsupported Content-Type header ({found}): must be '{expected}'")]
    ContentType {
        /// What the client sent.
        found: String,
        /// What it must be.
        expected: &'static str,
    },
    /// The connection broke while the body was read.
    #[error("read the request body: {problem}")]
    BodyRead {
        /// What happened.
        problem: String,
    },
    /// A known route or option whose behaviour is not there yet.
    #[error("not implemented: {what}")]
    NotImplemented {
        /// What is missing.
        what: String,
    },
    /// The body did not come in time.
    #[error("the request body did not end within {seconds} s")]
    BodySlow {
        /// How long the daemon waited.
        seconds: u64,
    },
    /// As many changes run as may.
    #[error("{limit} requests that change something are running, no more are taken now")]
    TooManyChanges {
        /// The bound.
        limit: usize,
    },
    /// The daemon stops.
    #[error("the daemon is stopping")]
    Stopping,
    /// The node that a request was passed on to is gone, or cannot be heard.
    #[error("the stream to node '{node}' broke off: {problem}")]
    NodeLost {
        /// Which.
        node: String,
        /// What is known of it.
        problem: String,
    },
    /// A handler panicked; the daemon goes on.
    #[error("internal error while answering {route}: {problem}")]
    Panicked {
        /// Method and path.
        route: String,
        /// The panic's text.
        problem: String,
    },
}

impl Fault for RequestFault {
    fn kind(&self) -> FaultKind {
        match self {
            Self::NotImplemented { .. } => FaultKind::NotImplemented,
            Self::Panicked { .. } => FaultKind::Internal,
            Self::TooManyChanges { .. } | Self::Stopping | Self::NodeLost { .. } => {
                FaultKind::Unavailable
            }
            _ => FaultKind::Invalid,
        }
    }

    fn id(&self) -> Option<FaultId> {
        Some(FaultId(match self {
            Self::MalformedJson { .. } => "SH-API-001",
            Self::WrongType { .. } => "SH-API-002",
            Self::BodyTooLarge { .. } => "SH-API-003",
            Self::ContentType { .. } => return None,
            Self::BodyRead { .. } => "SH-API-004",
            Self::NotImplemented { .. } => "SH-API-005",
            Self::Panicked { .. } => "SH-API-006",
            Self::BodySlow { .. } => "SH-API-007",
            Self::TooManyChanges { .. } => "SH-API-008",
            Self::NodeLost { .. } => "SH-API-009",
            Self::Stopping => return None,
        }))
    }

    fn remedy(&self) -> Option<String> {
        match self {
            Self::Panicked { .. } => Some("report it together with the daemon's log".into()),
            Self::TooManyChanges { .. } => {
                Some("wait for some of them, or look at what they wait for".into())
            }
            Self::Stopping => Some("send it again when the daemon runs".into()),
            Self::NodeLost { .. } => {
                Some("look at the node's state with 'docker node ls', and at the task's".into())
            }
            Self::BodySlow { .. } => Some("send the whole body at once".into()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_thing_is_named_with_status_501() {
        let error = ApiError::missing("image build");
        assert_eq!(error.status, StatusCode::NOT_IMPLEMENTED);
        assert!(error.message.starts_with("not implemented: image build"), "{}", error.message);
    }

    #[test]
    fn a_wrong_type_names_the_field() {
        let error = ApiError::from(RequestFault::WrongType {
            path: "TaskTemplate.ContainerSpec.Env".into(),
            expected: "a list".into(),
            found: "a number".into(),
        });
        assert_eq!(error.status, StatusCode::BAD_REQUEST);
        assert!(error.message.contains("'TaskTemplate.ContainerSpec.Env'"));
    }
}
