//! Answers that are not what was asked for: `{"error": "…"}`, with a status that says whose turn
//! it is.

use std::fmt;

use actix_web::http::StatusCode;
use actix_web::http::header::{ACCEPT_ENCODING, ALLOW, RETRY_AFTER, WWW_AUTHENTICATE};
use actix_web::{HttpResponse, ResponseError};
use serde_json::json;

use crate::topology::Faults;

/// Seconds after which it is worth asking again.
const RETRY_SECONDS: u64 = 1;

/// Why a request was not done.
#[derive(Clone, Debug)]
pub struct Problem {
    status: StatusCode,
    error: String,
    /// The methods that would do.
    allow: &'static str,
    /// What is wrong, one by one, where it is several things.
    faults: Vec<String>,
}

impl Problem {
    fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, error: error.into(), allow: "", faults: Vec::new() }
    }

    /// 400: the request is wrong.
    pub fn bad(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }

    /// 401: a token is asked for.
    pub fn stranger() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "no token, or a wrong one (send `Authorization: Bearer TOKEN`)",
        )
    }

    /// 403: whoever asks, it is not to be done for them.
    pub fn forbidden(error: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, error)
    }

    /// 404: nothing is there.
    pub fn missing(error: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, error)
    }

    /// 405: only `POST` is understood here.
    pub fn only_post() -> Self {
        let error = "this path takes POST alone";
        Self { allow: "POST", ..Self::new(StatusCode::METHOD_NOT_ALLOWED, error) }
    }

    /// 405: only `GET` is understood here.
    pub fn only_get() -> Self {
        let error = "this path takes GET alone";
        Self { allow: "GET, HEAD", ..Self::new(StatusCode::METHOD_NOT_ALLOWED, error) }
    }

    /// 408: the body did not come.
    pub fn slow() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "the body took too long")
    }

    /// 413: the body is larger than `max` bytes.
    pub fn large(max: usize) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the body is larger than {max} bytes (`max_body` in [http])"),
        )
    }

    /// 415: the body is of a kind that is not read.
    pub fn unread(error: impl Into<String>) -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, error)
    }

    /// 422: the topology file is wrong.
    pub fn faulty(faults: &Faults) -> Self {
        let error = "the edit changes nothing: the file is wrong";
        let faults = faults.lines();
        Self { faults, ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, error) }
    }

    /// 429: too much at once.
    pub fn busy() -> Self {
        Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too many requests are under way (`max_in_flight` in [http])",
        )
    }

    /// 504: what was asked took too long.
    pub fn late(error: impl Into<String>) -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, error)
    }

    /// 503: not now.
    pub fn away(error: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, error)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.error)
    }
}

impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        self.status
    }

    fn error_response(&self) -> HttpResponse {
        let mut answer = HttpResponse::build(self.status);
        match self.status {
            StatusCode::UNAUTHORIZED => answer.insert_header((WWW_AUTHENTICATE, "Bearer")),
            StatusCode::METHOD_NOT_ALLOWED => answer.insert_header((ALLOW, self.allow)),
            StatusCode::UNSUPPORTED_MEDIA_TYPE => answer.insert_header((ACCEPT_ENCODING, "gzip")),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                answer.insert_header((RETRY_AFTER, RETRY_SECONDS))
            }
            _ => &mut answer,
        };
        match self.faults.is_empty() {
            true => answer.json(json!({ "error": self.error })),
            false => answer.json(json!({ "error": self.error, "faults": self.faults })),
        }
    }
}
