"""The Helm chart: the overlays as kustomize builds them, one of which a release takes.

Called by `render`. Pure. A chart's values can change what no other value follows from: which overlay, and the
images. Everything else is derived (`torpor render --explain`), so it is set in manifests/values.yaml, and the chart is
rendered again. The Namespace is not in it: Helm keeps its release there, so it must be there before.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from knative.deploy.emit import document
from knative.deploy.render.tree import HEADER, OVERLAYS, WHAT_FOR, finished
from knative.deploy.values import Values

IMAGES: Final = ("api", "broker", "predictor", "predictor-cpu")
_SEMANTIC: Final = re.compile(r"\d+\.\d+\.\d+([-+][0-9A-Za-z.+-]+)?\Z")


def files(values: Values) -> dict[str, str]:
    """Every file of the chart by its path under manifests/."""
    found = {
        "chart/Chart.yaml": document(_card(values), header=HEADER),
        "chart/values.yaml": _defaults(values),
        "chart/values.schema.json": json.dumps(_schema(), indent=2) + "\n",
        "chart/templates/torpor.yaml": _template(values),
    }
    for name in OVERLAYS:
        objects = [each for each in finished(name, values) if each["kind"] != "Namespace"]
        found[f"chart/overlays/{name}.yaml"] = document(*objects, header=HEADER)
    return found


def _card(values: Values) -> dict[str, Any]:
    tag = values.images.tag
    return {
        "apiVersion": "v2",
        "name": "torpor",
        "description": "Serverless, scale-to-zero inference for slow-thinking language models.",
        "type": "application",
        "version": tag if _SEMANTIC.match(tag) else "0.0.0",
        "appVersion": tag,
        "kubeVersion": ">=1.30.0-0",
    }


def _defaults(values: Values) -> str:
    told = "\n".join(f"#   {name}: {WHAT_FOR[name]}" for name in OVERLAYS)
    defaults = {
        "overlay": "queue",
        "images": {"repository": values.images.repository, "tag": values.images.tag},
    }
    return document(defaults, header=f"{HEADER}\nOf the overlays:").replace(
        "# Of the overlays:\n", f"# Of the overlays:\n{told}\n"
    )


def _schema() -> dict[str, Any]:
    text = {"type": "string", "minLength": 1}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "additionalProperties": False,
        "required": ["overlay", "images"],
        "properties": {
            "overlay": {"enum": list(OVERLAYS)},
            "images": {
                "type": "object",
                "additionalProperties": False,
                "required": ["repository", "tag"],
                "properties": {"repository": text, "tag": {**text, "not": {"const": "latest"}}},
            },
            "global": {"type": "object"},  # Helm's own
        },
    }


def _template(values: Values) -> str:
    tag = values.images.tag
    sign = "@" if tag.startswith("sha256:") else ":"
    images = " ".join(json.dumps(name) for name in IMAGES)
    refusal = (
        f"these objects are rendered for the namespace {values.namespace}: install with --namespace "
        f"{values.namespace}, or change `namespace` in manifests/values.yaml and run torpor render"
    )
    return f"""# {HEADER}
{{{{- if ne .Release.Namespace "{values.namespace}" }}}}
{{{{- fail "{refusal}" }}}}
{{{{- end }}}}
{{{{- $text := .Files.Get (printf "overlays/%s.yaml" .Values.overlay) }}}}
{{{{- $sign := ternary "@" ":" (hasPrefix "sha256:" .Values.images.tag) }}}}
{{{{- range $image := list {images} }}}}
{{{{- $rendered := printf "{values.images.repository}/%s{sign}{tag}" $image }}}}
{{{{- $wanted := printf "%s/%s%s%s" $.Values.images.repository $image $sign $.Values.images.tag }}}}
{{{{- $text = replace $rendered $wanted $text }}}}
{{{{- end }}}}
{{{{ $text }}}}
"""
