//! `aqueduct bench FILE|--stream URL`: publishes to a stream of its own and reads it, and checks
//! every event: what a stream is up to on this machine, and whether it keeps its promises.
//!
//! - [`place`]: the stream that it makes, and removes.
//! - [`load`]: who publishes and who reads, each by a [`line`] of its own, and [`run`] from start to
//!   end. [`oracle`]: what has to come of it.
//! - [`report`]: what is said in the end.
//!
//! It measures streams, by the calls that the actors and the library make; sinks have no part in
//! it.

mod line;
mod load;
mod oracle;
mod place;
mod report;
mod run;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use bytes::Bytes;
use clap::value_parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use self::load::{Load, Plan};
use self::oracle::Issue;
use self::place::{Layout, Model, Place, Reading};
use self::report::Report;
use super::{Wrong, find_stream, load as load_file, print, site};
use crate::library;
use crate::spec::text::{counted, redact};
use crate::spec::units;
use crate::stream::{Append, Appended, Backend};

/// Shards, where neither the file nor the command line says.
const SHARDS: u32 = 8;
/// The lease of groups whose members are killed, and of others.
const LEASES: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(20)];
/// The largest body.
const BODY_MAX: u64 = 64 * 1024 * 1024;

/// Try a stream: publish to one like it, read it, and check every event.
///
/// It makes streams of its own beside those of the file, or at the URL, named
/// bench-SHARDSxGROUPS-RANDOM, and removes them at the end; the events of others are not touched.
/// Nothing but the stream is measured: events go from memory into it, and back into memory.
/// Exit code 0: the verdict is good for every stream.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The topology file; each of its streams is tried, unless --only says which
    #[arg(required_unless_present = "stream", conflicts_with = "stream")]
    file: Option<PathBuf>,
    /// Where to try: embedded:PATH, redis://…, rediss://…, postgres://… or amqp://…
    #[arg(long, value_name = "URL")]
    stream: Option<String>,
    /// Of the file, this stream alone (stream.NAME); may be given more than once
    #[arg(long, value_name = "stream.NAME", requires = "file")]
    only: Vec<String>,
    /// How many events to publish
    #[arg(long, value_parser = value_parser!(u64).range(1..), default_value_t = 100_000)]
    events: u64,
    /// How long to publish, instead of a number (30s)
    #[arg(long = "for", value_name = "DURATION", conflicts_with = "events")]
    time: Option<String>,
    /// How many publish at once
    #[arg(long, value_parser = value_parser!(u16).range(1..=1024), default_value_t = 4)]
    producers: u16,
    /// Members of each group
    #[arg(long, value_parser = value_parser!(u16).range(1..=1024), default_value_t = 4)]
    members: u16,
    /// Groups that read it [default: as many as in the file; with a URL 1]
    #[arg(long, value_parser = value_parser!(u16).range(1..=64))]
    groups: Option<u16>,
    /// Its shards [default: as many as in the file; with a URL 8]
    #[arg(long, value_parser = value_parser!(u32).range(1..=1024))]
    shards: Option<u32>,
    /// How many keys the events have; 0: none, and no order to check
    #[arg(long, value_parser = value_parser!(u64).range(..=10_000_000), default_value_t = 1000)]
    keys: u64,
    /// How large a body is
    #[arg(long, value_name = "SIZE", default_value = "256B")]
    body: String,
    /// Events that are published at once, and that a member takes at once, at most
    #[arg(long, value_parser = value_parser!(u16).range(1..=10_000), default_value_t = 1000)]
    batch: u16,
    /// Events a second in all (10000/s); latency then counts from when an event was due, also where
    /// it was sent later. Without, as fast as the groups can follow
    #[arg(long)]
    rate: Option<String>,
    /// Kill members at random: they hand nothing back, so others have to take over
    #[arg(long)]
    kill: bool,
    /// How long a killed member's events wait for another one [default: 20s; with --kill 2s]
    #[arg(long, value_name = "DURATION")]
    lease: Option<String>,
    /// One member at a time for a shard, and order checked [default: where the kind can]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    ordered: Option<bool>,
    /// How long the stream may fail, or nothing come, until the bench gives up
    #[arg(long, value_name = "DURATION", default_value = "30s")]
    patience: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Publish nothing: remove the stream that a bench left behind as it was killed
    #[arg(long, value_name = "NAME")]
    remove: Option<String>,
}

/// The arguments, read.
struct Wanted {
    plan: Plan,
    body: Bytes,
    lease: Duration,
}

/// Tries each stream, prints what came of it and errs where a verdict is not good.
pub fn run(args: Args) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.context("cannot start a runtime")?.block_on(bench(&args))
}

async fn bench(args: &Args) -> Result<()> {
    let wanted = wanted(args)?;
    let models = models(args)?;
    if let Some(name) = &args.remove {
        return remove(args, &models, name, &wanted).await;
    }
    let layouts = models.iter().map(|model| layout(args, model)).collect::<Result<Vec<_>>>()?;
    let interrupted = CancellationToken::new();
    tokio::spawn(listen(interrupted.clone()));
    let mut reports = Vec::new();
    for (model, (layout, ordered)) in models.iter().zip(layouts) {
        if interrupted.is_cancelled() {
            break;
        }
        let report = one(args, &wanted, model, layout, ordered, &interrupted).await?;
        if !args.json {
            print(&format!("{}\n{}", report.what, report.text()))?;
        }
        reports.push(report);
    }
    let untried = models.len() - reports.len();
    let verdict = report::verdict(&reports, untried);
    if args.json {
        let streams: Vec<_> = reports.iter().map(Report::json).collect();
        let all = serde_json::json!({ "verdict": verdict, "streams": streams });
        print(&format!("{}\n", serde_json::to_string_pretty(&all)?))?;
    }
    match (verdict, untried) {
        (report::GOOD, _) => Ok(()),
        (_, 0) => Err(anyhow!("not every verdict is good")),
        _ => Err(anyhow!("it was interrupted, with {} not tried", counted(untried, "stream"))),
    }
}

/// The first signal ends the work, so that what it made is removed; the second ends the process.
async fn listen(interrupted: CancellationToken) {
    let (Ok(mut term), Ok(mut int)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return;
    };
    loop {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        if interrupted.is_cancelled() {
            eprintln!("aqueduct: stopped; what is left of it has to be removed");
            std::process::exit(1);
        }
        interrupted.cancel();
    }
}

fn wanted(args: &Args) -> Result<Wanted> {
    let wrong = |name: &str, text: &str, why: String| -> anyhow::Error {
        Wrong::Usage(format!("--{name} {text}: {why}")).into()
    };
    let duration = |name: &str, text: &str| match units::duration(text) {
        Ok(Duration::ZERO) => Err(wrong(name, text, "is no time (such as 10s)".to_owned())),
        Ok(duration) => Ok(duration),
        Err(why) => Err(wrong(name, text, format!("{why} (such as 10s)"))),
    };
    let body = match units::size(&args.body) {
        Ok(body) if body <= BODY_MAX => body as usize,
        Ok(_) => return Err(wrong("body", &args.body, "is too large (64MiB at most)".to_owned())),
        Err(why) => return Err(wrong("body", &args.body, format!("{why} (such as 256B or 4KiB)"))),
    };
    let rate = |text: &String| match units::rate(text) {
        Ok(0) => Err(wrong("rate", text, "is none (leave it out for no limit)".to_owned())),
        Ok(rate) => Ok(rate),
        Err(why) => Err(wrong("rate", text, format!("{why} (such as 10000/s)"))),
    };
    let time = args.time.as_deref().map(|text| duration("for", text)).transpose()?;
    let lease = args.lease.as_deref().map(|text| duration("lease", text)).transpose()?;
    Ok(Wanted {
        plan: Plan {
            events: time.is_none().then_some(args.events),
            time,
            members: args.members.into(),
            batch: args.batch.into(),
            rate: args.rate.as_ref().map(rate).transpose()?,
            kill: args.kill,
            patience: duration("patience", &args.patience)?,
        },
        body: json_body(body),
        lease: lease.unwrap_or(LEASES[usize::from(!args.kill)]),
    })
}

/// A JSON object of so many bytes; text where that is too short for one.
fn json_body(bytes: usize) -> Bytes {
    let (start, end) = ("{\"padding\":\"", "\"}");
    match bytes.checked_sub(start.len() + end.len()) {
        Some(padding) => format!("{start}{}{end}", "x".repeat(padding)).into(),
        None => "x".repeat(bytes).into(),
    }
}

/// The streams to try.
fn models(args: &Args) -> Result<Vec<Model>> {
    if let Some(url) = &args.stream {
        let (mut spec, site) = library::spec_at(url, "bench").map_err(wrong_url)?;
        spec.shards = SHARDS;
        return Ok(vec![Model { noun: "the stream".to_owned(), spec, site }]);
    }
    let topology = load_file(args.file.as_deref().unwrap_or("".as_ref()))?;
    let mut specs = Vec::new();
    for only in &args.only {
        specs.push(find_stream(&topology, only.strip_prefix("stream.").unwrap_or(only))?);
    }
    if specs.is_empty() {
        specs.extend(&topology.streams);
    }
    if specs.is_empty() {
        return Err(Wrong::Usage("the file has no stream to try".to_owned()).into());
    }
    let model = |spec: &crate::stream::StreamSpec| Model {
        noun: format!("stream {}", spec.name),
        spec: spec.clone(),
        site: site(&topology, false),
    };
    Ok(specs.into_iter().map(model).collect())
}

fn wrong_url(error: library::Error) -> anyhow::Error {
    match error {
        library::Error::Invalid(text) => Wrong::Usage(format!("--stream: {text}")).into(),
        other => other.into(),
    }
}

/// How a bench of this stream is laid out, and whether its groups are ordered.
fn layout(args: &Args, model: &Model) -> Result<(Layout, bool)> {
    let can = model.spec.kind.capabilities;
    let ordered = args.ordered.unwrap_or(can.ordered);
    if ordered && !can.ordered {
        let (noun, kind) = (&model.noun, model.spec.kind.name);
        let other = if args.file.is_some() { ", or try another stream with --only" } else { "" };
        let text = format!(
            "--ordered: {noun} is of kind {kind}, which keeps no owner of a shard (leave it \
             out{other})"
        );
        return Err(Wrong::Usage(text).into());
    }
    let groups = args.groups.map_or(model.spec.groups.len().max(1), usize::from);
    Ok((Layout { shards: args.shards.unwrap_or(model.spec.shards).max(1), groups }, ordered))
}

/// Removes what is left of a bench that was killed.
async fn remove(args: &Args, models: &[Model], name: &str, wanted: &Wanted) -> Result<()> {
    let layout = Layout::of(name)?;
    let reading = Reading { ordered: false, lease: wanted.lease, batch: 1 };
    for model in models {
        let place = Place::beside(model, name, layout, reading);
        if place.exists() {
            let what = || format!("cannot remove {name} beside {}", model.noun);
            place.remove().await.with_context(what)?;
        }
    }
    if args.json { Ok(()) } else { print(&format!("{name} is gone\n")) }
}

/// Publishes a first event: what a backend does once, such as waiting until new queues are there
/// to stay, is not what it takes to publish.
async fn begin(backend: &dyn Backend, issue: &Issue) -> Result<()> {
    let append = Append { origin: "bench".into(), moves: Vec::new(), events: vec![issue.first()] };
    let answer = backend.writer().await?.append(&[append]).await?;
    ensure!(answer == [Appended::Durable], "it was not taken ({answer:?})");
    Ok(())
}

/// The command that removes what a bench left behind, for a shell; a URL with a secret stands in it
/// without that, and says so.
fn removal(args: &Args, name: &str) -> String {
    let of = match (&args.file, &args.stream) {
        (Some(file), _) => shell_word(&file.to_string_lossy()),
        (None, Some(url)) => match redact(url) {
            same if same == *url => format!("--stream {}", shell_word(url)),
            redacted => format!("--stream {redacted} (the URL as you gave it)"),
        },
        (None, None) => String::new(),
    };
    format!("aqueduct bench {of} --remove {name}")
}

/// A word as a shell has to be given it.
fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:@%+=,".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

/// Tries one stream, on one of its own.
async fn one(
    args: &Args,
    wanted: &Wanted,
    model: &Model,
    layout: Layout,
    ordered: bool,
    interrupted: &CancellationToken,
) -> Result<Report> {
    let name = layout.name();
    let reading = Reading { ordered, lease: wanted.lease, batch: wanted.plan.batch };
    let place = Place::beside(model, &name, layout, reading);
    let removal = removal(args, &name);
    let what = format!(
        "{}{}: {}, {} of {}, {}, bodies of {}, {} keys{}",
        args.file.as_ref().map(|_| format!("{}, ", model.noun)).unwrap_or_default(),
        model.spec.kind.name,
        counted(layout.shards, "shard"),
        counted(layout.groups, "group"),
        counted(wanted.plan.members, "member"),
        counted(args.producers, "producer"),
        units::size_text(wanted.body.len() as u64),
        args.keys,
        if ordered { ", ordered" } else { "" },
    );
    // Before there is anything to remove: it may be killed at any time.
    eprintln!("trying {what}\nif it is killed: {removal}");
    let opened = (place.spec.kind.open)(place.spec.clone(), place.site.clone()).await;
    let opened = match opened {
        Ok(opened) => opened,
        Err(error) => {
            // It may have come halfway.
            let _ = place.remove().await;
            return Err(error.context(format!("cannot make a stream beside {}", model.noun)));
        }
    };
    let issue = Issue::new(&name, args.producers.into(), args.keys, wanted.body.clone());
    if let Err(error) = begin(&*opened, &issue).await {
        let _ = place.remove().await;
        return Err(error.context(format!("cannot publish to a stream beside {}", model.noun)));
    }
    let stop = interrupted.child_token();
    let load = Load::new(place.spec.clone(), place.site.clone(), wanted.plan.clone(), issue, stop);
    let mut report = run::run(Arc::new(load), what, opened, interrupted).await;
    if let Err(error) = place.remove().await {
        let why = format!("its stream could not be removed ({error:#}); later: {removal}");
        report.broken = Some(match report.broken {
            Some(broken) => format!("{broken}; {why}"),
            None => why,
        });
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn a_removal_can_be_given_to_a_shell_and_tells_no_secret() {
        for (args, said) in [
            (&["config/topics.toml"][..], "config/topics.toml"),
            (&["my orders/it's.toml"], r"'my orders/it'\''s.toml'"),
            (&["--stream", "redis://localhost:6379"], "--stream redis://localhost:6379"),
            (&["--stream", "embedded:a b.db"], "--stream 'embedded:a b.db'"),
            (
                &["--stream", "redis://:hunter2@h?a=1&b"],
                "--stream redis://:***@h?a=1&b (the URL as you gave it)",
            ),
        ] {
            let args = Line::parse_from([&["bench"], args].concat()).args;
            let wanted = format!("aqueduct bench {said} --remove bench-1x1-01234567");
            assert_eq!(removal(&args, "bench-1x1-01234567"), wanted);
        }
    }
}
