//! A JSON object as fields of an entry, and back, byte for byte: a file sink knows lines by their
//! length, and a body that comes back in another spelling would be another line.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::entry::RESERVED;

/// Members that become fields, at most: a script cannot hand on very many at once.
const MEMBERS_MAX: usize = 500;

/// A body as fields.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Flat<'a> {
    /// Name and text of each member, in order.
    pub members: Vec<(String, Cow<'a, str>)>,
    /// What the texts are, where they are not all strings of a body without white space: a letter
    /// for each, `s` for a string and `j` for JSON; then `+` where white space follows each comma
    /// and colon.
    pub types: Option<String>,
    /// Whether this does not make the same body again.
    pub inexact: bool,
}

/// The body's members as fields, or `None` where it is to stay whole: it is no object, or a member
/// has a name that means something else. `field` is where a body that is whole goes.
pub(super) fn flatten<'a>(body: &'a [u8], field: &str) -> Option<Flat<'a>> {
    let body = std::str::from_utf8(body).ok()?;
    if !body.starts_with('{') {
        return None;
    }
    let mut from = serde_json::Deserializer::from_str(body);
    let raw = from.deserialize_map(Members).ok()?;
    from.end().ok()?;
    if raw.is_empty() || raw.len() > MEMBERS_MAX {
        return None;
    }
    let mut types = String::with_capacity(raw.len() + 1);
    let mut members = Vec::with_capacity(raw.len());
    for (name, value) in raw {
        if RESERVED.contains(&&*name) {
            return None;
        }
        let value = value.get();
        let text = match value.starts_with('"') {
            true => Cow::Owned(serde_json::from_str(value).ok()?),
            false => Cow::Borrowed(value),
        };
        types.push(if value.starts_with('"') { 's' } else { 'j' });
        members.push((name, text));
    }
    let mut inexact = false;
    if unflatten(&members, &types).as_deref() != Some(body.as_bytes()) {
        types.push('+');
        inexact = unflatten(&members, &types).as_deref() != Some(body.as_bytes());
    }
    // A member that is named as the field of whole bodies would be taken for one.
    let plain =
        types.bytes().all(|letter| letter == b's') && members.iter().all(|(name, _)| name != field);
    Some(Flat { members, types: (!plain && !inexact).then_some(types), inexact })
}

/// The body that these members make; `None` where the types are not theirs.
pub(super) fn unflatten<N, T>(members: &[(N, T)], types: &str) -> Option<Vec<u8>>
where
    N: AsRef<str>,
    T: AsRef<str>,
{
    let (types, comma, colon) = match types.strip_suffix('+') {
        Some(types) => (types, &b", "[..], &b": "[..]),
        None => (types, &b","[..], &b":"[..]),
    };
    if types.len() != members.len() {
        return None;
    }
    let size = members.iter().map(|(name, text)| name.as_ref().len() + text.as_ref().len() + 8);
    let mut body = Vec::with_capacity(size.sum::<usize>() + 2);
    body.push(b'{');
    for (index, ((name, text), letter)) in members.iter().zip(types.bytes()).enumerate() {
        if index > 0 {
            body.extend_from_slice(comma);
        }
        serde_json::to_writer(&mut body, name.as_ref()).ok()?;
        body.extend_from_slice(colon);
        match letter {
            b's' => serde_json::to_writer(&mut body, text.as_ref()).ok()?,
            _ => body.extend_from_slice(text.as_ref().as_bytes()),
        }
    }
    body.push(b'}');
    Some(body)
}

/// The members of an object in the order written, each as it was written.
struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = Vec<(String, &'de RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        let mut members = Vec::with_capacity(map.size_hint().unwrap_or(8));
        while let Some(member) = map.next_entry()? {
            members.push(member);
        }
        Ok(members)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn there_and_back(body: &str) -> Option<(Option<String>, bool)> {
        let flat = flatten(body.as_bytes(), "body")?;
        let all_strings = "s".repeat(flat.members.len());
        let types = flat.types.clone().unwrap_or(all_strings);
        if !flat.inexact {
            assert_eq!(unflatten(&flat.members, &types).unwrap(), body.as_bytes());
        }
        Some((flat.types, flat.inexact))
    }

    #[test]
    fn an_object_becomes_fields() {
        let flat =
            flatten(br#"{"number":7,"publisher_id":"p","deep":{"a": [1]}}"#, "body").unwrap();
        let expected = [("number", "7"), ("publisher_id", "p"), ("deep", r#"{"a": [1]}"#)];
        let shown: Vec<_> = flat.members.iter().map(|(name, text)| (&**name, &**text)).collect();
        assert_eq!(shown, expected);
        assert_eq!((flat.types.as_deref(), flat.inexact), (Some("jsj"), false));
    }

    #[test]
    fn what_cannot_be_told_from_something_else_stays_whole() {
        for body in ["", "7", "[1]", "{}", "{", r#"{"_id":1}"#, r#"{"a":1} x"#, r#"{"a":"\ud800"}"#]
        {
            assert_eq!(there_and_back(body), None, "{body}");
        }
        assert_eq!(there_and_back(r#"{"a":"x","b":"é\n"}"#), Some((None, false)));
        assert_eq!(there_and_back(r#"{"body":"x"}"#), Some((Some("s".into()), false)));
        assert_eq!(there_and_back(r#"{"a": "x", "b": 7}"#), Some((Some("sj+".into()), false)));
        assert_eq!(there_and_back(r#"{"a":1,"a":2}"#), Some((Some("jj".into()), false)));
        assert_eq!(there_and_back(r#"{"a" :"x"}"#), Some((None, true)));
        assert_eq!(there_and_back(r#"{"a":"\u00e9"}"#), Some((None, true)));
    }

    proptest! {
        #[test]
        fn any_object_comes_back(
            names in prop::collection::vec("\\PC{0,6}", 1..6),
            texts in prop::collection::vec("\\PC{0,6}", 1..6),
            number in any::<f64>(),
            pretty in any::<bool>(),
        ) {
            let mut object = serde_json::Map::new();
            for (name, text) in names.iter().zip(&texts) {
                object.insert(name.clone(), text.clone().into());
            }
            object.insert("n".into(), serde_json::json!([number, null]));
            let body = match pretty {
                true => serde_json::to_string_pretty(&object).unwrap(),
                false => serde_json::to_string(&object).unwrap(),
            };
            let (_, inexact) = there_and_back(&body).unwrap();
            prop_assert_eq!(inexact, pretty);
        }
    }
}
