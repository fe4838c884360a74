//! The environment that a topology file is read in.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use super::fault::Faults;

/// Environment variables, by name.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// The variables of this process and, where they do not set it, of a `.env` in the working
    /// directory. Errs when there is a `.env` that cannot be read. Variables that are not UTF-8
    /// are passed over. `HOSTNAME` is always there: few shells export theirs.
    pub fn process() -> Result<Self, Faults> {
        let mut env = Self::dotenv(Path::new(".env"))?;
        let process =
            std::env::vars_os().filter_map(|(k, v)| k.into_string().ok().zip(v.into_string().ok()));
        env.0.extend(process);
        let host = || gethostname::gethostname().to_string_lossy().into_owned();
        env.0.entry("HOSTNAME".to_owned()).or_insert_with(host);
        Ok(env)
    }

    /// The variables of one file of `NAME=value` lines; none where there is no such file.
    pub fn dotenv(path: &Path) -> Result<Self, Faults> {
        let file = path.display().to_string();
        let entries = match dotenvy::from_path_iter(path) {
            Ok(entries) => entries,
            Err(dotenvy::Error::Io(error)) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(error) => return Err(Faults::whole(&file, format!("cannot be read: {error}"))),
        };
        let mut vars = BTreeMap::new();
        for (number, entry) in entries.enumerate() {
            match entry {
                // As every reader of `.env` files: the first of two lines for one name holds.
                Ok((name, value)) => {
                    vars.entry(name).or_insert(value);
                }
                // The parser's own message quotes the line, which may hold a password.
                Err(dotenvy::Error::LineParse(..)) => {
                    let message = format!(
                        "entry {} is no `NAME=value` (a value with spaces stands in quotes)",
                        number + 1
                    );
                    return Err(Faults::whole(&file, message));
                }
                Err(error) => return Err(Faults::whole(&file, format!("cannot be read: {error}"))),
            }
        }
        Ok(Self(vars))
    }

    /// The value of a variable.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(vars: I) -> Self {
        Self(vars.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

impl std::fmt::Debug for Environment {
    /// Names only: values may be secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}
