//! The stream of a bench: of a name of its own, beside the user's, and gone when it ends.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cli::Wrong;
use crate::spec::{Site, Value, Values};
use crate::stream::{GroupSpec, Retain, StreamSpec};

/// What names of bench streams start with.
const PREFIX: &str = "bench-";
/// The keys that say which of several streams at one place is meant.
const NAMED: [&str; 2] = ["key", "exchange"];
/// The key that holds a stream's file.
const PATH: &str = "path";

/// A stream to try, as its user has it.
pub struct Model {
    /// What messages call it: `stream NAME` of a file, or `the stream` at a URL.
    pub noun: String,
    /// As the user has it.
    pub spec: StreamSpec,
    /// This process.
    pub site: Site,
}

/// Shards and groups of a bench's stream; its name tells them, so that whoever has only the name
/// can remove all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Shards.
    pub shards: u32,
    /// Groups.
    pub groups: usize,
}

impl Layout {
    /// A new name for a stream of this layout.
    pub fn name(self) -> String {
        let Self { shards, groups } = self;
        format!("{PREFIX}{shards}x{groups}-{:08x}", fastrand::u32(..))
    }

    /// The layout that a name tells.
    pub fn of(name: &str) -> Result<Self> {
        let parse = || {
            let (layout, unique) = name.strip_prefix(PREFIX)?.split_once('-')?;
            let (shards, groups) = layout.split_once('x')?;
            let sound = unique.len() == 8 && unique.bytes().all(|byte| byte.is_ascii_hexdigit());
            let layout = Self { shards: shards.parse().ok()?, groups: groups.parse().ok()? };
            (sound && layout.shards > 0).then_some(layout)
        };
        parse().ok_or_else(|| {
            let text = format!("`{name}` is no stream of a bench (as `bench-8x2-0123abcd`)");
            Wrong::Usage(text).into()
        })
    }
}

/// The stream that a bench has for itself.
pub struct Place {
    /// With its groups.
    pub spec: StreamSpec,
    /// This process, with a data directory for this bench alone.
    pub site: Site,
    /// Its database, where it is a file.
    file: Option<PathBuf>,
    /// The folder of that, where it was not there before.
    folder: Option<PathBuf>,
}

/// How the groups of a bench read.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// One member at a time for a shard.
    pub ordered: bool,
    /// After that a silent member's events go to another.
    pub lease: Duration,
    /// Events in a fetch.
    pub batch: usize,
}

impl Place {
    /// The stream named `name` beside the one that it is to be like.
    pub fn beside(model: &Model, name: &str, layout: Layout, reading: Reading) -> Self {
        let mut spec = model.spec.clone();
        spec.name = name.into();
        spec.shards = layout.shards;
        // What is kept longer would have to be room for everything that is published.
        spec.retain = Retain::Acked;
        for key in NAMED.iter().filter(|key| spec.kind.keys.iter().any(|it| it.name == **key)) {
            spec.values.set(key, Value::Str(name.to_owned()));
        }
        let (mut file, mut folder) = (None, None);
        if spec.kind.keys.iter().any(|key| key.name == PATH) {
            let theirs = spec.values.opt_path(PATH).unwrap_or(model.site.data_dir.join("-"));
            let path = theirs.with_file_name(format!("{name}.db"));
            spec.values.set(PATH, Value::Str(path.to_string_lossy().into_owned()));
            folder = path.parent().filter(|folder| !folder.exists()).map(Path::to_path_buf);
            file = Some(path);
        }
        spec.groups = (1..=layout.groups).map(|number| group(name, number, reading)).collect();
        let data_dir = std::env::temp_dir().join(format!("aqueduct-{name}"));
        let site = Site { data_dir, ..model.site.clone() };
        Self { spec, site, file, folder }
    }

    /// Removes it. Nobody may have it open any more.
    pub async fn remove(&self) -> Result<()> {
        let erased = self.erase().await;
        let what = |path: &Path| format!("cannot remove {}", path.display());
        for path in self.files() {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| what(&path));
                }
                _ => {}
            }
        }
        for path in self.folders() {
            match std::fs::remove_dir_all(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| what(&path));
                }
                _ => {}
            }
        }
        if let Some(folder) = &self.folder {
            // Somebody else may use it by now.
            let _ = std::fs::remove_dir(folder);
        }
        erased
    }

    /// Whether there may be something of it.
    pub fn exists(&self) -> bool {
        self.file.as_ref().is_none_or(|file| file.exists())
    }

    async fn erase(&self) -> Result<()> {
        // A file is removed as a whole.
        if self.file.is_some() {
            return Ok(());
        }
        let opened = (self.spec.kind.open)(self.spec.clone(), self.site.clone()).await?;
        opened.erase().await
    }

    fn files(&self) -> impl Iterator<Item = PathBuf> {
        let beside = |file: &PathBuf| {
            ["", "-wal", "-shm"].map(|end| {
                let mut path = file.clone().into_os_string();
                path.push(end);
                PathBuf::from(path)
            })
        };
        self.file.iter().flat_map(beside).collect::<Vec<_>>().into_iter()
    }

    fn folders(&self) -> impl Iterator<Item = PathBuf> {
        let locks = self.file.as_ref().map(|file| {
            let mut path = file.clone().into_os_string();
            path.push(".d");
            PathBuf::from(path)
        });
        locks.into_iter().chain([self.site.data_dir.clone()])
    }
}

fn group(stream: &str, number: usize, reading: Reading) -> GroupSpec {
    let Reading { ordered, lease, batch } = reading;
    GroupSpec {
        name: format!("group-{number}").into(),
        from: stream.to_owned(),
        to: "oracle".to_owned(),
        members: 1,
        latest: false,
        batch,
        lease,
        attempts: 5,
        dead: format!("{stream}.dead"),
        ordered,
        counter: None,
        values: Values::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_its_layout() {
        let layout = Layout { shards: 8, groups: 2 };
        assert_eq!(Layout::of(&layout.name()).unwrap(), layout);
        for wrong in ["orders", "bench-", "bench-0x1-00000000", "bench-8x2-0", "bench-8-00000000"] {
            assert!(Layout::of(wrong).unwrap_err().is::<Wrong>(), "{wrong}");
        }
    }
}
