"""Rules of the steps before the predictor, and of the tools that they call: that each has a queue, fits the deadline,
and lets nothing through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import yaml
from yarl import URL

from eventing.cloudevent.tool_event import CALLED
from eventing.errors import BadRequest
from eventing.job.cache.cache import parse_cache_rules
from eventing.job.pipelines.audit import (
    AuditRules,
    check_critics,
    parse_audit_rules,
    same_family_warnings,
)
from eventing.job.pipelines.document import parse_pipelines
from eventing.job.pipelines.fallback import Fallbacks, parse_fallbacks
from eventing.job.plan import Pipelines
from eventing.job.tools.call import EffectClass
from eventing.job.tools.document import parse_tools
from eventing.job.tools.server import DEFAULT_TIMEOUT_MS, NO_TOOLS, ToolConfig
from eventing.process.address import is_inside
from knative.deploy.doctor.finding import Fault, Hop, Register, Severity, fault
from knative.deploy.doctor.rules.trigger import queues_read
from knative.deploy.doctor.view import DeliverySpec, ResourceView, dig, number, variable
from knative.deploy.emit import Resource
from knative.deploy.render import parts
from knative.deploy.render.steps import CALLER_URL
from knative.deploy.render.tools import config as tools

register = Register()
PIPELINES = "torpor-pipelines"
_FILE = "data.pipelines.yaml"
_TOOLS_FILE = "data.tools.yaml"
_Entry = TypeVar("_Entry")


def plans_of(view: ResourceView) -> Pipelines:
    """Give the plans that can be read; a file that cannot be is a fault of `steps-block`."""
    return _read(view, parse_pipelines)


def fallbacks_of(view: ResourceView) -> Fallbacks:
    """Give the models that stand in for others; those that cannot be read are a fault of `steps-block`."""
    return _read(view, parse_fallbacks)


def _read(
    view: ResourceView, parse: Callable[[object], Mapping[str, _Entry]]
) -> Mapping[str, _Entry]:
    try:
        return parse(_document(view))
    except (BadRequest, yaml.YAMLError):
        return {}


def _document(view: ResourceView) -> object:
    return yaml.safe_load(str((view.config(PIPELINES) or {}).get("pipelines.yaml", "")))


def _step_triggers(view: ResourceView) -> dict[str, Resource]:
    """The triggers of steps, by the step that they take."""
    return _taken(view, parts.PLANNED, "step")


def _taken(view: ResourceView, type_: str, attribute: str) -> dict[str, Resource]:
    """The triggers of one type of event, by the value of an attribute that each takes."""
    found = {}
    for trigger in view.all_triggers:
        wanted = dict(dig(trigger, "spec.filter.attributes") or {})
        for listed in dig(trigger, "spec.filters") or []:
            wanted |= dict(listed.get("exact") or {})
        if wanted.get("type") == type_ and wanted.get(attribute):
            found[str(wanted[attribute])] = trigger
    return found


def _longest_s(delivery: DeliverySpec) -> float:
    """How long all tries of a step can work together."""
    retries = int(number(delivery.spec.get("retry")) or 0)
    return (retries + 1) * (delivery.timeout_s or 0)


@register.rule(
    "steps-block",
    Hop.DELIVERY,
    why="A check that may block and is skipped when it is down lets everything through; and a file "
    "that api and steps refuse keeps them from starting.",
    source="docs/pipelines.md",
)
def steps_block(view: ResourceView) -> Iterator[Fault]:
    file = view.named("ConfigMap", PIPELINES, "v1")
    if file is None:
        return
    try:
        parse_pipelines(_document(view))
        parse_cache_rules(_document(view))
        parse_audit_rules(_document(view))
        parse_fallbacks(_document(view))
    except BadRequest as error:
        yield fault(file, _FILE, error.field or "unreadable", error.message)
    except yaml.YAMLError:
        yield fault(file, _FILE, "not YAML", "one entry a model")


@register.rule(
    "audit-critic",
    Hop.PREDICTOR,
    why="Audits of a critic that is not there wait for ever; one of the judged model's family misses the mistakes "
    "that it would make itself.",
    source="docs/audits.md",
)
def audit_critic(view: ResourceView) -> Iterator[Fault]:
    file, rules = view.named("ConfigMap", PIPELINES, "v1"), _audits(view)
    if file is None or not rules:
        return
    served = {predictor["metadata"]["name"] for predictor in view.predictors}
    try:
        check_critics(rules, served or {rule.critic for rule in rules.values()})
    except BadRequest as error:
        yield fault(file, _FILE, error.field or "critic", error.message)
    for said in same_family_warnings(rules):
        yield fault(file, f"{_FILE}: audit", said, "a critic of another family", Severity.WARNING)


def _audits(view: ResourceView) -> AuditRules:
    """The rules of audits that can be read; a file that cannot be is a fault of `steps-block`."""
    return _read(view, parse_audit_rules)


@register.rule(
    "steps-trigger",
    Hop.DELIVERY,
    why="A job whose next step no trigger takes is refused, and one that is under way waits for "
    "ever.",
    source="docs/adr/0210",
)
def steps_trigger(view: ResourceView) -> Iterator[Fault]:
    file, taken = view.named("ConfigMap", PIPELINES, "v1"), _step_triggers(view)
    for model, plan in plans_of(view).items():
        for name in plan.names:
            if file is not None and name not in taken:
                yield fault(file, f"{_FILE}: {model}", name, "a step that a Trigger takes")


@register.rule(
    "steps-timeout",
    Hop.DELIVERY,
    why="A step that fails in every try, each as long as it may be, must leave the job its time: "
    "else the deadline ends it, and its dead letter does not say why.",
    source="docs/pipelines.md",
)
def steps_timeout(view: ResourceView) -> Iterator[Fault]:
    taken = _step_triggers(view)
    longest = {name: _longest_s(view.delivery(each)) for name, each in taken.items()}
    for name, trigger in taken.items():
        if longest[name] > view.job_s:
            shown = f"{longest[name]:.0f} s in all tries"
            yield fault(trigger, "spec.delivery.timeout", shown, f"at most {view.job_s} s")
    for model, plan in plans_of(view).items():
        whole = sum(longest.get(name, 0) for name in plan.names)
        file = view.named("ConfigMap", PIPELINES, "v1")
        is_told = any(longest.get(name, 0) > view.job_s for name in plan.names)
        if file is not None and whole > view.job_s and not is_told:
            shown = f"{whole:.0f} s in all tries of its steps"
            yield fault(file, f"{_FILE}: {model}", shown, f"at most {view.job_s} s")


@register.rule(
    "tools-block",
    Hop.DELIVERY,
    why="A file of tools that api and steps refuse keeps them from starting; plain HTTP to a server outside the "
    "cluster shows its key to everyone on the way.",
    source="docs/tools.md",
)
def tools_block(view: ResourceView) -> Iterator[Fault]:
    file = view.named("ConfigMap", tools.CONFIG, "v1")
    if file is None:
        return
    try:
        config = parse_tools(_tools_document(view))
    except BadRequest as error:
        yield fault(file, _TOOLS_FILE, error.field or "unreadable", error.message)
    except yaml.YAMLError:
        yield fault(file, _TOOLS_FILE, "not YAML", "servers by label")
    else:
        for label, server in config.servers.items():
            url = URL(server.url)
            if url.scheme == "http" and not is_inside(url.host or ""):
                where = f"{_TOOLS_FILE}: servers.{label}.url"
                yield fault(file, where, server.url, "https, or a host inside the cluster")


@register.rule(
    "tools-trigger",
    Hop.DELIVERY,
    why="A call that no trigger takes can not be queued: its job waits until its deadline.",
    source="docs/tools.md",
)
def tools_trigger(view: ResourceView) -> Iterator[Fault]:
    file = view.named("ConfigMap", tools.CONFIG, "v1")
    if file is None:
        return
    taken = _taken(view, CALLED, "toolserver")
    for label in _tool_config(view).queues:
        if label not in taken:
            yield fault(file, f"{_TOOLS_FILE}: servers", label, "a server that a Trigger takes")


@register.rule(
    "tools-timeout",
    Hop.DELIVERY,
    why="A delivery that ends before its call leaves the call in doubt: one that must not be sent twice then waits "
    "for a person.",
    source="docs/tools.md",
)
def tools_timeout(view: ResourceView) -> Iterator[Fault]:
    config, file = _tool_config(view), view.named("ConfigMap", tools.CONFIG, "v1")
    taken, queues = _taken(view, CALLED, "toolserver"), config.queues
    for label, server in config.servers.items():
        if file and server.timeout_ms > max(view.job_s * 1000, DEFAULT_TIMEOUT_MS):
            where = f"{_TOOLS_FILE}: servers.{label}.timeout_ms"
            must = f"at most the longest job, {view.job_s} s"
            yield fault(file, where, server.timeout_ms, must, Severity.WARNING)
    for label, trigger in taken.items():
        delivery, longest_s = view.delivery(trigger), queues.get(label, 0) / 1000
        if (delivery.timeout_s or 0) < longest_s:
            shown = f"{delivery.timeout_s or 0:.0f} s"
            yield fault(trigger, "spec.delivery.timeout", shown, f"more than {longest_s:.0f} s")


@register.rule(
    "tools-queue",
    Hop.SCALER,
    why="Calls of a tool wait in a queue of its server's: one that no pump takes from, or at zero no scaler reads, "
    "keeps them until their jobs are late.",
    source="docs/tools.md",
)
def tools_queue(view: ResourceView) -> Iterator[Fault]:
    broker = view.named("Deployment", parts.BROKER)
    pumped = _pumped(broker) if broker else set()
    for label, trigger in _taken(view, CALLED, "toolserver").items():
        if trigger not in view.own_triggers:
            continue
        name = str(trigger["metadata"]["name"])
        if dig(trigger, "spec.subscriber.uri") != CALLER_URL:
            if broker and pumped and name not in pumped:
                yield fault(broker, "env TORPOR_TRIGGER", ",".join(sorted(pumped)), f"with {name}")
            continue
        tool = view.deployed_tools.get(label)
        if tool is None or name not in _pumped(tool):
            yield fault(trigger, "pump", None, f"a tool's pod whose pump has TORPOR_TRIGGER {name}")
        elif name not in _counted(view, label):
            yield fault(trigger, "scaler", None, f"a ScaledObject on it that reads {name}")


def _pumped(workload: Resource) -> set[str]:
    """The queues that its pods pump."""
    boxes = dig(workload, "spec.template.spec.containers") or []
    named = [str(variable(box, "TORPOR_TRIGGER") or "") for box in boxes]
    return {name for text in named for name in text.split(",") if name}


def _counted(view: ResourceView, label: str) -> set[str]:
    """The queues that the scalers of a tool read."""
    return {
        queue
        for scaled in view.scaled_objects
        if view.scales_tool(scaled) == label
        for trigger in dig(scaled, "spec.triggers") or []
        for queue in queues_read(trigger.get("metadata") or {})
    }


@register.rule(
    "tools-grace",
    Hop.DELIVERY,
    why="A scale-in ends any of the pods, also one with a call: cut off, the call is made again under the same key, "
    "and one that may happen once waits for a person.",
    source="docs/tools.md",
)
def tools_grace(view: ResourceView) -> Iterator[Fault]:
    path = "spec.template.spec.terminationGracePeriodSeconds"
    servers = _tool_config(view).servers
    for label, tool in view.deployed_tools.items():
        if (server := servers.get(label)) is None:
            continue
        found = dig(tool, path)
        grace_s = number(found) if found is not None else 30
        if (grace_s or 0) < (longest_s := server.timeout_ms / 1000):
            is_once = EffectClass.ONCE in (server.effect, *server.effects.values())
            severity = Severity.ERROR if is_once else Severity.WARNING
            yield fault(tool, path, found, f"more than {longest_s:.0f}", severity)


def _tool_config(view: ResourceView) -> ToolConfig:
    """The tools that can be read; a file that cannot be is a fault of `tools-block`."""
    try:
        return parse_tools(_tools_document(view))
    except (BadRequest, yaml.YAMLError):
        return NO_TOOLS


def _tools_document(view: ResourceView) -> object:
    return yaml.safe_load(str((view.config(tools.CONFIG) or {}).get("tools.yaml", "")))
