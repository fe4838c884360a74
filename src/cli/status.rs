//! `aqueduct status FILE`

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use super::{health, load, open};
use crate::stream::StreamStatus;

/// Streams, groups and members, as their backends know them.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The topology file
    file: PathBuf,
    /// Print once instead of every second
    #[arg(long)]
    once: bool,
    /// As JSON, the shape of `/streams`
    #[arg(long)]
    json: bool,
    /// Only ask the process that runs the file whether all works: exit code 0, or 1 and what does not
    #[arg(long, conflicts_with_all = ["once", "json"])]
    healthy: bool,
}

/// Prints the state, again and again unless `--once`.
pub async fn run(args: Args) -> Result<()> {
    let topology = load(&args.file)?;
    if args.healthy {
        return health::ask(&topology);
    }
    let mut streams = Vec::new();
    for spec in &topology.streams {
        streams.push(open(&topology, spec).await?);
    }
    loop {
        let mut statuses = Vec::new();
        for stream in &streams {
            statuses.push(stream.status().await?);
        }
        let text = match args.json {
            true => serde_json::to_string(&statuses)? + "\n",
            false => table(&statuses),
        };
        let mut out = std::io::stdout().lock();
        if !args.once && !args.json && out.is_terminal() {
            write!(out, "\x1b[H\x1b[2J")?;
        }
        write!(out, "{text}")?;
        out.flush()?;
        if args.once {
            return Ok(());
        }
        drop(out);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

fn table(statuses: &[StreamStatus]) -> String {
    let figure = |figure: Option<u64>| figure.map_or("-".to_owned(), |figure| figure.to_string());
    let mut text = String::new();
    for status in statuses {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "stream {}: {} events", status.stream, figure(status.length));
        for group in &status.groups {
            let (lag, pending) = (figure(group.lag), figure(group.pending));
            let _ = writeln!(text, "  group {}: lag {lag}, pending {pending}", group.name);
            for member in &group.consumers {
                let (pending, idle) = (figure(member.pending), figure(member.idle_ms));
                let _ = writeln!(text, "    {}: holds {pending}, idle for {idle} ms", member.name);
            }
        }
    }
    text
}
