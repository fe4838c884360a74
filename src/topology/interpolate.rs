//! `${VAR}`, `${VAR:-default}` and the literal `$${` inside strings.

use super::env::Environment;
use crate::spec::text::{did_you_mean, shown};

/// What is wrong with one `${` of a string.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    /// Which `${` of the string it is, from 0.
    pub(super) nth: usize,
    pub(super) message: String,
}

const ALLOWED: &str = "`${NAME}`, `${NAME:-default}`, or `$${` for a plain `${`";

/// Fills in the variables of a string. What is filled in is not looked at again.
pub(super) fn interpolate(text: &str, env: &Environment) -> Result<String, Vec<Wrong>> {
    let mut out = String::with_capacity(text.len());
    let mut wrong = Vec::new();
    let mut rest = text;
    let mut nth = 0;
    while let Some(at) = rest.find("${") {
        let (before, inside) = (&rest[..at], &rest[at + 2..]);
        if let Some(before) = before.strip_suffix('$') {
            out.extend([before, "${"]);
            rest = inside;
        } else {
            out.push_str(before);
            let Some((inner, after)) = inside.split_once('}') else {
                let message = format!("`${{` without its `}}` ({ALLOWED})");
                wrong.push(Wrong { nth, message });
                break;
            };
            match filled(inner, env) {
                Ok(value) => out.push_str(value),
                Err(message) => wrong.push(Wrong { nth, message }),
            }
            nth += inner.matches("${").count();
            rest = after;
        }
        nth += 1;
    }
    out.push_str(rest);
    if wrong.is_empty() { Ok(out) } else { Err(wrong) }
}

/// What stands for `NAME` or `NAME:-default`.
fn filled<'t>(inner: &'t str, env: &'t Environment) -> Result<&'t str, String> {
    let (name, default) = match inner.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inner, None),
    };
    if default.unwrap_or_default().contains("${") {
        return Err(format!("a default cannot hold another `${{` ({ALLOWED})"));
    }
    let starts = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !starts || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        return Err(format!("`${{{}}}` names no variable ({ALLOWED})", shown(name)));
    }
    match (env.get(name), default) {
        // As in a shell, `:-` also stands in for a variable that is empty.
        (Some(""), Some(default)) | (None, Some(default)) => Ok(default),
        (Some(value), _) => Ok(value),
        (None, None) => Err(format!(
            "the environment has no `{name}` (set it, or write `${{{name}:-default}}`){}",
            did_you_mean(name, env.names())
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(text: &str) -> Result<String, Vec<Wrong>> {
        let env: Environment =
            [("A", "1"), ("EMPTY", ""), ("NESTED", "${A}")].into_iter().collect();
        interpolate(text, &env)
    }

    #[test]
    fn variables_are_filled_in_once() {
        for (text, filled) in [
            ("${A}", "1"),
            ("x${A}y${A:-2}z", "x1y1z"),
            ("${NONE:-2}", "2"),
            ("${NONE:-}", ""),
            ("${EMPTY}", ""),
            ("${EMPTY:-3}", "3"),
            ("${NESTED}", "${A}"),
            ("$${A}", "${A}"),
            ("$$${A}", "$${A}"),
            ("$A $ $$ {A} }", "$A $ $$ {A} }"),
            ("${NONE:-a:-b}", "a:-b"),
        ] {
            assert_eq!(with(text).as_deref(), Ok(filled), "{text}");
        }
    }

    #[test]
    fn every_wrong_one_is_named() {
        let places = |text: &str| -> Vec<usize> {
            with(text).unwrap_err().into_iter().map(|wrong| wrong.nth).collect()
        };
        assert_eq!(places("${A} ${NONE} $${A} ${TWO} ${A"), [1, 3, 4]);
        assert_eq!(places("${} ${1A} ${a b} ${é}"), [0, 1, 2, 3]);
        assert_eq!(places("${NONE:-${A}} ${NONE}"), [0, 2]);
    }
}
