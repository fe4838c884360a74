//! `aqueduct group list|drop FILE [GROUP]`

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::ValueEnum;

use super::{Wrong, load, open};

/// Consumer groups.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do
    action: Action,
    /// The topology file
    file: PathBuf,
    /// The group to drop
    group: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Action {
    /// Show every group of every stream
    List,
    /// Forget a group that is gone from the file, and what it holds back
    Drop,
}

/// Lists or drops.
pub async fn run(args: Args) -> Result<()> {
    let topology = load(&args.file)?;
    let declared = |name: &str| topology.groups.iter().any(|group| *group.name == *name);
    match (args.action, &args.group) {
        (Action::List, _) => {
            println!("{:20} {:20} {:>10} {:>10} members", "stream", "group", "lag", "pending");
            for spec in &topology.streams {
                let status = open(&topology, spec).await?.status().await?;
                for group in status.groups {
                    let gone = if declared(&group.name) { "" } else { "  (not in the file)" };
                    let figure =
                        |figure: Option<u64>| figure.map_or("-".to_owned(), |f| f.to_string());
                    println!(
                        "{:20} {:20} {:>10} {:>10} {}{gone}",
                        spec.name,
                        group.name,
                        figure(group.lag),
                        figure(group.pending),
                        group.consumers.len()
                    );
                }
            }
        }
        (Action::Drop, None) => bail!(Wrong::Usage("name the group to drop".to_owned())),
        (Action::Drop, Some(name)) if declared(name) => bail!(Wrong::Usage(format!(
            "group {name} is declared in the file, and would be made again at the next start \
             (take [group.{name}] out of the file first)"
        ))),
        (Action::Drop, Some(name)) => {
            let mut dropped = false;
            for spec in &topology.streams {
                if open(&topology, spec).await?.drop_group(name).await? {
                    println!("dropped group {name} of stream {}", spec.name);
                    dropped = true;
                }
            }
            if !dropped {
                bail!(
                    "no stream of this file has a group {name} (`aqueduct group list` shows all)"
                );
            }
        }
    }
    Ok(())
}
