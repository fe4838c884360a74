//! The log: text or JSON lines on standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Starts the log with `filter` (`"info"`, `"aqueduct=debug,info"`), which the caller has checked.
/// A second call changes nothing: the first log goes on.
pub fn start(filter: &str, json: bool) {
    // The web server's own comings and goings, and the requests that are none, are of interest only
    // where they are asked for; what the client of RabbitMQ logs is in our errors as well, and it
    // would log bodies of events.
    let directives = match filter.contains(['=', ',']) {
        true => filter.to_owned(),
        false => format!("{filter},actix_server=warn,actix_http=off,lapin=off"),
    };
    let filter = EnvFilter::try_new(directives).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal());
    let started =
        if json { builder.json().flatten_event(true).try_init() } else { builder.try_init() };
    if started.is_ok() {
        std::panic::set_hook(Box::new(|panic| {
            let place = panic.location().map(ToString::to_string).unwrap_or_default();
            tracing::error!(place, "a panic: {}", panic_text(panic.payload()));
        }));
    }
}

/// What a panic said.
pub fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(text), _) => (*text).to_owned(),
        (_, Some(text)) => text.clone(),
        _ => "something that is not text".to_owned(),
    }
}
