//! The members of a JSON body that columns ask for, found in one pass and without copying.

use std::fmt;

use serde::Deserializer as _;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The members asked for, as a tree of names.
#[derive(Debug, Default)]
pub struct Tree {
    children: Vec<Node>,
}

#[derive(Debug)]
struct Node {
    name: String,
    /// Where the value goes, if it is asked for itself.
    slot: Option<usize>,
    below: Tree,
}

impl Tree {
    /// Asks for the member at `path`, and wants it in `slot`. Asking twice for one path gives the
    /// slot of the first.
    pub fn ask(&mut self, path: &[String], slot: usize) -> usize {
        let Some((name, rest)) = path.split_first() else { return slot };
        let at = match self.children.iter().position(|node| node.name == *name) {
            Some(at) => at,
            None => {
                let node = Node { name: name.clone(), slot: None, below: Self::default() };
                self.children.push(node);
                self.children.len() - 1
            }
        };
        let node = &mut self.children[at];
        match rest {
            [] => *node.slot.get_or_insert(slot),
            _ => node.below.ask(rest, slot),
        }
    }

    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.children.is_empty()
    }

    /// Puts the members that `body` has into their slots. Errs when it is no JSON object.
    pub fn read<'a>(
        &self,
        body: &'a str,
        slots: &mut [Option<&'a RawValue>],
    ) -> Result<(), String> {
        let mut json = serde_json::Deserializer::from_str(body);
        let read = json.deserialize_map(Members { tree: self, slots }).and_then(|()| json.end());
        read.map_err(|error| match error.is_data() {
            true => "the body is JSON, but no object".into(),
            false => format!("the body is not JSON: {error}"),
        })
    }
}

struct Members<'t, 's, 'a> {
    tree: &'t Tree,
    slots: &'s mut [Option<&'a RawValue>],
}

impl<'a> Visitor<'a> for Members<'_, '_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(found) = map.next_key_seed(Which(self.tree))? {
            let Some(node) = found else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            let value = map.next_value::<&'a RawValue>()?;
            if let Some(slot) = node.slot {
                self.slots[slot] = Some(value);
            }
            if !node.below.is_empty() && value.get().starts_with('{') {
                node.below.read(value.get(), self.slots).map_err(serde::de::Error::custom)?;
            }
        }
        Ok(())
    }
}

/// Reads a key and says which member it is, without copying it.
struct Which<'t>(&'t Tree);

impl<'t, 'a> DeserializeSeed<'a> for Which<'t> {
    type Value = Option<&'t Node>;

    fn deserialize<D: serde::Deserializer<'a>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_str(self)
    }
}

impl<'t> Visitor<'_> for Which<'t> {
    type Value = Option<&'t Node>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a member's name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.children.iter().find(|node| node.name == name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(paths: &[&str], body: &str) -> Result<Vec<Option<String>>, String> {
        let mut tree = Tree::default();
        for (slot, path) in paths.iter().enumerate() {
            let path: Vec<_> = path.split('.').map(String::from).collect();
            assert_eq!(tree.ask(&path, slot), slot);
        }
        let mut slots = vec![None; paths.len()];
        tree.read(body, &mut slots)?;
        Ok(slots.into_iter().map(|raw| raw.map(|raw| raw.get().to_owned())).collect())
    }

    #[test]
    fn members_are_found_at_any_depth() {
        let body = r#"{"a":1, "b":{"c":[2, {"a":3}],"d":null}, "é\n":"x", "a":7}"#;
        let found = read(&["a", "b", "b.c", "b.x.y", "é\n", "b.d", "a.z"], body).unwrap();
        let expected = [
            Some("7"),
            Some(r#"{"c":[2, {"a":3}],"d":null}"#),
            Some(r#"[2, {"a":3}]"#),
            None,
            Some(r#""x""#),
            Some("null"),
            None,
        ];
        assert_eq!(found, expected.map(|text| text.map(String::from)));
    }

    #[test]
    fn what_is_no_object_is_told() {
        assert_eq!(read(&["a"], "[1]").unwrap_err(), "the body is JSON, but no object");
        assert!(read(&["a"], "hello").unwrap_err().starts_with("the body is not JSON: "));
        assert!(read(&["a"], r#"{"a":1} x"#).unwrap_err().starts_with("the body is not JSON: "));
        assert!(read(&["a"], r#"{"a":1"#).unwrap_err().starts_with("the body is not JSON: "));
    }
}
