//! `aqueduct publish FILE --stream S [BODY | -]`

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use bytes::Bytes;
use tokio::io::{AsyncBufReadExt, BufReader};

use super::{Wrong, find_stream, load, open};
use crate::actor::message::Down;
use crate::actor::traced::Sends;
use crate::event::{Event, EventId, Origin, Sequence, now_us};
use crate::source::{BATCH_BYTES, BATCH_EVENTS};
use crate::spec::text::time_text;
use crate::spec::units;
use crate::stream::{Append, Appended, Writer};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::traces::Traces;

/// What its events say they come from.
const SOURCE: &str = "publish";

/// Events by hand: BODY or standard input once, or a message every interval.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The topology file
    file: PathBuf,
    /// The stream to write
    #[arg(long)]
    stream: String,
    /// The events' type; also the `type` in the messages that are made without BODY [there:
    /// test]
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// The time between two messages
    #[arg(long, default_value = "1s")]
    interval: String,
    /// How many messages; without end where it is absent
    #[arg(long)]
    count: Option<u64>,
    /// One event's body; `-`: standard input, an event a line
    body: Option<String>,
}

/// Publishes, and says how much.
pub async fn run(args: Args) -> Result<()> {
    let interval = units::duration(&args.interval)
        .map_err(|why| Wrong::Usage(format!("--interval {}: {why}", args.interval)))?;
    let topology = load(&args.file)?;
    let stream = find_stream(&topology, &args.stream)?;
    let backend = open(&topology, stream).await?;
    let (traces, instance) = (Traces::default(), &topology.runtime.instance);
    let exporter = traces.turn(topology.tracing.as_ref(), instance, &Metrics::default())?;
    let run = uuid::Uuid::new_v4();
    let mut publisher = Publisher {
        writer: backend.writer().await?,
        origin: Origin::new(Sequence::Count, &[b"publish", run.as_bytes()]),
        source: SOURCE.into(),
        kind: args.kind.as_deref().map(Into::into),
        sends: Sends::of_source(&traces, stream, SOURCE, false),
        sent: 0,
    };
    let published = match args.body.as_deref() {
        Some("-") => publisher.lines().await,
        Some(body) => publisher.send(vec![Bytes::copy_from_slice(body.as_bytes())]).await,
        None => publisher.messages(interval, args.count).await,
    };
    if let Some(exporter) = exporter {
        exporter.stop();
    }
    published?;
    println!("published {} to {}", publisher.sent, args.stream);
    Ok(())
}

struct Publisher {
    writer: Box<dyn Writer>,
    origin: Origin,
    source: Arc<str>,
    kind: Option<Box<str>>,
    sends: Sends,
    sent: u64,
}

impl Publisher {
    async fn send(&mut self, bodies: Vec<Bytes>) -> Result<()> {
        let time_us = now_us();
        let first = self.sent + 1;
        let mut events: Vec<Event> = (first..)
            .zip(bodies)
            .map(|(n, body)| {
                let id = EventId::new(self.origin, n, self.origin.bits());
                let event = Event::new(id, body, self.source.clone(), time_us);
                Event { kind: self.kind.clone(), ..event }
            })
            .collect();
        let count = events.len() as u64;
        let spans = self.sends.begin(&mut events);
        let append = Append { origin: self.source.clone(), moves: Vec::new(), events };
        let mut failure = None;
        let answer = match self.writer.append(&[append]).await {
            Ok(appended) => Ok(appended.into_iter().next().unwrap_or(Appended::Rewound)),
            Err(error) => {
                let cause = format!("{error:#}").into();
                failure = Some(error);
                Err(Down::Failed(cause))
            }
        };
        self.sends.end(spans, count, &answer);
        match answer {
            Ok(Appended::Durable) => self.sent += count,
            Ok(Appended::Full(behind)) => bail!(
                "the stream is full: its slowest group is {behind} events behind \
                 ({} were published)",
                self.sent
            ),
            Ok(Appended::Rewound) => {
                bail!("the stream did not take the events ({} were published)", self.sent)
            }
            Err(_) => {
                let error = failure.unwrap_or_else(|| anyhow::anyhow!("the stream is away"));
                return Err(error.context(format!("{} were published", self.sent)));
            }
        }
        Ok(())
    }

    /// Standard input, an event a line.
    async fn lines(&mut self) -> Result<()> {
        let mut input = BufReader::with_capacity(1 << 18, tokio::io::stdin());
        let mut bodies = Vec::new();
        let mut bytes = 0;
        let mut line = Vec::new();
        loop {
            line.clear();
            let end = input.read_until(b'\n', &mut line).await? == 0;
            if !end {
                line.pop_if(|last| *last == b'\n');
                bytes += line.len();
                bodies.push(Bytes::copy_from_slice(&line));
            }
            // What is there is sent before waiting for more.
            let waits = input.buffer().is_empty();
            if !bodies.is_empty()
                && (end || waits || bodies.len() >= BATCH_EVENTS || bytes >= BATCH_BYTES)
            {
                self.send(std::mem::take(&mut bodies)).await?;
                bytes = 0;
            }
            if end {
                return Ok(());
            }
        }
    }

    /// A message every interval, until the count is reached or somebody presses Ctrl-C.
    async fn messages(&mut self, interval: Duration, count: Option<u64>) -> Result<()> {
        let kind = self.kind.clone().unwrap_or_else(|| "test".into());
        let mut ticks = tokio::time::interval(interval.max(Duration::from_millis(1)));
        while count.is_none_or(|count| self.sent < count) {
            tokio::select! {
                _ = ticks.tick() => {}
                stopped = tokio::signal::ctrl_c() => { stopped?; return Ok(()); }
            }
            let body = serde_json::json!({
                "message": format!("Message #{}", self.sent + 1),
                "type": kind,
                "timestamp": time_text(now_us()),
            });
            self.send(vec![body.to_string().into()]).await?;
        }
        Ok(())
    }
}
