//! `deploy/kubernetes`: what it renders to is valid by the schemas of three Kubernetes versions, and
//! its parts fit each other. (tests/kubernetes_program.rs: they fit the program, too.)

#[path = "support/kustomize.rs"]
mod kustomize;
#[path = "support/manifests.rs"]
mod manifests;
#[path = "support/policies.rs"]
mod policies;
#[path = "support/shipped.rs"]
mod shipped;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use kustomize::{Workload, is_of_the_cluster, name_of, render, selects};
use manifests::{OVERLAYS, directory, everything, of, one, rendered, secret, secret_of_prod};
use policies::{Peer, ways};
use serde_json::{Value, json};
use shipped::{between, read, texts};

const VERSIONS: [&str; 3] = ["1.31", "1.34", "1.37"];

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
        // It breaks long texts into lines.
        let secrets = theirs.iter_mut().filter(|it| it["kind"] == "Secret");
        for value in
            secrets.flat_map(|it| it["data"].as_object_mut()).flat_map(|it| it.values_mut())
        {
            *value = value.as_str().unwrap().replace('\n', "").into();
        }
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
fn who_may_speak_with_whom() {
    for (overlay, rendered) in everything() {
        for namespace in of(&rendered, "Namespace") {
            let denies = of(&rendered, "NetworkPolicy").any(|it| {
                let (spec, within) = (&it["spec"], &it["metadata"]["namespace"]);
                *within == namespace["metadata"]["name"]
                    && spec["podSelector"] == json!({})
                    && texts(&spec["policyTypes"]) == ["Ingress", "Egress"]
            });
            assert!(denies, "{overlay}: {namespace} lets all in and out");
        }
    }
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
    let inside = |overlay: &str| {
        let mut rendered = rendered(overlay);
        if overlay != "dev" {
            rendered.extend(self::rendered("adapter-operator"));
        }
        let mut peers = Peer::all(&rendered);
        peers.extend(outside.iter().cloned());
        let policies: Vec<Value> = of(&rendered, "NetworkPolicy").cloned().collect();
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
