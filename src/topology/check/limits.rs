//! Values that have the right type and cannot work all the same.

use std::time::Duration;

use tracing_subscriber::EnvFilter;

use super::{Draft, Findings};
use crate::spec::text::{did_you_mean, shown};
use crate::spec::units::duration_text;
use crate::spec::{Room, Value, Values};
use crate::topology::env::Environment;
use crate::topology::fault::Fault;

/// The shortest lease: a member has to renew in time.
const LEASE_MIN: Duration = Duration::from_millis(100);
/// The shortest of what else takes time.
const SPAN_MIN: Duration = Duration::from_millis(1);

/// Durations that are too short, and dead letters that go nowhere good.
pub(super) fn check(draft: &Draft, findings: &mut Findings) {
    for group in &draft.groups {
        at_least(&group.values, "lease", LEASE_MIN, &group.path(Room::Group, "lease"), findings);
        dead(draft, &group.values, &group.path(Room::Group, "dead"), findings);
    }
    for query in &draft.queries {
        let path = query.path(Room::Query, "timeout");
        at_least(&query.values, "timeout", SPAN_MIN, &path, findings);
        if let Some(cache) = query.values.opt_table("cache") {
            let path = ["query", &query.name, "cache", "ttl"];
            at_least(cache, "ttl", SPAN_MIN, &path, findings);
        }
    }
}

fn at_least(values: &Values, key: &str, min: Duration, path: &[&str], findings: &mut Findings) {
    let Some(duration) = values.opt_duration(key).filter(|duration| *duration < min) else {
        return;
    };
    let (is, min) = (duration_text(duration), duration_text(min));
    findings.fault(path, format!("`{key} = \"{is}\"` is too short (at least `\"{min}\"`)"));
}

/// The place of dead letters stands beside its stream: it is no stream or sink of the file.
fn dead(draft: &Draft, values: &Values, path: &[&str], findings: &mut Findings) {
    let Some(dead) = values.opt_str("dead") else { return };
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if dead.len() > 200 || !dead.bytes().all(plain) {
        let message = format!(
            "`dead = \"{}\"` is no name for dead letters (letters, digits, `-`, `_` and `.`; \
             without the key: `FROM.dead`)",
            shown(dead)
        );
        findings.fault(path, message);
    }
    let taken = match (draft.stream(dead), draft.sink(dead)) {
        (Some(_), _) => "stream",
        (None, Some(_)) => "sink",
        (None, None) => return,
    };
    let message = format!(
        "`dead = \"{dead}\"` names a {taken} of this file (a name that nothing else has: dead \
         letters are kept beside the stream `{}`)",
        shown(values.str("from"))
    );
    findings.fault(path, message);
}

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// `runtime.log`, and the variables that win over it: `RUST_LOG`, then `LOG_LEVEL`. An override of
/// the key itself wins over both.
pub(super) fn log(runtime: &mut Values, env: &Environment, findings: &mut Findings) {
    let overridden = env.names().any(|name| name.eq_ignore_ascii_case("AQUEDUCT__RUNTIME__LOG"));
    let from_env = ["RUST_LOG", "LOG_LEVEL"]
        .into_iter()
        .filter(|_| !overridden)
        .find_map(|name| Some((name, env.get(name).filter(|value| !value.is_empty())?)));
    if let Some((name, value)) = from_env {
        match log_fault(value) {
            None => runtime.set("log", Value::Str(value.to_owned())),
            Some(message) => findings.faults.push(Fault {
                place: None,
                variable: Some(name.to_owned()),
                message: format!("`{}` {message}", shown(value)),
            }),
        }
        return;
    }
    if let Some(text) = runtime.opt_str("log")
        && let Some(message) = log_fault(text)
    {
        let message = format!("`log = \"{}\"` {message}", shown(text));
        findings.fault(&["runtime", "log"], message);
    }
}

/// What is wrong with the directives of a log, if anything.
fn log_fault(text: &str) -> Option<String> {
    let allowed = "`off`, `error`, `warn`, `info`, `debug`, `trace`, or directives such as \
                   `info,aqueduct::actor=debug`";
    if text.bytes().all(|b| b.is_ascii_alphabetic()) {
        // The filter would take a misspelt level for a module's name, and log nothing.
        let lower = text.to_ascii_lowercase();
        return (!LEVELS.contains(&lower.as_str()))
            .then(|| format!("is no level ({allowed}){}", did_you_mean(&lower, LEVELS)));
    }
    let parsed = EnvFilter::builder().parse(text);
    parsed.is_err().then(|| format!("is no filter of a log ({allowed})"))
}
