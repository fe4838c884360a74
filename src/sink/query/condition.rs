//! What a filter means in a table, and how a page goes on behind a mark.

use super::Unanswered;
use crate::spec::text::{did_you_mean, listed, shown};

/// How deep a member may be.
const DEPTH_MAX: usize = 32;

/// A column, as a filter sees it.
pub(crate) struct Named<'a> {
    pub(crate) name: &'a str,
    /// Its values are JSON, with members to ask for.
    pub(crate) is_json: bool,
}

/// What a filter asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Condition<'a> {
    /// The column at this place has a value.
    Column { at: usize, value: &'a str },
    /// A member of the JSON column at this place has a value.
    Member { at: usize, path: Vec<&'a str>, value: &'a str },
}

/// Finds what the filters ask for: a column of that name, else a member of the one JSON column.
pub(crate) fn resolve<'a>(
    filters: &'a [(String, String)],
    columns: &[Named<'_>],
    same: fn(&str, &str) -> bool,
) -> Result<Vec<Condition<'a>>, Unanswered> {
    filters.iter().map(|(name, value)| find(name, value, columns, same)).collect()
}

fn find<'a>(
    name: &'a str,
    value: &'a str,
    columns: &[Named<'_>],
    same: fn(&str, &str) -> bool,
) -> Result<Condition<'a>, Unanswered> {
    let wrong = |message: String| Err(Unanswered::Wrong(message));
    let asked = shown(name);
    if name.contains('\0') || value.contains('\0') {
        return wrong(format!("`{asked}` or its value holds a NUL, which no row does"));
    }
    if let Some(at) = columns.iter().position(|column| same(column.name, name)) {
        return Ok(Condition::Column { at, value });
    }
    let json: Vec<usize> = (0..columns.len()).filter(|at| columns[*at].is_json).collect();
    let names = || columns.iter().map(|column| column.name);
    let [at] = json[..] else {
        let members = match json.len() {
            0 => "",
            _ => "; a member can be asked for where one column alone is JSON",
        };
        return wrong(format!(
            "there is no column `{asked}`{} (columns: {}{members})",
            did_you_mean(name, names()),
            listed(names(), "and"),
        ));
    };
    let path: Vec<&str> = name.split('.').collect();
    if path.len() > DEPTH_MAX {
        return wrong(format!("`{asked}` is nested too deep (at most {DEPTH_MAX} names)"));
    }
    Ok(Condition::Member { at, path, value })
}

/// The text as a JSON value that is no text, if it reads as one: a number, a truth value, null.
pub(crate) fn other_meaning(text: &str) -> Option<&str> {
    let plain = matches!(text, "true" | "false" | "null");
    (plain || serde_json::from_str::<serde_json::Number>(text).is_ok()).then(|| text.trim())
}

/// The condition that a row comes behind a mark in descending order, NULL last. Only the first
/// column may be nullable; `bind` gives the placeholder of the mark's value at a place.
pub(crate) fn behind(
    columns: &[String],
    nullable: bool,
    mark_is_null: bool,
    mut bind: impl FnMut(usize) -> String,
) -> String {
    let mut less = |from: usize| {
        let marks: Vec<_> = (from..columns.len()).map(&mut bind).collect();
        match marks.is_empty() {
            true => "1 = 0".to_owned(),
            false => format!("({}) < ({})", columns[from..].join(", "), marks.join(", ")),
        }
    };
    match (nullable, mark_is_null) {
        (_, true) => format!("({} IS NULL AND {})", columns[0], less(1)),
        (true, false) => format!("({} OR {} IS NULL)", less(0), columns[0]),
        (false, false) => less(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(name: &str) -> Vec<(String, String)> {
        vec![(name.to_owned(), "v".to_owned())]
    }

    fn complaint(name: &str, columns: &[Named<'_>]) -> String {
        match resolve(&filter(name), columns, |a, b| a == b) {
            Err(Unanswered::Wrong(message)) => message,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_name_is_a_column_else_a_member_of_the_one_json_column() {
        let columns = [
            Named { name: "id", is_json: false },
            Named { name: "data", is_json: true },
            Named { name: "more", is_json: true },
        ];
        let same = |a: &str, b: &str| a == b;
        let filters = filter("id");
        let found = resolve(&filters, &columns, same).unwrap();
        assert_eq!(found, [Condition::Column { at: 0, value: "v" }]);
        let filters = filter("a.b");
        let found = resolve(&filters, &columns[..2], same).unwrap();
        assert_eq!(found, [Condition::Member { at: 1, path: vec!["a", "b"], value: "v" }]);
        assert_eq!(
            complaint("level", &columns),
            "there is no column `level` (columns: `id`, `data` and `more`; a member can be asked \
             for where one column alone is JSON)"
        );
        assert_eq!(
            complaint("idd", &columns[..1]),
            "there is no column `idd`, did you mean `id`? (columns: `id`)"
        );
        assert!(complaint(&"a.".repeat(40), &columns[..2]).contains("too deep"));
        assert!(complaint("a\0", &columns[..2]).contains("NUL"));
    }

    #[test]
    fn a_page_goes_on_behind_nulls_and_values() {
        let columns = ["a".to_owned(), "b".to_owned()];
        let with = |nullable, null| behind(&columns, nullable, null, |at| format!("${at}"));
        assert_eq!(with(false, false), "(a, b) < ($0, $1)");
        assert_eq!(with(true, false), "((a, b) < ($0, $1) OR a IS NULL)");
        assert_eq!(with(true, true), "(a IS NULL AND (b) < ($1))");
    }

    #[test]
    fn a_text_may_mean_a_number() {
        assert_eq!(other_meaning("5.50"), Some("5.50"));
        assert_eq!(other_meaning("null"), Some("null"));
        for text in ["", "info", "05", "1e999", "NaN", "\"a\"", "[1]", "5 6"] {
            assert_eq!(other_meaning(text), None, "{text}");
        }
    }
}
