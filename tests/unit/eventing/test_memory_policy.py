"""What a plan may say of memory."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from eventing.errors import BadRequest
from eventing.settings import StoreSettings
from eventing.store.conversation.policy import MemoryPolicy, memory_policy


def test_what_is_not_said_is_the_default() -> None:
    assert memory_policy({}) == MemoryPolicy()
    assert memory_policy({"recall_k": 0}) == MemoryPolicy(recall_k=0)


@pytest.mark.parametrize(
    "settings",
    [
        {"window_tokens": 0},
        {"window_tokens": "many"},
        {"window_tokens": True},
        {"recall_k": 51},
        {"summarise_every_messages": -1},
        {"k": 5},
    ],
    ids=str,
)
def test_a_wrong_setting_is_named(settings: dict[str, Any]) -> None:
    with pytest.raises(BadRequest) as refused:
        memory_policy(settings)

    assert refused.value.field in settings


def test_a_process_does_not_start_with_it(tmp_path: Path) -> None:
    path = tmp_path / "pipelines.yaml"
    path.write_text("m: {steps: [{step: memory, settings: {recall_k: many}}]}")

    with pytest.raises(ValidationError, match="recall_k must be a whole number from 0 to 50"):
        StoreSettings(pipelines_file=path)
