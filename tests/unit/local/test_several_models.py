"""Several models of one stack: by flags, by a variable, by a file, each with settings of its own."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from torpor.local import manifest
from torpor.local.engine_kind import EngineKind
from torpor.local.settings import StackSettings

FILE = """
models:
  - {name: big, model: smollm2-135m-instruct, max_replicas: 2, engine_args: "--max-model-len 512"}
  - {name: small, model: seeded, container_concurrency: 9}
"""


def test_one_model_needs_no_name() -> None:
    (only,) = StackSettings(model=("some/model",)).each_model()

    assert (only.model, only.model_name) == (("some/model",), "")


def test_several_are_named_and_share_the_rest() -> None:
    settings = StackSettings(model=("a=smollm2-135m-instruct", "b=seeded"), max_replicas=3)

    first, second = settings.each_model()

    assert (first.model_name, first.model, first.engine) == (
        "a",
        ("smollm2-135m-instruct",),
        EngineKind.VLLM,
    )
    assert (second.model_name, second.engine, second.max_replicas) == ("b", EngineKind.SEEDED, 3)


def test_a_variable_names_several_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORPOR_MODEL", "a=seeded,b=seeded")

    assert [one.model_name for one in StackSettings().each_model()] == ["a", "b"]


@pytest.mark.parametrize(
    ("models", "name", "words"),
    [
        (("a=x", "y"), "", "each is given as NAME=MODEL"),
        (("a=x", "a=y"), "", "two models have this name"),
        (("a=x", "b=y"), "c", "--model-name names one model"),
        (("=x", "b=y"), "", "each is given as NAME=MODEL"),
    ],
)
def test_models_that_are_not_told_apart_are_refused(
    models: tuple[str, ...], name: str, words: str
) -> None:
    with pytest.raises(ValidationError, match=words):
        StackSettings(model=models, model_name=name)


def test_a_file_gives_each_model_its_own(tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text(FILE)
    settings = StackSettings(models_file=tmp_path / "models.yaml", container_concurrency=5)

    big, small = settings.each_model()

    assert (big.max_replicas, big.context_tokens, big.container_concurrency) == (2, 512, 5)
    assert (small.max_replicas, small.engine, small.container_concurrency) == (
        1,
        EngineKind.SEEDED,
        9,
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("models: [", "is not YAML"),
        ("model: x", "must hold a list `models`"),
        ("models: []", "must hold a list `models`"),
        ("models: [x]", "model 1 must be a mapping"),
        ("models: [{name: a}]", "model 1 needs a `model`"),
        ("models: [{name: a, model: m, replicas: 2}]", "unknown field replicas"),
        ("models: [{name: a, model: m}, {name: a, model: n}]", "two models have the name a"),
        ("models: [{name: a, model: m, max_replicas: many}]", "model a: max_replicas"),
        ("models: [{name: a, model: m, min_replicas: 2}]", "--min-replicas 2 is over"),
    ],
)
def test_a_file_that_is_wrong_says_where(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "models.yaml").write_text(text)

    with pytest.raises(ValidationError, match=words):
        StackSettings(models_file=tmp_path / "models.yaml")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"cannot read .*absent"):
        StackSettings(models_file=tmp_path / "absent")


def test_each_model_has_a_queue_and_what_no_model_wants_goes_to_the_api() -> None:
    models = {"a": StackSettings(max_replicas=2), "b": StackSettings(max_replicas=3)}

    first, second, strays = manifest.triggers(
        models, activator_url=lambda name: f"http://x/{name}", api_url="http://api/in"
    )

    assert [one["metadata"]["name"] for one in (first, second)] == ["requests-a", "requests-b"]
    assert second["spec"]["subscriber"]["uri"] == "http://x/b"
    assert strays["spec"]["filters"][1:] == [
        {"not": {"exact": {"model": "a"}}},
        {"not": {"exact": {"model": "b"}}},
    ]


@pytest.mark.parametrize(
    ("models", "entry", "is_served"),
    [
        (("a=seeded", "b=seeded"), "b", True),
        (("a=seeded", "b=seeded"), "c", False),
        (("some/model",), "model", True),
        (("some/model",), "some", False),
    ],
)
def test_pipelines_are_of_models_that_are_served(
    tmp_path: Path, models: tuple[str, ...], entry: str, is_served: bool
) -> None:
    file = tmp_path / "pipelines.yaml"
    file.write_text(f"{entry}:\n  cache: {{exact: {{}}}}\n")

    if is_served:
        assert len(StackSettings(model=models, pipelines_file=file).each_model()) == len(models)
        return
    with pytest.raises(ValidationError, match=f"--pipelines-file: pipelines: {entry} is none of"):
        StackSettings(model=models, pipelines_file=file)


def test_a_bound_below_what_the_models_keep_is_refused() -> None:
    two = ("a=seeded", "b=seeded")
    with pytest.raises(ValueError, match="--most-running 1: the models keep 2 predictors at least"):
        StackSettings(model=two, min_replicas=1, most_running=1)
    assert StackSettings(model=two, most_running=1).most_running == 1
