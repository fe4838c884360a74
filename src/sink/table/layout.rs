//! What a table looks like, and how the columns asked for fit into it.

use anyhow::{Result, bail};

use super::Config;
use crate::sink::columns::{Mapped, Type};
use crate::spec::{Column, Selector, text};

/// How databases differ in what tables look like.
pub(crate) struct Dialect {
    /// Whether two names mean the same column.
    pub(crate) same: fn(&str, &str) -> bool,
    /// A name as an identifier.
    pub(crate) quote: fn(&str) -> String,
    /// Whether a column may be asked to be of this type, which [`Type::parse`] does not know.
    pub(crate) has_type: fn(&str) -> bool,
    /// What a column for this, asked to be of this type, is declared as.
    pub(crate) declare: fn(&Selector, Option<&str>) -> String,
    /// Whether a column that is read as this can hold an event's id.
    pub(crate) holds_id: fn(Type) -> bool,
    /// The type of an id column.
    pub(crate) id_type: &'static str,
    /// The type of the column `data`, where no columns are named.
    pub(crate) body_type: &'static str,
    /// The declaration of the column `inserted_at`.
    pub(crate) inserted_at: &'static str,
}

/// A column of an existing table.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    /// Its name.
    pub(crate) name: String,
    /// Its type as declared; may be empty.
    pub(crate) declared: String,
    /// It must have a value, and has none by itself.
    pub(crate) needed: bool,
    /// It is computed, and cannot be written.
    pub(crate) generated: bool,
}

/// An existing table.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) columns: Vec<Found>,
    /// The sets of columns of which no two rows have the same values.
    pub(crate) unique: Vec<Vec<String>>,
}

/// The columns asked for, as they are in the table.
pub(crate) struct Fitted {
    pub(crate) columns: Vec<Mapped>,
    /// Where among them the unique id is. `None`: the table has none, or has a `key`.
    pub(crate) id: Option<usize>,
    /// Where among them the columns of `key` are.
    pub(crate) key: Vec<usize>,
}

/// Fits the columns into the table at `place`, which SQL calls `table`; `read_as` says what the
/// values of a column are read as, given the type asked for, and what a refusal calls that. Errs
/// with why it does not fit and what would.
pub(crate) fn fit(
    config: &Config,
    layout: &Layout,
    dialect: &Dialect,
    (place, table): (&str, &str),
    read_as: impl Fn(&Found, Option<&str>) -> (Type, String),
) -> Result<Fitted> {
    let fitting = Fitting { config, layout, dialect, place, table, read_as };
    let columns = config.columns.iter().map(|column| fitting.mapped(column));
    let mut columns = columns.collect::<Result<Vec<_>>>()?;
    let id = fitting.id_column(&mut columns)?;
    fitting.refuse_unfilled(&columns)?;
    let key = fitting.key(&columns)?;
    Ok(Fitted { columns, id: id.filter(|_| key.is_empty()), key })
}

struct Fitting<'f, R> {
    config: &'f Config,
    layout: &'f Layout,
    dialect: &'f Dialect,
    place: &'f str,
    table: &'f str,
    read_as: R,
}

impl<R: Fn(&Found, Option<&str>) -> (Type, String)> Fitting<'_, R> {
    fn found(&self, name: &str) -> Option<&Found> {
        self.layout.columns.iter().find(|column| (self.dialect.same)(&column.name, name))
    }

    /// Whether these columns together, in any order, are a primary key or unique.
    fn is_unique(&self, names: &[&str]) -> bool {
        self.layout.unique.iter().any(|set| {
            set.len() == names.len()
                && names.iter().all(|name| set.iter().any(|it| (self.dialect.same)(it, name)))
        })
    }

    /// A mapped column, checked against the table.
    fn mapped(&self, Column { name, from, ty }: &Column) -> Result<Mapped> {
        let place = self.place;
        let Some(found) = self.found(name) else {
            let known: Vec<_> =
                self.layout.columns.iter().map(|it| format!("`{}`", it.name)).collect();
            bail!(
                "{place} has no column `{name}`{} (it has {}; change `columns`, or add the column)",
                self.did_you_mean(name),
                known.join(", ")
            );
        };
        if found.generated {
            bail!("{place}: column `{name}` is generated and cannot be written (leave it out)");
        }
        let (ty, ty_name) = (self.read_as)(found, ty.as_deref());
        if *from == Selector::Id && !(self.dialect.holds_id)(ty) {
            bail!(
                "{place}: column `{name}` is {ty_name}, which an event's id is not ({} is right)",
                self.dialect.id_type
            );
        }
        Ok(Mapped { name: found.name.clone(), from: from.clone(), ty, ty_name })
    }

    /// The column that keeps the id, mapped in if it was not. `None`: the table has none.
    fn id_column(&self, columns: &mut Vec<Mapped>) -> Result<Option<usize>> {
        let Self { config, place, .. } = self;
        let at = match columns.iter().position(|column| column.from == Selector::Id) {
            Some(at) => at,
            None => match self.found(&config.id_column) {
                Some(found) => {
                    let column = Column { name: found.name.clone(), from: Selector::Id, ty: None };
                    columns.insert(0, self.mapped(&column)?);
                    0
                }
                None if config.id_column_asked => bail!(
                    "{place} has no column `{}`{} (add it, unique; or leave `id_column` out, and \
                     the ids seen are kept beside the table)",
                    config.id_column,
                    self.did_you_mean(&config.id_column)
                ),
                None => return Ok(None),
            },
        };
        let name = &columns[at].name;
        if config.key.is_empty() && !self.is_unique(&[name]) {
            bail!(
                "{place}: its id column `{name}` is neither its primary key nor unique, so an \
                 event could be stored twice (CREATE UNIQUE INDEX … ON {} ({}))",
                self.table,
                (self.dialect.quote)(name)
            );
        }
        Ok(Some(at))
    }

    /// Every row would be refused when a column that must have a value gets none.
    fn refuse_unfilled(&self, columns: &[Mapped]) -> Result<()> {
        let unfilled = |found: &&Found| {
            found.needed
                && !found.generated
                && !columns.iter().any(|column| column.name == found.name)
        };
        match self.layout.columns.iter().find(unfilled) {
            Some(found) => bail!(
                "{}: column `{}` is NOT NULL without a default, and nothing goes into it (name \
                 it in `columns`)",
                self.place,
                found.name
            ),
            None => Ok(()),
        }
    }

    fn key(&self, columns: &[Mapped]) -> Result<Vec<usize>> {
        let place = self.place;
        let mut key = Vec::new();
        for name in &self.config.key {
            match columns.iter().position(|column| (self.dialect.same)(&column.name, name)) {
                Some(at) => key.push(at),
                None => bail!("{place}: `key` names `{name}`, which `columns` does not"),
            }
        }
        let names: Vec<&str> = self.config.key.iter().map(String::as_str).collect();
        if !names.is_empty() && !self.is_unique(&names) {
            let quoted: Vec<_> = names.iter().map(|name| (self.dialect.quote)(name)).collect();
            bail!(
                "{place}: `key` ({}) is neither its primary key nor unique (CREATE UNIQUE \
                 INDEX … ON {} ({}))",
                names.join(", "),
                self.table,
                quoted.join(", ")
            );
        }
        Ok(key)
    }

    fn did_you_mean(&self, name: &str) -> String {
        text::did_you_mean(name, self.layout.columns.iter().map(|column| &*column.name))
    }
}
