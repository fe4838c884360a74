//! `aqueduct peek FILE STREAM`

use std::path::PathBuf;

use anyhow::Result;

use super::{body_line, find_stream, load, open};
use crate::spec::text::time_text;

/// The newest events of a stream, oldest of them first, a line each.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The topology file
    file: PathBuf,
    /// The stream's name
    stream: String,
    /// How many events
    #[arg(long, default_value_t = 10)]
    count: usize,
}

/// Prints `time id source [key] <type> body`, a line an event.
pub async fn run(args: Args) -> Result<()> {
    let topology = load(&args.file)?;
    let stream = open(&topology, find_stream(&topology, &args.stream)?).await?;
    for event in stream.peek(args.count).await? {
        let key = event.key.as_ref().map(|key| format!(" [{key}]")).unwrap_or_default();
        let kind = event.kind.as_ref().map(|kind| format!(" <{kind}>")).unwrap_or_default();
        let (time, body) = (time_text(event.time_us), body_line(&event.body));
        println!("{time} {} {}{key}{kind} {body}", event.id, event.source);
    }
    Ok(())
}
