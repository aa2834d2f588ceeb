"""What `torpor simulate` and `torpor plan` do, as plain functions.

Called by `torpor/cli/simulate.py`. It must not know the command line's library.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from eventing.telemetry.cost import TokenPrice
from knative.autoscaling.setting import Refusal, RefusedSettingsError
from torpor.simulator.candidate import (
    Candidate,
    fixed_candidate,
    keda_candidate,
    kpa_candidate,
    manifest_candidates,
    work_candidate,
)
from torpor.simulator.cluster import NodeModel
from torpor.simulator.engine_file import read_engine
from torpor.simulator.load import Load
from torpor.simulator.plan import (
    Mixed,
    Tried,
    WaitTarget,
    fallbacks,
    grid,
    run,
    search,
    tiers,
)
from torpor.simulator.report.report import SimulationReport
from torpor.simulator.trace import Trace
from torpor.simulator.workload import Profile, ProfileKind
from torpor.simulator.world import Scenario

POLICIES = ("kpa", "keda", "work")


@dataclass(frozen=True, slots=True)
class Settings:
    """All that both commands ask for, already parsed; times in seconds.

    Of `trace` and `profile` exactly one is set.
    """

    trace: Path | None = None
    profile: ProfileKind | None = None
    minutes: float = 60.0
    base_per_s: float = 0.1
    peak_per_s: float = 2.0
    share: int = 1
    hours: float | None = None
    seed: int = 0
    engine: str = "gpu-assumed"
    concurrency: int = 16
    cold_start_s: float = 30.0
    provision_s: float = 0.0
    warm_nodes: int = 0
    gpus_per_node: int = 1
    timeout_s: float | None = None
    preemptions_per_hour: float = 0.0
    tail_s: float = 600.0
    gpu_price: float = 4.5
    p95_wait_s: float = 60.0
    policies: tuple[str, ...] = field(default=("kpa",))
    manifests: tuple[Path, ...] = ()


def load_of(settings: Settings) -> Load:
    """The requests that the settings name; raises RefusedSettingsError unless it is exactly one."""
    if (settings.trace is None) == (settings.profile is None):
        refusal = Refusal("--trace, --profile", "both or none", "exactly one of them")
        raise RefusedSettingsError((refusal,))
    if settings.trace is not None:
        trace = Trace(settings.trace, settings.share, settings.seed, settings.hours)
        return Load(trace, settings.seed)
    profile = Profile(
        ProfileKind(settings.profile or ProfileKind.STEADY),
        settings.minutes * 60,
        settings.base_per_s,
        settings.peak_per_s,
    )
    return Load(profile, settings.seed)


def scenario_of(settings: Settings, load: Load) -> Scenario:
    """The world that the settings describe."""
    return Scenario(
        engine=read_engine(settings.engine),
        horizon_s=load.span_s + settings.tail_s,
        start_s=settings.cold_start_s,
        nodes=NodeModel(
            provision_s=settings.provision_s,
            gpus_per_node=settings.gpus_per_node,
            warm_nodes=settings.warm_nodes,
        ),
        container_concurrency=settings.concurrency,
        timeout_s=settings.timeout_s,
        preemptions_per_hour=settings.preemptions_per_hour,
        seed=settings.seed,
    )


def candidates_of(settings: Settings, scenario: Scenario) -> list[Candidate]:
    """The manifests' policies, else the named ones with their defaults."""
    if settings.manifests:
        return manifest_candidates(settings.manifests)
    return [_named(name, settings, scenario) for name in settings.policies]


def simulate_all(settings: Settings) -> tuple[Load, Scenario, list[SimulationReport]]:
    """One report per policy over the same requests."""
    load = load_of(settings)
    scenario = scenario_of(settings, load)
    candidates = candidates_of(settings, scenario)
    reports = [run(scenario, load, candidate, settings.gpu_price) for candidate in candidates]
    return load, scenario, reports


def plan_all(
    settings: Settings,
    warm_start_s: float | None,
    on_progress: Callable[[Tried], None] | None = None,
) -> list[Tried]:
    """Every setting worth trying, the cheapest first."""
    load = load_of(settings)
    scenario = scenario_of(settings, load)
    target = WaitTarget(settings.p95_wait_s)
    candidates = grid(scenario, target, warm_start_s=warm_start_s, is_safe=True)
    return search(scenario, load, candidates, settings.gpu_price, on_progress=on_progress)


def cache_note(settings: Settings, chosen: Candidate, cost: float, ttl_s: float) -> str:
    """What an exact cache would save under the chosen setting; empty when the load does not say which requests are
    equal.
    """
    load = load_of(settings)
    savings = load.savings(ttl_s)
    if savings is None:
        return ""
    cached = replace(load, cache_ttl_s=ttl_s)
    scenario = scenario_of(settings, load)
    less = run(scenario, cached, chosen, settings.gpu_price).cost
    return f"{savings.text}: cost {cost:.3f} becomes {less:.3f}"


def prefix_note(settings: Settings) -> str:
    """How much of the prompts an engine would have in its cache; empty when the load has no hashes of their blocks."""
    found = load_of(settings).cached_prefixes()
    if found is None:
        return ""
    cached, every = found
    seconds = cached / read_engine(settings.engine).prefill_tokens_per_s
    return (
        f"prompts begin as earlier ones did: {cached:,} of {every:,} prompt tokens ({100 * cached / every:.1f} %) are "
        f"cached at most, {seconds:.1f} GPU-seconds of reading; the policies above read all"
    )


def tier_note(settings: Settings, chosen: Tried, tokens: TokenPrice) -> str:
    """What the cheapest tier by length of the prompt would cost that keeps the wait; what all costs at the provider."""
    load = load_of(settings)
    scenario, target = scenario_of(settings, load), WaitTarget(settings.p95_wait_s)
    every = load.beyond(-1)  # also prompts without a token
    theirs = tokens.of(every.prompt_tokens, every.output_tokens)
    alone = f"all {every.requests:,} requests cost {chosen.report.cost:.3f} here, {theirs:.3f} at the provider"
    mixed = tiers(scenario, load, chosen.candidate, settings.gpu_price, tokens)
    kept = [each for each in mixed if target.is_met_by(each.tried.report)]
    if not kept or kept[0].cost >= min(chosen.report.cost, theirs):
        return f"{alone}; no tier by the length of the prompt costs less"
    best = kept[0]
    return f"{alone}; prompts above {best.most_prompt_tokens:,} tokens to the provider: {_shared(best, every.requests)}"


def fallback_note(
    settings: Settings, tried: Sequence[Tried], chosen: Tried, tokens: TokenPrice, after_s: float
) -> str:
    """What the cheapest setting would cost if a provider answered what has waited for so long."""
    load = load_of(settings)
    scenario, target = scenario_of(settings, load), WaitTarget(settings.p95_wait_s)
    candidates = [one.candidate for one in tried]
    mixed = fallbacks(scenario, load, candidates, settings.gpu_price, tokens, after_s)
    best = next((each for each in mixed if target.is_met_by(each.tried.report)), None)
    asked = f"a fallback after {after_s:g} s"
    if best is None or best.cost >= chosen.report.cost:
        return f"{asked} costs no less than {chosen.report.cost:.3f}"
    name, total = best.tried.candidate.name, best.tried.report.requests
    return f"{asked}, with {name}: {_shared(best, total)} instead of {chosen.report.cost:.3f}"


def _shared(mixed: Mixed, requests: int) -> str:
    share = 100 * mixed.theirs.requests / max(requests, 1)
    wait_s = mixed.tried.report.wait_s.p95
    return (
        f"it answers {mixed.theirs.requests:,} ({share:.1f} %), p95 wait {wait_s:.1f} s, cost {mixed.cost:.3f} "
        f"({mixed.tried.report.cost:.3f} here and {mixed.provider_cost:.3f} there)"
    )


def notes(load: Load, scenario: Scenario, settings: Settings) -> Sequence[str]:
    """What was assumed, for the page and the table."""
    engine = scenario.engine
    return (
        f"Load: {load.title}",
        f"Engine: {settings.engine} ({engine.source or 'as given'}), {scenario.slots} at once",
        f"Cold start {scenario.start_s:g} s, node {scenario.nodes.provision_s:g} s, "
        f"price {settings.gpu_price:g} per GPU-hour",
        "Quantiles are right within half a percent; the activator is always in the path.",
    )


def _named(name: str, settings: Settings, scenario: Scenario) -> Candidate:
    slots = scenario.slots
    if name == "kpa":
        return kpa_candidate("kpa, defaults", {}, settings.concurrency)
    if name == "keda":
        return keda_candidate("keda, defaults", {}, slots)
    if name == "work":
        return work_candidate(
            "work",
            scenario.engine,
            slots,
            start_s=scenario.start_s,
            p95_wait_s=settings.p95_wait_s,
        )
    if name.startswith("fixed:") and name.removeprefix("fixed:").isdigit():
        return fixed_candidate(int(name.removeprefix("fixed:")))
    allowed = f"{', '.join(POLICIES)}, fixed:N, or --manifest FILE"
    raise RefusedSettingsError((Refusal("--policy", name, allowed),))
