//! The spans of what actors do: `send` onto a stream, `process` by a group's member, `insert` or
//! `write` by a sink. An event's `trace` names the last of these, so each is the parent of the next,
//! through any stream and in any process. Names and attributes are those of OpenTelemetry's
//! semantic conventions; what they have no word for is called `aqueduct.…`.

mod journeys;
mod sends;
mod writes;

use opentelemetry::KeyValue;

pub use self::journeys::{Journeys, never_sent};
pub use self::sends::Sends;
pub use self::writes::Writes;
use crate::event::Event;
use crate::spec::Values;
use crate::stream::StreamSpec;
use crate::telemetry::traces::span::Span;

/// What all spans of one operation on a stream say.
fn on_stream(stream: &StreamSpec, operation: &'static str) -> Vec<KeyValue> {
    let mut attributes = vec![
        KeyValue::new("messaging.system", stream.kind.name),
        KeyValue::new("messaging.destination.name", stream.name.to_string()),
        KeyValue::new("messaging.operation.name", operation),
        KeyValue::new("messaging.operation.type", operation),
    ];
    attributes.extend(server(&stream.values));
    attributes
}

/// What a span says of its event.
fn of_event(span: &mut Span, event: &Event) {
    span.set("messaging.message.id", event.id.to_string());
    span.set("messaging.message.body.size", event.body.len() as i64);
    span.set("aqueduct.source", event.source.to_string());
}

/// Host and port of a component's `url`, or of the first of several.
fn server(values: &Values) -> Vec<KeyValue> {
    let url = values.opt_str("url").or_else(|| values.list("url").first().map(String::as_str));
    let Some((_, rest)) = url.and_then(|url| url.split_once("://")) else { return Vec::new() };
    let login_and_host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    // A password may hold an `@`, though it should not.
    let host = login_and_host.rsplit('@').next().unwrap_or_default();
    let (host, port) = match host.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse::<i64>().ok()),
        _ => (host, None),
    };
    if host.is_empty() || rest.matches('@').count() > login_and_host.matches('@').count().min(1) {
        return Vec::new();
    }
    let mut attributes = vec![KeyValue::new("server.address", host.to_owned())];
    attributes.extend(port.map(|port| KeyValue::new("server.port", port)));
    attributes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Value;

    #[test]
    fn a_server_is_named_without_its_password() {
        let server = |url: &str| {
            let mut values = Values::default();
            values.set("url", Value::Str(url.to_owned()));
            let server: Vec<String> =
                server(&values).iter().map(|attribute| attribute.value.to_string()).collect();
            server.join(" ")
        };
        assert_eq!(server("redis://:secret@redis.example:6380/0"), "redis.example 6380");
        assert_eq!(server("postgres://user:secret@db/events?x=1"), "db");
        assert_eq!(server("amqp://[::1]:5672/%2f"), "[::1] 5672");
        assert_eq!(server("amqp://[::1]/"), "[::1]");
        assert_eq!(server("postgres:///events?host=/run/postgresql"), "");
        for odd in [
            "redis://:se/cret@host",
            "redis://:a@b/c@host",
            "redis://u:p@ss@host/0",
            "amqp://u:cret/x@h",
        ] {
            let said = server(odd);
            assert!(!said.contains("cret") && !said.contains("ss"), "{odd} says {said}");
        }
    }
}
