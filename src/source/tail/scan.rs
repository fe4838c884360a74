//! Which files there are: those that `path` names, and what else lies beside a file.

use std::collections::HashMap;
use std::os::unix::fs::DirEntryExt;
use std::path::{Path, PathBuf};

use super::identity::{FileKey, mtime};

/// A file that was found under a name.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its name.
    pub path: PathBuf,
    /// Which file it is.
    pub key: FileKey,
    /// Its size in bytes.
    pub size: u64,
    /// When its content last changed.
    pub mtime: (i64, i64),
}

/// The regular file that a name leads to, through symbolic links, if it does.
pub fn look_up(path: &Path) -> Option<Found> {
    let meta = std::fs::metadata(path).ok()?;
    meta.is_file().then(|| Found {
        path: path.to_owned(),
        key: FileKey::of(&meta),
        size: meta.len(),
        mtime: mtime(&meta),
    })
}

/// The directory a file is in.
pub fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// As in a shell, where neither `/` nor a leading dot is matched by `*`.
const OPTIONS: glob::MatchOptions = glob::MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: true,
};

/// What `path` stands for: one file or a glob.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: String,
    glob: bool,
}

impl Pattern {
    /// As the user wrote it. Errs when it is no glob.
    pub fn new(text: &str) -> Result<Self, glob::PatternError> {
        glob::Pattern::new(text)?;
        Ok(Self { text: text.to_owned(), glob: text.contains(['*', '?', '[']) })
    }

    /// As the user wrote it.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether it stands for a file of this name.
    pub fn matches(&self, name: &str) -> bool {
        let glob =
            || glob::Pattern::new(&self.text).is_ok_and(|glob| glob.matches_with(name, OPTIONS));
        self.text == name || self.glob && glob()
    }

    /// What the names of its files, without directories, are like.
    pub fn last_part(&self) -> glob::Pattern {
        let last = self.text.rsplit('/').next().unwrap_or_default();
        let last = if self.glob { last.to_owned() } else { glob::Pattern::escape(last) };
        // A part of what is a glob as a whole is one too, but for a `/` inside brackets.
        glob::Pattern::new(&last).unwrap_or_default()
    }

    /// The directory that holds its files or, of a glob, that holds them all.
    pub fn root(&self) -> PathBuf {
        let Some(first) = self.text.find(['*', '?', '[']) else {
            return directory(Path::new(&self.text)).to_owned();
        };
        match self.text[..first].rfind('/') {
            None => PathBuf::from("."),
            Some(0) => PathBuf::from("/"),
            Some(slash) => PathBuf::from(&self.text[..slash]),
        }
    }

    /// The regular files there are now, by name; each file once, under the first of its names. As
    /// in a shell, `*` does not match a leading dot, and a name that is there as it is written is
    /// meant so.
    pub fn files(&self) -> Vec<Found> {
        if let Some(file) = look_up(Path::new(&self.text)) {
            return vec![file];
        }
        if !self.glob {
            return Vec::new();
        }
        let options =
            glob::MatchOptions { require_literal_leading_dot: true, ..Default::default() };
        let Ok(paths) = glob::glob_with(&self.text, options) else { return Vec::new() };
        let mut seen = std::collections::HashSet::new();
        // A directory that cannot be read holds no file for us: the next look may find it better.
        let files = paths.flatten().filter_map(|path| look_up(&path));
        files.filter(|file| seen.insert(file.key)).collect()
    }
}

/// The names in these directories, by inode. A directory that cannot be read holds none.
pub fn neighbours<'a>(directories: impl IntoIterator<Item = &'a Path>) -> HashMap<u64, PathBuf> {
    let mut names = HashMap::new();
    for directory in directories {
        let Ok(entries) = std::fs::read_dir(directory) else { continue };
        for entry in entries.flatten() {
            names.insert(entry.ino(), entry.path());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_finds_each_regular_file_once() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["b.log", "a.log", ".hidden.log", "a.txt", "[x].log"] {
            std::fs::write(at(name), name).unwrap();
        }
        std::fs::create_dir(at("d.log")).unwrap();
        std::os::unix::fs::symlink(at("b.log"), at("c.log")).unwrap();
        let files = |name: &str| -> Vec<PathBuf> {
            let pattern = Pattern::new(at(name).to_str().unwrap()).unwrap();
            pattern.files().into_iter().map(|file| file.path).collect()
        };
        assert_eq!(files("*.log"), [at("[x].log"), at("a.log"), at("b.log")]);
        assert_eq!(files("[x].log"), [at("[x].log")], "a name as it is written");
        assert!(files("none.log").is_empty());
        let pattern = Pattern::new("logs/*.log").unwrap();
        assert!(pattern.matches("logs/a.log") && pattern.matches("logs/*.log"));
        assert!(!pattern.matches("logs/.a.log") && !pattern.matches("logs/old/a.log"));
        assert!(Pattern::new("a[").is_err());
    }

    #[test]
    fn a_pattern_knows_its_root_and_last_part() {
        let pattern = |text| Pattern::new(text).unwrap();
        assert_eq!(pattern("/var/log/*/a?.log").root(), Path::new("/var/log"));
        assert_eq!(pattern("/var/log/app.log").root(), Path::new("/var/log"));
        assert_eq!((pattern("a.log").root(), pattern("*").root()), (".".into(), ".".into()));
        assert_eq!(pattern("/*").root(), Path::new("/"));
        assert!(pattern("/var/*/a?.log").last_part().matches("ab.log"));
        assert!(!pattern("/var/*/a?.log").last_part().matches("b.log"));
    }
}
