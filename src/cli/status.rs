//! `aqueduct status FILE`

mod ask;
mod draw;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use console::Term;
use tokio::signal::unix::{SignalKind, signal};

use self::ask::Asked;
use self::draw::Paper;
use super::{health, load, open, print};
use crate::stream::{Backend, StreamStatus};
use crate::topology::Topology;
use crate::web::state::State;

/// How often it is shown anew.
const EVERY: Duration = Duration::from_secs(1);
/// How long a process may take to answer.
const ANSWER: Duration = Duration::from_secs(6);
/// The width where it goes to no terminal.
const WIDTH: usize = 120;

/// What the status page shows, in a terminal; without a process, streams, groups and members.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The topology file
    file: PathBuf,
    /// Print once instead of every second
    #[arg(long)]
    once: bool,
    /// Streams, groups and members as JSON, in the shape of `/streams`
    #[arg(long)]
    json: bool,
    /// Only ask the process that runs the file whether all works: exit code 0, or 1 and what does not
    #[arg(long, conflicts_with_all = ["once", "json"])]
    healthy: bool,
}

/// Shows the state, every second on a terminal and once anywhere else.
pub async fn run(args: Args) -> Result<()> {
    let topology = load(&args.file)?;
    if args.healthy {
        return health::ask(&topology);
    }
    let mut looker = Looker { topology, streams: Vec::new() };
    let term = Term::stdout();
    let terminal = std::io::stdout().is_terminal();
    let once = args.once || !terminal;
    if args.json {
        return looker.json(once).await;
    }
    let width = term.size_checked().map_or(WIDTH, |(_, columns)| columns as usize);
    if once {
        let seen = looker.look().await?;
        return print(&draw::text(&seen, &Paper { width, height: None, colours: terminal }));
    }
    let screen = Screen::open(&term)?;
    let mut stop = signal(SignalKind::interrupt()).context("cannot listen for signals")?;
    let mut end = signal(SignalKind::terminate()).context("cannot listen for signals")?;
    let mut every = tokio::time::interval(EVERY);
    loop {
        tokio::select! {
            _ = every.tick() => {}
            _ = stop.recv() => return Ok(()),
            _ = end.recv() => return Ok(()),
        }
        let seen = tokio::select! {
            seen = looker.look() => seen,
            _ = stop.recv() => return Ok(()),
            _ = end.recv() => return Ok(()),
        };
        let (rows, columns) = term.size();
        let paper = Paper { width: columns as usize, height: Some(rows as usize), colours: true };
        let text = match seen {
            Ok(seen) => draw::text(&seen, &paper),
            Err(error) => draw::wrapped(&format!("{error:#}"), &paper),
        };
        screen.show(&text)?;
    }
}

/// What was found out.
enum Seen {
    /// By the process.
    Process(Box<State>),
    /// By asking the streams, as no process answers: why not.
    Streams(Vec<Result<StreamStatus, (String, String)>>, String),
}

/// Asks the process, or the streams.
struct Looker {
    topology: Topology,
    /// Those that were opened, once there was a need to.
    streams: Vec<(String, Arc<dyn Backend>)>,
}

impl Looker {
    async fn look(&mut self) -> Result<Seen> {
        match self.process("/api/state").await {
            Asked::Answered(text) => match serde_json::from_str(&text) {
                Ok(state) => Ok(Seen::Process(state)),
                Err(_) => {
                    self.ask_streams("what listens there is no aqueduct of this version").await
                }
            },
            Asked::Away(why) => self.ask_streams(&why).await,
        }
    }

    async fn process(&self, path: &'static str) -> Asked {
        let Some(http) = self.topology.http.clone() else {
            return Asked::Away("the file has no [http]".to_owned());
        };
        let asking = tokio::task::spawn_blocking(move || ask::get(&http, path));
        match tokio::time::timeout(ANSWER, asking).await {
            Ok(Ok(asked)) => asked,
            Ok(Err(error)) => Asked::Away(error.to_string()),
            Err(_) => Asked::Away("the process does not answer".to_owned()),
        }
    }

    async fn ask_streams(&mut self, why: &str) -> Result<Seen> {
        let mut all = Vec::new();
        for spec in self.topology.streams.clone() {
            let status = self.status(&spec).await;
            all.push(status.map_err(|error| (spec.name.to_string(), format!("{error:#}"))));
        }
        Ok(Seen::Streams(all, why.to_owned()))
    }

    async fn status(&mut self, spec: &crate::stream::StreamSpec) -> Result<StreamStatus> {
        let known = self.streams.iter().find(|(name, _)| *name == *spec.name);
        let stream = match known {
            Some((_, stream)) => stream.clone(),
            None => {
                let stream = open(&self.topology, spec).await?;
                self.streams.push((spec.name.to_string(), stream.clone()));
                stream
            }
        };
        stream.status().await
    }

    async fn json(&mut self, once: bool) -> Result<()> {
        loop {
            let text = match self.process("/streams").await {
                Asked::Answered(text) if text.starts_with('[') => text,
                _ => {
                    let mut all = Vec::new();
                    for spec in self.topology.streams.clone() {
                        all.push(self.status(&spec).await?);
                    }
                    serde_json::to_string(&all)?
                }
            };
            print(&format!("{text}\n"))?;
            if once {
                return Ok(());
            }
            tokio::time::sleep(EVERY).await;
        }
    }
}

/// A screen of its own: when this is dropped, the terminal is as it was before.
struct Screen<'t>(&'t Term);

impl<'t> Screen<'t> {
    fn open(term: &'t Term) -> Result<Self> {
        let screen = Self(term);
        screen.write("\x1b[?1049h\x1b[?25l")?;
        Ok(screen)
    }

    /// Each line over the one before, so that nothing flickers.
    fn show(&self, text: &str) -> Result<()> {
        self.write(&format!("\x1b[H{}\x1b[J", text.trim_end().replace('\n', "\x1b[K\n")))
    }

    fn write(&self, text: &str) -> Result<()> {
        let mut term = self.0;
        let written = term.write_all(text.as_bytes()).and_then(|()| term.flush());
        written.context("cannot write to the terminal")
    }
}

impl Drop for Screen<'_> {
    fn drop(&mut self) {
        // Nobody is left to tell.
        let _ = self.write("\x1b[?25h\x1b[?1049l");
    }
}
