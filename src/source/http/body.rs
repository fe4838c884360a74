//! What a request's body holds: one event, or one a line.

use std::fmt;

use bytes::Bytes;
use serde::de::IgnoredAny;

/// How a body is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON value, one event.
    Json,
    /// A JSON value a line, an event each.
    Ndjson,
    /// Text, one event.
    Text,
}

impl Format {
    /// Of a `Content-Type`; its parameters change nothing, but a charset other than UTF-8 is not
    /// read.
    pub fn of(content_type: &str) -> Option<Self> {
        let mut parts = content_type.split(';').map(str::trim);
        let media = parts.next()?.to_ascii_lowercase();
        let utf8 = |value: &str| {
            let value = value.trim_matches('"');
            value.eq_ignore_ascii_case("utf-8") || value.eq_ignore_ascii_case("us-ascii")
        };
        let charset = |part: &str| {
            let (name, value) = part.split_once('=')?;
            name.trim().eq_ignore_ascii_case("charset").then(|| utf8(value.trim()))
        };
        if parts.any(|part| charset(part) == Some(false)) {
            return None;
        }
        match media.as_str() {
            "application/x-ndjson"
            | "application/ndjson"
            | "application/jsonl"
            | "application/x-jsonlines"
            | "application/json-lines" => Some(Self::Ndjson),
            "application/json" => Some(Self::Json),
            "text/plain" => Some(Self::Text),
            other if other.starts_with("application/") && other.ends_with("+json") => {
                Some(Self::Json)
            }
            _ => None,
        }
    }
}

/// Why a body holds no events: what is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable(String);

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The bodies of a request's events, at least one: slices of `body`. Space around a JSON value is
/// not part of it.
pub fn read(format: Format, body: &Bytes) -> Result<Vec<Bytes>, Unreadable> {
    let text = std::str::from_utf8(body).map_err(|error| {
        Unreadable(format!("byte {} of the body is not UTF-8", error.valid_up_to() + 1))
    })?;
    let bodies = match format {
        Format::Text if !text.is_empty() => vec![body.clone()],
        Format::Text => Vec::new(),
        Format::Json if text.trim().is_empty() => Vec::new(),
        Format::Json => vec![json(body, text).map_err(|error| {
            Unreadable(format!("the body is no JSON: {error} (one JSON value is wanted)"))
        })?],
        Format::Ndjson => {
            let lines = text.split('\n').zip(1..).filter(|(line, _)| !line.trim().is_empty());
            lines
                .map(|(line, number)| {
                    json(body, line).map_err(|error| {
                        let column = error.column();
                        Unreadable(format!(
                            "line {number} of the body is no JSON: {} at column {column} (a JSON \
                             value a line is wanted; nothing of the body was taken)",
                            bare(&error)
                        ))
                    })
                })
                .collect::<Result<_, _>>()?
        }
    };
    if bodies.is_empty() {
        return Err(Unreadable("the body is empty (an event is wanted)".to_owned()));
    }
    Ok(bodies)
}

fn json(body: &Bytes, text: &str) -> Result<Bytes, serde_json::Error> {
    let value = text.trim_matches(|c: char| c.is_ascii_whitespace());
    serde_json::from_str::<IgnoredAny>(value)?;
    Ok(body.slice_ref(value.as_bytes()))
}

/// What is wrong, without the place in the line alone.
fn bare(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rfind(" at line ").map_or(text.clone(), |at| text[..at].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(format: Format, body: &str) -> Result<Vec<String>, String> {
        let bodies = read(format, &Bytes::copy_from_slice(body.as_bytes()));
        let text = |body: Bytes| String::from_utf8(body.to_vec()).unwrap();
        bodies.map(|all| all.into_iter().map(text).collect()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_content_type_tells_the_format() {
        for (content_type, format) in [
            ("application/json", Some(Format::Json)),
            ("Application/JSON; charset=\"UTF-8\"", Some(Format::Json)),
            ("application/cloudevents+json", Some(Format::Json)),
            ("application/x-ndjson", Some(Format::Ndjson)),
            ("text/plain;charset=utf-8", Some(Format::Text)),
            ("text/plain; charset=latin1", None),
            ("application/x-www-form-urlencoded", None),
            ("", None),
        ] {
            assert_eq!(Format::of(content_type), format, "{content_type}");
        }
    }

    #[test]
    fn bodies_come_as_they_were_written() {
        assert_eq!(read_all(Format::Json, " {\"a\": 1.50}\r\n").unwrap(), ["{\"a\": 1.50}"]);
        assert_eq!(read_all(Format::Text, " two\nlines\n").unwrap(), [" two\nlines\n"]);
        assert_eq!(read_all(Format::Ndjson, "1\r\n\n [2] \n\"3\"").unwrap(), ["1", "[2]", "\"3\""]);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        let wrong = |format, body| read_all(format, body).unwrap_err();
        assert!(wrong(Format::Json, "{\"a\":}").contains("line 1 column 6"));
        assert!(wrong(Format::Json, "1 2").contains("no JSON"));
        let line = wrong(Format::Ndjson, "1\n\n{\"a\":tru}\n");
        assert!(
            line.starts_with("line 3 of the body is no JSON: expected ident at column"),
            "{line}"
        );
        for format in [Format::Json, Format::Ndjson, Format::Text] {
            assert!(wrong(format, "").contains("is empty"));
        }
        let latin = read(Format::Text, &Bytes::from_static(b"caf\xe9")).unwrap_err();
        assert!(latin.to_string().contains("byte 4"));
    }

    #[test]
    fn deep_json_is_refused_and_no_stack_is_used_up() {
        assert!(read_all(Format::Json, &"[".repeat(1 << 20)).is_err());
    }
}
