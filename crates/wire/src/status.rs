//! Our failures in gRPC's status, there and back.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use shoal_model::fault::{Fault as _, FaultKind};
use tonic::{Code, Status};

use crate::error::WireError;
use crate::fault::RemoteFault;

/// Longest text of a failure: it travels in a header, whose size is bounded.
const FAULT_TEXT_MAX: usize = 4096;
/// How long a handler may take to answer a single request. Issuing a certificate writes the store,
/// which answers within 5 s or not at all.
pub(crate) const REQUEST_DEADLINE: Duration = Duration::from_secs(10);

/// A failure as a status; the whole of it is in the details.
pub(crate) fn from_fault(mut fault: RemoteFault) -> Status {
    if fault.text.len() > FAULT_TEXT_MAX {
        fault.text = fault.text.chars().take(FAULT_TEXT_MAX / 4).chain("…".chars()).collect();
    }
    let code = match fault.kind() {
        FaultKind::NotFound => Code::NotFound,
        FaultKind::Invalid => Code::InvalidArgument,
        FaultKind::Conflict | FaultKind::NotModified => Code::FailedPrecondition,
        FaultKind::Forbidden => Code::PermissionDenied,
        FaultKind::Unauthorized => Code::Unauthenticated,
        FaultKind::Unavailable => Code::Unavailable,
        FaultKind::NotImplemented => Code::Unimplemented,
        FaultKind::Internal => Code::Internal,
    };
    // Cannot fail: four texts always serialise; without details the text still arrives.
    let details = serde_json::to_vec(&fault).unwrap_or_default();
    // The text of a status must fit a header: the details have the real one.
    let summary: String = fault.text.chars().filter(|c| !c.is_control()).take(200).collect();
    Status::with_details(code, summary, Bytes::from(details))
}

/// One of our errors as a status.
pub(crate) fn from_error(error: &WireError) -> Status {
    from_fault(RemoteFault::of(error))
}

/// What a status from `addr` means.
pub(crate) fn to_error(status: Status, addr: &str, limit: usize) -> WireError {
    if !status.details().is_empty()
        && let Ok(fault) = serde_json::from_slice::<RemoteFault>(status.details())
    {
        return WireError::Remote(fault);
    }
    let addr = addr.to_owned();
    match status.code() {
        Code::OutOfRange | Code::ResourceExhausted => WireError::TooLarge { addr, limit },
        Code::InvalidArgument => WireError::Malformed { addr, detail: status.message().to_owned() },
        Code::Unimplemented => {
            let text = format!("'{addr}' does not know this call: {}", status.message());
            WireError::Remote(RemoteFault::new(FaultKind::NotImplemented, text))
        }
        // Said by the peer, not by our side of the connection.
        Code::Cancelled | Code::DeadlineExceeded if status.source().is_none() => {
            WireError::Timeout { step: "request", addr, after: REQUEST_DEADLINE }
        }
        _ => WireError::Closed { addr, source: Some(Arc::new(status)) },
    }
}

/// Waits for `call`, but no longer than `limit`.
pub(crate) async fn within<T>(
    step: &'static str,
    addr: &str,
    limit: Duration,
    call: impl Future<Output = Result<T, WireError>>,
) -> Result<T, WireError> {
    tokio::time::timeout(limit, call)
        .await
        .unwrap_or_else(|_| Err(WireError::Timeout { step, addr: addr.to_owned(), after: limit }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_survives_as_a_status() {
        let fault = RemoteFault {
            kind: "conflict".into(),
            id: "SH-MGR-001".into(),
            text: "größer\nals erlaubt".into(),
            remedy: "…".into(),
        };
        let back = to_error(from_fault(fault.clone()), "x", 1);
        assert!(matches!(back, WireError::Remote(same) if same == fault));
    }

    #[test]
    fn an_endless_text_is_cut() {
        let status = from_fault(RemoteFault::new(FaultKind::Internal, "ä".repeat(100_000)));
        assert!(status.details().len() < 2 * FAULT_TEXT_MAX);
    }
}
