//! The log: text or JSON lines on standard error.

use std::io::IsTerminal;
use std::sync::OnceLock;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

/// Replaces the filter of the log.
static FILTER: OnceLock<Box<dyn Fn(&str) + Send + Sync>> = OnceLock::new();

/// Makes spans of what is logged as such.
pub type SpanLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// Starts the log with `filter` (`"info"`, `"aqueduct=debug,info"`), which the caller has checked,
/// and hands spans to `spans`. A second call changes nothing: the first log goes on.
pub fn start(filter: &str, json: bool, spans: SpanLayer) {
    let (filter, handle) = reload::Layer::new(filter_of(filter));
    let lines = fmt::layer()
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal());
    let spans = tracing_subscriber::registry().with(spans);
    let started = match json {
        true => {
            let lines = lines.json().flatten_event(true).with_span_list(false);
            spans.with(lines.with_filter(filter)).try_init()
        }
        false => spans.with(lines.with_filter(filter)).try_init(),
    };
    if started.is_ok() {
        let _ = FILTER.set(Box::new(move |filter| {
            let _ = handle.reload(filter_of(filter)); // errs where the log is gone
        }));
        std::panic::set_hook(Box::new(|panic| {
            let place = panic.location().map(ToString::to_string).unwrap_or_default();
            tracing::error!(place, "a panic: {}", panic_text(panic.payload()));
        }));
    }
}

/// Replaces the filter of the log that was started.
pub fn filter(filter: &str) {
    if let Some(replace) = FILTER.get() {
        replace(filter);
    }
}

fn filter_of(filter: &str) -> EnvFilter {
    // The web server's own comings and goings, and the requests that are none, are of interest only
    // where they are asked for; what the client of RabbitMQ logs is in our errors as well, and it
    // would log bodies of events.
    let plain = !filter.contains(['=', ',']);
    let directives = match plain {
        true => format!("{filter},actix_server=warn,actix_http=off,lapin=off"),
        false => filter.to_owned(),
    };
    EnvFilter::try_new(directives).unwrap_or_else(|_| EnvFilter::new("info"))
}

/// What a panic said.
pub fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(text), _) => (*text).to_owned(),
        (_, Some(text)) => text.clone(),
        _ => "something that is not text".to_owned(),
    }
}
