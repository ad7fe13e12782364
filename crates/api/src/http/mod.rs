//! The HTTP side: one call with its parameters, bodies in and out, streams, hijacked connections.

pub mod answer;
pub mod body;
pub mod frame;
pub mod hijack;
pub mod query;
pub mod version;

use std::sync::Arc;

use hyper::body::Incoming;
use serde::de::DeserializeOwned;

use crate::backend::ApiState;
use crate::decode::{self, Shape};
use crate::error::{ApiError, ApiResult};
use crate::http::query::Query;
use crate::http::version::ApiVersion;

/// One request on its way through a handler.
pub struct Call {
    /// Everything that handlers may use.
    pub state: Arc<ApiState>,
    /// The API version that the client speaks.
    pub version: ApiVersion,
    /// The decoded query string.
    pub query: Query,
    /// Values of the route's `{name}` segments, decoded.
    pub params: Vec<(&'static str, String)>,
    /// Method, headers, extensions.
    pub head: http::request::Parts,
    /// The body, until somebody reads it.
    pub body: Option<Incoming>,
}

impl Call {
    /// The value of the route's segment `name`.
    #[must_use]
    pub fn param(&self, name: &str) -> &str {
        self.params.iter().find(|(key, _)| *key == name).map_or("", |(_, value)| value)
    }

    /// A header's text, if it is there and readable.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Takes the body; a second call finds nothing.
    ///
    /// # Errors
    /// 500 if it was taken before.
    pub fn take_body(&mut self) -> ApiResult<Incoming> {
        self.body.take().ok_or_else(|| ApiError::internal("the request body was read twice"))
    }

    /// Reads the body as JSON of the given shape.
    ///
    /// # Errors
    /// 400 that names what is wrong; nothing has changed then.
    pub async fn json<T: DeserializeOwned>(&mut self, shape: &Shape) -> ApiResult<T> {
        let bytes = body::read_json_bytes(self).await?;
        decode::parse(&bytes, shape)
    }

    /// As [`Self::json`], but an absent body is the default.
    ///
    /// # Errors
    /// As [`Self::json`].
    pub async fn json_or_default<T>(&mut self, shape: &Shape) -> ApiResult<T>
    where
        T: DeserializeOwned + Default,
    {
        let bytes = body::read_json_bytes(self).await?;
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Ok(T::default());
        }
        decode::parse(&bytes, shape)
    }
}
