"""Plans: what `pipelines.yaml` may say, and what a record holds."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from eventing.errors import BadRequest, InvalidJob
from eventing.job.pipelines.document import load_pipelines, parse_pipelines
from eventing.job.plan import Hold, OnFailure, Plan, PlannedStep, plan_of_json

DOCUMENT = """
small:
  steps:
    - step: memory
      settings: {window_tokens: 2000}
    - step: semantic-cache
      on_failure: continue
      timeout_ms: 50
      skippable: true
    - audit-note
"""


def test_a_file_holds_one_plan_a_model(tmp_path: Path) -> None:
    (tmp_path / "pipelines.yaml").write_text(DOCUMENT)

    pipelines = load_pipelines(tmp_path / "pipelines.yaml")

    assert list(pipelines) == ["small"]
    memory, cache, note = pipelines["small"].steps
    assert memory == PlannedStep(name="memory", settings={"window_tokens": 2000})
    assert cache == PlannedStep(
        name="semantic-cache", on_failure=OnFailure.CONTINUE, timeout_ms=50, skippable=True
    )
    assert note == PlannedStep(name="audit-note")


def test_an_empty_file_plans_nothing(tmp_path: Path) -> None:
    (tmp_path / "pipelines.yaml").write_text("# nothing yet\n")

    assert load_pipelines(tmp_path / "pipelines.yaml") == {}


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"cannot read pipelines from .*gone\.yaml"):
        load_pipelines(tmp_path / "gone.yaml")


@pytest.mark.parametrize(
    ("document", "field"),
    [
        (["small"], ""),
        ({1: {"steps": ["a"]}}, "1"),
        ({"small": ["a"]}, "small"),
        ({"small": {"steps": ["a"], "step": 1}}, "small.step"),
        ({"small": {}}, "small.steps"),
        ({"small": {"steps": []}}, "small.steps"),
        ({"small": {"steps": "memory"}}, "small.steps"),
        ({"small": {"steps": [f"s{i}" for i in range(17)]}}, "small.steps"),
        ({"small": {"steps": ["a", "a"]}}, "small.steps"),
        ({"small": {"steps": ["retrieve", "memory"]}}, "small.steps"),
        ({"small": {"steps": [3]}}, "small.steps[0]"),
        ({"small": {"steps": ["Memory"]}}, "small.steps[0].step"),
        ({"small": {"steps": [{"settings": {}}]}}, "small.steps[0].step"),
        ({"small": {"steps": [{"step": "a", "setings": {}}]}}, "small.steps[0].setings"),
        ({"small": {"steps": ["a", {"step": "b", "settings": 1}]}}, "small.steps[1].settings"),
        ({"small": {"steps": [{"step": "a", "on_failure": "go"}]}}, "small.steps[0].on_failure"),
        ({"small": {"steps": [{"step": "a", "timeout_ms": -1}]}}, "small.steps[0].timeout_ms"),
        ({"small": {"steps": [{"step": "a", "timeout_ms": True}]}}, "small.steps[0].timeout_ms"),
        ({"small": {"steps": [{"step": "a", "skippable": "yes"}]}}, "small.steps[0].skippable"),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, str) else None,
)
def test_what_can_not_be_meant_is_refused_by_name(document: Any, field: str) -> None:
    with pytest.raises(BadRequest) as refused:
        parse_pipelines(document)

    assert refused.value.field == field


def test_a_step_that_blocks_can_not_be_skipped_when_it_is_down() -> None:
    step = {"step": "moderate-input", "settings": {"mode": "block"}, "on_failure": "continue"}

    with pytest.raises(BadRequest, match="must be wait for a step that blocks"):
        parse_pipelines({"small": {"steps": [step]}})


def plan(*names: str) -> Plan:
    return parse_pipelines({"small": {"steps": list(names)}})["small"]


def test_a_plan_is_what_its_record_says() -> None:
    before = parse_pipelines(
        {"m": {"steps": [{"step": "a", "settings": {"k": 3}, "on_failure": "continue"}, "b"]}}
    )["m"]

    after = plan_of_json(before.to_json())

    assert after == before
    assert after.version == before.version


def test_a_record_of_a_newer_version_is_read_without_its_new_fields() -> None:
    record = orjson.loads(plan("a", "b").to_json())
    record["steps"][0]["colour"] = "blue"
    record["more"] = 1

    assert plan_of_json(orjson.dumps(record)) == plan("a", "b")


def test_the_version_changes_with_every_setting_and_with_the_order() -> None:
    steps: list[list[Any]] = [
        ["a", "b"],
        ["b", "a"],
        ["a"],
        [{"step": "a", "settings": {"k": 1}}, "b"],
        [{"step": "a", "settings": {"k": 2}}, "b"],
        [{"step": "a", "on_failure": "continue"}, "b"],
        [{"step": "a", "timeout_ms": 5}, "b"],
    ]

    versions = {parse_pipelines({"m": {"steps": each}})["m"].version for each in steps}

    assert len(versions) == len(steps)


def test_the_order_of_a_steps_settings_changes_no_version() -> None:
    one, two = (
        parse_pipelines({"m": {"steps": [{"step": "a", "settings": settings}]}})["m"]
        for settings in ({"x": 1, "y": 2}, {"y": 2, "x": 1})
    )

    assert one.version == two.version


def test_a_step_is_followed_by_the_next_one_and_the_last_by_none() -> None:
    assert plan("a", "b").next_after("a") == "b"
    assert plan("a", "b").next_after("b") == ""


def test_only_a_skippable_step_can_be_left_out() -> None:
    steps = [{"step": "a", "skippable": True}, "b"]
    both = parse_pipelines({"m": {"steps": steps}})["m"]
    alone = parse_pipelines({"m": {"steps": steps[:1]}})["m"]

    assert both.without(["a"]) == plan("b")
    assert alone.without(["a"]).steps == ()
    for name in ("b", "c"):
        with pytest.raises(InvalidJob, match="can not be left out"):
            both.without([name])


def test_steps_after_the_predictor_stand_behind_those_before_it() -> None:
    steps = ["retrieve", "mine", "validate-output", "ground", {"step": "own", "after": True}]
    made = parse_pipelines({"m": {"steps": steps}})["m"]

    assert [step.name for step in made.before] == ["retrieve", "mine"]
    assert (made.first, made.first_after) == ("retrieve", "validate-output")
    assert (made.next_after("mine"), made.next_after("ground")) == ("", "own")
    assert plan_of_json(made.to_json()) == made
    for wrong in (["ground", "retrieve"], ["ground", "mine"], ["ground", "validate-output"]):
        with pytest.raises(BadRequest, match=r"steps"):
            parse_pipelines({"m": {"steps": wrong}})
    with pytest.raises(BadRequest, match=r"steps\[0\].after"):
        parse_pipelines({"m": {"steps": [{"step": "route", "after": True}]}})


def test_a_requests_own_step_after_the_predictor_stands_behind_the_others() -> None:
    both = plan("a").with_step(PlannedStep(name="validate-output"))

    assert both.names == ("a", "validate-output")
    assert both.with_step(PlannedStep(name="b")).names == ("b", "a", "validate-output")


@pytest.mark.parametrize(
    ("settings", "held"),
    [
        ({}, Hold.NONE),
        ({"mode": "score"}, Hold.NONE),
        ({"mode": "block"}, Hold.WHOLE),
        ({"mode": "block", "hold": "window"}, Hold.WINDOW),
        ({"mode": "block", "hold": "none"}, Hold.WHOLE),
        ({"repairs": 2}, Hold.WHOLE),
        ({"repairs": 0}, Hold.NONE),
        ({"cascade": ["large"]}, Hold.WHOLE),
    ],
)
def test_a_plan_holds_back_what_a_step_after_the_predictor_may_change(
    settings: dict[str, Any], held: Hold
) -> None:
    made = parse_pipelines({"m": {"steps": ["a", {"step": "ground", "settings": settings}]}})["m"]

    assert made.hold is held
