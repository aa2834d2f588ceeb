"""The Grafana dashboard: its panels laid out, as Grafana imports it. Pure.

Called by `python -m knative.monitoring`, by the renderer, and by the test that runs every query on a real
Prometheus.
"""

import re
from collections.abc import Sequence
from typing import Any, Final

from knative.monitoring import query
from knative.monitoring.panel import Panel
from knative.monitoring.row import ROWS

_WIDTH, _HEIGHT = 8, 7
_SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it; its data source is asked for."""
    source = {"name": "datasource", "type": "datasource", "query": "prometheus"}
    model = {
        "name": "model",
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": "label_values(torpor_queue_depth, model)", "refId": "model"},
        "includeAll": True,
        "multi": True,
        "allValue": ".+",
        "refresh": 2,
        "sort": 1,
    }
    return {
        "uid": "torpor",
        "title": "Torpor",
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [source, model]},
        "annotations": {
            "list": [
                _marks("Alerts", "red", 'ALERTS{alertname=~"Torpor.+",alertstate="firing"}'),
                _marks("Cold starts", "blue", _of_model(f"{query.WAKING} > 0")),
            ]
        },
        "panels": _laid_out(),
    }


def queries() -> list[str]:
    """Every query on it, for all models."""
    asked = [text for _, panels in ROWS for panel in panels for text, _ in panel.queries]
    return [_of_model(text).replace("$model", ".+") for text in asked]


def _of_model(text: str) -> str:
    """The query for the models that are chosen above the panels, where it tells models apart."""

    def chosen(found: re.Match[str]) -> str:
        matchers = [each for each in (found[2], 'model=~"$model"') if each]
        return f"{found[1]}{{{','.join(matchers)}}}"

    return re.sub(r"(torpor_\w+)(?:\{([^}]*)\})?", chosen, text) if "model" in text else text


def _marks(name: str, color: str, text: str) -> dict[str, Any]:
    """An annotation: marks on every panel where `text` has a value."""
    return {
        "name": name,
        "enable": True,
        "datasource": _SOURCE,
        "iconColor": color,
        "expr": text,
        "titleFormat": "{{alertname}} {{model}}",
    }


def _laid_out() -> list[dict[str, Any]]:
    placed: list[dict[str, Any]] = []
    y = 0
    for title, panels in ROWS:
        grid = {"h": 1, "w": 24, "x": 0, "y": y}
        placed.append({"id": len(placed) + 1, "type": "row", "title": title, "gridPos": grid})
        y += 1
        width, height = (4, 4) if panels[0].is_stat else (_WIDTH, _HEIGHT)
        in_a_row = 24 // width
        for number, panel in enumerate(panels):
            at = {"x": width * (number % in_a_row), "y": y + height * (number // in_a_row)}
            placed.append(_graph(len(placed) + 1, panel, {"h": height, "w": width, **at}))
        y += height * (-(-len(panels) // in_a_row))
    return placed


def _graph(number: int, panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    return {
        "id": number,
        "type": "stat" if panel.is_stat else "timeseries",
        "title": panel.title,
        "description": panel.tells,
        "gridPos": place,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": _targets(panel.queries),
    }


def _targets(asked: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    return [
        {"refId": chr(65 + index), "expr": _of_model(text), "legendFormat": legend}
        for index, (text, legend) in enumerate(asked)
    ]
