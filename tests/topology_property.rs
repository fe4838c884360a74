//! Whatever stands in a file or in the environment: `parse` answers, and never panics.

#[path = "support/kinds.rs"]
mod kinds;

use aqueduct::topology::{Environment, Topology, graph, promise};
use kinds::kinds;
use proptest::prelude::*;

/// Parses, prints whatever comes out, and holds what every answer must keep.
fn answer(text: &str, env: &[(String, String)]) -> Result<(), TestCaseError> {
    let environment: Environment = env.iter().cloned().collect();
    match Topology::parse("t.toml", text, &environment, kinds()) {
        Ok(topology) => {
            for format in graph::Format::NAMES {
                prop_assert!(!graph::draw(&topology, format.parse().unwrap()).is_empty());
            }
            for route in promise::routes(&topology) {
                prop_assert!(!route.to_string().contains('\n'));
            }
            let _ = format!("{topology:?} {}", topology.warnings_text());
        }
        Err(faults) => {
            prop_assert!(!faults.faults.is_empty());
            let lines = text.matches('\n').count() + 1;
            for fault in &faults.faults {
                prop_assert!(!fault.message.contains('\n'), "{}", fault.message);
                if let Some((line, column)) = fault.place {
                    prop_assert!(
                        (1..=lines).contains(&line) && column >= 1,
                        "{fault:?} of {lines}"
                    );
                }
            }
            let places: Vec<_> =
                faults.faults.iter().map(|f| f.place.unwrap_or((usize::MAX, 0))).collect();
            prop_assert!(places.is_sorted(), "{places:?}");
        }
    }
    Ok(())
}

const RIGHT: &str = include_str!("topologies/good/everything.toml");

/// Words that a topology file is made of, and some that it should not be made of.
fn word() -> impl Strategy<Value = String> {
    let known = [
        "runtime",
        "http",
        "tracing",
        "stream",
        "source",
        "group",
        "sink",
        "query",
        "kind",
        "to",
        "from",
        "path",
        "url",
        "columns",
        "body",
        "n",
        "every",
        "tls",
        "cache",
        "dead",
        "ordered",
        "shards",
        "retain",
        "members",
        "lease",
        "token",
        "listen",
        "a",
        "b",
        "a-b",
        "a_b",
        "log",
        "origin",
        "counter",
        "order",
        "key",
        "trigger",
        "\"\"",
        "\"x.y\"",
        "\"${A}\"",
        "'\u{202e}'",
    ];
    prop_oneof![
        8 => prop::sample::select(known.to_vec()).prop_map(str::to_owned),
        1 => "[a-z]{1,3}",
        1 => "\"[^\"\\\\\n]{0,6}\"",
    ]
}

fn value() -> impl Strategy<Value = String> {
    let known = [
        "1",
        "0",
        "-1",
        "true",
        "\"5s\"",
        "\"0s\"",
        "\"tail\"",
        "\"publisher\"",
        "\"http\"",
        "\"embedded\"",
        "\"redis\"",
        "\"rabbitmq\"",
        "\"sqlite\"",
        "\"file\"",
        "\"console\"",
        "\"a\"",
        "\"b\"",
        "\"a-b\"",
        "\"x.y\"",
        "\"/x\"",
        "\"out.log\"",
        "\"*.log\"",
        "\"[\"",
        "\"redis://:p@h\"",
        "\"1..5\"",
        "\"acked\"",
        "\"1MiB\"",
        "\"${A}\"",
        "\"${B:-c}\"",
        "\"${\"",
        "\"$${A}\"",
        "nan",
        "inf",
        "1e400",
        "99999999999999999999",
        "1979-05-27T07:32:00Z",
        "[]",
        "{}",
        "\"127.0.0.1:0\"",
        "'''\n'''",
        "0xff",
        "\"http\"",
        "\"\"",
        "99999999999999999999999999999999999999999999",
    ];
    let leaf = prop_oneof![
        6 => prop::sample::select(known.to_vec()).prop_map(str::to_owned),
        1 => any::<i64>().prop_map(|number| number.to_string()),
        1 => any::<String>().prop_map(|text| format!("{text:?}")),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3)
                .prop_map(|items| format!("[{}]", items.join(", "))),
            prop::collection::vec((word(), inner), 0..3).prop_map(|pairs| {
                let pairs: Vec<String> =
                    pairs.into_iter().map(|(key, value)| format!("{key} = {value}")).collect();
                format!("{{ {} }}", pairs.join(", "))
            }),
        ]
    })
}

/// Lines of TOML that mostly parse.
fn document() -> impl Strategy<Value = String> {
    let line = prop_oneof![
        2 => (word(), word()).prop_map(|(table, name)| format!("[{table}.{name}]")),
        1 => word().prop_map(|table| format!("[{table}]")),
        1 => word().prop_map(|table| format!("[[{table}]]")),
        6 => (word(), value()).prop_map(|(key, value)| format!("{key} = {value}")),
        1 => (word(), word(), value()).prop_map(|(a, b, value)| format!("{a}.{b} = {value}")),
    ];
    prop::collection::vec(line, 0..24).prop_map(|lines| lines.join("\n"))
}

/// Overrides of what may or may not be there.
fn environment() -> impl Strategy<Value = Vec<(String, String)>> {
    let part = prop_oneof![
        4 => word().prop_map(|word| word.to_uppercase().replace('-', "_")),
        1 => any::<String>(),
    ];
    let name = prop::collection::vec(part, 0..4).prop_map(|parts| {
        std::iter::once("AQUEDUCT".to_owned()).chain(parts).collect::<Vec<_>>().join("__")
    });
    let name = prop_oneof![3 => name, 1 => Just("A".to_owned()), 1 => Just("RUST_LOG".to_owned())];
    let text = value().prop_map(|text| text.trim_matches('"').to_owned());
    prop::collection::vec((name, prop_oneof![text, any::<String>()]), 0..4)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..400), env in environment()) {
        answer(&String::from_utf8_lossy(&bytes), &env)?;
    }

    #[test]
    fn any_structure(text in document(), env in environment()) {
        answer(&text, &env)?;
    }

    #[test]
    fn a_right_file_with_parts_put_elsewhere(
        cuts in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0..20usize), 1..5),
        junk in any::<String>(),
    ) {
        let mut chars: Vec<char> = RIGHT.chars().collect();
        for (from, to, count) in cuts {
            let from = from.index(chars.len());
            let cut: Vec<char> = chars.drain(from..(from + count).min(chars.len())).collect();
            let to = to.index(chars.len() + 1);
            let put = if count % 3 == 0 { junk.chars().take(8).collect() } else { cut };
            chars.splice(to..to, put);
        }
        answer(&chars.into_iter().collect::<String>(), &[])?;
    }

    #[test]
    fn a_right_file_with_lines_that_moved(order in Just((0..RIGHT.lines().count()).collect::<Vec<_>>()).prop_shuffle(), keep in 0..200usize) {
        let lines: Vec<&str> = RIGHT.lines().collect();
        let text: Vec<&str> = order.into_iter().take(keep).map(|line| lines[line]).collect();
        answer(&text.join("\n"), &[])?;
    }

    #[test]
    fn a_right_file_with_overrides(env in environment()) {
        answer(RIGHT, &env)?;
    }
}

#[test]
fn depth_and_size_are_bounded() {
    for text in [
        "a.".repeat(200_000) + "a = 1",
        format!("a = {}", "[".repeat(200_000)),
        format!("a = {}", "{a=".repeat(200_000)),
        format!("[{}a]", "a.".repeat(100_000)),
        format!("a = \"{}\"", "${".repeat(200_000)),
        "[stream.a]\n".repeat(50_000),
        format!("[stream.a]\nretain = \"{}\"\n", "9".repeat(500_000)),
        (0..5000)
            .map(|i| {
                format!(
                    "[stream.s{i}]\n[group.g{i}]\nfrom = \"s{i}\"\nto = \"s{}\"\n",
                    (i + 1) % 5000
                )
            })
            .collect(),
        (0..5000)
            .map(|i| format!("[stream.s{i}]\n[group.g{i}]\nfrom = \"s{i}\"\nto = \"s{}\"\n", i + 1))
            .collect(),
        (0..2000)
            .map(|i| {
                format!(
                    "[source.s{i}]\nkind = \"tial\"\nto = \"s{i}{i}\"\nx{i} = 1\n[stream.s{i}]\n"
                )
            })
            .collect(),
    ] {
        answer(&text, &[]).unwrap();
    }
}
