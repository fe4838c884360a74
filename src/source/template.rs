//! A body with placeholders, read once and rendered for each event.
//!
//! A placeholder is one of [`PLACEHOLDERS`], written exactly so. Every other brace is text: a
//! string body is often JSON and full of them. Only what must be a slip of the pen (one letter
//! off a placeholder and nothing else between the braces, or a `random` without a proper range)
//! is a fault, since nobody wants to find `{nwo}` in a million rows.

use std::fmt::Write;

use bytes::{BufMut, BytesMut};
use chrono::{DateTime, SecondsFormat};
use serde_json::Value;

/// The placeholders, as a user writes them.
pub(super) const PLACEHOLDERS: &str =
    "{n}, {round}, {now}, {source}, {instance}, {uuid}, {random:1..100}, both ends included";

/// A body, compiled for one instance of one source.
pub(super) struct Template {
    pieces: Vec<Piece>,
    len_max: usize,
}

/// What rendering writes, one after the other.
enum Piece {
    Literal(Box<[u8]>),
    Number,
    Round,
    Now,
    Uuid,
    Random(i64, i64),
}

/// What `{source}` and `{instance}` stand for.
#[derive(Clone, Copy)]
pub(super) struct Maker<'a> {
    pub source: &'a str,
    pub instance: u64,
}

impl Template {
    /// A string, in which every placeholder is replaced by its plain text.
    pub fn text(body: &str, maker: Maker<'_>) -> Self {
        let mut compiler = Compiler::new(maker, false);
        compiler.segments(&parse(body).0);
        compiler.finish()
    }

    /// A JSON value. A string in it that is nothing but a number's placeholder becomes a number;
    /// names of members may hold placeholders too.
    pub fn json(body: &Value, maker: Maker<'_>) -> Self {
        let mut compiler = Compiler::new(maker, true);
        compiler.json(body);
        compiler.finish()
    }

    /// Bytes that one rendering takes at most.
    pub fn len_max(&self) -> usize {
        self.len_max
    }

    /// Appends the body of event number `n` of a round, made at `now` (see [`rfc3339`]).
    pub fn render(&self, n: u64, round: u64, now: &str, out: &mut BytesMut) {
        for piece in &self.pieces {
            match piece {
                Piece::Literal(bytes) => out.put_slice(bytes),
                Piece::Now => out.put_slice(now.as_bytes()),
                Piece::Number => digits(n, out),
                Piece::Round => digits(round, out),
                Piece::Random(low, high) => {
                    let number = fastrand::i64(low..=high);
                    if number < 0 {
                        out.put_u8(b'-');
                    }
                    digits(number.unsigned_abs(), out);
                }
                Piece::Uuid => {
                    let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
                    let text = uuid::Uuid::new_v4().hyphenated().encode_lower(&mut text);
                    out.put_slice(text.as_bytes());
                }
            }
        }
    }
}

/// The longest a number gets: `u64::MAX`, or `i64::MIN` with its sign.
const DIGITS_MAX: usize = 20;

fn digits(mut number: u64, out: &mut BytesMut) {
    let mut text = [0; DIGITS_MAX];
    let mut at = DIGITS_MAX;
    loop {
        at -= 1;
        text[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return out.put_slice(&text[at..]);
        }
    }
}

/// How `{now}` reads: RFC 3339, UTC, milliseconds.
pub(super) fn rfc3339(time_us: i64) -> String {
    DateTime::from_timestamp_micros(time_us)
        .unwrap_or_default()
        .to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// What is wrong with the placeholders in a body, each with what would be right.
pub(super) fn faults(body: &Value) -> Vec<String> {
    match body {
        Value::String(text) => parse(text).1,
        Value::Array(items) => items.iter().flat_map(faults).collect(),
        Value::Object(members) => members
            .iter()
            .flat_map(|(name, value)| [parse(name).1, faults(value)].concat())
            .collect(),
        _ => Vec::new(),
    }
}

/// A piece of a string the user wrote.
#[derive(Debug, PartialEq)]
enum Segment<'a> {
    Text(&'a str),
    Number,
    Round,
    Now,
    Source,
    Instance,
    Uuid,
    Random(i64, i64),
}

impl Segment<'_> {
    fn is_number(&self) -> bool {
        matches!(self, Segment::Number | Segment::Round | Segment::Instance | Segment::Random(..))
    }
}

/// Cuts a string at its placeholders; says what is wrong with those that are text after all.
fn parse(text: &str) -> (Vec<Segment<'_>>, Vec<String>) {
    let (mut segments, mut faults) = (Vec::new(), Vec::new());
    // Text from `start` is not yet in a segment; braces before `at` have been looked at.
    let (mut start, mut at) = (0, 0);
    while let Some(open) = text[at..].find('{').map(|found| at + found) {
        at = open + 1;
        let Some(len) = text[at..].find(['{', '}']) else { break };
        if !text[at + len..].starts_with('}') {
            continue;
        }
        match placeholder(&text[at..at + len]) {
            Ok(None) => {}
            Ok(Some(segment)) => {
                if start < open {
                    segments.push(Segment::Text(&text[start..open]));
                }
                segments.push(segment);
                at += len + 1;
                start = at;
            }
            Err(fault) => faults.push(fault),
        }
    }
    if start < text.len() {
        segments.push(Segment::Text(&text[start..]));
    }
    (segments, faults)
}

/// What stands between two braces: a placeholder, text, or a slip.
fn placeholder(inner: &str) -> Result<Option<Segment<'static>>, String> {
    let segment = match inner {
        "n" => Segment::Number,
        "round" => Segment::Round,
        "now" => Segment::Now,
        "source" => Segment::Source,
        "instance" => Segment::Instance,
        "uuid" => Segment::Uuid,
        _ => {
            if let Some(range) = inner.strip_prefix("random:") {
                let (low, high) = range_of(range).ok_or_else(|| no_range(inner))?;
                return Ok(Some(Segment::Random(low, high)));
            }
            return slip(inner).map_or(Ok(None), Err);
        }
    };
    Ok(Some(segment))
}

fn range_of(text: &str) -> Option<(i64, i64)> {
    let (low, high) = text.split_once("..")?;
    let (low, high) = (low.parse().ok()?, high.parse().ok()?);
    (low <= high).then_some((low, high))
}

fn no_range(inner: &str) -> String {
    format!(
        "placeholder {{{inner}}} has no range of whole numbers, the smaller first \
         (write {{random:1..100}}, both ends included)"
    )
}

fn slip(inner: &str) -> Option<String> {
    if inner == "random" {
        return Some(no_range(inner));
    }
    let lower = inner.to_ascii_lowercase();
    // Names are short: with any first letter, `{x}` and `{row}` would be slips too.
    let meant =
        ["n", "round", "now", "source", "instance", "uuid", "random"].into_iter().find(|name| {
            lower.starts_with(&name[..1])
                && lower.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
                && strsim::osa_distance(&lower, name) <= 1
        })?;
    let meant = if meant == "random" { "random:1..100" } else { meant };
    Some(format!(
        "unknown placeholder {{{inner}}}, did you mean {{{meant}}}? (there are {PLACEHOLDERS})"
    ))
}

/// Gathers pieces; neighbouring literals become one.
struct Compiler<'a> {
    maker: Maker<'a>,
    json: bool,
    pieces: Vec<Piece>,
    literal: String,
    len_max: usize,
}

impl<'a> Compiler<'a> {
    fn new(maker: Maker<'a>, json: bool) -> Self {
        Self { maker, json, pieces: Vec::new(), literal: String::new(), len_max: 0 }
    }

    fn json(&mut self, value: &Value) {
        match value {
            Value::String(text) => self.string(text, true),
            Value::Array(items) => {
                self.literal.push('[');
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        self.literal.push(',');
                    }
                    self.json(item);
                }
                self.literal.push(']');
            }
            Value::Object(members) => {
                self.literal.push('{');
                for (index, (name, item)) in members.iter().enumerate() {
                    if index > 0 {
                        self.literal.push(',');
                    }
                    self.string(name, false);
                    self.literal.push(':');
                    self.json(item);
                }
                self.literal.push('}');
            }
            plain => self.literal.push_str(&plain.to_string()),
        }
    }

    fn string(&mut self, text: &str, keep_type: bool) {
        let segments = parse(text).0;
        if keep_type && matches!(&segments[..], [only] if only.is_number()) {
            return self.segments(&segments);
        }
        self.literal.push('"');
        self.segments(&segments);
        self.literal.push('"');
    }

    fn segments(&mut self, segments: &[Segment<'_>]) {
        for segment in segments {
            match *segment {
                Segment::Text(text) => self.text(text),
                Segment::Source => self.text(self.maker.source),
                // Writing to a `String` cannot fail.
                Segment::Instance => _ = write!(self.literal, "{}", self.maker.instance),
                Segment::Number => self.piece(Piece::Number, DIGITS_MAX),
                Segment::Round => self.piece(Piece::Round, DIGITS_MAX),
                Segment::Now => self.piece(Piece::Now, "2000-01-01T00:00:00.000Z".len()),
                Segment::Uuid => self.piece(Piece::Uuid, uuid::fmt::Hyphenated::LENGTH),
                Segment::Random(low, high) => self.piece(Piece::Random(low, high), DIGITS_MAX),
            }
        }
    }

    fn text(&mut self, text: &str) {
        if self.json {
            let quoted = Value::from(text).to_string();
            self.literal.push_str(&quoted[1..quoted.len() - 1]);
        } else {
            self.literal.push_str(text);
        }
    }

    fn piece(&mut self, piece: Piece, len_max: usize) {
        self.flush();
        self.pieces.push(piece);
        self.len_max += len_max;
    }

    fn flush(&mut self) {
        if !self.literal.is_empty() {
            let literal = std::mem::take(&mut self.literal).into_bytes();
            self.len_max += literal.len();
            self.pieces.push(Piece::Literal(literal.into()));
        }
    }

    fn finish(mut self) -> Template {
        self.flush();
        Template { pieces: self.pieces, len_max: self.len_max }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const MAKER: Maker<'static> = Maker { source: "numbers", instance: 3 };
    const NOW: &str = "2026-01-02T03:04:05.678Z";

    fn rendered(template: &Template, n: u64) -> String {
        let mut out = BytesMut::new();
        template.render(n, 2, NOW, &mut out);
        assert!(out.len() <= template.len_max());
        String::from_utf8(out.to_vec()).unwrap()
    }

    fn text(body: &str) -> String {
        rendered(&Template::text(body, MAKER), 42)
    }

    #[test]
    fn a_string_body_is_replaced_plainly() {
        assert_eq!(text("{n}"), "42");
        assert_eq!(text("{round}.{n}"), "2.42");
        assert_eq!(text("a{n}{source}/{instance} at {now}!"), format!("a42numbers/3 at {NOW}!"));
        assert_eq!(text(r#"{"a":{n},"b":{"c":"{source}"}}"#), r#"{"a":42,"b":{"c":"numbers"}}"#);
        assert_eq!(text("{random:-7..-7}{random:5..5}"), "-75");
        assert_eq!(text("ü{n}é{"), "ü42é{");
    }

    #[test]
    fn other_braces_are_text() {
        for body in [r#"{"a":1}"#, "{}", "{", "}", "{ n }", "{x}", "{row}", "{n:5}", "{{", "{é}"] {
            assert_eq!(text(body), body);
            assert_eq!(faults(&json!({ body: [body] })), Vec::<String>::new(), "{body}");
        }
    }

    #[test]
    fn a_slip_is_a_fault_wherever_it_stands() {
        let faults = |body: Value| faults(&body).join("\n");
        assert_eq!(
            faults(json!({"a": ["{nn}"]})),
            "unknown placeholder {nn}, did you mean {n}? (there are {n}, {round}, {now}, \
             {source}, {instance}, {uuid}, {random:1..100}, both ends included)"
        );
        assert!(faults(json!({"a{nwo}": 1})).contains("did you mean {now}?"));
        assert!(faults(json!("{N}")).contains("did you mean {n}?"));
        assert!(faults(json!("{randm}")).contains("did you mean {random:1..100}?"));
        for body in ["{random}", "{random:}", "{random:9..1}", "{random:1..x}", "{random:1}"] {
            assert!(faults(json!(body)).contains("has no range"), "{body}");
            assert_eq!(text(body), body);
        }
    }

    #[test]
    fn a_placeholder_alone_keeps_its_type_in_json() {
        let body = json!({
            "n": "{n}", "i": "{instance}", "r": "{random:6..6}", "s": "{source}", "now": "{now}",
            "#{n}": "\"{n}\"\n", "deep": [{"x": "{n}"}, null, true, 1.5, ""], "{n}": {}
        });
        let made: Value =
            serde_json::from_str(&rendered(&Template::json(&body, MAKER), 42)).unwrap();
        let wanted = json!({
            "n": 42, "i": 3, "r": 6, "s": "numbers", "now": NOW,
            "#42": "\"42\"\n", "deep": [{"x": 42}, null, true, 1.5, ""], "42": {}
        });
        assert_eq!(made.to_string(), wanted.to_string(), "the order of members included");
    }

    #[test]
    fn random_stays_in_its_range_and_reaches_both_ends() {
        let template = Template::text("{random:1..3}", MAKER);
        let mut seen = std::collections::BTreeSet::new();
        // The chance that one of three does not come up in 400 draws is 1 in 10^70.
        seen.extend((0..400).map(|n| rendered(&template, n)));
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["1", "2", "3"]);
    }

    #[test]
    fn every_uuid_is_another_v4() {
        let template = Template::text("{uuid}", MAKER);
        let [a, b] = [1, 2].map(|n| rendered(&template, n).parse::<uuid::Uuid>().unwrap());
        assert_eq!((a.get_version_num(), b.get_version_num()), (4, 4));
        assert_ne!(a, b);
    }

    #[test]
    fn now_is_rfc_3339_in_utc_with_milliseconds() {
        assert_eq!(rfc3339(1_767_323_045_678_999), NOW);
        assert_eq!(rfc3339(i64::MAX).len(), NOW.len(), "a clock gone wild does not panic");
    }

    proptest! {
        #[test]
        fn any_string_passes_as_text_and_as_json(body in ".*", n: u64) {
            let plain = rendered(&Template::text(&body, MAKER), n);
            if !body.contains('{') {
                prop_assert_eq!(&plain, &body);
            }
            let made = rendered(&Template::json(&json!({"a": body}), MAKER), n);
            let made: Value = serde_json::from_str(&made).unwrap();
            if made["a"].is_string() && !body.contains("{uuid}") && !body.contains("{random:") {
                prop_assert_eq!(&made["a"], &Value::from(plain));
            }
        }

        #[test]
        fn braces_and_names_in_any_order_do_no_harm(words in prop::collection::vec(
            prop::sample::select(vec!["{", "}", "n", "{n}", "random:1..2", "random:", "é", ":"]),
            0..12,
        )) {
            let body = words.concat();
            faults(&json!(body));
            let made = rendered(&Template::json(&json!([body]), MAKER), 1);
            prop_assert!(serde_json::from_str::<Value>(&made).is_ok());
        }
    }
}
