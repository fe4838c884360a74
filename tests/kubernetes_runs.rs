//! `deploy/kubernetes` at work, with real processes for pods: each gets the arguments and variables
//! of its container, with the addresses and paths of this test. The Redis has the shipped
//! configuration.

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/kustomize.rs"]
mod kustomize;
#[path = "support/manifests.rs"]
mod manifests;
#[path = "support/process.rs"]
mod process;
#[path = "support/servers.rs"]
mod servers;
#[path = "support/shipped.rs"]
mod shipped;

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;

use cluster::{Cluster, Pod};
use kustomize::Workload;
use manifests::{TOPOLOGY, rendered};
use process::{Place, eventually, seed, try_get};
use serde_json::Value;
use shipped::read;

fn append(file: &Path, from: u64, to: u64) {
    let mut file: File = OpenOptions::new().create(true).append(true).open(file).unwrap();
    let text: String = (from..to).map(|n| format!("line {n}\n")).collect();
    file.write_all(text.as_bytes()).unwrap();
}

fn workload<'a>(rendered: &'a [Value], name: &str) -> Workload<'a> {
    Workload::named(rendered, name)
}

// Probes, ports and metrics, as kubelet and Prometheus have them.
#[test]
fn pods_answer_where_manifests_ask() {
    let cluster = Cluster::start();
    let rendered = rendered("prod");
    let input = tempfile::tempdir().unwrap();
    let place = Place::new("");
    append(&input.path().join("input.txt"), 0, 10);
    for name in ["reader", "writer"] {
        let workload = workload(&rendered, name);
        let pod = cluster.pod(workload, &format!("{name}-1"), "node", &place, input.path());
        eventually("it is ready", || pod.is_ready());
        let port = |name: &str| match name {
            "http" => pod.http,
            "admin" => pod.admin,
            name => panic!("no port {name}"),
        };
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
            let get = &workload.container()[probe]["httpGet"];
            let (port, path) = (port(get["port"].as_str().unwrap()), get["path"].as_str().unwrap());
            assert_eq!(try_get(port, path).unwrap().0, 200, "{name}: {probe}");
        }
        // What shows the inside is where watchers alone are let in.
        for path in ["/metrics", "/streams", "/api/state"] {
            assert_eq!(try_get(pod.http, path).unwrap().0, 404, "{name}: {path}");
            assert_ne!(try_get(pod.admin, path).unwrap().0, 404, "{name}: {path}");
        }
        // Each of them tells the lag: also the reader, with no writer there.
        let of = "{stream=\"line_stream\",group=\"writer\"}";
        eventually("the lag is told", || {
            let (_, text) = try_get(pod.admin, "/metrics").unwrap();
            let lag = if name == "reader" { 10 } else { 0 };
            text.lines().any(|line| line == format!("aqueduct_group_lag{of} {lag}"))
        });
        let (_, state) = try_get(pod.admin, "/api/state").unwrap();
        assert!(!state.contains(&cluster.secrets["redis-password"]), "{state}");
        assert!(pod.running.stop().success());
    }
}

#[test]
fn an_edit_of_the_config_map_is_applied_to_what_runs() {
    let cluster = Cluster::start();
    let rendered = rendered("prod");
    let input = tempfile::tempdir().unwrap();
    let file = input.path().join("input.txt");
    append(&file, 0, 100);
    let places = [Place::new(""), Place::new("")];
    let pods = [("reader", 0), ("writer", 1)].map(|(name, n)| {
        let workload = workload(&rendered, name);
        cluster.pod(workload, &format!("{name}-1"), "node", &places[n], input.path())
    });
    eventually("all lines are stored", || cluster.rows() == 100);
    let edited = read(TOPOLOGY).replace("members = 2", "members = 3");
    cluster.apply(&edited);
    let generation = |pod: &Pod| pod.running.metric("aqueduct_topology_generation", "");
    eventually("both have it", || pods.iter().all(|pod| generation(pod) == 2.0));
    let third = "component=\"group.writer/3\"";
    eventually("there is a third member", || {
        pods[1].running.metric("aqueduct_component_up", third) == 1.0
    });
    append(&file, 100, 200);
    eventually("all lines are stored", || cluster.rows() == 200);
    // By how many of them PostgreSQL is sized; one is psql's.
    let open = "SELECT count(*) - 1 FROM pg_stat_activity WHERE datname = current_database()";
    let open: u32 = cluster.postgres.psql(&cluster.database, open).parse().unwrap();
    assert!(edited.contains("connections = 2") && (1..=2).contains(&open), "{open} connections");
    assert!(pods.into_iter().all(|pod| pod.running.stop().success()));
}

// The autoscaler does nothing while there is no figure; by an old one it would go on.
#[test]
fn no_lag_is_told_while_redis_is_away() {
    let mut cluster = Cluster::start();
    let rendered = rendered("prod");
    let (input, place) = (tempfile::tempdir().unwrap(), Place::new(""));
    append(&input.path().join("input.txt"), 0, 2000);
    let reader = workload(&rendered, "reader");
    let pod = cluster.pod(reader, "reader-1", "node", &place, input.path());
    let lag = || {
        let (_, text) = try_get(pod.admin, "/metrics").unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with("aqueduct_group_lag{"))?;
        line.rsplit_once(' ').unwrap().1.parse::<u64>().ok()
    };
    eventually("the lag is told", || lag() == Some(2000));
    cluster.redis.kill();
    eventually("nothing is told", || lag().is_none());
    assert_eq!(try_get(pod.http, "/livez").unwrap().0, 200, "no reason to kill it");
    eventually("it is not ready", || !pod.is_ready());
    cluster.redis.up();
    eventually("the lag is told again", || lag() == Some(2000) && pod.is_ready());
    assert!(pod.running.stop().success());
}

// A mistake that people make: `replicas: 2`, or the old pod that would not die.
#[test]
fn two_readers_of_one_file_store_each_line_once() {
    const LINES: u64 = 30_000;
    seed();
    let cluster = Cluster::start();
    let rendered = rendered("prod");
    let input = tempfile::tempdir().unwrap();
    let file = input.path().join("input.txt");
    append(&file, 0, LINES / 3);
    let places = [Place::new(""), Place::new(""), Place::new("")];
    let reader = |n: usize| {
        let name = format!("reader-{n}");
        cluster.pod(workload(&rendered, "reader"), &name, "node", &places[n], input.path())
    };
    let writer =
        cluster.pod(workload(&rendered, "writer"), "writer-1", "node", &places[2], input.path());
    let (one, two) = (reader(0), reader(1));
    eventually("both are ready", || one.is_ready() && two.is_ready());
    let mut at = LINES / 3;
    while at < LINES {
        let next = (at + fastrand::u64(1..500)).min(LINES);
        append(&file, at, next);
        at = next;
        if fastrand::u8(..) < 4 {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
    eventually("all lines are stored", || cluster.different_lines() == LINES);
    // One is killed and comes back, and both see more.
    one.running.kill();
    append(&file, LINES, LINES + 1000);
    let one = reader(0);
    append(&file, LINES + 1000, LINES + 2000);
    let all = LINES + 2000;
    eventually("all lines are stored", || cluster.different_lines() == all);
    assert!(one.running.stop().success() && two.running.stop().success());
    eventually("nothing is left", || writer.is_quiet());
    assert_eq!((cluster.rows(), cluster.different_lines()), (all, all));
    assert!(writer.running.stop().success());
}

// Nodes whose files nothing tells apart: the same inode (here by a hard link; on other nodes by
// chance), the same name, the same lines at the same places.
#[test]
fn readers_of_different_files_are_told_apart_by_their_nodes() {
    const LINES: u64 = 5000;
    let cluster = Cluster::start();
    let rendered = rendered("prod-per-node");
    let nodes = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let file = |node: usize| nodes[node].path().join("a.log");
    append(&file(0), 0, LINES);
    std::fs::hard_link(file(0), file(1)).unwrap();
    let places: Vec<_> = (0..4).map(|_| Place::new("")).collect();
    let reader = |pod: usize, node: usize| {
        let (name, on) = (format!("reader-{pod}"), format!("node-{node}"));
        let path = nodes[node].path();
        cluster.pod(workload(&rendered, "reader"), &name, &on, &places[pod], path)
    };
    let mounted = nodes[0].path();
    let writer =
        cluster.pod(workload(&rendered, "writer"), "writer-1", "node-0", &places[3], mounted);
    let (one, two) = (reader(0, 0), reader(1, 1));
    eventually("both files are stored", || cluster.rows() == 2 * LINES);
    append(&file(0), LINES, LINES + 100);
    let all = 2 * (LINES + 100);
    eventually("both see what comes", || cluster.rows() == all);
    assert!(one.running.stop().success() && two.running.stop().success());

    // It is the node's name that does it: a pod that takes another one's place, even without what
    // that remembered, is the same reader.
    let again = reader(2, 1);
    eventually("it is ready", || again.is_ready());
    append(&file(1), LINES + 100, LINES + 101);
    eventually("it goes on", || cluster.rows() == all + 1);
    assert_eq!(again.read_lines(), 1);
    assert!(again.running.stop().success());
    eventually("nothing is left", || writer.is_quiet());
    assert_eq!((cluster.rows(), cluster.different_lines()), (all + 1, LINES + 101));
    assert!(writer.running.stop().success());
}
