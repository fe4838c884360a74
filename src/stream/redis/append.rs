//! Compare and append.
//!
//! On a single server one script does it, whatever the number of shards, with the checkpoint
//! beside the first. In a Redis Cluster a script stays in one slot, so each shard has the
//! checkpoint beside it. The first shard alone decides: it is asked, then the others are written,
//! then the first. A crash in between leaves some shards ahead; a source starts from the lowest,
//! and a shard that is past a step passes over its part. One that is within it (the source put its
//! batches together anew) takes it, and the same event twice in the stream is one event to every
//! sink. For that an event always has to go to the same shard, also one without a key.
//!
//! Where the first shard is ahead (another came back older), a step is for the others only: it is
//! answered as rewound, and the source comes from the lowest again until all are where the first
//! is.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use async_trait::async_trait;
use futures_util::future::try_join_all;
use redis::{Cmd, Value};

use super::entry::{Times, bytes, id_text};
use super::state::{SCRIPTS, Stream};
use super::status;
use crate::client::redis::odd;
use crate::event::{Event, hash};
use crate::source::{Position, Slot};
use crate::stream::{Append, Appended, Writer, shard_for};

/// How long what is known of the slowest group is believed: another process may add a group.
const BACKLOG_KNOWN: Duration = Duration::from_secs(1);

/// A hand to write with.
pub(super) struct StreamWriter {
    stream: Arc<Stream>,
    /// Events without a key go to one shard a batch, in turn.
    turn: u32,
    backlog: Option<Backlog>,
    times: Times,
}

/// How far the slowest group was behind, and what was appended since.
struct Backlog {
    events: u64,
    since: u64,
    at: Instant,
}

impl StreamWriter {
    /// A hand on `stream`.
    pub fn new(stream: Arc<Stream>) -> Self {
        Self { stream, turn: 0, backlog: None, times: Times::default() }
    }

    /// For each append, how many events the slowest group has before it, where that is too many.
    async fn full(&mut self, appends: &[Append]) -> Result<Vec<Option<u64>>> {
        let limit = self.stream.spec.max_backlog;
        let all: u64 = appends.iter().map(|append| append.events.len() as u64).sum();
        let known = self.backlog.as_mut().filter(|known| known.at.elapsed() < BACKLOG_KNOWN);
        // Groups catch up, so what was known and what came since is the most there is, unless
        // somebody moves a cursor back: which is noticed once what is known is no longer believed.
        if let Some(known) = known
            && known.events + known.since + all <= limit
        {
            known.since += all;
            return Ok(vec![None; appends.len()]);
        }
        let at = Instant::now();
        let before = status::backlog(&self.stream).await?;
        let mut let_in = 0;
        let full = appends.iter().map(|append| {
            let events = append.events.len() as u64;
            let behind = before.map_or(0, |before| before + let_in);
            // Into an empty stream even an append beyond the limit must get in some time.
            if events > 0 && behind > 0 && behind + events > limit {
                return Some(behind);
            }
            let_in += events;
            None
        });
        let full = full.collect();
        self.backlog = before.map(|events| Backlog { events, since: let_in, at });
        Ok(full)
    }

    /// The shard of each event of each append.
    fn spread(&mut self, appends: &[Append]) -> Vec<Vec<u32>> {
        let shards = self.stream.shards.len() as u32;
        if shards == 1 {
            return Vec::new();
        }
        let cluster = self.stream.redis.is_cluster();
        let spread = appends.iter().map(|append| {
            let turn = self.turn % shards;
            self.turn = self.turn.wrapping_add(1);
            let of = |event: &Event| match shard_for(event, shards) {
                Some(shard) => shard,
                None if cluster => (hash(&event.id.to_bytes()) % u64::from(shards)) as u32,
                None => turn,
            };
            append.events.iter().map(of).collect()
        });
        spread.collect()
    }

    async fn send(&mut self, call: &Call<'_>) -> Result<Vec<u8>> {
        let cmd = call.build(&self.stream, &mut self.times);
        let key = &self.stream.shards[call.first()].stream;
        let letters = answered(&self.stream, key, &cmd).await?;
        if letters.len() == call.appends.len() { Ok(letters) } else { Err(odd("an append")) }
    }

    /// Writes everywhere but in the first shard, where that one will have it. Answers for each
    /// append whether it still may.
    async fn send_to_others(&mut self, call: &Call<'_>) -> Result<Vec<bool>> {
        let first = self.send(&Call { mode: Mode::Dry, ..call.clone() }).await?;
        let letters = call.appends.iter().zip(&first).filter(|(_, letter)| **letter != b'r');
        let (appends, catch_up): (Vec<usize>, Vec<bool>) =
            letters.map(|(index, letter)| (*index, *letter == b'p')).unzip();
        let others =
            Call { appends: &appends, catch_up: &catch_up, mode: Mode::Any, ..call.clone() };
        let mut cmds = Vec::new();
        for shard in 1..self.stream.shards.len() {
            let other = Call { shards: Shards::One(shard), ..others.clone() };
            if other.has_work(shard) {
                cmds.push((shard, other.build(&self.stream, &mut self.times)));
            }
        }
        let stream = &self.stream;
        let answers = try_join_all(cmds.iter().map(|(shard, cmd)| async move {
            let key = &stream.shards[*shard].stream;
            answered(stream, key, cmd).await
        }))
        .await?;
        let mut may: Vec<bool> = first.iter().map(|letter| *letter == b'd').collect();
        for (at, may) in may.iter_mut().enumerate() {
            let sent = appends.iter().position(|index| *index == call.appends[at]);
            let behind = |sent| answers.iter().any(|letters| letters.get(sent) == Some(&b'r'));
            *may &= sent.is_some_and(|sent| !behind(sent));
        }
        Ok(may)
    }
}

#[async_trait]
impl Writer for StreamWriter {
    async fn slots(&mut self, origin: &str) -> Result<Vec<Slot>> {
        let stream = &self.stream;
        let shards = if stream.redis.is_cluster() { stream.shards.len() } else { 1 };
        let mut lowest: Option<BTreeMap<String, Position>> = None;
        for shard in &stream.shards[..shards] {
            let key = shard.checkpoint(origin);
            let answer = stream.redis.ask(&key, redis::cmd("HGETALL").arg(&key)).await?;
            let here = positions(answer)?;
            lowest = Some(match lowest {
                None => here,
                Some(before) => before
                    .into_iter()
                    .filter_map(|(slot, position)| {
                        let other = here.get(&slot)?;
                        let low =
                            if other.order < position.order { other.clone() } else { position };
                        Some((slot, low))
                    })
                    .collect(),
            });
        }
        Ok(lowest.unwrap_or_default().into_iter().collect())
    }

    async fn append(&mut self, appends: &[Append]) -> Result<Vec<Appended>> {
        self.stream.tend();
        let full = self.full(appends).await?;
        let spread = self.spread(appends);
        let mut into: Vec<usize> =
            (0..appends.len()).filter(|index| full[*index].is_none()).collect();
        let cluster = self.stream.shards.len() > 1 && self.stream.redis.is_cluster();
        let shards = if cluster { Shards::One(0) } else { Shards::All };
        let call = Call {
            all: appends,
            spread: &spread,
            appends: &into.clone(),
            catch_up: &[],
            shards,
            mode: Mode::Exact,
        };
        if cluster {
            let may = self.send_to_others(&call).await?;
            let mut may = may.into_iter();
            into.retain(|_| may.next() == Some(true));
        }
        let call = Call { appends: &into, ..call };
        let letters = if into.is_empty() { Vec::new() } else { self.send(&call).await? };
        let mut answers: Vec<Appended> =
            full.into_iter().map(|full| full.map_or(Appended::Rewound, Appended::Full)).collect();
        for (index, letter) in into.iter().zip(letters) {
            if letter == b'd' {
                answers[*index] = Appended::Durable;
            }
        }
        Ok(answers)
    }
}

/// What the script answers. Errs where the stream has another number of shards.
async fn answered(stream: &Stream, key: &str, cmd: &Cmd) -> Result<Vec<u8>> {
    let letters = bytes(stream.redis.run_cmd(&SCRIPTS.append, key, cmd).await?);
    match letters.strip_prefix(b"#") {
        None => Ok(letters),
        Some(number) => {
            let number = String::from_utf8_lossy(number).parse();
            Err(stream.refusal(number.map_err(|_| odd("an append"))?))
        }
    }
}

/// The positions of a checkpoint, by slot.
fn positions(answer: Value) -> Result<BTreeMap<String, Position>> {
    let Value::Array(answer) = answer else { return Err(odd("a checkpoint")) };
    let mut fields = answer.into_iter().map(|value| String::from_utf8(bytes(value)));
    let mut found = BTreeMap::new();
    while let (Some(slot), Some(position)) = (fields.next(), fields.next()) {
        // Empty: an append was refused halfway.
        if let Some((order, note)) = position?.split_once(' ') {
            found.insert(slot?, Position { order: order.parse()?, note: note.to_owned() });
        }
    }
    Ok(found)
}

fn put_position(position: Option<&Position>, cmd: &mut Cmd) {
    match position {
        Some(Position { order, note }) => cmd.arg(format!("{order} {note}")),
        None => cmd.arg(""),
    };
}

/// Which shards a script writes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shards {
    All,
    One(usize),
}

/// One run of the script.
#[derive(Clone)]
struct Call<'a> {
    all: &'a [Append],
    /// The shard of each event, where there are several.
    spread: &'a [Vec<u32>],
    /// Which appends it is for.
    appends: &'a [usize],
    /// Which of them are only to catch up; none where it is empty.
    catch_up: &'a [bool],
    shards: Shards,
    mode: Mode,
}

/// How steps are compared.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// With what is stored, exactly.
    Exact,
    /// The same, and nothing is written.
    Dry,
    /// With what may be past a step, or within it.
    Any,
}

impl<'a> Call<'a> {
    /// The shard beside which the checkpoint is.
    fn first(&self) -> usize {
        match self.shards {
            Shards::All => 0,
            Shards::One(shard) => shard,
        }
    }

    fn has_work(&self, shard: usize) -> bool {
        self.appends.iter().any(|index| {
            !self.all[*index].moves.is_empty() || self.spread[*index].contains(&(shard as u32))
        })
    }

    fn build(&self, stream: &Stream, times: &mut Times) -> Cmd {
        let mut keys: Vec<&str> = match self.shards {
            Shards::All => stream.shards.iter().map(|shard| shard.stream.as_str()).collect(),
            Shards::One(shard) => vec![&stream.shards[shard].stream],
        };
        let streams = keys.len();
        let mut origins: HashMap<&str, usize> = HashMap::new();
        let moving = self.appends.iter().map(|index| &self.all[*index]);
        let moving = moving.filter(|append| !append.moves.is_empty());
        let mut checkpoints: Vec<String> = Vec::new();
        for append in moving {
            origins.entry(&append.origin).or_insert_with(|| {
                checkpoints.push(stream.shards[self.first()].checkpoint(&append.origin));
                streams + checkpoints.len()
            });
        }
        keys.extend(checkpoints.iter().map(String::as_str));
        let number = stream.shards[self.first()].number();
        keys.push(&number);
        let (events, size) = self.size();
        let mut cmd = SCRIPTS.append.call_sized(&keys, 3 * events + 64, size + 4096);
        cmd.arg(streams).arg(&*stream.format.field).arg(match self.mode {
            Mode::Exact => "exact",
            Mode::Dry => "dry",
            Mode::Any => "any",
        });
        cmd.arg(stream.spec.shards.max(1)).arg(stream.spec.groups.len());
        for group in &stream.spec.groups {
            cmd.arg(&*group.name);
        }
        cmd.arg(self.appends.len());
        for (at, index) in self.appends.iter().enumerate() {
            let append = &self.all[*index];
            cmd.arg(if append.moves.is_empty() { 0 } else { origins[&*append.origin] });
            cmd.arg(u8::from(self.catch_up.get(at) == Some(&true)));
            cmd.arg(append.moves.len());
            for step in &append.moves {
                cmd.arg(&step.slot);
                put_position(step.from.as_ref(), &mut cmd);
                put_position(step.to.as_ref(), &mut cmd);
            }
            match self.mode {
                Mode::Dry => cmd.arg(0),
                _ => self.put_events(*index, stream, times, &mut cmd),
            };
        }
        cmd
    }

    /// Events, and about how many bytes their arguments take.
    fn size(&self) -> (usize, usize) {
        let appends = self.appends.iter().map(|index| &self.all[*index].events);
        appends.fold((0, 0), |(count, size), events| {
            let bytes: usize = events.iter().map(|event| event.body.len() + 64).sum();
            (count + events.len(), size + bytes)
        })
    }

    /// Adds the events of an append as runs: of one shard, one source and one form.
    fn put_events<'c>(
        &self,
        index: usize,
        stream: &Stream,
        times: &mut Times,
        cmd: &'c mut Cmd,
    ) -> &'c mut Cmd {
        let events = &self.all[index].events;
        let parts: Vec<(usize, Vec<&Event>)> = match (self.spread.get(index), self.shards) {
            (None, _) => vec![(1, events.iter().collect())],
            (Some(spread), shards) => {
                let of = |wanted: usize| {
                    let both = events.iter().zip(spread);
                    both.filter(|(_, shard)| **shard as usize == wanted).map(|it| it.0).collect()
                };
                match shards {
                    Shards::One(shard) => vec![(1, of(shard))],
                    Shards::All => (0..stream.shards.len()).map(|it| (it + 1, of(it))).collect(),
                }
            }
        };
        let form = |event: &Event| stream.format.is_plain(event);
        let runs: Vec<(usize, &[&Event])> = parts
            .iter()
            .flat_map(|(shard, events)| {
                let alike = |one: &&Event, next: &&Event| {
                    form(one) == form(next) && (!form(one) || one.source == next.source)
                };
                events.chunk_by(alike).map(|run| (*shard, run))
            })
            .collect();
        cmd.arg(runs.len());
        for (shard, run) in runs {
            let plain = form(run[0]);
            cmd.arg(shard).arg(if plain { "p" } else { "g" });
            cmd.arg(if plain { &run[0].source } else { "" }).arg(run.len());
            for event in run {
                if plain {
                    cmd.arg(&id_text(event.id)[..]).arg(times.text(event.time_us));
                    cmd.arg(&event.body[..]);
                } else {
                    stream.format.put(event, true, times, cmd);
                }
            }
        }
        cmd
    }
}
