//! `aqueduct cursor show|set FILE [GROUP] [TO]`

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use chrono::DateTime;
use clap::ValueEnum;

use super::{Wrong, load, open};
use crate::event::now_us;
use crate::spec::text::{counted, did_you_mean, listed, time_text};
use crate::spec::units::{duration, duration_text};
use crate::stream::StreamSpec;
use crate::stream::cursor::{COUNTED_MAX, CursorMove, Moved, Offset, Refused, ShardCursor, To};
use crate::topology::Topology;

/// The lease of a group that the file does not declare.
const LEASE: Duration = Duration::from_secs(20);

/// Cursors: where a group stands in each shard of its stream.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do
    action: Action,
    /// The topology file
    file: PathBuf,
    /// The group; `show`: all of the file where none is named
    group: Option<String>,
    /// Where `set` puts it: earliest, latest, a time (2026-11-21T10:00:00Z, or 2h: that long ago),
    /// or an offset as `show` has it
    to: Option<String>,
    /// Only in this shard; an offset of a stream with several needs it
    #[arg(long)]
    shard: Option<u32>,
    /// Also while the group runs: its members go on from there, and what they have in hand may
    /// still be stored
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Action {
    /// Show where groups stand
    Show,
    /// Put the cursor of a group elsewhere
    Set,
}

/// Shows or sets.
pub async fn run(args: Args) -> Result<()> {
    let topology = load(&args.file)?;
    match args.action {
        Action::Show if args.to.is_some() || args.force => bail!(Wrong::Usage(
            "`show` moves nothing (`aqueduct cursor set FILE GROUP TO` does)".to_owned()
        )),
        Action::Show => show(&topology, args.group.as_deref(), args.shard).await,
        Action::Set => {
            let (Some(group), Some(to)) = (&args.group, &args.to) else {
                bail!(Wrong::Usage(format!("name the group, and where to ({TO})")));
            };
            let to = parse(to, now_us()).map_err(Wrong::Usage)?;
            set(&topology, group, to, &args).await
        }
    }
}

/// What can stand for TO.
const TO: &str = "earliest, latest, a time such as 2026-11-21T10:00:00Z, 2h for that long ago, or \
                  an offset";

/// Reads TO.
fn parse(text: &str, now_us: i64) -> Result<To, String> {
    let ago = text.strip_suffix(" ago").unwrap_or(text);
    if let Ok(length) = duration(ago) {
        let length = i64::try_from(length.as_micros()).unwrap_or(i64::MAX);
        return Ok(To::Time(now_us.saturating_sub(length)));
    }
    match (text, text.parse(), DateTime::parse_from_rfc3339(text)) {
        ("earliest", ..) => Ok(To::Earliest),
        ("latest", ..) => Ok(To::Latest),
        (_, Ok(offset), _) => Ok(To::At(offset)),
        (_, _, Ok(time)) if time.timestamp_micros() > now_us => {
            Err(format!("{text} is yet to come (`latest` skips all that there is)"))
        }
        (_, _, Ok(time)) => Ok(To::Time(time.timestamp_micros())),
        _ if DateTime::parse_from_rfc3339(&format!("{text}Z")).is_ok() => Err(format!(
            "{text} does not say in which time zone ({text}Z, or with an offset such as +01:00)"
        )),
        _ => {
            let meant = did_you_mean(text, ["earliest", "latest"]);
            Err(format!("{text} is no place ({TO}){meant}"))
        }
    }
}

/// A group, and the stream that it is of.
struct Found<'a> {
    stream: &'a StreamSpec,
    group: String,
    lease: Duration,
}

/// The group of that name: one of the file, or one that a stream of it has all the same.
async fn find<'a>(topology: &'a Topology, name: &str) -> Result<Found<'a>> {
    if let Some(group) = topology.groups.iter().find(|group| *group.name == *name) {
        let stream = topology.stream(&group.from).context("its stream is not in the file")?;
        return Ok(Found { stream, group: name.to_owned(), lease: group.lease });
    }
    let (mut found, mut known) = (Vec::new(), Vec::new());
    for stream in &topology.streams {
        for group in open(topology, stream).await?.status().await?.groups {
            if group.name == name {
                found.push(stream);
            }
            known.push(group.name);
        }
    }
    match found[..] {
        [stream] => Ok(Found { stream, group: name.to_owned(), lease: LEASE }),
        [] => {
            let known = || known.iter().map(String::as_str);
            let (has, meant) = (listed(known(), "and"), did_you_mean(name, known()));
            bail!(Wrong::Usage(format!("no stream of this file has a group {name} ({has}){meant}")))
        }
        _ => {
            let streams = listed(found.iter().map(|stream| &*stream.name), "and");
            bail!(Wrong::Usage(format!(
                "the streams {streams} have a group {name} each (declare the one that is meant)"
            )))
        }
    }
}

async fn show(topology: &Topology, group: Option<&str>, shard: Option<u32>) -> Result<()> {
    let mut table = Table::default();
    let found = match group {
        Some(name) => vec![find(topology, name).await?],
        None => {
            let mut all = Vec::new();
            for group in &topology.groups {
                all.push(find(topology, &group.name).await?);
            }
            all
        }
    };
    // Not every stream has as many shards as another one.
    let (mut shown, mut asked, mut most) = (0, 0, 0);
    for Found { stream, group: name, .. } in found {
        if group.is_none() && !stream.kind.capabilities.history {
            table.add(&[&stream.name, &name, "-", "-", "-", "-", "-", "-", "-"]);
            continue;
        }
        let shards = open(topology, stream).await?.cursor(&name).await?;
        (asked, most) = (asked + 1, most.max(shards.len()));
        for one in shards.iter().filter(|one| shard.is_none_or(|shard| shard == one.shard)) {
            table.add_shard(&stream.name, &name, one);
            shown += 1;
        }
    }
    if let Some(shard) = shard.filter(|_| shown == 0 && asked > 0) {
        let has = counted(most, "shard");
        bail!(Wrong::Usage(match group {
            Some(group) => format!("group {group} has no shard {shard} ({has}, from 0)"),
            None => format!("no group has a shard {shard} ({has} at most, from 0)"),
        }));
    }
    super::print(&table.text())
}

async fn set(topology: &Topology, group: &str, to: To, args: &Args) -> Result<()> {
    let Found { stream, group, lease } = find(topology, group).await?;
    let order = CursorMove { group, lease, shard: args.shard, to, force: args.force };
    let name = &order.group;
    order.shards(stream.shards.max(1)).map_err(|it| Wrong::Usage(it.to_string()))?;
    match open(topology, stream).await?.move_cursor(&order).await? {
        Ok(moved) => super::print(&said(name, to, &moved)),
        Err(Refused::Running(members)) => bail!(
            "group {name} runs: {} (stop it first; or move its cursor all the same, with --force). \
             One that was killed may count as running for its lease of {}",
            listed(members.iter().map(String::as_str), "and"),
            duration_text(lease)
        ),
        Err(refused) => bail!("the cursor of group {name} stays where it is: {refused}"),
    }
}

/// What was done, a line a shard.
fn said(group: &str, to: To, moved: &[Moved]) -> String {
    let mut text = match to {
        To::Time(time) => format!("group {group}: to what came since {}\n", time_text(time)),
        To::Earliest => format!("group {group}: to the oldest events\n"),
        To::Latest => format!("group {group}: behind the newest events\n"),
        To::At(_) => format!("group {group}\n"),
    };
    for Moved { shard, from, to, again, skipped } in moved {
        let way = match from == to {
            true => format!("at {to}, as before"),
            false => format!("from {from} to {to}"),
        };
        let mut said = Vec::new();
        for (count, what) in [(again, "delivered again"), (skipped, "skipped")] {
            match count {
                Some(0) => {}
                Some(1) => said.push(format!("1 event is {what}")),
                Some(count) => said.push(format!("{count} events are {what}")),
                None => said.push(format!("more than {COUNTED_MAX} events are {what}")),
            }
        }
        said.insert(0, way);
        text.push_str(&format!("shard {shard}: {}\n", said.join(", ")));
    }
    text
}

/// Rows of columns that are as wide as what is in them.
struct Table(Vec<[String; 9]>);

impl Default for Table {
    fn default() -> Self {
        let head =
            ["stream", "group", "shard", "oldest", "cursor", "delivered", "end", "pending", "lag"];
        Self(vec![head.map(str::to_owned)])
    }
}

impl Table {
    fn add(&mut self, row: &[&str; 9]) {
        self.0.push(row.map(str::to_owned));
    }

    fn add_shard(&mut self, stream: &str, group: &str, of: &ShardCursor) {
        let offset = |offset: Offset| offset.to_string();
        self.0.push([
            stream.to_owned(),
            group.to_owned(),
            of.shard.to_string(),
            offset(of.oldest),
            offset(of.position),
            offset(of.delivered),
            offset(of.end),
            of.pending.to_string(),
            of.lag.map_or("-".to_owned(), |lag| lag.to_string()),
        ]);
    }

    /// The names to the left, the numbers to the right.
    fn text(&self) -> String {
        let width = |column: usize| self.0.iter().map(|row| row[column].len()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..9).map(width).collect();
        let mut text = String::new();
        for row in &self.0 {
            let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
                if column < 2 { format!("{cell:width$}") } else { format!("{cell:>width$}") }
            });
            text.push_str(&cells.collect::<Vec<_>>().join("  "));
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> i64 {
        86_400_000_000
    }

    #[test]
    fn a_place_is_read_in_each_of_its_spellings() {
        let parse = |text| parse(text, now()).unwrap();
        assert_eq!(parse("earliest"), To::Earliest);
        assert_eq!(parse("latest"), To::Latest);
        assert_eq!(parse("1500"), To::At(Offset::Number(1500)));
        assert_eq!(parse("1500-3"), To::At(Offset::Entry { ms: 1500, seq: 3 }));
        assert_eq!(parse("2h"), To::Time(now() - 7_200_000_000));
        assert_eq!(parse("2h ago"), parse("2h"));
        assert_eq!(parse("1970-01-01T01:00:00.5+01:00"), To::Time(500_000));
        assert_eq!(parse("1970-01-01 00:00:01Z"), To::Time(1_000_000));
    }

    #[test]
    fn what_is_no_place_is_named_with_what_would_be_one() {
        for (text, says) in [
            ("earlyest", "did you mean"),
            ("1970-01-01T00:00:00", "time zone"),
            ("1970-01-03T00:00:00Z", "yet to come"),
            ("yesterday", "earliest, latest, a time such as"),
            ("-5", "is no place"),
            ("", "is no place"),
        ] {
            let error = parse(text, now()).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
