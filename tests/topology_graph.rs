//! The pictures of a topology, and the JSON Schema of the file.

#[path = "support/kinds.rs"]
mod kinds;

use std::fs;
use std::path::Path;

use aqueduct::topology::graph::{Format, draw};
use aqueduct::topology::{Environment, Topology, schema};
use kinds::kinds;
use serde_json::Value as Json;

fn parse(text: &str) -> Topology {
    Topology::parse("t.toml", text, &Environment::default(), kinds())
        .unwrap_or_else(|faults| panic!("{faults}"))
}

fn everything() -> Topology {
    parse(include_str!("topologies/good/everything.toml"))
}

/// Streams that part and meet, edges that pass columns, names of every length, markup in a path.
fn wide() -> Topology {
    let mut text = String::new();
    for i in 0..6 {
        text += &format!("[stream.s{i}]\n[source.in{i}]\nkind = \"publisher\"\nto = \"s{i}\"\n");
        text += &format!("instances = {}\n", i + 1);
        text += &format!("[group.store{i}]\nfrom = \"s{i}\"\nto = \"db\"\nmembers = {}\n", i + 1);
        if i % 2 == 1 {
            text += &format!("[group.on{i}]\nfrom = \"s{}\"\nto = \"s{i}\"\n", i - 1);
            text += &format!("[group.far{i}]\nfrom = \"s0\"\nto = \"x{i}\"\n");
            text += &format!("[sink.x{i}]\nkind = \"file\"\npath = \"<a&b> \\\"{i}\\\".log\"\n");
        }
    }
    text += "[group.long]\nfrom = \"s1\"\nto = \"s4\"\n[sink.unused]\nkind = \"console\"\n";
    text +=
        &format!("[sink.db]\nkind = \"sqlite\"\npath = \"{}\"\ntable = \"t\"\n", "d".repeat(90));
    parse(&text)
}

#[test]
fn mermaid_and_dot_say_the_same() {
    let topology = everything();
    insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
        insta::assert_snapshot!("graph-mermaid", draw(&topology, Format::Mermaid));
        insta::assert_snapshot!("graph-dot", draw(&topology, Format::Dot));
    });
    for format in Format::NAMES {
        let drawn = draw(&topology, format.parse().unwrap());
        assert!(!drawn.contains("secret"), "{drawn}");
    }
}

#[test]
fn text_from_the_file_breaks_no_picture() {
    let topology = wide();
    let mermaid = draw(&topology, Format::Mermaid);
    assert!(mermaid.contains("#60;a#38;b#62; #34;1#34;.log"), "{mermaid}");
    let dot = draw(&topology, Format::Dot);
    assert!(dot.contains(r#"<a&b> \"1\".log"#), "{dot}");
    let svg = draw(&topology, Format::Svg);
    assert!(svg.contains("&lt;a&amp;b&gt; &quot;1&quot;.log"), "{svg}");
    assert!(svg.contains("prefers-color-scheme: dark"));
    assert!(!svg.contains("NaN") && !svg.contains("inf"));
}

/// The number in `name="…"`.
fn number(element: &str, name: &str) -> f64 {
    let start = element.find(&format!(" {name}=\"")).unwrap() + name.len() + 3;
    element[start..].split('"').next().unwrap().parse().unwrap()
}

#[test]
fn no_box_of_the_svg_lies_on_another_or_outside() {
    for topology in [everything(), wide(), parse("[stream.alone]\n")] {
        let svg = draw(&topology, Format::Svg);
        let (width, height) = (number(&svg, "width"), number(&svg, "height"));
        let boxes: Vec<(f64, f64, f64, f64)> = svg
            .split('<')
            .filter(|element| element.starts_with("rect class=\"box\""))
            .map(|e| (number(e, "x"), number(e, "y"), number(e, "width"), number(e, "height")))
            .collect();
        let parts = topology.sources.len() + topology.streams.len() + topology.groups.len();
        assert_eq!(boxes.len(), parts + topology.sinks.len() + topology.queries.len());
        for (i, (x, y, w, h)) in boxes.iter().enumerate() {
            assert!(*x >= 0.0 && *y >= -0.1 && x + w <= width && y + h <= height);
            for (ox, oy, ow, oh) in &boxes[..i] {
                let apart = x + w < *ox || ox + ow < *x || y + h < *oy || oy + oh < *y;
                assert!(apart, "{x},{y} and {ox},{oy}");
            }
        }
    }
}

/// What of the schema's words is used, checked by hand: enough to tell right files from wrong.
fn valid(schema: &Json, value: &Json) -> bool {
    let words = schema.as_object().unwrap();
    words.iter().all(|(word, rule)| match word.as_str() {
        "type" => match rule.as_str().unwrap() {
            "object" => value.is_object(),
            "array" => value.is_array(),
            "string" => value.is_string(),
            "boolean" => value.is_boolean(),
            "integer" => value.is_i64() || value.is_u64(),
            "number" => value.is_number(),
            other => panic!("the type {other}"),
        },
        "const" => value == rule,
        "enum" => rule.as_array().unwrap().contains(value),
        "minimum" => value.as_f64().is_none_or(|n| n >= rule.as_f64().unwrap()),
        "maximum" => value.as_f64().is_none_or(|n| n <= rule.as_f64().unwrap()),
        "required" => {
            let keys = rule.as_array().unwrap().iter().map(|key| key.as_str().unwrap());
            value.as_object().is_none_or(|object| keys.clone().all(|k| object.contains_key(k)))
        }
        "anyOf" => rule.as_array().unwrap().iter().any(|schema| valid(schema, value)),
        "oneOf" => {
            rule.as_array().unwrap().iter().filter(|schema| valid(schema, value)).count() == 1
        }
        "properties" => rule
            .as_object()
            .unwrap()
            .iter()
            .all(|(key, schema)| value.get(key).is_none_or(|value| valid(schema, value))),
        "patternProperties" => rule.as_object().unwrap().values().all(|schema| {
            value.as_object().is_none_or(|o| o.values().all(|value| valid(schema, value)))
        }),
        "additionalProperties" if rule == false => value.as_object().is_none_or(|object| {
            words.contains_key("patternProperties")
                || object.keys().all(|key| schema["properties"].get(key).is_some())
        }),
        "additionalProperties" => {
            value.as_object().is_none_or(|object| object.values().all(|value| valid(rule, value)))
        }
        // Those need a regular expression, or bound a length.
        "pattern" | "items" | "minItems" | "minLength" | "minProperties" => true,
        "description" | "default" | "title" | "$schema" => true,
        other => panic!("the word {other}"),
    })
}

fn toml_as_json(text: &str) -> Json {
    serde_json::to_value(toml::from_str::<toml::Table>(text).unwrap()).unwrap()
}

#[test]
fn the_schema_takes_right_files_and_refuses_wrong_ones() {
    let schema = schema::schema(kinds());
    let right = include_str!("topologies/good/everything.toml");
    assert!(valid(&schema, &toml_as_json(right)));
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/topologies/bad");
    for name in [
        "array-of-tables",
        "bool-yes",
        "component-without-name",
        "key-of-another-kind",
        "key-unknown",
        "key-unknown-inner",
        "kind-missing",
        "kind-unknown",
        "kind-unknown-stream",
        "required-missing",
        "unknown-table",
        "wrong-types",
    ] {
        let text = fs::read_to_string(folder.join(format!("{name}.toml"))).unwrap();
        assert!(!valid(&schema, &toml_as_json(&text)), "{name}");
    }
    for (was, is, stays_right) in [
        ("members = \"${MEMBERS:-4}\"", "members = 4", true),
        ("members = \"${MEMBERS:-4}\"", "members = 0", false),
        ("members = \"${MEMBERS:-4}\"", "members = [4]", false),
        ("sample = \"10/s\"", "sample = 0.5", true),
        ("sample = \"10/s\"", "sample = 1.5", false),
        ("[stream.lines]", "[stream.lines]\nkind = \"embedded\"", true),
        ("url = \"redis://:secret@localhost:6379\"", "", false),
    ] {
        assert!(right.contains(was));
        let json = toml_as_json(&right.replace(was, is));
        assert_eq!(valid(&schema, &json), stays_right, "{is}");
    }
}

#[test]
fn the_schema_says_what_the_tables_say() {
    let schema = schema::schema(kinds());
    let stream = &schema["properties"]["stream"]["patternProperties"];
    let group = &schema["properties"]["group"]["patternProperties"];
    let of = |tables: &Json| tables.as_object().unwrap().values().next().unwrap().clone();
    let redis = of(stream)["oneOf"][1].clone();
    assert_eq!(redis["properties"]["kind"]["const"], "redis");
    assert_eq!(redis["required"], serde_json::json!(["kind", "url"]));
    assert_eq!(of(stream)["oneOf"][0].get("required"), None, "embedded is what it is without");
    assert_eq!(of(group)["properties"]["batch"]["default"], 1000);
    assert_eq!(of(group)["properties"]["lease"]["default"], "20s");
    let doc = of(group)["properties"]["lease"]["description"].as_str().unwrap().to_owned();
    assert!(doc.starts_with("After that a silent member's events go to another."), "{doc}");
}
