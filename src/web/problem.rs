//! Answers that are not what was asked for: `{"error": "…"}`, with a status that says whose turn
//! it is.

use std::fmt;

use actix_web::http::StatusCode;
use actix_web::http::header::{ACCEPT_ENCODING, ALLOW, RETRY_AFTER, WWW_AUTHENTICATE};
use actix_web::{HttpResponse, ResponseError};
use serde_json::json;

/// Seconds after which it is worth asking again.
const RETRY_SECONDS: u64 = 1;

/// Why a request was not done.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    error: String,
}

impl Problem {
    /// 400: the request is wrong.
    pub fn bad(error: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, error: error.into() }
    }

    /// 401: a token is asked for.
    pub fn stranger() -> Self {
        let error = "no token, or a wrong one (send `Authorization: Bearer TOKEN`)".to_owned();
        Self { status: StatusCode::UNAUTHORIZED, error }
    }

    /// 404: nothing is there.
    pub fn missing(error: impl Into<String>) -> Self {
        Self { status: StatusCode::NOT_FOUND, error: error.into() }
    }

    /// 405: only `POST` is understood here.
    pub fn only_post() -> Self {
        let error = "this path takes POST alone".to_owned();
        Self { status: StatusCode::METHOD_NOT_ALLOWED, error }
    }

    /// 408: the body did not come.
    pub fn slow() -> Self {
        let error = "the body took too long".to_owned();
        Self { status: StatusCode::REQUEST_TIMEOUT, error }
    }

    /// 413: the body is larger than `max` bytes.
    pub fn large(max: usize) -> Self {
        let error = format!("the body is larger than {max} bytes (`max_body` in [http])");
        Self { status: StatusCode::PAYLOAD_TOO_LARGE, error }
    }

    /// 415: the body is of a kind that is not read.
    pub fn unread(error: impl Into<String>) -> Self {
        Self { status: StatusCode::UNSUPPORTED_MEDIA_TYPE, error: error.into() }
    }

    /// 429: too much at once.
    pub fn busy() -> Self {
        let error = "too many requests are under way (`max_in_flight` in [http])".to_owned();
        Self { status: StatusCode::TOO_MANY_REQUESTS, error }
    }

    /// 503: not now.
    pub fn away(error: impl Into<String>) -> Self {
        Self { status: StatusCode::SERVICE_UNAVAILABLE, error: error.into() }
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
            StatusCode::METHOD_NOT_ALLOWED => answer.insert_header((ALLOW, "POST")),
            StatusCode::UNSUPPORTED_MEDIA_TYPE => answer.insert_header((ACCEPT_ENCODING, "gzip")),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                answer.insert_header((RETRY_AFTER, RETRY_SECONDS))
            }
            _ => &mut answer,
        };
        answer.json(json!({ "error": self.error }))
    }
}
