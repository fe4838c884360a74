//! `aqueduct dead list|replay|drop FILE STREAM [ID…]`

use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;

use super::{body_line, find_stream, load, open, parse_ids};
use crate::spec::text::time_text;

/// Dead letters: events that a group gave up.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do with them
    action: Action,
    /// The topology file
    file: PathBuf,
    /// The stream whose dead letters are meant
    stream: String,
    /// Only these events; all where none is named
    ids: Vec<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Action {
    /// Show them
    List,
    /// Put each back for the group that gave it up
    Replay,
    /// Forget them
    Drop,
}

/// Lists, replays or drops.
pub async fn run(args: Args) -> Result<()> {
    let topology = load(&args.file)?;
    let ids = parse_ids(&args.ids)?;
    let stream = open(&topology, find_stream(&topology, &args.stream)?).await?;
    match args.action {
        Action::List => {
            for letter in stream.dead().await? {
                if !ids.is_empty() && !ids.contains(&letter.event.id) {
                    continue;
                }
                let (time, body) = (time_text(letter.time_us), body_line(&letter.event.body));
                println!("{} {time} group {}: {}", letter.event.id, letter.group, letter.reason);
                println!("    after {} attempts: {body}", letter.attempts);
            }
        }
        Action::Replay => println!("{} replayed", stream.replay_dead(&ids).await?),
        Action::Drop => println!("{} dropped", stream.drop_dead(&ids).await?),
    }
    Ok(())
}
