//! `deploy/kubernetes`, rendered.

#![allow(dead_code)] // each test uses a part of it

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::Value;

use super::kustomize::{render, secrets};
use super::shipped::{read, root};

pub const TOPOLOGY: &str = "deploy/kubernetes/base/topology/lines.toml";
pub const OVERLAYS: [&str; 4] = ["dev", "prod", "prod-keda", "prod-per-node"];

pub fn directory(name: &str) -> PathBuf {
    root().join("deploy/kubernetes").join(name)
}

/// An overlay, or the adapter.
pub fn rendered(name: &str) -> Vec<Value> {
    match name.starts_with("adapter") || name == "base" {
        true => render(&directory(name)),
        false => render(&directory("overlays").join(name)),
    }
}

/// All that can be applied.
pub fn everything() -> Vec<(&'static str, Vec<Value>)> {
    let names = OVERLAYS.into_iter().chain(["adapter", "adapter-operator"]);
    names.map(|name| (name, rendered(name))).collect()
}

pub fn one<'a>(rendered: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let mut found =
        rendered.iter().filter(|it| it["kind"] == kind && it["metadata"]["name"] == name);
    found.next().unwrap_or_else(|| panic!("no {kind} {name}"))
}

pub fn of<'a>(rendered: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    rendered.iter().filter(move |it| it["kind"] == kind)
}

pub fn topology() -> toml::Table {
    read(TOPOLOGY).parse().unwrap()
}

/// What the Secret of production holds, by the comment that says how to make it.
pub fn secret_of_prod() -> BTreeMap<String, String> {
    let text = read("deploy/kubernetes/overlays/prod/kustomization.yaml");
    let literals = text.lines().filter_map(|line| line.split_once("--from-literal="));
    let pairs = literals.map(|(_, literal)| {
        let (key, value) = literal.split_once('=').unwrap();
        let value = value.trim_end_matches([' ', '\\']).trim_matches(['"', '\'']);
        let random = value.starts_with("$(openssl rand -hex ");
        (key.to_owned(), if random { "5ec4e7" } else { value }.to_owned())
    });
    pairs.collect()
}

pub fn secret(name: &str, rendered: &[Value]) -> BTreeMap<String, String> {
    if name == "dev" { secrets(rendered, "aqueduct") } else { secret_of_prod() }
}

/// What the Secret of the `dev` overlay holds.
pub fn secrets_for_trials() -> BTreeMap<String, String> {
    secrets(&rendered("dev"), "aqueduct")
}
