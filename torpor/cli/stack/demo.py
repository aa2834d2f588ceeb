"""`torpor demo`: one real job from zero to an answer and back to zero, shown as it happens."""

from typing import Annotated

import typer

from torpor.cli.errors import UsageError
from torpor.cli.options import DEFAULT_DATA_DIR, DataDir
from torpor.local.engine_kind import EngineKind


def demo(
    prompt: Annotated[
        str, typer.Option(help="What to ask.")
    ] = "Why do hummingbirds fall into torpor at night?",
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 96,
    engine: Annotated[EngineKind, typer.Option(help="vllm, or the test engine.")] = EngineKind.VLLM,
    data_dir: DataDir = None,
) -> None:
    """Run one job from zero predictors to an answer and back to zero."""
    from torpor.cli.stack.demonstration import show

    if not prompt.strip():
        raise UsageError("--prompt is empty")
    show(prompt, max_tokens, engine, (data_dir or DEFAULT_DATA_DIR) / "demo")
