//! The working part of a tail, without a runtime: which generations there are, whose turn it is,
//! and how lines become batches. Everything here may block on the file system for a moment.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::batch::Out;
use super::cursor::Fill;
use super::generation::{Generation, Handle, Place};
use super::identity::{self, FileKey, mtime};
use super::matching::Stranger;
use super::registry::Changes;
use super::scan::{Found, Pattern};
use super::watcher::{Directories, POLL, Wake};
use crate::source::{Batch, Move, Position};
use anyhow::Result;

/// Files held open at once, about.
pub const OPEN_MAX: usize = 256;
/// A file without a name is kept open this long after its last growth.
const UNLINKED_FOR: Duration = Duration::from_secs(5);
/// All names are looked at anew this often, or less often where that takes long.
const SCAN_EVERY: Duration = Duration::from_secs(1);
/// Bytes read in one step at most, about; then whoever waits for the step gets a turn.
const STEP_BYTES: u64 = 8 * 1024 * 1024;

/// What the user asked for.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The source's name.
    pub name: Arc<str>,
    /// What its ids are filed under.
    pub origin: String,
    /// Which files.
    pub pattern: Pattern,
    /// `start = "end"`.
    pub from_end: bool,
    /// A longer line, in bytes without its newline, is a dead letter.
    pub line_max: usize,
    /// `--until-idle`.
    pub until_idle: bool,
}

/// What a step brought.
#[derive(Debug)]
pub enum Step {
    /// Events.
    Batch(Batch),
    /// These are to be written down before anything else: [`Engine::recorded`] goes on.
    Record(Changes),
    /// Nothing yet, but there is more to do.
    Again,
    /// Nothing now.
    Idle,
    /// Every file is read to its end, and that was asked for.
    Spent,
}

/// The generations of one name, oldest first: they are read in this order.
#[derive(Debug, Default)]
pub(super) struct Lane {
    /// Those that have something to read.
    pub queue: Vec<usize>,
    /// The one that was last seen under this name.
    pub holder: Option<usize>,
}

/// See the [module](self).
pub struct Engine {
    pub(super) settings: Settings,
    pub(super) wake: Arc<Wake>,
    pub(super) directories: Directories,
    pub(super) generations: Vec<Generation>,
    pub(super) by_uid: HashMap<u64, usize>,
    pub(super) by_file: HashMap<FileKey, usize>,
    /// The next ordinal of an inode and first line.
    pub(super) ordinals: HashMap<(u64, u64), u32>,
    pub(super) lanes: HashMap<PathBuf, Lane>,
    /// Lanes with something to read, each once.
    pub(super) ready: VecDeque<PathBuf>,
    /// Files whose generations are to be written down before they are read.
    pub(super) unborn: Vec<Stranger>,
    /// What the stream holds in [`identity::CENSUS`] once everything handed out is stored.
    pub(super) census: Option<Position>,
    pub(super) open_files: usize,
    pub(super) uses: u64,
    /// The first look is over, now or in an earlier life.
    pub(super) looked: bool,
    /// The next scan is to come at once.
    pub(super) rescan: bool,
    /// The next scan is to come once everything at hand is read.
    pub(super) rescan_at_end: bool,
    /// The next scan is to look for missing generations beside their old places.
    pub(super) search: bool,
    /// There are files that wait for the end of their first line.
    pub(super) pending: bool,
    /// When it was last written down which generations were seen.
    pub(super) marked: Option<Instant>,
    /// Generations that are gone, which is to be written down.
    pub(super) gone: Vec<u64>,
    /// Generations that turned out to be others, which is to be written down.
    pub(super) mistaken: Vec<u64>,
    /// Slots to be forgotten with the next batch.
    pub(super) forgotten: Vec<Move>,
    /// Generations whose unfinished last line will never be finished.
    pub(super) orphans: Vec<usize>,
    pub(super) told_empty: bool,
    told_unreadable: bool,
    polled: Option<Instant>,
    scanned: Option<Instant>,
    scan_cost: Duration,
    /// Something was read or found since the last scan.
    pub(super) progress: bool,
}

impl Engine {
    /// An engine that knows nothing yet; [`Engine::seek`] comes first.
    pub fn new(settings: Settings, wake: Arc<Wake>) -> Self {
        let directories = Directories::new(wake.clone(), settings.pattern.last_part());
        Self {
            settings,
            wake,
            directories,
            generations: Vec::new(),
            by_uid: HashMap::new(),
            by_file: HashMap::new(),
            ordinals: HashMap::new(),
            lanes: HashMap::new(),
            ready: VecDeque::new(),
            unborn: Vec::new(),
            census: None,
            open_files: 0,
            uses: 0,
            looked: false,
            rescan: true,
            rescan_at_end: false,
            search: true,
            pending: false,
            marked: None,
            gone: Vec::new(),
            mistaken: Vec::new(),
            forgotten: Vec::new(),
            orphans: Vec::new(),
            told_empty: false,
            told_unreadable: false,
            polled: None,
            scanned: None,
            scan_cost: Duration::ZERO,
            progress: true,
        }
    }

    /// Does what is due: looks at the files, and reads.
    pub fn step(&mut self) -> Result<Step> {
        let content = self.wake.take_content();
        self.rescan |= self.wake.take_names() || content && self.pending;
        if self.scan_is_due() {
            let start = Instant::now();
            self.rescan = false;
            let changes = self.scan();
            self.polled = None;
            self.scanned = Some(Instant::now());
            self.scan_cost = start.elapsed();
            if !changes.is_empty() {
                self.progress = true;
                return Ok(Step::Record(changes));
            }
        }
        if content || self.polled.is_none_or(|polled| polled.elapsed() >= POLL) {
            self.polled = Some(Instant::now());
            self.poll();
        }
        let batch = self.collect()?;
        if !batch.moves.is_empty() {
            self.progress = true;
            return Ok(Step::Batch(batch));
        }
        if !self.ready.is_empty() {
            return Ok(Step::Again);
        }
        self.rescan |= std::mem::take(&mut self.rescan_at_end);
        if self.rescan && (self.settings.until_idle || self.scan_is_due()) {
            self.scanned = None;
            return Ok(Step::Again);
        }
        if self.settings.until_idle { self.finish() } else { Ok(Step::Idle) }
    }

    fn scan_is_due(&self) -> bool {
        let Some(scanned) = self.scanned else { return true };
        let wait = match self.rescan {
            true => self.scan_cost * 2,
            false => SCAN_EVERY.max(self.scan_cost * 20),
        };
        scanned.elapsed() >= wait
    }

    /// With nothing left to read: the unfinished last lines, then the end.
    fn finish(&mut self) -> Result<Step> {
        if std::mem::take(&mut self.progress) {
            // Only what a look after the last line finds nothing new in is at its end.
            self.rescan = true;
            self.scanned = None;
            return Ok(Step::Again);
        }
        let mut out = Out::new(&self.settings);
        let mut touched = Vec::new();
        for (index, generation) in self.generations.iter_mut().enumerate() {
            let span = (generation.cursor.offset(), generation.cursor.read_to());
            if out.is_full() || generation.key().is_none() || generation.told == Some(span) {
                continue;
            }
            if let Some(piece) = generation.cursor.unfinished() {
                generation.told = Some(span);
                out.push(generation.origin, &generation.path, piece);
                touched.push(index);
            }
        }
        let batch = self.close_batch(out, touched)?;
        Ok(if batch.moves.is_empty() { Step::Spent } else { Step::Batch(batch) })
    }

    /// Reads the lanes in turn until a batch is full, or nothing is left.
    fn collect(&mut self) -> Result<Batch> {
        let mut out = Out::new(&self.settings);
        let mut touched = Vec::new();
        for index in std::mem::take(&mut self.orphans) {
            let generation = &mut self.generations[index];
            if let Some(piece) = generation.cursor.unfinished() {
                out.push(generation.origin, &generation.path, piece);
                generation.cursor.pass_unfinished();
                touched.push(index);
            }
        }
        while !out.is_full() && out.read < STEP_BYTES {
            let Some(name) = self.ready.pop_front() else { break };
            let Some(&index) = self.lanes.get(&name).and_then(|lane| lane.queue.first()) else {
                continue;
            };
            let before = out.len();
            let at_end = self.read(index, &mut out);
            if out.len() > before && !touched.contains(&index) {
                touched.push(index);
            }
            let Some(lane) = self.lanes.get_mut(&name) else { continue };
            if at_end {
                lane.queue.retain(|&other| other != index);
                self.generations[index].queued = false;
            }
            if !lane.queue.is_empty() {
                self.ready.push_back(name);
            }
        }
        self.close_batch(out, touched)
    }

    fn close_batch(&mut self, out: Out, touched: Vec<usize>) -> Result<Batch> {
        let mut moves = std::mem::take(&mut self.forgotten);
        let begun = touched.iter().map(|&index| &self.generations[index]);
        let begun: Vec<u64> = begun.filter(|one| one.last.is_none()).map(|one| one.uid).collect();
        if !begun.is_empty() {
            let to = Some(identity::census(self.census.as_ref(), &begun));
            let from = std::mem::replace(&mut self.census, to.clone());
            moves.push(Move { slot: identity::CENSUS.to_owned(), from, to });
        }
        for index in touched {
            moves.push(self.generations[index].advance()?);
        }
        Ok(Batch { moves, events: out.events, dead: out.dead })
    }

    /// Reads one generation on. `true`: it is at its end, or has none any more.
    fn read(&mut self, index: usize, out: &mut Out) -> bool {
        loop {
            let generation = &mut self.generations[index];
            let (origin, path) = (generation.origin, &generation.path);
            generation.cursor.drain(|piece| {
                out.push(origin, path, piece);
                !out.is_full()
            });
            if out.is_full() || out.read >= STEP_BYTES {
                return false;
            }
            let before = generation.cursor.read_to();
            match self.fill(index) {
                Ok(Fill::More) => {
                    let after = self.generations[index].cursor.read_to();
                    out.read += after.saturating_sub(before).max(1);
                }
                Ok(Fill::End) => return true,
                Ok(Fill::Changed) => {
                    self.lose(index);
                    return true;
                }
                Err(error) => {
                    let path = self.generations[index].path.clone();
                    self.tell_unreadable(&path, &error);
                    return true;
                }
            }
        }
    }

    fn fill(&mut self, index: usize) -> std::io::Result<Fill> {
        if let Place::Closed(key, ..) = self.generations[index].place {
            match identity::open_as(&self.generations[index].path, key)? {
                Some(file) => self.place(index, file, key),
                None => {
                    // The name leads elsewhere by now: a look at all names finds the file.
                    self.rescan = true;
                    return Ok(Fill::End);
                }
            }
        }
        let generation = &mut self.generations[index];
        let Place::Open(handle) = &mut generation.place else { return Ok(Fill::End) };
        self.uses += 1;
        handle.used = self.uses;
        let meta = handle.file.metadata()?;
        handle.mtime = mtime(&meta);
        let first = generation.birth.first;
        let fill = generation.cursor.fill(&handle.file, meta.len(), first)?;
        let ahead = generation.cursor.read_to() > generation.cursor.offset();
        if fill != Fill::Changed || !ahead {
            return Ok(fill);
        }
        // Perhaps only an unfinished line was taken back.
        let head = identity::read_head(&handle.file)?;
        let same = head.is_some_and(|head| head.hash == first);
        Ok(if same && generation.cursor.fits(&handle.file)? { Fill::More } else { Fill::Changed })
    }

    /// Looks whether open files grew or changed, and lets go of deleted ones that are done with.
    fn poll(&mut self) {
        let open: Vec<usize> = self.by_file.values().copied().collect();
        for index in open {
            let generation = &mut self.generations[index];
            let Place::Open(handle) = &mut generation.place else { continue };
            let Ok(meta) = handle.file.metadata() else { continue };
            let same = meta.len() == generation.cursor.read_to() && mtime(&meta) == handle.mtime;
            if !same || generation.cursor.has_lines() || generation.queued {
                handle.unlinked = None;
                self.enqueue(index);
                continue;
            }
            if std::os::unix::fs::MetadataExt::nlink(&meta) > 0 {
                handle.unlinked = None;
                continue;
            }
            let since = *handle.unlinked.get_or_insert_with(Instant::now);
            if since.elapsed() < UNLINKED_FOR {
                continue;
            }
            if generation.cursor.unfinished().is_some() {
                self.orphans.push(index);
            } else if generation.durable >= generation.cursor.offset() {
                self.bury(index);
            }
        }
    }

    /// Its turn comes once.
    pub(super) fn enqueue(&mut self, index: usize) {
        if std::mem::replace(&mut self.generations[index].queued, true) {
            return;
        }
        let since = |index: usize| (self.generations[index].birth.since_ms, index);
        let name = PathBuf::from(&self.generations[index].birth.home);
        let lane = self.lanes.entry(name.clone()).or_default();
        if lane.queue.is_empty() {
            self.ready.push_back(name);
        }
        let at = lane.queue.partition_point(|&other| since(other) < since(index));
        lane.queue.insert(at, index);
    }

    /// Opens a place for a generation, and closes that of another where there are too many.
    pub(super) fn place(&mut self, index: usize, file: File, key: FileKey) {
        if self.open_files >= OPEN_MAX {
            self.close_one();
        }
        self.detach(index);
        self.uses += 1;
        let (mtime, unlinked, used) = ((0, 0), None, self.uses);
        self.generations[index].inode = key.inode;
        self.generations[index].lost = None;
        self.generations[index].place = Place::Open(Handle { file, key, mtime, unlinked, used });
        self.by_file.insert(key, index);
        self.open_files += 1;
    }

    /// Takes a generation's file away; where it is now is not known.
    pub(super) fn detach(&mut self, index: usize) {
        let generation = &mut self.generations[index];
        if let Some(key) = generation.key() {
            self.by_file.remove(&key);
        }
        if let Place::Open(_) = std::mem::replace(&mut generation.place, Place::Missing) {
            self.open_files -= 1;
        }
    }

    /// The file was truncated or written anew: the generation ends, unless a copy goes on.
    pub(super) fn lose(&mut self, index: usize) {
        self.generations[index].lost = self.generations[index].key();
        tracing::debug!(
            source = %self.settings.name,
            file = %self.generations[index].path.display(),
            offset = self.generations[index].cursor.offset(),
            "file was truncated or written anew"
        );
        self.detach(index);
        self.rescan = true;
        self.search = true;
        self.scanned = None;
    }

    /// The generation's content is nowhere any more.
    pub(super) fn bury(&mut self, index: usize) {
        self.detach(index);
        self.generations[index].place = Place::Gone;
        self.generations[index].lost = None;
        self.gone.push(self.generations[index].uid);
    }

    /// Closes the file that was used longest ago and can be opened again: one with a name; where
    /// there is none, a deleted one that is read to its end.
    fn close_one(&mut self) {
        let mut best: Option<(bool, u64, usize)> = None;
        for &index in self.by_file.values() {
            let generation = &self.generations[index];
            let Place::Open(handle) = &generation.place else { continue };
            let Ok(meta) = handle.file.metadata() else { continue };
            let unlinked = std::os::unix::fs::MetadataExt::nlink(&meta) == 0;
            if unlinked && !generation.at_end().unwrap_or(true) {
                continue;
            }
            let candidate = (unlinked, handle.used, index);
            best = Some(best.map_or(candidate, |best| best.min(candidate)));
        }
        match best {
            Some((true, _, index)) => self.bury(index),
            Some((false, _, index)) => {
                let generation = &mut self.generations[index];
                let Place::Open(handle) = &generation.place else { return };
                let place = Place::Closed(handle.key, generation.cursor.read_to(), handle.mtime);
                generation.place = place;
                self.open_files -= 1;
            }
            None => {}
        }
    }

    /// The stream has made these durable.
    pub fn stored(&mut self, moves: &[Move]) {
        for step in moves {
            let uid = u64::from_str_radix(&step.slot, 16).ok();
            let index = uid.and_then(|uid| self.by_uid.get(&uid));
            if let (Some(&index), Some(to)) = (index, &step.to) {
                self.generations[index].durable = to.order;
            }
        }
    }

    /// The generation that last had this name.
    pub(super) fn holder(&self, name: &Path) -> Option<usize> {
        self.lanes.get(name).and_then(|lane| lane.holder)
    }

    /// The generation has this name now.
    pub(super) fn met(&mut self, index: usize, found: &Found) {
        if self.generations[index].path != found.path {
            self.generations[index].path.clone_from(&found.path);
        }
        self.lanes.entry(found.path.clone()).or_default().holder = Some(index);
        if self.generations[index].differs(found) {
            self.enqueue(index);
        }
    }

    /// Says once that a file cannot be read.
    pub(super) fn tell_unreadable(&mut self, path: &Path, error: &std::io::Error) {
        if !std::mem::replace(&mut self.told_unreadable, true) {
            let source = &self.settings.name;
            tracing::warn!(%source, "read {}: {error}; it is tried again", path.display());
        }
    }
}
