//! Who may speak with whom by NetworkPolicies.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::kustomize::{Workload, selects};

/// Pods that are alike.
#[derive(Clone)]
pub struct Peer<'a> {
    pub name: &'a str,
    pub namespace: &'a str,
    pub labels: Map<String, Value>,
    /// Where they listen.
    pub ports: BTreeSet<u64>,
}

impl<'a> Peer<'a> {
    /// The pods of what was rendered.
    pub fn all(rendered: &'a [Value]) -> Vec<Self> {
        Workload::all(rendered)
            .map(|it| Self {
                name: it.name(),
                namespace: it.0["metadata"]["namespace"].as_str().unwrap(),
                labels: it.labels().clone(),
                ports: it.ports().into_values().collect(),
            })
            .collect()
    }
}

/// Every way that is open: from, to, port.
pub fn ways<'a>(peers: &[Peer<'a>], policies: &[Value]) -> BTreeSet<(&'a str, &'a str, u64)> {
    let mut open = BTreeSet::new();
    for from in peers {
        for to in peers.iter().filter(|to| to.name != from.name) {
            for port in &to.ports {
                let out = passes(policies, "Egress", from, to, *port);
                if out && passes(policies, "Ingress", to, from, *port) {
                    open.insert((from.name, to.name, *port));
                }
            }
        }
    }
    open
}

/// Whether `pod` may speak with `other` in this direction.
fn passes(policies: &[Value], direction: &str, pod: &Peer, other: &Peer, port: u64) -> bool {
    let (rules, peers) = match direction {
        "Egress" => ("egress", "to"),
        _ => ("ingress", "from"),
    };
    let mut decided = false;
    for policy in policies {
        let spec = &policy["spec"];
        let meant = policy["metadata"]["namespace"] == pod.namespace
            && selects(&spec["podSelector"], &pod.labels)
            && spec["policyTypes"].as_array().unwrap().contains(&direction.into());
        if !meant {
            continue;
        }
        decided = true;
        let own = policy["metadata"]["namespace"].as_str().unwrap();
        for rule in spec[rules].as_array().into_iter().flatten() {
            let at = rule["ports"].as_array().unwrap().iter().any(|it| it["port"] == port);
            let with = rule[peers].as_array();
            if at && with.is_none_or(|with| with.iter().any(|it| is(it, own, other))) {
                return true;
            }
        }
    }
    !decided
}

/// Whether one of a rule's peers is `other`.
fn is(peer: &Value, own: &str, other: &Peer) -> bool {
    let namespace = [("kubernetes.io/metadata.name".to_owned(), other.namespace.into())];
    let there = match peer.get("namespaceSelector") {
        Some(selector) => selects(selector, &namespace.into_iter().collect()),
        None => other.namespace == own,
    };
    there && peer.get("podSelector").is_none_or(|it| selects(it, &other.labels))
}
