//! What is wrong with a topology file, and where.

use std::fmt;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Line and column in the file, both from 1, in characters.
    pub place: Option<(usize, usize)>,
    /// The environment variable that overrides the key, where one does.
    pub variable: Option<String>,
    /// A lower-case fragment: what is wrong, and in parentheses what is allowed.
    pub message: String,
}

/// Everything that is wrong with a file, in the order of the places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults {
    /// The file's name, as it was given.
    pub file: String,
    /// At least one.
    pub faults: Vec<Fault>,
}

impl Faults {
    /// One fault that has no place in the file.
    pub fn whole(file: &str, message: String) -> Self {
        let faults = vec![Fault { place: None, variable: None, message }];
        Self { file: file.to_owned(), faults }
    }

    /// Each as it is printed.
    pub fn lines(&self) -> Vec<String> {
        self.faults.iter().map(|fault| Shown(&self.file, fault).to_string()).collect()
    }
}

/// A fault or a warning as it is printed: `file:line:column: message`, or the variable instead.
#[derive(Debug)]
pub struct Shown<'a>(pub &'a str, pub &'a Fault);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shown(file, fault) = self;
        match (&fault.variable, fault.place) {
            (Some(variable), _) => write!(f, "{variable}: {}", fault.message),
            (None, Some((line, column))) => write!(f, "{file}:{line}:{column}: {}", fault.message),
            (None, None) => write!(f, "{file}: {}", fault.message),
        }
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fault) in self.faults.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            Shown(&self.file, fault).fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

/// In the order of their places; overrides and the file as a whole come last. The same fault is
/// said once.
pub(super) fn sort(faults: &mut Vec<Fault>) {
    let key = |fault: &Fault| {
        (fault.place.unwrap_or((usize::MAX, 0)), fault.variable.clone(), fault.message.clone())
    };
    faults.sort_by_cached_key(key);
    faults.dedup();
}
