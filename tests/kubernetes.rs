//! `deploy/kubernetes`: what it renders to is valid by the schemas of three Kubernetes versions, its
//! parts fit each other, and what they name exists in this program. (tests/kubernetes_runs.rs runs
//! it.)

#[path = "support/kustomize.rs"]
mod kustomize;
#[path = "support/policies.rs"]
mod policies;
#[path = "support/process.rs"]
mod process;
#[path = "support/shipped.rs"]
mod shipped;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;

use kustomize::{Workload, is_of_the_cluster, name_of, render, secrets, selects};
use policies::{Peer, ways};
use process::Place;
use serde_json::{Value, json};
use shipped::{between, filled, promtool, read, root, series, texts, words, yaml};

const TOPOLOGY: &str = "deploy/kubernetes/base/topology/lines.toml";
const OVERLAYS: [&str; 4] = ["dev", "prod", "prod-keda", "prod-per-node"];
const VERSIONS: [&str; 3] = ["1.31", "1.34", "1.37"];

fn directory(name: &str) -> PathBuf {
    root().join("deploy/kubernetes").join(name)
}

/// An overlay, or the adapter.
fn rendered(name: &str) -> Vec<Value> {
    match name.starts_with("adapter") || name == "base" {
        true => render(&directory(name)),
        false => render(&directory("overlays").join(name)),
    }
}

/// All that can be applied.
fn everything() -> Vec<(&'static str, Vec<Value>)> {
    let names = OVERLAYS.into_iter().chain(["adapter", "adapter-operator"]);
    names.map(|name| (name, rendered(name))).collect()
}

fn one<'a>(rendered: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let mut found =
        rendered.iter().filter(|it| it["kind"] == kind && it["metadata"]["name"] == name);
    found.next().unwrap_or_else(|| panic!("no {kind} {name}"))
}

fn of<'a>(rendered: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    rendered.iter().filter(move |it| it["kind"] == kind)
}

fn topology() -> toml::Table {
    read(TOPOLOGY).parse().unwrap()
}

/// What a prod Secret has to hold, by the comment that says how to make it.
fn secret_of_prod() -> BTreeMap<String, String> {
    let text = read("deploy/kubernetes/overlays/prod/kustomization.yaml");
    let keys = between(&text, "--from-literal=", "=");
    keys.into_iter().map(|key| (key.to_owned(), "SeCrEt".to_owned())).collect()
}

fn secret(name: &str, rendered: &[Value]) -> BTreeMap<String, String> {
    if name == "dev" { secrets(rendered, "aqueduct") } else { secret_of_prod() }
}

/// The schemas of a version and of custom resources, by `apiVersion kind`.
fn schemas(version: &str) -> BTreeMap<String, jsonschema::Validator> {
    let mut made = BTreeMap::new();
    for file in [format!("kubernetes-{version}"), "custom-resources".to_owned()] {
        let mut all: Value =
            serde_json::from_str(&read(&format!("tests/schemas/{file}.json"))).unwrap();
        let kinds = all["kinds"].take();
        for (kind, schema) in kinds.as_object().unwrap() {
            let mut schema = schema.clone();
            schema["$schema"] = all["$schema"].clone();
            schema["$defs"] = all["$defs"].clone();
            made.insert(kind.clone(), jsonschema::validator_for(&schema).unwrap());
        }
    }
    made
}

fn faults(schemas: &BTreeMap<String, jsonschema::Validator>, resource: &Value) -> Vec<String> {
    let text = |key: &str| resource[key].as_str().unwrap_or_default();
    let kind = format!("{} {}", text("apiVersion"), text("kind"));
    let Some(schema) = schemas.get(&kind) else { return vec![format!("no schema of {kind}")] };
    let said = |it: jsonschema::ValidationError| format!("{kind} {}: {it}", it.instance_path());
    schema.iter_errors(resource).map(said).collect()
}

#[test]
fn what_is_applied_is_valid_in_three_versions() {
    let everything = everything();
    for version in VERSIONS {
        let schemas = schemas(version);
        for (name, rendered) in &everything {
            let wrong: Vec<_> = rendered.iter().flat_map(|it| faults(&schemas, it)).collect();
            assert!(wrong.is_empty(), "{name} with {version}: {wrong:#?}");
        }
        // The schemas find what is wrong: a key that is none, a type, a custom resource's.
        let (_, dev) = &everything[0];
        let mut writer = one(dev, "Deployment", "writer").clone();
        writer["spec"]["template"]["spec"]["containers"][0]["livenessProb"] = json!({});
        assert_eq!(faults(&schemas, &writer).len(), 1);
        let mut hpa = one(dev, "HorizontalPodAutoscaler", "writer").clone();
        hpa["spec"]["maxReplicas"] = "ten".into();
        assert_eq!(faults(&schemas, &hpa).len(), 1);
        let keda = &everything[2].1;
        for (kind, at) in [("ScaledObject", "/spec"), ("ServiceMonitor", "/spec/endpoints/0")] {
            let mut custom = of(keda, kind).next().unwrap().clone();
            custom.pointer_mut(at).unwrap()["pollingIntervall"] = 15.into();
            assert!(!faults(&schemas, &custom).is_empty(), "{kind}");
        }
    }
}

#[test]
fn kubectl_renders_the_same() {
    let version = Command::new("kubectl").args(["version", "--client"]).output();
    let said = version.map(|it| String::from_utf8_lossy(&it.stdout).into_owned());
    let said = said.unwrap_or_default();
    // Debian's is 1.20, which knows no components.
    let major = between(&said, "Kustomize Version: v", ".").first().map(|it| it.parse().unwrap());
    if major.is_none_or(|major: u32| major < 4) {
        eprintln!("there is no kubectl of 1.21 or newer: not compared");
        return;
    }
    for name in OVERLAYS
        .map(|it| format!("overlays/{it}"))
        .into_iter()
        .chain(["base", "adapter", "adapter-operator"].map(str::to_owned))
    {
        let done = Command::new("kubectl").arg("kustomize").arg(directory(&name)).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let mut theirs = kustomize::documents(&String::from_utf8(done.stdout).unwrap());
        theirs.sort_by_cached_key(name_of);
        let ours = render(&directory(&name));
        let names = |it: &[Value]| it.iter().map(name_of).collect::<Vec<_>>();
        assert_eq!(names(&ours), names(&theirs), "{name}");
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert_eq!(ours, theirs, "{name}: {:?}", name_of(ours));
        }
    }
}

#[test]
fn what_one_resource_names_another_is() {
    for (overlay, rendered) in everything() {
        let mut names = BTreeSet::new();
        for resource in &rendered {
            let name = name_of(resource);
            let placed = !name.1.is_empty() || is_of_the_cluster(resource);
            assert!(placed, "{overlay}: {name:?} is in no namespace");
            assert!(names.insert(name.clone()), "{overlay}: {name:?} is there twice");
        }
        let secret_keys = || secret(overlay, &rendered).into_keys().collect::<BTreeSet<_>>();
        for workload in Workload::all(&rendered) {
            let (name, pod) = (workload.name(), workload.pod());
            let wanted = &workload.0["spec"]["selector"];
            assert!(selects(wanted, workload.labels()), "{overlay}: {name} selects others");
            let account = pod["serviceAccountName"].as_str().unwrap();
            one(&rendered, "ServiceAccount", account);
            volumes_are_there(overlay, &rendered, workload);
            for env in workload.containers().flat_map(|it| it["env"].as_array()).flatten() {
                if let Some(from) = env["valueFrom"].get("secretKeyRef") {
                    assert_eq!(from["name"], "aqueduct", "{overlay}: {name}");
                    assert!(
                        secret_keys().contains(from["key"].as_str().unwrap()),
                        "{name}: {from}"
                    );
                    assert!(from["optional"].is_null(), "{name} would start without {from}");
                }
            }
            for spread in pod["topologySpreadConstraints"].as_array().into_iter().flatten() {
                assert!(selects(&spread["labelSelector"], workload.labels()), "{name}");
            }
        }
        for service in of(&rendered, "Service") {
            let selector = json!({ "matchLabels": service["spec"]["selector"] });
            let behind: Vec<_> =
                Workload::all(&rendered).filter(|it| selects(&selector, it.labels())).collect();
            assert!(!behind.is_empty(), "{overlay}: nobody is behind {}", service["metadata"]);
            for port in service["spec"]["ports"].as_array().unwrap() {
                let target = port["targetPort"].as_str().unwrap();
                assert!(behind.iter().all(|it| it.ports().contains_key(target)), "{port}");
                let headless = service["spec"]["clusterIP"] == "None";
                let direct = |it: &Workload| Some(it.ports()[target]) == port["port"].as_u64();
                assert!(!headless || behind.iter().all(direct), "{overlay}: {port}");
            }
        }
        for budget in of(&rendered, "PodDisruptionBudget") {
            let meant = Workload::all(&rendered)
                .filter(|it| selects(&budget["spec"]["selector"], it.labels()));
            let names: Vec<_> = meant.map(Workload::name).collect();
            assert_eq!(names, [budget["metadata"]["name"].as_str().unwrap()], "{overlay}");
        }
    }
}

/// Its volumes are what is mounted, and there, with the files that are named.
fn volumes_are_there(overlay: &str, rendered: &[Value], workload: Workload) {
    let empty = Vec::new();
    let volumes = workload.pod()["volumes"].as_array().unwrap_or(&empty);
    let claims = workload.0["spec"]["volumeClaimTemplates"].as_array().unwrap_or(&empty);
    let name = |it: &Value| it.as_str().unwrap().to_owned();
    let held: BTreeSet<_> = volumes
        .iter()
        .map(|it| name(&it["name"]))
        .chain(claims.iter().map(|it| name(&it["metadata"]["name"])))
        .collect();
    let mounts = || workload.containers().flat_map(|it| it["volumeMounts"].as_array()).flatten();
    let mounted: BTreeSet<_> = mounts().map(|it| name(&it["name"])).collect();
    assert_eq!(held, mounted, "{overlay}: {}", workload.name());
    // A file that is mounted alone never changes.
    assert!(mounts().all(|it| it["subPath"].is_null()), "{overlay}: {}", workload.name());
    for volume in volumes {
        if let Some(claim) = volume["persistentVolumeClaim"]["claimName"].as_str() {
            one(rendered, "PersistentVolumeClaim", claim);
        }
        let Some(map) = volume["configMap"]["name"].as_str() else { continue };
        let files = one(rendered, "ConfigMap", map)["data"].as_object().unwrap();
        let mount = mounts().find(|it| it["name"] == volume["name"]).unwrap();
        let path = mount["mountPath"].as_str().unwrap();
        let container = workload.container();
        let said = texts(&container["args"]).into_iter().chain(texts(&container["command"]));
        let named: Vec<_> = said
            .filter_map(|it| it.split_once(&format!("{path}/")).map(|(_, file)| file))
            .collect();
        assert_eq!(named.len(), 1, "{overlay}: {} does not read {map}", workload.name());
        assert!(files.contains_key(named[0]), "{overlay}: {map} has no {}", named[0]);
    }
}

#[test]
fn no_pod_may_do_more_than_it_must() {
    for (overlay, rendered) in everything() {
        for workload in Workload::all(&rendered) {
            let (name, pod) = (workload.name(), workload.pod());
            let context = &pod["securityContext"];
            assert_eq!(context["runAsNonRoot"], true, "{overlay}: {name}");
            assert!(context["runAsUser"].as_u64().unwrap() > 0, "{overlay}: {name}");
            assert_eq!(context["seccompProfile"]["type"], "RuntimeDefault", "{overlay}: {name}");
            assert_eq!(pod["automountServiceAccountToken"], name == "adapter", "{name}");
            assert_eq!(pod["enableServiceLinks"], false, "{overlay}: {name}");
            for forbidden in ["hostNetwork", "hostPID", "hostIPC"] {
                assert!(pod[forbidden].is_null(), "{overlay}: {name}: {forbidden}");
            }
            let host = pod.to_string().contains("hostPath");
            assert_eq!(host, overlay == "prod-per-node" && name == "reader", "{overlay}: {name}");
            for container in workload.containers() {
                let at = format!("{overlay}: {name}: {}", container["name"]);
                let context = &container["securityContext"];
                assert_eq!(context["allowPrivilegeEscalation"], false, "{at}");
                assert_eq!(context["readOnlyRootFilesystem"], true, "{at}");
                assert_eq!(texts(&context["capabilities"]["drop"]), ["ALL"], "{at}");
                // Who gives a node's directory to the reader.
                let owner = container["name"] == "own-data" && host;
                assert_eq!(context.get("runAsUser").is_some(), owner, "{at}");
                assert_eq!(context["capabilities"].get("add").is_some(), owner, "{at}");
                let resources = &container["resources"];
                for of in ["requests", "limits"] {
                    assert!(resources[of]["cpu"].is_string(), "{at}: {of}");
                    assert!(resources[of]["memory"].is_string(), "{at}: {of}");
                }
                let image = container["image"].as_str().unwrap();
                assert!(image.contains(':') && !image.ends_with(":latest"), "{at}: {image}");
            }
        }
        let restricted = if overlay == "prod-per-node" { "privileged" } else { "restricted" };
        for namespace in of(&rendered, "Namespace") {
            let labels = &namespace["metadata"]["labels"];
            assert_eq!(labels["pod-security.kubernetes.io/enforce"], restricted, "{overlay}");
        }
    }
}

#[test]
fn what_is_secret_is_in_no_file_for_production() {
    for overlay in OVERLAYS.into_iter().filter(|it| *it != "dev") {
        let rendered = rendered(overlay);
        assert_eq!(of(&rendered, "Secret").count(), 0, "{overlay}");
        for env in Workload::all(&rendered)
            .flat_map(Workload::containers)
            .flat_map(|it| it["env"].as_array())
            .flatten()
        {
            let name = env["name"].as_str().unwrap();
            let secret = ["PASSWORD", "TOKEN", "POSTGRES_URL", "AUTH"];
            if secret.iter().any(|it| name.contains(it)) {
                assert!(env["valueFrom"]["secretKeyRef"].is_object(), "{overlay}: {name}");
            }
        }
    }
    let used: BTreeSet<String> = Workload::all(&rendered("prod"))
        .flat_map(Workload::containers)
        .flat_map(|it| it["env"].as_array())
        .flatten()
        .filter_map(|it| Some(it["valueFrom"]["secretKeyRef"]["key"].as_str()?.to_owned()))
        .collect();
    assert_eq!(secret_of_prod().into_keys().collect::<BTreeSet<_>>(), used);
    // A reader has no business in the database.
    for overlay in OVERLAYS {
        let rendered = rendered(overlay);
        let reader = Workload::named(&rendered, "reader").container()["env"].to_string();
        assert!(!reader.contains("postgres"), "{overlay}: {reader}");
    }
}

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
                let found = ours || known.into_iter().any(|it| it["image"] == image);
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
fn who_may_speak_with_whom() {
    let peer = |name: &'static str, namespace: &'static str, label: (&str, &str), port: u64| Peer {
        name,
        namespace,
        labels: [(label.0.to_owned(), Value::from(label.1))].into_iter().collect(),
        ports: [port].into(),
    };
    let outside = [
        peer("dns", "kube-system", ("k8s-app", "kube-dns"), 53),
        peer("operated", "monitoring", ("app.kubernetes.io/name", "prometheus"), 9090),
        peer("database", "elsewhere", ("some", "database"), 5432),
        peer("stranger", "default", ("app", "stranger"), 80),
    ];
    let adapter = rendered("adapter");
    let inside = |overlay: &str| {
        let rendered = rendered(overlay);
        let mut peers = Peer::all(&rendered, "aqueduct");
        peers.extend(Peer::all(&adapter, "aqueduct-metrics"));
        peers.extend(outside.iter().cloned());
        let policies: Vec<Value> =
            of(&rendered, "NetworkPolicy").chain(of(&adapter, "NetworkPolicy")).cloned().collect();
        let said = ways(&peers, &policies);
        // Outside, nothing here decides.
        let own = |way: &&(&str, &str, u64)| {
            let out = |name: &str| outside.iter().any(|it| it.name == name);
            !(out(way.0) && out(way.1)) && way.1 != "dns"
        };
        let dns: BTreeSet<_> = said.iter().filter(|it| it.1 == "dns").map(|it| it.0).collect();
        let all: BTreeSet<_> = peers.iter().map(|it| it.name).filter(|it| *it != "dns").collect();
        assert_eq!(dns, all, "{overlay}: everybody needs names");
        let listed = |way: &(&str, &str, u64)| format!("{} {} {}", way.0, way.1, way.2);
        said.iter().filter(own).map(listed).collect::<BTreeSet<String>>()
    };
    // The API server's address is not known, so who is outside may knock at the adapter.
    let common = [
        "reader redis 6379",
        "writer redis 6379",
        "adapter operated 9090",
        "dns adapter 6443",
        "operated adapter 6443",
        "database adapter 6443",
        "stranger adapter 6443",
    ];
    let set = |more: &[&str]| common.iter().chain(more).map(ToString::to_string).collect();
    let dev: BTreeSet<String> = set(&[
        "writer postgres 5432",
        "prometheus reader 9090",
        "prometheus writer 9090",
        "adapter prometheus 9090",
    ]);
    assert_eq!(inside("dev"), dev);
    let prod: BTreeSet<String> =
        set(&["writer database 5432", "operated reader 9090", "operated writer 9090"]);
    for overlay in ["prod", "prod-keda", "prod-per-node"] {
        assert_eq!(inside(overlay), prod, "{overlay}");
    }
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
    let kinds = [("deploy/", "Deployment"), ("statefulset/", "StatefulSet"), ("svc/", "Service")];
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
