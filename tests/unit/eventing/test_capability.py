"""What a model can is read from its files and the engine's arguments; where there is a doubt, it can."""

from collections.abc import Sequence
from typing import Any

import pytest

from eventing.job.capability import Capability, capabilities_of

TEXT: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
PARSER = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
MEDIA = {Capability.IMAGE, Capability.AUDIO, Capability.VIDEO}
EVERYTHING = set(Capability) - {Capability.MODERATE}  # no engine does


@pytest.mark.parametrize(
    ("config", "files", "args", "expected"),
    [
        pytest.param(TEXT, (), (), {Capability.GENERATE}, id="a text model"),
        pytest.param(TEXT, (), PARSER, {Capability.GENERATE, Capability.TOOLS}, id="a parser"),
        pytest.param(
            TEXT,
            (),
            ("--tool-call-parser=hermes",),
            {Capability.GENERATE, Capability.TOOLS},
            id="a parser in one word",
        ),
        pytest.param(
            TEXT | {"model_type": "gpt_oss"},
            (),
            (),
            {Capability.GENERATE, Capability.TOOLS},
            id="a model with a parser of its own",
        ),
        pytest.param(
            {"architectures": ["LlavaForConditionalGeneration"], "vision_config": {}},
            (),
            (),
            EVERYTHING - {Capability.TOOLS},
            id="a model with eyes",
        ),
        pytest.param(
            TEXT | {"img_processor": {}},
            (),
            (),
            {Capability.GENERATE, *MEDIA},
            id="eyes by a field",
        ),
        pytest.param(
            TEXT,
            ("preprocessor_config.json",),
            (),
            {Capability.GENERATE, *MEDIA},
            id="eyes by a file",
        ),
        pytest.param(
            TEXT,
            ("modules.json",),
            (),
            {Capability.GENERATE, Capability.EMBED},
            id="a pooling model",
        ),
        pytest.param(
            TEXT,
            (),
            ("--runner", "pooling"),
            {Capability.GENERATE, Capability.EMBED},
            id="converted",
        ),
        pytest.param(
            {"architectures": ["BertModel"]}, (), (), EVERYTHING - {Capability.TOOLS}, id="no head"
        ),
    ],
)
def test_what_a_model_can(
    config: dict[str, Any], files: Sequence[str], args: Sequence[str], expected: set[Capability]
) -> None:
    assert capabilities_of(config, files, args) == expected


@pytest.mark.parametrize("config", [{}, {"architectures": None}, {"architectures": []}])
def test_a_config_that_says_nothing_says_nothing(config: dict[str, Any]) -> None:
    assert capabilities_of(config, (), ()) is None
