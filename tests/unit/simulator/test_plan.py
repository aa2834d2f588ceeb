"""The search finds the cheapest policy that keeps the target, and its patch says the same."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from knative.autoscaling.keda.scaledobject import read_scaled_object
from knative.autoscaling.kpa.annotations import read_knative
from knative.autoscaling.setting import RefusedSettingsError
from torpor.simulator.candidate import Candidate, Place, manifest_candidates
from torpor.simulator.engine import EngineModel
from torpor.simulator.engine_file import read_engine
from torpor.simulator.load import Load
from torpor.simulator.plan import Tried, WaitTarget, best, grid, search
from torpor.simulator.report.page import page
from torpor.simulator.workload import Profile, ProfileKind
from torpor.simulator.world import Scenario

ENGINE = EngineModel(20_000.0, ((1, 100.0), (8, 700.0)), max_batch=8)
LOAD = Load(Profile(ProfileKind.STEADY, 400, 0.03, 0.03), seed=1)
SCENARIO = Scenario(ENGINE, horizon_s=600, start_s=30)


# The triggers that a patch leaves as they were rendered.
RENDERED = [
    {
        "type": "redis-streams",
        "name": name,
        "metadata": {"stream": "s", "consumerGroup": "g", count: "8"},
    }
    for name, count in (("lag", "lagCount"), ("pend", "pendingEntriesCount"))
]
WAITS_S = (1, 40, 120)


@pytest.fixture(scope="module")
def searched() -> dict[float, list[Tried]]:
    """Every setting, tried; only our own policy changes with the wait that is asked for."""
    found: dict[float, list[Tried]] = {}
    for wait_s in WAITS_S:
        known = {one.candidate.name: one for one in next(iter(found.values()), [])}
        candidates = [c for c in grid(SCENARIO, WaitTarget(wait_s)) if _is_ours(c) or not known]
        tried = search(SCENARIO, LOAD, candidates, 4.5)
        others = [one for one in known.values() if not _is_ours(one.candidate)]
        found[wait_s] = sorted([*tried, *others], key=lambda one: one.report.cost)
    return found


def _is_ours(candidate: Candidate) -> bool:
    return candidate.name.startswith("work")


@pytest.mark.parametrize("wait_s", WAITS_S)
def test_the_chosen_one_meets_the_target_and_nothing_cheaper_does(
    wait_s: float, searched: dict[float, list[Tried]]
) -> None:
    target, tried = WaitTarget(wait_s), searched[wait_s]
    chosen = best(tried, target)

    assert chosen is not None
    assert chosen.report.wait_s.p95 <= wait_s
    assert not any(o.meets(target) and o.report.cost < chosen.report.cost for o in tried)


def test_more_patience_never_costs_more(searched: dict[float, list[Tried]]) -> None:
    costs = []
    for wait_s, tried in searched.items():
        chosen = best(tried, WaitTarget(wait_s))
        assert chosen is not None
        costs.append(chosen.report.cost)
    assert costs == sorted(costs, reverse=True)


def test_a_warm_parent_is_tried_with_its_own_cold_start() -> None:
    names = {c.name: c.start_s for c in grid(SCENARIO, WaitTarget(30), warm_start_s=5)}
    assert names["work over keda"] == 30
    assert names["work over keda, warm parent"] == 5


def test_every_patch_is_a_manifest_that_reads_back() -> None:
    for candidate in grid(SCENARIO, WaitTarget(30)):
        if candidate.patch is None:
            continue
        document = yaml.safe_load(candidate.patch_text(Place(model="owl")))
        assert document["metadata"]["name"] == "owl"
        if document["kind"] == "ScaledObject":
            document["spec"].setdefault("triggers", RENDERED)
            assert read_scaled_object(document).name == "owl"
        else:
            assert read_knative(document).container_concurrency == 8


def test_policies_come_from_manifests_too(tmp_path: Path) -> None:
    path = tmp_path / "all.yaml"
    patches = [c.patch_text(Place()) for c in grid(SCENARIO, WaitTarget(30)) if c.patch is not None]
    path.write_text("---\n".join([patches[0], patches[-1], "kind: ConfigMap\n"]))
    assert [c.name for c in manifest_candidates([path])] == ["kpa thinker", "keda thinker"]


def test_files_without_scaling_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "none.yaml"
    path.write_text("kind: ConfigMap\n---\nkind: Service\napiVersion: v1\n")
    with pytest.raises(RefusedSettingsError, match=r"none\.yaml"):
        manifest_candidates([path])


def test_an_engine_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "engine.yaml"
    path.write_text("prefill_tokens_per_s: 450\ndecode: {1: 17, 4: 77}\nmax_batch: 4\n")
    assert read_engine(str(path)).batch_rate(4) == 77


@pytest.mark.parametrize("text", ["decode: {1: 17}", "[]", "prefill_tokens_per_s: x"])
def test_an_engine_file_that_says_too_little_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "engine.yaml"
    path.write_text(text)
    with pytest.raises(RefusedSettingsError, match="engine"):
        read_engine(str(path))


def test_the_page_loads_nothing_and_escapes_names() -> None:
    tried = search(SCENARIO, LOAD, list(grid(SCENARIO, WaitTarget(30)))[:2], 4.5)
    now = datetime(2026, 11, 30, 12, 0, tzinfo=UTC)
    html = page("<load>", ["a & b"], [one.report for one in tried], WaitTarget(30), now)
    assert "&lt;load&gt;" in html
    assert "<svg" in html
    assert "<script" not in html
    assert "src=" not in html
