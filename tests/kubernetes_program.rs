//! `deploy/kubernetes`: every port, path, flag, variable, metric and probe in it is one of the program
//! and of its topology. (tests/kubernetes_runs.rs runs it.)

#[path = "support/kustomize.rs"]
mod kustomize;
#[path = "support/manifests.rs"]
mod manifests;
#[path = "support/process.rs"]
mod process;
#[path = "support/shipped.rs"]
mod shipped;

use std::collections::{BTreeMap, BTreeSet};

use kustomize::{Workload, selects};
use manifests::{
    OVERLAYS, TOPOLOGY, directory, of, one, rendered, secret, secret_of_prod, topology,
};
use process::Place;
use serde_json::json;
use shipped::{between, filled, promtool, read, root, series, texts, words, yaml};

#[test]
fn pods_run_what_the_image_has_and_the_topology_declares() {
    let (dockerfile, compose) = (read("Dockerfile"), yaml("docker-compose.yml"));
    assert!(dockerfile.contains("ENTRYPOINT [\"aqueduct\"]"));
    let work = between(&dockerfile, "WORKDIR ", "\n").last().unwrap().to_string();
    let topology = topology();
    let text = read(TOPOLOGY);
    let data = format!("{work}/{}", topology["runtime"]["data_dir"].as_str().unwrap());
    for overlay in OVERLAYS {
        let rendered = rendered(overlay);
        let mut runs = BTreeSet::new();
        for workload in Workload::all(&rendered) {
            let (name, container) = (workload.name(), workload.container());
            if !workload.is_ours() {
                let image = container["image"].as_str().unwrap();
                let known = compose["services"].as_object().unwrap().values();
                let ours = image.starts_with("aqueduct:");
                let found =
                    ours || name == "adapter" || known.into_iter().any(|it| it["image"] == image);
                assert!(found, "{name}: compose has another {image}");
                continue;
            }
            let args = texts(&container["args"]);
            let [_, file, only, component] = args[..] else { panic!("{name}: {args:?}") };
            assert_eq!((file, only), ("/etc/aqueduct/lines.toml", "--only"), "{name}");
            let (table, component) = component.split_once('.').unwrap();
            assert!(topology[table].get(component).is_some(), "{name}: {args:?}");
            runs.insert(format!("{table}.{component}"));
            for key in ["runAsUser", "runAsGroup"] {
                assert_eq!(workload.pod()["securityContext"][key], 10001, "{name}: {key}");
            }
            assert!(dockerfile.contains("USER 10001:10001"));
            let mounts = container["volumeMounts"].as_array().unwrap();
            let mounted = |path: &str| mounts.iter().find(|it| it["mountPath"] == path);
            assert!(mounted(&data).is_some_and(|it| it["readOnly"].is_null()), "{name}: {data}");
            assert!(mounted("/etc/aqueduct").is_some_and(|it| it["readOnly"] == true), "{name}");
            let variables = workload.variables(&secret(overlay, &rendered), "pod", "node");
            assert_eq!(variables["TOPOLOGY"], file, "{name}");
            if let Some(input) = variables.get("INPUT_FILE") {
                let (room, _) = input.rsplit_once('/').unwrap();
                assert!(mounted(room).is_some_and(|it| it["readOnly"] == true), "{name}: {input}");
            }
            for variable in variables.keys().filter(|it| *it != "TOPOLOGY") {
                let used =
                    ["}", ":-"].iter().any(|end| text.contains(&format!("${{{variable}{end}")));
                assert!(used, "{name}: nobody asks for {variable}");
            }
            // Where the topology listens, the pod has its ports.
            let listens = ["listen", "admin"].map(|key| {
                let address = filled(topology["http"][key].as_str().unwrap());
                address.rsplit_once(':').unwrap().1.parse::<u64>().unwrap()
            });
            assert_eq!(
                workload.ports().into_iter().collect::<Vec<_>>(),
                [("admin", listens[1]), ("http", listens[0])]
            );
            assert!(dockerfile.contains(&format!("EXPOSE {}", listens[0])));
        }
        let all = ["group.writer", "source.reader"].map(str::to_owned);
        assert_eq!(runs.into_iter().collect::<Vec<_>>(), all, "{overlay}");
    }
}

#[test]
fn the_topology_is_right_with_the_variables_of_each_pod() {
    for overlay in OVERLAYS {
        let rendered = rendered(overlay);
        let shipped = &one(&rendered, "ConfigMap", "topology")["data"]["lines.toml"];
        assert_eq!(shipped.as_str().unwrap(), read(TOPOLOGY), "{overlay}");
        let place = Place::new(shipped.as_str().unwrap());
        for workload in Workload::all(&rendered).filter(|it| it.is_ours()) {
            let variables = workload.variables(&secret(overlay, &rendered), "pod", "node");
            let mut check = place.command(&["check", "topology.toml"]);
            let done = check.env_clear().envs(&variables).output().unwrap();
            let (said, faults) = (done.stdout, String::from_utf8_lossy(&done.stderr).into_owned());
            assert!(done.status.success() && faults.is_empty(), "{}: {faults}", workload.name());
            let said = String::from_utf8(said).unwrap();
            assert_eq!(said, "reader → line_stream → db: exactly once\n", "{overlay}");
        }
    }
}

fn seconds(duration: &str) -> u64 {
    duration.strip_suffix('s').unwrap().parse().unwrap()
}

#[test]
fn a_stop_has_the_time_that_a_drain_may_take() {
    let drain = seconds(topology()["runtime"]["drain"].as_str().unwrap());
    for overlay in OVERLAYS {
        let rendered = rendered(overlay);
        for workload in Workload::all(&rendered).filter(|it| it.is_ours()) {
            let (pod, container) = (workload.pod(), workload.container());
            let grace = pod["terminationGracePeriodSeconds"].as_u64().unwrap();
            let before = container["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64().unwrap();
            // Listeners close behind the drain.
            assert!(grace >= before + drain + 5, "{}: {grace} s", workload.name());
        }
        // Not longer to notice than a lease: whoever is asked is asked often.
        for workload in Workload::all(&rendered).filter(|it| it.is_ours()) {
            let container = workload.container();
            for (probe, path) in [
                ("startupProbe", "/livez"),
                ("livenessProbe", "/livez"),
                ("readinessProbe", "/readyz"),
            ] {
                let get = &container[probe]["httpGet"];
                assert_eq!((&get["path"], &get["port"]), (&json!(path), &json!("http")));
            }
            let ready = &container["readinessProbe"];
            let number = |key: &str| ready[key].as_u64().unwrap();
            assert!(number("periodSeconds") * number("failureThreshold") <= 20, "{overlay}");
        }
    }
}

/// Metrics and labels that a query of Prometheus speaks of exist.
fn speaks_of_what_there_is(query: &str) {
    let known = series();
    let named = words(query, "aqueduct_", "_");
    assert_eq!(named.len(), 1, "{query}");
    for metric in named {
        let labels = known.get(metric).unwrap_or_else(|| panic!("{query}: {metric} is none"));
        let by = between(query, "by (", ")").into_iter().flat_map(|it| it.split(", "));
        let asked = between(query, "{", "}").into_iter().flat_map(|it| it.split(','));
        let asked = asked.filter_map(|it| it.split(['=', '!']).next());
        for label in by.chain(asked).filter(|it| !it.contains("__name__")) {
            assert!(labels.contains(label), "{query}: {metric} has no {label}");
        }
    }
}

#[test]
fn writers_are_scaled_by_a_figure_that_the_program_tells() {
    let hpa = yaml("deploy/kubernetes/base/hpa.yaml");
    let spec = &hpa["spec"];
    assert_eq!((&spec["minReplicas"], &spec["maxReplicas"]), (&json!(1), &json!(10)));
    assert_eq!(spec["metrics"].as_array().unwrap().len(), 1);
    let external = &spec["metrics"][0]["external"];
    assert_eq!(external["target"], json!({ "type": "AverageValue", "averageValue": "1000" }));
    let metric = external["metric"]["name"].as_str().unwrap();
    let labels = external["metric"]["selector"]["matchLabels"].as_object().unwrap();
    let known = &series()[metric];
    let topology = topology();
    for (label, value) in labels {
        assert!(known.contains(&**label), "{metric} has no {label}");
        assert!(topology[label].get(value.as_str().unwrap()).is_some(), "no {label} {value}");
    }
    let of_group = &topology["group"][labels["group"].as_str().unwrap()];
    assert_eq!(of_group["from"].as_str(), labels["stream"].as_str());
    for overlay in OVERLAYS {
        let rendered = rendered(overlay);
        let writer = Workload::named(&rendered, "writer");
        assert!(writer.0["spec"]["replicas"].is_null(), "an apply would set them back");
        let scalers = rendered.iter().filter(|it| !it["spec"]["scaleTargetRef"].is_null());
        let scalers: Vec<_> = scalers.collect();
        assert_eq!(scalers.len(), 1, "{overlay}: one autoscaler, or they fight");
        let target = &scalers[0]["spec"]["scaleTargetRef"];
        assert_eq!(target["name"], "writer");
        assert!(target["kind"] == "Deployment" || target["kind"].is_null(), "{target}");
        // The same, whoever does it.
        let advanced = &scalers[0]["spec"]["advanced"]["horizontalPodAutoscalerConfig"];
        let behavior = match scalers[0]["kind"] == "ScaledObject" {
            true => &advanced["behavior"],
            false => &scalers[0]["spec"]["behavior"],
        };
        assert_eq!(*behavior, spec["behavior"], "{overlay}");
    }
    let keda = yaml("deploy/kubernetes/components/keda/scaled-object.yaml");
    let trigger = &keda["spec"]["triggers"][0];
    assert_eq!(keda["spec"]["minReplicaCount"], spec["minReplicas"]);
    assert_eq!(keda["spec"]["maxReplicaCount"], spec["maxReplicas"]);
    assert_eq!(trigger["metadata"]["threshold"], external["target"]["averageValue"]);
    assert_eq!(trigger["metricType"], external["target"]["type"]);
    let query = trigger["metadata"]["query"].as_str().unwrap();
    speaks_of_what_there_is(query);
    for (label, value) in labels {
        assert!(query.contains(&format!("{label}={value}")), "{query}: {label}");
    }
    let rule = &yaml("deploy/kubernetes/adapter/config.yaml")["externalRules"][0];
    let found = rule["seriesQuery"].as_str().unwrap();
    assert!(found.contains(&format!("__name__=\"{metric}\"")), "{found}");
    assert_eq!(rule["name"]["as"], metric);
    assert_eq!(rule["name"]["matches"], format!("^{metric}$"));
    let may = rendered("adapter");
    let may =
        texts(&one(&may, "ClusterRole", "aqueduct-external-metrics")["rules"][0]["resources"])
            .into_iter()
            .map(str::to_owned)
            .collect::<Vec<_>>();
    assert_eq!(may, [metric], "what the autoscaler may ask for");
}

const QUERY_TESTS: &str = r#"
rule_files: []
evaluation_interval: 15s
tests:
  - interval: 15s
    input_series:
      - series: aqueduct_group_lag{namespace="aqueduct",instance="a",stream="line_stream",group="writer"}
        values: 4000x8
      - series: aqueduct_group_lag{namespace="aqueduct",instance="b",stream="line_stream",group="writer"}
        values: 4200x8
      - series: aqueduct_group_lag{namespace="aqueduct",instance="c",stream="line_stream",group="writer"}
        values: 4100x8
      - series: aqueduct_group_lag{namespace="aqueduct",instance="a",stream="line_stream",group="audit"}
        values: 90000x8
      - series: aqueduct_group_lag{namespace="staging",instance="a",stream="line_stream",group="writer"}
        values: 90000x8
    promql_expr_test:
      - expr: ADAPTER
        eval_time: 1m
        exp_samples: [{ labels: '{stream="line_stream", group="writer"}', value: 4200 }]
      - expr: KEDA
        eval_time: 1m
        exp_samples: [{ labels: '{}', value: 4200 }]
"#;

// The autoscaler adds up what it is given.
#[test]
fn of_many_processes_that_tell_the_lag_it_is_counted_once() {
    let rule = &yaml("deploy/kubernetes/adapter/config.yaml")["externalRules"][0];
    let query = rule["metricsQuery"].as_str().unwrap();
    // As the adapter puts them in for the HPA's question.
    let asked = "namespace=\"aqueduct\",group=\"writer\",stream=\"line_stream\"";
    let adapter =
        query.replace("<<.Series>>", "aqueduct_group_lag").replace("<<.LabelMatchers>>", asked);
    speaks_of_what_there_is(&adapter);
    let keda = yaml("deploy/kubernetes/components/keda/scaled-object.yaml");
    let keda = keda["spec"]["triggers"][0]["metadata"]["query"].as_str().unwrap().to_owned();
    let place = tempfile::tempdir().unwrap();
    let tests = QUERY_TESTS.replace("ADAPTER", &adapter).replace("KEDA", &keda);
    std::fs::write(place.path().join("tests.yml"), tests).unwrap();
    promtool(place.path(), &["test", "rules", "tests.yml"]);
}

#[test]
fn prometheus_asks_where_pods_answer() {
    let directory = directory("components/prometheus");
    promtool(&directory, &["check", "config", "prometheus.yml"]);
    let alerts = read("deploy/kubernetes/components/prometheus/alerts.yml");
    assert_eq!(alerts, read("prometheus/alerts.yml"), "copy it: kustomize reads nothing outside");
    let rendered = rendered("dev");
    let scrape = &yaml("deploy/kubernetes/components/prometheus/prometheus.yml")["scrape_configs"];
    let (scrape, found) = (&scrape[0], &scrape[0]["dns_sd_configs"][0]);
    assert_eq!(scrape["job_name"], "aqueduct", "what alerts speak of");
    assert_eq!(scrape["metrics_path"], "/metrics");
    assert_eq!(scrape["relabel_configs"][0]["replacement"], "aqueduct", "the namespace");
    let service = one(&rendered, "Service", found["names"][0].as_str().unwrap());
    assert_eq!(service["metadata"]["namespace"], "aqueduct");
    assert_eq!(service["spec"]["clusterIP"], "None", "its name is every pod's address");
    assert_eq!(service["spec"]["publishNotReadyAddresses"], true, "also of who is not ready");
    let port = &service["spec"]["ports"][0];
    assert_eq!((&port["port"], &port["targetPort"]), (&found["port"], &json!("admin")));
    let selector = json!({ "matchLabels": service["spec"]["selector"] });
    let behind = Workload::all(&rendered).filter(|it| selects(&selector, it.labels()));
    assert_eq!(behind.map(Workload::name).collect::<Vec<_>>(), ["reader", "writer"]);

    let prod = self::rendered("prod");
    let monitor = one(&prod, "ServiceMonitor", "aqueduct");
    let service = one(&prod, "Service", "aqueduct");
    let labels = service["metadata"]["labels"].as_object().unwrap();
    assert!(selects(&monitor["spec"]["selector"], labels));
    let others = of(&prod, "Service").filter(|it| it["metadata"]["name"] != "aqueduct").any(|it| {
        selects(&monitor["spec"]["selector"], it["metadata"]["labels"].as_object().unwrap())
    });
    assert!(!others);
    let endpoint = &monitor["spec"]["endpoints"][0];
    assert_eq!(endpoint["port"], service["spec"]["ports"][0]["name"]);
    assert_eq!(endpoint["path"], "/metrics");

    // Whoever asks Prometheus asks where it is.
    let url = |name: &str| {
        let rendered = self::rendered(name);
        let args = Workload::named(&rendered, "adapter").container()["args"].clone();
        texts(&args)[0].strip_prefix("--prometheus-url=").unwrap().to_owned()
    };
    let service = one(&rendered, "Service", "prometheus");
    let port = &service["spec"]["ports"][0]["port"];
    assert_eq!(url("adapter"), format!("http://prometheus.aqueduct.svc:{port}"));
    let keda = yaml("deploy/kubernetes/components/keda/scaled-object.yaml");
    let keda = &keda["spec"]["triggers"][0]["metadata"]["serverAddress"];
    assert_eq!(*keda, url("adapter-operator"));
}

#[test]
fn redis_keeps_what_it_is_given() {
    let conf = read("deploy/kubernetes/base/redis/redis.conf");
    let options: BTreeMap<&str, &str> = conf
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .map(|line| line.split_once(' ').unwrap())
        .collect();
    assert_eq!(options["appendonly"], "yes");
    assert_eq!(options["maxmemory-policy"], "noeviction");
    let rendered = rendered("prod");
    let redis = Workload::named(&rendered, "redis");
    let mounts = redis.container()["volumeMounts"].as_array().unwrap();
    let data = mounts.iter().find(|it| it["mountPath"] == options["dir"]).unwrap();
    assert_eq!(redis.0["spec"]["volumeClaimTemplates"][0]["metadata"]["name"], data["name"]);
    let said = texts(&redis.container()["command"]).join(" ");
    assert!(said.contains("--requirepass $(REDIS_PASSWORD)"), "{said}");
    let gib = |text: &str| text.trim_end_matches("Gi").trim_end_matches("gb").parse::<u64>();
    let limit = redis.container()["resources"]["limits"]["memory"].as_str().unwrap();
    assert!(gib(limit).unwrap() >= 2 * gib(options["maxmemory"]).unwrap(), "{limit}");
    let port = redis.ports()["redis"];
    for workload in ["reader", "writer"] {
        let variables =
            Workload::named(&rendered, workload).variables(&secret_of_prod(), "pod", "node");
        assert_eq!(variables["REDIS_ADDR"], format!("redis:{port}"), "{workload}");
    }
    let service = one(&rendered, "Service", "redis");
    assert_eq!(service["spec"]["ports"][0]["port"], port);
}

#[test]
fn readers_of_one_file_agree_and_those_of_many_do_not() {
    let origin = |overlay: &str, pod: &str, node: &str| {
        let rendered = rendered(overlay);
        let reader = Workload::named(&rendered, "reader");
        reader.variables(&secret(overlay, &rendered), pod, node)["ORIGIN"].clone()
    };
    assert_eq!(origin("prod", "reader-1", "a"), origin("prod", "reader-2", "b"));
    assert_ne!(origin("prod-per-node", "reader-1", "a"), origin("prod-per-node", "reader-1", "b"));
    // The next pod of a node goes on where the last one was.
    assert_eq!(origin("prod-per-node", "reader-1", "a"), origin("prod-per-node", "reader-2", "a"));
    let text = read(TOPOLOGY);
    assert!(text.contains("origin = \"${ORIGIN:-"), "{text}");
}

#[test]
fn the_deployments_page_names_what_there_is() {
    let page = read("deploy/README.md");
    for path in words(&page, "deploy/", "/._-") {
        let path = path.trim_end_matches(['.', '/']);
        assert!(root().join(path).exists(), "{path} is not there");
    }
    let known = series();
    let metrics = words(&page, "aqueduct_", "_");
    assert!(metrics.len() > 5, "{metrics:?}");
    for metric in metrics {
        assert!(known.contains_key(metric), "{metric} is none");
    }
    let topology = topology();
    for counter in words(&page, "lines_", "_") {
        let counts = ["source", "group"].iter().any(|table| {
            let mut parts = topology[*table].as_table().unwrap().values();
            parts.any(|it| it.get("counter").and_then(toml::Value::as_str) == Some(counter))
        });
        assert!(counts, "{counter} is counted by nobody");
    }
    let dev = rendered("dev");
    let kinds =
        [("deployment/", "Deployment"), ("statefulset/", "StatefulSet"), ("svc/", "Service")];
    for (short, kind) in kinds {
        for name in between(&page, &format!(" {short}"), " ") {
            let name = name.split(['`', '\n', ',']).next().unwrap();
            if !name.contains(['/', '.']) && !name.is_empty() {
                one(&dev, kind, name);
            }
        }
    }
    let alerts = read("prometheus/alerts.yml");
    for alert in words(&page, "Aqueduct", "").into_iter().filter(|it| it.len() > 8) {
        assert!(alerts.contains(&format!("alert: {alert}\n")), "{alert} is none");
    }
}
