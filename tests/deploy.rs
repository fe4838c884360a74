//! What is shipped to run it with others: `docker-compose.yml`, `Dockerfile`, Prometheus' and
//! Jaeger's configuration. They are valid, and what they name exists in this program.

#[path = "support/collector.rs"]
mod collector;
#[path = "support/process.rs"]
mod process;
#[path = "support/servers.rs"]
mod servers;
#[path = "support/shipped.rs"]
mod shipped;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use collector::{Collector, Span};
use process::{Place, eventually, free_port};
use serde_json::Value;
use servers::Redis;
use shipped::{between, filled, promtool, read, root, series, texts, words, yaml};

fn compose() -> Value {
    yaml("docker-compose.yml")
}

/// The topologies that compose runs: service, file beside `config/`, environment.
fn services() -> Vec<(String, String, BTreeMap<String, String>)> {
    let compose = compose();
    let services = compose["services"].as_object().unwrap();
    let ours = services.iter().filter(|(_, service)| service["build"] == ".");
    ours.map(|(name, service)| {
        let command = texts(&service["command"]);
        let [run, file] = command[..] else { panic!("{name} runs {command:?}") };
        assert_eq!(run, "run");
        let environment = service["environment"].as_object().unwrap();
        let variables = environment.iter().map(|(key, value)| {
            (key.clone(), filled(value.as_str().unwrap_or_else(|| panic!("{name}: {key}"))))
        });
        let file = file.strip_prefix("/etc/aqueduct/").unwrap().to_owned();
        (name.clone(), file, variables.collect())
    })
    .collect()
}

#[test]
fn compose_is_valid_by_the_schema_of_its_specification() {
    let schema = serde_json::from_str(&read("tests/schemas/compose-spec.json")).unwrap();
    let schema = jsonschema::validator_for(&schema).unwrap();
    let compose = compose();
    let wrong: Vec<String> = schema
        .iter_errors(&compose)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    let mut bad = compose;
    bad["services"]["redis"]["port"] = Value::from("6380:6379");
    assert!(!schema.is_valid(&bad), "the schema finds nothing");
}

#[test]
fn what_compose_mounts_and_waits_for_exists() {
    let compose = compose();
    let services = compose["services"].as_object().unwrap();
    let volumes = compose["volumes"].as_object().unwrap();
    for (name, service) in services {
        let profiles = texts(&service["profiles"]);
        assert!(!profiles.is_empty(), "{name} would start without being asked for");
        for mount in texts(&service["volumes"]) {
            let from = mount.split(':').next().unwrap();
            match from.strip_prefix("./") {
                Some(path) => assert!(root().join(path).exists(), "{name} mounts {from}"),
                None => assert!(volumes.contains_key(from), "{name} mounts {from}"),
            }
        }
        for port in texts(&service["ports"]) {
            assert!(port.starts_with("127.0.0.1:"), "{name} is open to the world: {port}");
        }
        for (needed, how) in service["depends_on"].as_object().into_iter().flatten() {
            let needs = &services[needed];
            assert_eq!(how["condition"], "service_healthy");
            assert!(needs["healthcheck"]["test"].is_array(), "{needed} has no health check");
            let there = texts(&needs["profiles"]);
            assert!(
                profiles.iter().all(|it| there.contains(it)),
                "{needed} is not in {profiles:?}"
            );
        }
    }
}

#[test]
fn every_topology_has_a_profile_and_is_right_with_its_variables() {
    let mut shipped: BTreeSet<String> = std::fs::read_dir(root().join("config"))
        .unwrap()
        .map(|it| it.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".toml"))
        .collect();
    for (name, file, variables) in services() {
        assert!(shipped.remove(&file), "{name} runs {file}");
        assert_eq!(format!("{name}.toml"), file);
        assert_eq!(texts(&compose()["services"][&name]["profiles"]), [&name]);
        assert_eq!(variables["TOPOLOGY"], format!("/etc/aqueduct/{file}"), "its health check");
        let text = read(&format!("config/{file}"));
        for variable in variables.keys().filter(|it| !["TOPOLOGY", "LOG_LEVEL"].contains(&&***it)) {
            let used = [format!("${{{variable}}}"), format!("${{{variable}:-")];
            let elsewhere = name == "quickstart" && variable == "HTTP_LISTEN";
            assert!(elsewhere || used.iter().any(|it| text.contains(it)), "{file}: {variable}");
        }
        let mut check = Command::new(env!("CARGO_BIN_EXE_aqueduct"));
        let check = check.args(["check", &format!("config/{file}")]).current_dir(root());
        let done = check.env_clear().envs(&variables).output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        // Outside of the container it is published on this machine alone.
        let faults = said
            .lines()
            .filter(|line| !line.is_empty() && !line.contains("can be reached from other machines"))
            .count();
        assert!(done.status.success() && faults == 0, "{file}: {said}");
        let here = text.lines().find_map(|line| line.strip_prefix("listen = ")).unwrap();
        let (_, port) = filled(here).trim_matches('"').rsplit_once(':').map(own).unwrap();
        let published = texts(&compose()["services"][&name]["ports"])[0].to_owned();
        assert_eq!(filled(&published), format!("127.0.0.1:{port}:8080"), "{file}");
        let listens = variables.iter().find(|(key, _)| here.contains(&***key)).unwrap().1;
        assert_eq!(listens, "0.0.0.0:8080", "{file}");
    }
    assert!(shipped.is_empty(), "without a profile: {shipped:?}");
}

fn own((left, right): (&str, &str)) -> (String, String) {
    (left.to_owned(), right.to_owned())
}

#[test]
fn servers_are_published_where_topologies_look_for_them() {
    let compose = compose();
    let published = |service: &str| texts(&compose["services"][service]["ports"])[0].to_owned();
    for (service, file, port) in [
        ("redis", "events", "REDIS_PORT:-6380"),
        ("postgres", "numbers", "DB_PORT:-5432"),
        ("postgres", "logs", "localhost:5432"),
        ("rabbitmq", "logs", "localhost:5672"),
    ] {
        assert!(read(&format!("config/{file}.toml")).contains(port), "{file}.toml: {port}");
        let port = port.rsplit_once(['-', ':']).unwrap().1;
        assert!(published(service).starts_with(&format!("127.0.0.1:{port}:")), "{service}");
    }
}

#[test]
fn the_image_is_built_from_what_is_there_and_asks_what_the_program_answers() {
    let dockerfile = read("Dockerfile");
    let ignore = read(".dockerignore");
    let sent = |path: &str| ignore.lines().any(|line| line.strip_prefix('!') == Some(path));
    for path in ["Cargo.toml", "Cargo.lock", "src", "config", "scripts/bench.d/json_floor.rs"] {
        assert!(sent(path) && root().join(path).exists(), "{path}");
    }
    for path in between(&read("Cargo.toml"), "path = \"", "\"") {
        assert!(sent(path), "Cargo.toml names {path}, and the build does not get it");
    }
    let toolchain = read("Cargo.toml");
    let version = between(&toolchain, "rust-version = \"", "\"")[0];
    assert!(dockerfile.contains(&format!("FROM rust:{version}-bookworm")));
    assert!(dockerfile.contains("USER 10001:10001") && dockerfile.contains("VOLUME"));
    for file in between(&dockerfile, "/etc/aqueduct/", ".toml") {
        assert!(root().join(format!("config/{file}.toml")).exists(), "{file}");
    }
    for variable in words(&dockerfile, "", "_").into_iter().filter(|it| it.ends_with("_LISTEN")) {
        let configs = read("config/quickstart.toml") + &read("config/events.toml");
        assert!(configs.contains(&format!("${{{variable}:-")), "{variable}");
    }
    assert!(dockerfile.contains("aqueduct status \"$TOPOLOGY\" --healthy"));
}

const HEALTH: &str = "[http]\nlisten = \"127.0.0.1:{port}\"\n[source.log]\nkind = \"http\"\npath = \
                      \"/log\"\nto = \"events\"\n[stream.events]\nkind = \"redis\"\nurl = \"REDIS\"\n";

#[test]
fn a_health_check_is_answered_by_the_process() {
    let mut redis = Redis::start();
    let place = Place::new(&HEALTH.replace("REDIS", &redis.url()));
    let healthy = || place.done(&["status", "topology.toml", "--healthy"]);
    let nobody = healthy();
    assert_eq!(nobody.status.code(), Some(1));
    assert!(nobody.stderr.contains(&format!("127.0.0.1:{}", place.port)), "{}", nobody.stderr);
    let running = place.start();
    eventually("it is healthy", || healthy().status.success());
    redis.kill();
    eventually("it is not, and says why", || {
        let sick = healthy();
        let said = sick.stderr.contains("stream.events") && sick.stderr.contains("nothing listens");
        sick.status.code() == Some(1) && said
    });
    assert!(running.stop().success());
    let everywhere = HEALTH.replace("127.0.0.1:{port}", "0.0.0.0:{port}");
    redis.up();
    place.write_topology(&everywhere.replace("REDIS", &redis.url()));
    let _running = place.start();
    eventually("who listens everywhere is found", || healthy().status.success());
}

#[test]
fn prometheus_takes_its_configuration_and_the_alerts_come_when_they_should() {
    let directory = root().join("prometheus");
    promtool(&directory, &["check", "config", "prometheus.yml"]);
    promtool(&directory, &["check", "rules", "alerts.yml"]);
    promtool(&directory, &["test", "rules", "alerts_test.yml"]);
    let rules = yaml("prometheus/alerts.yml");
    let tests = read("prometheus/alerts_test.yml");
    for rule in rules["groups"][0]["rules"].as_array().unwrap() {
        let name = rule["alert"].as_str().unwrap();
        assert!(tests.contains(&format!("alertname: {name}\n")), "{name} has no test");
    }
}

#[test]
fn alerts_speak_of_metrics_and_labels_that_there_are() {
    let known = series();
    let rules = yaml("prometheus/alerts.yml");
    for rule in rules["groups"][0]["rules"].as_array().unwrap() {
        let (name, expr) = (&rule["alert"], rule["expr"].as_str().unwrap());
        let named = words(expr, "aqueduct_", "_");
        assert!(!named.is_empty() || expr.starts_with("up{job=\"aqueduct\"}"), "{name}: {expr}");
        let by = between(expr, "by (", ")").into_iter().flat_map(|labels| labels.split(", "));
        let by: Vec<&str> = by.collect();
        for metric in named {
            let labels = known.get(metric).unwrap_or_else(|| panic!("{name}: {metric} is none"));
            assert!(by.iter().all(|label| labels.contains(label)), "{name}: {metric} by {by:?}");
        }
    }
    let scrape = yaml("prometheus/prometheus.yml")["scrape_configs"][0].clone();
    assert_eq!(scrape["metrics_path"], "/metrics");
    assert_eq!(scrape["dns_sd_configs"][0]["port"], 8080, "where compose has them listen");
    let aliases = &compose()["x-aqueduct"]["networks"]["default"]["aliases"];
    assert_eq!(scrape["dns_sd_configs"][0]["names"], *aliases);
}

#[test]
fn jaeger_receives_and_shows_where_compose_says() {
    let config = yaml("jaeger/config.yaml");
    let pipeline = &config["service"]["pipelines"]["traces"];
    for (room, list) in [
        ("receivers", &pipeline["receivers"]),
        ("processors", &pipeline["processors"]),
        ("exporters", &pipeline["exporters"]),
        ("extensions", &config["service"]["extensions"]),
    ] {
        for name in texts(list) {
            assert!(config[room].get(name).is_some(), "{room}: {name} is not there");
        }
    }
    let storage = config["exporters"]["jaeger_storage_exporter"]["trace_storage"].as_str().unwrap();
    let backends = &config["extensions"]["jaeger_storage"]["backends"];
    assert!(backends[storage]["memory"]["max_traces"].is_u64());
    assert_eq!(config["extensions"]["jaeger_query"]["storage"]["traces"], storage);
    let protocols = &config["receivers"]["otlp"]["protocols"];
    let page = &config["extensions"]["jaeger_query"]["http"]["endpoint"];
    let compose = compose();
    let published = texts(&compose["services"]["jaeger"]["ports"]);
    for (endpoint, port) in [
        (page, 16686),
        (&protocols["grpc"]["endpoint"], 4317),
        (&protocols["http"]["endpoint"], 4318),
    ] {
        assert_eq!(endpoint, &Value::from(format!("0.0.0.0:{port}")));
        assert!(published.contains(&&*format!("127.0.0.1:{port}:{port}")), "{published:?}");
    }
}

/// All of the program's source.
fn source(dir: &Path) -> String {
    let mut text = String::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        text += &match path.is_dir() {
            true => source(&path),
            false => std::fs::read_to_string(&path).unwrap(),
        };
    }
    text
}

#[test]
fn readmes_name_profiles_and_attributes_that_there_are() {
    let compose = compose();
    let profiles: BTreeSet<&str> = compose["services"]
        .as_object()
        .unwrap()
        .values()
        .flat_map(|service| texts(&service["profiles"]))
        .collect();
    for file in ["README.md", "jaeger/README.md", "docker-compose.yml"] {
        let text = read(file);
        let named: Vec<&str> = between(&text, "--profile ", " ");
        assert!(!named.is_empty(), "{file} names no profile");
        for profile in named {
            assert!(profiles.contains(profile), "{file}: {profile} is none of {profiles:?}");
        }
    }
    let (readme, source) = (read("jaeger/README.md"), source(&root().join("src")));
    let mut attributes = BTreeSet::new();
    for start in ["aqueduct.", "messaging.", "db.", "error."] {
        attributes.extend(words(&readme, start, "._"));
    }
    assert!(attributes.len() > 5, "{attributes:?}");
    for attribute in attributes {
        assert!(source.contains(&format!("\"{attribute}\"")), "{attribute} is sent by nobody");
    }
}

/// The three examples of jaeger/README.md, with a Redis and a collector of this test's.
#[test]
fn the_examples_of_the_jaeger_page_show_what_it_says() {
    let mut redis = Redis::start_with(&["--requirepass", "secret"]);
    let collector = Collector::start(free_port());
    let place = Place::new("");
    std::fs::create_dir(place.path("data")).unwrap();
    let config = root().join("config/events.toml").into_os_string().into_string().unwrap();
    let listen = format!("127.0.0.1:{}", place.port);
    let (port, otlp) = (redis.port.to_string(), format!("http://127.0.0.1:{}", collector.port));
    let variables = [
        ("REDIS_PORT", &*port),
        ("OTLP_URL", &*otlp),
        ("HTTP_LISTEN", &*listen),
        ("AQUEDUCT__SINK__TERMINAL__KIND", "file"),
        ("AQUEDUCT__SINK__TERMINAL__PATH", "data/terminal.txt"),
    ];
    let run = || place.start_command(&["run", &config], &variables, place.port);
    let publish = |more: &[&str]| {
        let mut command = place.command(&["publish", &config, "--stream", "events"]);
        command.args(more).envs(variables).output().unwrap()
    };
    let named = |name: &str| collector.named(name);
    let with = |name: &str, tag: &str, value: &str| -> Vec<Span> {
        named(name).into_iter().filter(|span| span.get(tag) == value).collect()
    };

    // A dead letter.
    let running = run();
    eventually("it is ready", || running.get("/readyz").0 == 200);
    assert!(publish(&["two\nlines"]).status.success());
    let dead = || with("dead-letter", "messaging.destination.name", "events.dead");
    eventually("a dead letter", || dead().len() == 1);
    let letter = dead().remove(0);
    assert_eq!(letter.get("aqueduct.attempts"), "5");
    assert_eq!(letter.resource["service.name"], "aqueduct");
    eventually("its life", || {
        collector.trace(&letter.trace).iter().any(|it| it.name == "process events")
    });
    let life = collector.trace(&letter.trace);
    assert!(life.iter().any(|span| span.name == "send events"), "{life:#?}");
    let process = life.iter().find(|span| span.name == "process events").unwrap();
    let refused: Vec<_> = process.events.iter().filter(|(name, _)| name == "refused").collect();
    assert!(
        refused.len() >= 5 && refused[0].1["aqueduct.cause"].contains("newline"),
        "{refused:?}"
    );
    let writes = with("write data/terminal.txt", "error.type", "refused");
    assert!(writes.len() >= 5 && writes.iter().all(|write| write.error.is_some()));
    assert!(running.log().contains(&letter.trace), "{}", running.log());
    assert!(running.stop().success());

    // A slow one.
    assert!(publish(&["--count", "1"]).status.success());
    std::thread::sleep(Duration::from_millis(1500));
    let running = run();
    let waited = |span: &Span| span.number("aqueduct.wait_ms") > 1500.0;
    eventually("it has waited", || named("process events").iter().any(waited));
    let slow = named("process events").into_iter().find(waited).unwrap();
    eventually("it is whole", || {
        let names: BTreeSet<String> =
            collector.trace(&slow.trace).into_iter().map(|span| span.name).collect();
        ["send events", "write data/terminal.txt", "batch terminal"]
            .iter()
            .all(|name| names.contains(*name))
    });
    assert_eq!(slow.get("messaging.consumer.group.name"), "event_consumers");

    // A failed one.
    let failed = std::thread::scope(|scope| {
        let before = named("send events").len();
        let publishing = scope.spawn(|| publish(&["--interval", "20ms"]));
        eventually("it publishes", || named("send events").len() > before);
        redis.kill();
        publishing.join().unwrap()
    });
    assert_eq!(failed.status.code(), Some(1));
    let red = with("send events", "error.type", "unavailable");
    assert_eq!(red.len(), 1, "{red:#?}");
    assert!(red[0].error.as_ref().is_some_and(|cause| cause.contains(&port)), "{red:#?}");
    assert!(running.stop().success());
}
