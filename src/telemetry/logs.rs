//! The log: text or JSON lines on standard error, and never without end ([`bounds`]).

pub mod bounds;

use std::io::IsTerminal;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tracing::field::{DisplayValue, display};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

use self::bounds::Bounded;
use super::board::Board;
use crate::event::trace::Place;

/// How often it is looked whether there is something to say.
const LOOK: Duration = Duration::from_millis(500);

/// Replaces the filter of the log.
static FILTER: OnceLock<Replace> = OnceLock::new();

type Replace = Box<dyn Fn(&str) + Send + Sync>;

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
            let lines = lines.map_event_format(Bounded);
            spans.with(lines.with_filter(filter)).try_init()
        }
        false => spans.with(lines.map_event_format(Bounded).with_filter(filter)).try_init(),
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

/// Says what works again and how much was left out, as long as the process runs.
pub async fn look_after(board: Arc<Board>) {
    loop {
        tokio::time::sleep(LOOK).await;
        board.look();
        bounds::tell(false);
    }
}

/// What a line says of the trace it belongs to: `trace_id` and `span_id`, where there is one.
pub fn ids(trace: Option<&str>) -> (Id, Id) {
    let place = trace.and_then(Place::parse);
    let id = |id: fn(Place) -> String| place.map(|place| display(id(place)));
    (id(|place| format!("{:032x}", place.trace_id)), id(|place| format!("{:016x}", place.span_id)))
}

/// A field of a line, where there is a value for it.
pub type Id = Option<DisplayValue<String>>;

/// What a panic said.
pub fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(text), _) => (*text).to_owned(),
        (_, Some(text)) => text.clone(),
        _ => "something that is not text".to_owned(),
    }
}
