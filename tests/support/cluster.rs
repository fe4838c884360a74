//! Real processes for pods: each gets the arguments and variables of its container in
//! `deploy/kubernetes`, with the addresses and paths of a test. The Redis has the shipped
//! configuration.

#![allow(dead_code)] // each test uses a part of it

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::kustomize::Workload;
use crate::manifests::{TOPOLOGY, secrets_for_trials};
use crate::process::{Place, Running, free_port, try_get};
use crate::servers::{Postgres, Redis};
use crate::shipped::{read, texts};

/// What pods need of others.
pub struct Cluster {
    pub redis: Redis,
    pub postgres: &'static Postgres,
    pub database: String,
    pub secrets: BTreeMap<String, String>,
    pub topology: tempfile::TempDir,
}

/// A process in place of a pod.
pub struct Pod {
    pub running: Running,
    pub http: u16,
    pub admin: u16,
}

impl Cluster {
    pub fn start() -> Self {
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
    pub fn apply(&self, text: &str) {
        let at = |name: &str| self.topology.path().join(name);
        let version = format!("..{}", fastrand::u64(..));
        std::fs::create_dir(at(&version)).unwrap();
        std::fs::write(at(&version).join("lines.toml"), text).unwrap();
        symlink(&version, at("..data_tmp")).unwrap();
        std::fs::rename(at("..data_tmp"), at("..data")).unwrap();
    }

    /// The pod `name` of a workload, on `node`, in the directory `place`, where `input` is mounted
    /// as the manifest's input volume.
    pub fn pod(
        &self,
        workload: Workload,
        name: &str,
        node: &str,
        place: &Place,
        input: &Path,
    ) -> Pod {
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

    pub fn count(&self, what: &str) -> u64 {
        let known = "SELECT to_regclass('lines') IS NOT NULL";
        if self.postgres.psql(&self.database, known) != "t" {
            return 0;
        }
        let figure = self.postgres.psql(&self.database, &format!("SELECT {what} FROM lines"));
        figure.parse().unwrap()
    }

    pub fn rows(&self) -> u64 {
        self.count("count(*)")
    }

    pub fn different_lines(&self) -> u64 {
        self.count("count(DISTINCT line)")
    }
}

impl Pod {
    /// The lag of its group; `None`: it does not know.
    pub fn lag(&self) -> Option<f64> {
        self.told("aqueduct_group_lag{")
    }

    fn told(&self, metric: &str) -> Option<f64> {
        let (_, text) = self.running.get("/metrics");
        let line = text.lines().find(|line| line.starts_with(metric))?;
        line.rsplit_once(' ')?.1.parse().ok()
    }

    /// Its group has nothing left to do.
    pub fn is_quiet(&self) -> bool {
        self.lag() == Some(0.0) && self.told("aqueduct_group_pending{") == Some(0.0)
    }

    pub fn is_ready(&self) -> bool {
        try_get(self.http, "/readyz").is_ok_and(|(status, _)| status == 200)
    }

    pub fn read_lines(&self) -> u64 {
        self.running.metric("lines_read_total", "") as u64
    }
}
