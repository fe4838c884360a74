"""Holds the custom resources in the files given against the models of their definitions."""

import sys
import yaml
from cloudcoil.models.keda.v1alpha1 import ScaledObject
from cloudcoil.models.prometheus_operator.v1 import ServiceMonitor

models = {"ScaledObject": ScaledObject, "ServiceMonitor": ServiceMonitor}
count = 0


def lost(given, kept, path=""):
    """What of `given` the model does not know."""
    if isinstance(given, dict):
        for key, value in given.items():
            if not isinstance(kept, dict) or key not in kept:
                yield f"{path}/{key}"
            else:
                yield from lost(value, kept[key], f"{path}/{key}")
    elif isinstance(given, list):
        for n, value in enumerate(given):
            yield from lost(value, kept[n], f"{path}/{n}")


for file in sys.argv[1:]:
    for resource in yaml.safe_load_all(open(file)):
        model = models.get(resource["kind"])
        if model is None:
            continue
        kept = model.model_validate(resource).model_dump(by_alias=True, exclude_none=True, mode="json")
        wrong = list(lost(resource, kept))
        if wrong:
            sys.exit(f"{file}: {resource['kind']}: {wrong} is not in its definition")
        count += 1
print(f"{count} custom resources, no fault")
