"""Writes the schemas that tests/kubernetes.rs uses: of kubernetes-validate's strict ones, and of the
models of custom resources, what the kinds in deploy/kubernetes need, without descriptions."""

import json
import re
import sys
from pathlib import Path

import kubernetes_validate
from cloudcoil.models.keda.v1alpha1 import ScaledObject
from cloudcoil.models.prometheus_operator.v1 import ServiceMonitor

VERSIONS = ["1.31", "1.34", "1.37"]
KINDS = [
    ("v1", "Namespace"), ("v1", "ConfigMap"), ("v1", "Secret"), ("v1", "Service"),
    ("v1", "ServiceAccount"), ("v1", "PersistentVolumeClaim"),
    ("apps/v1", "Deployment"), ("apps/v1", "StatefulSet"), ("apps/v1", "DaemonSet"),
    ("autoscaling/v2", "HorizontalPodAutoscaler"),
    ("networking.k8s.io/v1", "NetworkPolicy"), ("policy/v1", "PodDisruptionBudget"),
    ("rbac.authorization.k8s.io/v1", "ClusterRole"),
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"),
    ("rbac.authorization.k8s.io/v1", "RoleBinding"),
    ("apiregistration.k8s.io/v1", "APIService"),
]  # fmt: skip
CUSTOM = [("keda.sh/v1alpha1", ScaledObject), ("monitoring.coreos.com/v1", ServiceMonitor)]
WORDS = ["description", "title", "default", "$schema", "$id"]


def stripped(schema):
    """Without what only people read; names of properties stay, whatever they are."""
    if isinstance(schema, list):
        return [stripped(it) for it in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {}
    for key, value in schema.items():
        if key in ("properties", "$defs"):
            kept[key] = {name: stripped(it) for name, it in value.items()}
        elif key not in WORDS and not key.startswith("x-"):
            kept[key] = stripped(value)
    return kept


def closed(schema):
    """What a custom resource's definition does not name, the API server drops."""
    for it in schema.values() if isinstance(schema, dict) else schema:
        if isinstance(it, (dict, list)):
            closed(it)
    if isinstance(schema, dict) and "properties" in schema:
        schema.setdefault("additionalProperties", False)


def needed(schema):
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key == "$ref":
                yield value.split("/$defs/")[1]
            else:
                yield from needed(value)
    elif isinstance(schema, list):
        for it in schema:
            yield from needed(it)


def write(path, kinds, definitions):
    defs, left = {}, list(needed(kinds))
    while left:
        name = left.pop()
        if name not in defs:
            defs[name] = definitions[name]
            left += needed(definitions[name])
    draft = "https://json-schema.org/draft/2020-12/schema"
    whole = {"$schema": draft, "kinds": kinds, "$defs": dict(sorted(defs.items()))}
    path.write_text(json.dumps(whole, separators=(",", ":")))
    print(path)


def main(target):
    room = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
    for version in VERSIONS:
        strict = room / f"v{version}.0-local-strict"

        def load(name):
            text = (strict / f"{name}.json").read_text()
            return stripped(json.loads(re.sub(r'"[^"]*_definitions\.json#', '"#', text)))

        kinds = {}
        for api, kind in KINDS:
            file = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api)
            kinds[f"{api} {kind}"] = load(f"{kind.lower()}-{file}")
        write(target / f"kubernetes-{version}.json", kinds, load("_definitions")["$defs"])

    kinds, definitions = {}, {}
    for api, model in CUSTOM:
        kind = model.__name__
        schema = stripped(model.model_json_schema(by_alias=True))
        closed(schema)
        schema["properties"].pop("status", None)
        schema = json.loads(json.dumps(schema).replace('"#/$defs/', f'"#/$defs/{kind}.'))
        definitions |= {f"{kind}.{name}": it for name, it in schema.pop("$defs").items()}
        schema["properties"] |= {"apiVersion": {"const": api}, "kind": {"const": kind}}
        schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
        kinds[f"{api} {kind}"] = schema
    write(target / "custom-resources.json", kinds, definitions)


main(Path(sys.argv[1]))
