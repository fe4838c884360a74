//! `deploy/kubernetes` at work, with real processes for pods: each gets the arguments and variables
//! of its container, with the addresses and paths of this test. The Redis has the shipped
//! configuration.

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

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::Path;

use kustomize::Workload;
use manifests::{TOPOLOGY, rendered, secrets_for_trials};
use process::{Place, Running, eventually, free_port, seed, try_get};
use serde_json::Value;
use servers::{Postgres, Redis};
use shipped::{read, texts};

/// What pods need of others.
struct Cluster {
    redis: Redis,
    postgres: &'static Postgres,
    database: String,
    secrets: BTreeMap<String, String>,
    topology: tempfile::TempDir,
}

/// A process in place of a pod.
struct Pod {
    running: Running,
    http: u16,
    admin: u16,
}

impl Cluster {
    fn start() -> Self {
        let secrets = secrets_for_trials();
        let conf = read("deploy/kubernetes/base/redis/redis.conf");
        let options: Vec<String> = conf
            .lines()
            .filter(|line| !line.starts_with(['#', 'd']) && !line.is_empty()) // `dir` is the test's
            .flat_map(|line| {
                let (key, value) = line.split_once(' ').unwrap();
                [format!("--{key}"), value.trim_matches('"').to_owned()]
            })
            .chain(["--requirepass".to_owned(), secrets["redis-password"].clone()])
            .collect();
        let redis = Redis::start_with(&options.iter().map(String::as_str).collect::<Vec<_>>());
        let postgres = Postgres::shared();
        let url = postgres.database();
        let database = url.rsplit_once('/').unwrap().1.to_owned();
        let topology = tempfile::tempdir().unwrap();
        symlink("..data/lines.toml", topology.path().join("lines.toml")).unwrap();
        let cluster = Self { redis, postgres, database, secrets, topology };
        cluster.apply(&read(TOPOLOGY));
        cluster
    }

    /// Makes `text` the ConfigMap's, as the kubelet does: a new directory, and a link that is turned
    /// to it.
    fn apply(&self, text: &str) {
        let at = |name: &str| self.topology.path().join(name);
        let version = format!("..{}", fastrand::u64(..));
        std::fs::create_dir(at(&version)).unwrap();
        std::fs::write(at(&version).join("lines.toml"), text).unwrap();
        symlink(&version, at("..data_tmp")).unwrap();
        std::fs::rename(at("..data_tmp"), at("..data")).unwrap();
    }

    /// The pod `name` of a workload, on `node`, in the directory `place`, where `input` is mounted
    /// as the manifest's input volume.
    fn pod(&self, workload: Workload, name: &str, node: &str, place: &Place, input: &Path) -> Pod {
        let mut variables = workload.variables(&self.secrets, name, node);
        let (http, admin) = (free_port(), free_port());
        let mut set = |name: &str, value: String| {
            variables.insert(name.to_owned(), value);
        };
        set("REDIS_ADDR", format!("127.0.0.1:{}", self.redis.port));
        set("POSTGRES_URL", self.postgres.url(&self.database));
        set("HTTP_LISTEN", format!("127.0.0.1:{http}"));
        set("ADMIN_LISTEN", format!("127.0.0.1:{admin}"));
        if let Some(path) = variables.get_mut("INPUT_FILE") {
            *path = path.replace("/data", input.to_str().unwrap());
        }
        let pairs: Vec<_> = variables.iter().map(|(name, value)| (&**name, &**value)).collect();
        let mounted = self.topology.path().to_str().unwrap();
        let args: Vec<String> = texts(&workload.container()["args"])
            .into_iter()
            .map(|arg| arg.replace("/etc/aqueduct", mounted))
            .collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        Pod { running: place.start_command(&args, &pairs, admin), http, admin }
    }

    fn count(&self, what: &str) -> u64 {
        let known = "SELECT to_regclass('lines') IS NOT NULL";
        if self.postgres.psql(&self.database, known) != "t" {
            return 0;
        }
        let figure = self.postgres.psql(&self.database, &format!("SELECT {what} FROM lines"));
        figure.parse().unwrap()
    }

    fn rows(&self) -> u64 {
        self.count("count(*)")
    }

    fn different_lines(&self) -> u64 {
        self.count("count(DISTINCT line)")
    }

    /// The groups have nothing left to do.
    fn is_quiet(&self, writer: &Pod) -> bool {
        let (lag, pending) = ("aqueduct_group_lag{", "aqueduct_group_pending{");
        let known = writer.running.get("/metrics").1.contains(lag);
        let waits = writer.running.metric(lag, "") + writer.running.metric(pending, "");
        known && waits == 0.0
    }
}

impl Pod {
    fn is_ready(&self) -> bool {
        try_get(self.http, "/readyz").is_ok_and(|(status, _)| status == 200)
    }

    fn read_lines(&self) -> u64 {
        self.running.metric("lines_read_total", "") as u64
    }
}

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
    eventually("nothing is left", || cluster.is_quiet(&writer));
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
    eventually("nothing is left", || cluster.is_quiet(&writer));
    assert_eq!((cluster.rows(), cluster.different_lines()), (all + 1, LINES + 101));
    assert!(writer.running.stop().success());
}
