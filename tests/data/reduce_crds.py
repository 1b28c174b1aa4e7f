"""Makes kuberay.json, which the manifests in examples/clusters are checked against, from the
KubeRay operator's custom resource definitions (Apache-2.0;
helm-chart/kuberay-operator/crds/ray.io_rayclusters.yaml and ray.io_rayjobs.yaml of its repository):

    python tests/data/reduce_crds.py FOLDER > tests/data/kuberay.json

FOLDER holds the two files, gzipped or not. Kept are version v1, the fields of both kinds in full,
and of pods the fields in POD; descriptions are dropped. Objects that list their fields take no
others, as the API server's strict validation has it."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import yaml

POD = {
    "containers": {
        "name",
        "image",
        "imagePullPolicy",
        "command",
        "args",
        "env",
        "ports",
        "resources",
        "volumeMounts",
    },
    "volumes": {"name", "persistentVolumeClaim", "emptyDir", "secret", "configMap", "hostPath"},
    "tolerations": None,
    "nodeSelector": None,
    "serviceAccountName": None,
    "restartPolicy": None,
    "imagePullSecrets": None,
}


def reduced(schema: Any) -> Any:
    if isinstance(schema, list):
        return [reduced(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {
        key: reduced(value)
        for key, value in schema.items()
        if not (key == "description" and isinstance(value, str))
    }
    properties = kept.get("properties")
    if isinstance(properties, dict):
        if "containers" in properties and "volumes" in properties:  # a pod
            kept["properties"] = {
                name: _only(properties[name], fields)
                for name, fields in POD.items()
                if name in properties
            }
        if not kept.get("x-kubernetes-preserve-unknown-fields"):
            kept["additionalProperties"] = False
    return {key: value for key, value in kept.items() if not key.startswith("x-kubernetes-list")}


def _only(schema: dict[str, Any], fields: set[str] | None) -> dict[str, Any]:
    if fields is not None:
        properties = schema["items"]["properties"]
        schema["items"]["properties"] = {
            name: properties[name] for name in sorted(fields) if name in properties
        }
    return schema


def main() -> None:
    found = {}
    for path in sorted(Path(sys.argv[1]).glob("ray.io_ray*.yaml*")):
        text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        definition = yaml.safe_load(text)["spec"]
        version = next(version for version in definition["versions"] if version["name"] == "v1")
        schema = reduced(version["schema"]["openAPIV3Schema"])
        schema["properties"]["metadata"] = {"type": "object"}
        schema["properties"].pop("status", None)
        found[definition["names"]["kind"]] = schema
    print(json.dumps(found, sort_keys=True))


if __name__ == "__main__":
    main()
