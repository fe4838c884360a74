//! Answers: rows as they are sent, with what says how long they are good.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use actix_web::body::{BodySize, MessageBody};
use actix_web::http::StatusCode;
use actix_web::http::header::{AGE, CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH, VARY};
use actix_web::{HttpRequest, HttpResponse};
use bytes::Bytes;
use serde_json::value::RawValue;
use xxhash_rust::xxh3::xxh3_128;

use crate::event::now_us;
use crate::web::guard::Pass;
use crate::web::problem::Problem;

/// Bytes that are handed to the connection at once: what it has not taken counts as in memory.
const PIECE_BYTES: usize = 32 * 1024;

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// `"rows":[…],"next":…`
    pub content: String,
    /// When, in microseconds since 1970 UTC.
    pub at_us: i64,
}

impl Found {
    /// What a page holds.
    pub fn new(rows: &[Box<RawValue>], next: Option<&str>) -> Self {
        let bytes = rows.iter().map(|row| row.get().len() + 1).sum::<usize>();
        let mut content = String::with_capacity(bytes + 128);
        content.push_str("\"rows\":[");
        for (at, row) in rows.iter().enumerate() {
            if at > 0 {
                content.push(',');
            }
            content.push_str(row.get());
        }
        content.push_str("],\"next\":");
        content.push_str(&serde_json::Value::from(next).to_string());
        Self { content, at_us: now_us() }
    }
}

/// 200 with the rows, or 304 where who asks has them already. `cached`: whether it came from a
/// cache, and how long that keeps it; `private`: a token was asked for.
pub fn respond(
    request: &HttpRequest,
    found: &Found,
    cached: Option<(bool, Duration)>,
    private: bool,
    pass: &Arc<Pass>,
) -> Result<HttpResponse, Problem> {
    let tag = format!("\"{:032x}\"", xxh3_128(found.content.as_bytes()));
    let unchanged = is_known(request, &tag);
    let status = if unchanged { StatusCode::NOT_MODIFIED } else { StatusCode::OK };
    let mut answer = HttpResponse::build(status);
    answer.insert_header((ETAG, tag));
    let scope = if private { "private" } else { "public" };
    match cached {
        Some((_, ttl)) => {
            let age_us = now_us().saturating_sub(found.at_us).max(0);
            answer.insert_header((AGE, age_us / 1_000_000));
            let control = format!("{scope}, max-age={}", ttl.as_secs());
            answer.insert_header((CACHE_CONTROL, control));
        }
        None => {
            answer.insert_header((CACHE_CONTROL, format!("{scope}, no-cache")));
        }
    }
    if private {
        answer.insert_header((VARY, "Authorization"));
    }
    if unchanged {
        return Ok(answer.finish());
    }
    let is_cached = cached.is_some_and(|(is_cached, _)| is_cached);
    let body = Bytes::from(format!("{{{},\"cached\":{is_cached}}}", found.content));
    if !pass.hold(body.len()) {
        return Err(Problem::busy());
    }
    answer.insert_header((CONTENT_TYPE, "application/json"));
    Ok(answer.body(Held { rest: body, _pass: pass.clone() }))
}

/// Whether the tag is among those of `If-None-Match`.
fn is_known(request: &HttpRequest, tag: &str) -> bool {
    let lists = request.headers().get_all(IF_NONE_MATCH).filter_map(|list| list.to_str().ok());
    let mut tags = lists.flat_map(|list| list.split(',')).map(str::trim);
    tags.any(|known| known == "*" || known.strip_prefix("W/").unwrap_or(known) == tag)
}

/// A body that counts as in memory until it is sent.
struct Held {
    rest: Bytes,
    _pass: Arc<Pass>,
}

impl MessageBody for Held {
    type Error = Infallible;

    fn size(&self) -> BodySize {
        BodySize::Sized(self.rest.len() as u64)
    }

    fn poll_next(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Infallible>>> {
        let rest = &mut self.get_mut().rest;
        let piece = rest.split_to(rest.len().min(PIECE_BYTES));
        Poll::Ready((!piece.is_empty()).then_some(Ok(piece)))
    }
}
