//! `kubectl kustomize` as far as `deploy/kubernetes` uses it, so that its tests need no kubectl.
//! What it does not know it refuses.

#![allow(dead_code)] // each test uses a part of it

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value, json};

/// The documents of a text.
pub fn documents(text: &str) -> Vec<Value> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).unwrap();
    documents.into_iter().filter(|it| !it.is_null()).collect()
}

/// The resources of a directory with a `kustomization.yaml`.
pub fn render(directory: &Path) -> Vec<Value> {
    let mut resources = Vec::new();
    add(directory, &mut resources);
    resources.sort_by_cached_key(name_of);
    resources
}

/// Kind, namespace and name.
pub fn name_of(resource: &Value) -> (String, String, String) {
    let meta = &resource["metadata"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (text(&resource["kind"]), text(&meta["namespace"]), text(&meta["name"]))
}

/// What a directory brings to `all`, and what it then changes in all of them.
fn add(directory: &Path, all: &mut Vec<Value>) {
    let text = read(&directory.join("kustomization.yaml"));
    let file: Value = serde_saphyr::from_str(&text).unwrap();
    let known = [
        ["apiVersion", "kind", "resources", "components"],
        ["configMapGenerator", "secretGenerator", "generatorOptions", "patches"],
        ["namespace", "images", "", ""],
    ];
    for key in file.as_object().unwrap().keys() {
        assert!(known.as_flattened().contains(&&**key), "{directory:?}: {key}");
    }
    // A base is changed by itself alone; a component changes all there is so far.
    for path in list(&file["resources"]) {
        let path = directory.join(path.as_str().unwrap());
        if path.is_dir() {
            let mut base = Vec::new();
            add(&path, &mut base);
            all.extend(base);
        } else {
            all.extend(documents(&read(&path)));
        }
    }
    generate(directory, &file, all);
    for path in list(&file["components"]) {
        add(&directory.join(path.as_str().unwrap()), all);
    }
    for patch in list(&file["patches"]) {
        apply(patch, all);
    }
    if let Some(namespace) = file["namespace"].as_str() {
        for resource in all.iter_mut().filter(|it| !is_of_the_cluster(it)) {
            resource["metadata"]["namespace"] = namespace.into();
        }
    }
    for image in list(&file["images"]) {
        all.iter_mut().for_each(|resource| rename(image, resource));
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{path:?}: {error}"))
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

pub fn is_of_the_cluster(resource: &Value) -> bool {
    let kind = resource["kind"].as_str().unwrap();
    ["Namespace", "APIService"].contains(&kind) || kind.starts_with("Cluster")
}

fn generate(directory: &Path, file: &Value, all: &mut Vec<Value>) {
    let generated = [("ConfigMap", "configMapGenerator"), ("Secret", "secretGenerator")];
    for (kind, generator) in generated {
        for it in list(&file[generator]) {
            let options = json!({ "disableNameSuffixHash": true });
            assert_eq!(file["generatorOptions"], options, "{directory:?}: {}", it["name"]);
            let files = list(&it["files"]).map(|path| {
                let path = directory.join(path.as_str().unwrap());
                (path.file_name().unwrap().to_str().unwrap().to_owned(), read(&path))
            });
            let literals = list(&it["literals"]).map(|literal| {
                let (key, value) = literal.as_str().unwrap().split_once('=').unwrap();
                (key.to_owned(), value.to_owned())
            });
            let data = files.chain(literals).map(|(key, text)| match kind {
                "Secret" => (key, Value::from(BASE64.encode(text))),
                _ => (key, Value::from(text)),
            });
            let mut made = json!({ "apiVersion": "v1", "kind": kind });
            made["metadata"]["name"] = it["name"].clone();
            if !it["namespace"].is_null() {
                made["metadata"]["namespace"] = it["namespace"].clone();
            }
            made["data"] = Value::Object(data.collect::<Map<_, _>>());
            if kind == "Secret" {
                made["type"] = "Opaque".into();
            }
            all.push(made);
        }
    }
}

fn apply(patch: &Value, all: &mut Vec<Value>) {
    let body: Value = serde_saphyr::from_str(patch["patch"].as_str().unwrap()).unwrap();
    let Some(steps) = body.as_array() else {
        assert_eq!(body["$patch"], "delete", "{body}");
        let named = |it: &Value| {
            ["apiVersion", "kind"].iter().all(|key| it[key] == body[key])
                && it["metadata"]["name"] == body["metadata"]["name"]
        };
        assert!(all.iter().any(named), "there is none to delete: {body}");
        return all.retain(|it| !named(it));
    };
    let target = &patch["target"];
    let meant = |it: &&mut Value| {
        it["kind"] == target["kind"]
            && (target["name"].is_null() || it["metadata"]["name"] == target["name"])
    };
    let mut count = 0;
    for resource in all.iter_mut().filter(meant) {
        steps.iter().for_each(|step| take(step, resource));
        count += 1;
    }
    assert!(count > 0, "there is none to patch: {target}");
}

/// A step of a JSON patch (RFC 6902).
fn take(step: &Value, resource: &mut Value) {
    let path = step["path"].as_str().unwrap();
    match step["op"].as_str().unwrap() {
        "replace" => {
            *resource.pointer_mut(path).unwrap_or_else(|| panic!("no {path}")) =
                step["value"].clone();
        }
        "add" => {
            let (room, key) = path.rsplit_once('/').unwrap();
            let room = resource.pointer_mut(room).unwrap_or_else(|| panic!("no {room}"));
            match room {
                Value::Array(list) if key == "-" => list.push(step["value"].clone()),
                room => room[key] = step["value"].clone(),
            }
        }
        op => panic!("{op} is not known here"),
    }
}

fn rename(image: &Value, resource: &mut Value) {
    let Some(spec) = resource.pointer_mut("/spec/template/spec") else { return };
    for list in ["initContainers", "containers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let named = container["image"].as_str().unwrap();
            let (name, tag) = named.rsplit_once(':').unwrap_or((named, ""));
            if image["name"] != name {
                continue;
            }
            let name = image["newName"].as_str().unwrap_or(name);
            let tag = image["newTag"].as_str().unwrap_or(tag);
            container["image"] = format!("{name}:{tag}").into();
        }
    }
}

/// A Deployment, StatefulSet or DaemonSet.
#[derive(Clone, Copy)]
pub struct Workload<'a>(pub &'a Value);

impl<'a> Workload<'a> {
    /// Those of a rendered directory.
    pub fn all(rendered: &'a [Value]) -> impl Iterator<Item = Self> {
        rendered.iter().filter(|it| !it["spec"]["template"].is_null()).map(Self)
    }

    /// One of them, by its name.
    pub fn named(rendered: &'a [Value], name: &str) -> Self {
        Self::all(rendered).find(|it| it.name() == name).unwrap_or_else(|| panic!("no {name}"))
    }

    pub fn name(self) -> &'a str {
        self.0["metadata"]["name"].as_str().unwrap()
    }

    pub fn labels(self) -> &'a Map<String, Value> {
        self.0["spec"]["template"]["metadata"]["labels"].as_object().unwrap()
    }

    /// Its pods' spec.
    pub fn pod(self) -> &'a Value {
        &self.0["spec"]["template"]["spec"]
    }

    /// The one container that stays.
    pub fn container(self) -> &'a Value {
        let [container] = &self.pod()["containers"].as_array().unwrap()[..] else {
            panic!("{} has a sidecar", self.name())
        };
        container
    }

    /// All of its containers.
    pub fn containers(self) -> impl Iterator<Item = &'a Value> {
        list(&self.pod()["initContainers"]).chain(list(&self.pod()["containers"]))
    }

    /// Whether it runs this program, and not only its image.
    pub fn is_ours(self) -> bool {
        self.container()["args"][0] == "run"
    }

    /// The numbers of its ports, by name.
    pub fn ports(self) -> BTreeMap<&'a str, u64> {
        list(&self.container()["ports"])
            .map(|it| (it["name"].as_str().unwrap(), it["containerPort"].as_u64().unwrap()))
            .collect()
    }

    /// The variables that its container gets, in the pod `pod` on the node `node`.
    pub fn variables(
        self,
        secrets: &BTreeMap<String, String>,
        pod: &str,
        node: &str,
    ) -> BTreeMap<String, String> {
        let value = |it: &Value| {
            let from = &it["valueFrom"];
            if let Some(value) = it["value"].as_str() {
                return value.to_owned();
            }
            if let Some(key) = from["secretKeyRef"]["key"].as_str() {
                return secrets.get(key).unwrap_or_else(|| panic!("no {key}")).clone();
            }
            match from["fieldRef"]["fieldPath"].as_str().unwrap() {
                "metadata.name" => pod.to_owned(),
                "spec.nodeName" => node.to_owned(),
                field => panic!("{field} is not known here"),
            }
        };
        let env = list(&self.container()["env"]);
        env.map(|it| (it["name"].as_str().unwrap().to_owned(), value(it))).collect()
    }
}

/// What the Secret of a rendered directory holds.
pub fn secrets(rendered: &[Value], name: &str) -> BTreeMap<String, String> {
    let secret = rendered
        .iter()
        .find(|it| it["kind"] == "Secret" && it["metadata"]["name"] == name)
        .unwrap_or_else(|| panic!("no Secret {name}"));
    let data = secret["data"].as_object().unwrap().iter();
    data.map(|(key, value)| {
        let bytes = BASE64.decode(value.as_str().unwrap()).unwrap();
        (key.clone(), String::from_utf8(bytes).unwrap())
    })
    .collect()
}

/// Whether labels have all that a selector's `matchLabels` and `matchExpressions` (`In`) want.
pub fn selects(selector: &Value, labels: &Map<String, Value>) -> bool {
    let equal = selector["matchLabels"].as_object().into_iter().flatten();
    let in_list = list(&selector["matchExpressions"]).all(|it| {
        assert_eq!(it["operator"], "In");
        let value = labels.get(it["key"].as_str().unwrap());
        value.is_some_and(|value| it["values"].as_array().unwrap().contains(value))
    });
    in_list && equal.into_iter().all(|(key, value)| labels.get(key) == Some(value))
}
