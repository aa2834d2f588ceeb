"""Rules of Knative's autoscaler."""

from __future__ import annotations

from knative.autoscaling.kpa.annotations import read_knative
from knative.autoscaling.kpa.autoscaler_config import AutoscalerConfig
from knative.deploy.doctor.field import at, at_least, field_rule, note, one_of, readable_rule
from knative.deploy.doctor.finding import Hop, Register, Severity
from knative.deploy.doctor.view import (
    ResourceView,
    go_seconds,
)

register = Register()
_KPA = "autoscaling.knative.dev/"


register.rule(
    "scale-to-zero-enabled",
    Hop.SCALER,
    why="With enable-scale-to-zero off, the last GPU never sleeps.",
    source="docs/facts.md 3.3 autoscaler.yaml",
)(
    field_rule(
        lambda view: [
            c for c in view.of("ConfigMap", "v1") if c["metadata"]["name"] == "config-autoscaler"
        ],
        at("data.enable-scale-to-zero"),
        one_of(None, "true"),
    )
)


register.rule(
    "knative-settings",
    Hop.SCALER,
    why="Knative's webhook refuses the value, or the name is not one that anything reads.",
    source="docs/facts.md 3.3 (annotation_validation.go)",
)(
    readable_rule(
        lambda view: [*view.in_knative_mode(), *view.knative_services],
        # Whether the cluster allows it is a rule of its own (`initial-scale`).
        lambda found: read_knative(found, AutoscalerConfig(allow_zero_initial_scale=True)),
    )
)


register.rule(
    "kpa-class",
    Hop.SCALER,
    why="The HPA class cannot reach zero and cannot see concurrency.",
    source="docs/facts.md 3.3",
)(
    field_rule(
        ResourceView.in_knative_mode,
        note(f"{_KPA}class"),
        one_of(None, "kpa.autoscaling.knative.dev"),
    )
)


register.rule(
    "kpa-window",
    Hop.SCALER,
    why="A window shorter than a wake ends pods that will be woken again at a higher price.",
    source="docs/facts.md 3.3 (last pod goes after a full window without traffic)",
)(
    field_rule(
        ResourceView.in_knative_mode,
        note(f"{_KPA}window"),
        at_least(lambda view: min(view.cold_start_s, 3600), unset=60, unit=go_seconds, suffix="s"),
        Severity.WARNING,
    )
)
