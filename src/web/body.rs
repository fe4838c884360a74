//! The body of a request, decompressed, within its limits.
//!
//! What comes is decompressed as it comes and no further than the limit: a few bytes of gzip may
//! stand for a thousand times as many.

use std::io::{self, Write};

use actix_web::http::header::{CONTENT_ENCODING, CONTENT_LENGTH};
use actix_web::{HttpRequest, web};
use bytes::{Bytes, BytesMut};
use flate2::write::MultiGzDecoder;
use futures_util::StreamExt;

use super::guard::Pass;
use super::problem::Problem;

/// The whole body, of at most `max` bytes, which `pass` holds.
pub async fn read(
    request: &HttpRequest,
    mut payload: web::Payload,
    pass: &Pass,
    max: usize,
) -> Result<Bytes, Problem> {
    let length = request.headers().get(CONTENT_LENGTH).and_then(|it| it.to_str().ok());
    if length.and_then(|it| it.parse::<usize>().ok()).is_some_and(|length| length > max) {
        return Err(Problem::large(max));
    }
    let whole = Whole { bytes: BytesMut::new(), max, pass, problem: None };
    let mut body = match is_gzip(request)? {
        true => Body::Gzip(MultiGzDecoder::new(whole)),
        false => Body::Plain(whole),
    };
    while let Some(part) = payload.next().await {
        let part =
            part.map_err(|error| Problem::bad(format!("the body cannot be read: {error}")))?;
        body.take(&part)?;
    }
    body.finish()
}

/// Whether the body is compressed, in the one way that is read.
fn is_gzip(request: &HttpRequest) -> Result<bool, Problem> {
    let Some(encoding) = request.headers().get(CONTENT_ENCODING) else { return Ok(false) };
    let encoding = String::from_utf8_lossy(encoding.as_bytes()).to_ascii_lowercase();
    match encoding.as_str() {
        "gzip" | "x-gzip" => Ok(true),
        "identity" => Ok(false),
        _ => Err(Problem::unread(format!("the Content-Encoding is {encoding} (gzip, or none)"))),
    }
}

/// A body on its way.
enum Body<'p> {
    Plain(Whole<'p>),
    Gzip(MultiGzDecoder<Whole<'p>>),
}

impl Body<'_> {
    fn take(&mut self, part: &[u8]) -> Result<(), Problem> {
        let taken = match self {
            Self::Plain(whole) => whole.write_all(part),
            Self::Gzip(gzip) => gzip.write_all(part),
        };
        taken.map_err(|error| self.problem(&error))
    }

    fn finish(mut self) -> Result<Bytes, Problem> {
        if let Self::Gzip(gzip) = &mut self {
            let finished = gzip.try_finish();
            finished.map_err(|error| self.problem(&error))?;
        }
        let whole = match &mut self {
            Self::Plain(whole) => whole,
            Self::Gzip(gzip) => gzip.get_mut(),
        };
        Ok(std::mem::take(&mut whole.bytes).freeze())
    }

    /// What an error means to who sent the body.
    fn problem(&mut self, error: &io::Error) -> Problem {
        let whole = match self {
            Self::Plain(whole) => whole,
            Self::Gzip(gzip) => gzip.get_mut(),
        };
        whole.problem.take().unwrap_or_else(|| {
            Problem::bad(format!("the body cannot be read: {error} (is it gzip as it says?)"))
        })
    }
}

/// What was read so far.
struct Whole<'p> {
    bytes: BytesMut,
    max: usize,
    pass: &'p Pass,
    /// Why no more is taken.
    problem: Option<Problem>,
}

impl Write for Whole<'_> {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + part.len() > self.max {
            self.problem = Some(Problem::large(self.max));
        } else if !self.pass.hold(part.len()) {
            self.problem = Some(Problem::busy());
        }
        match self.problem {
            Some(_) => Err(io::Error::other("no more is taken")),
            None => {
                self.bytes.extend_from_slice(part);
                Ok(part.len())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
