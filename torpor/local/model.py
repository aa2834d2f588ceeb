"""Prepares the model's files before the stack starts, and describes the model to the api.

Called by the stack. The predictor does the work (`python -m predictor.model_files.weights`), as a process of its
own: nothing of vLLM is imported here.
"""

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from eventing.job.capability import capabilities_of
from torpor.local.child import child_env, die_with_parent, python_module
from torpor.local.errors import StackError

CONTEXT_TOKENS: Final = 2048
"""The default context length, for a laptop."""
PROVIDER_TOKENS: Final = 131_072
"""The default context length of a provider's model."""
_WEIGHTS: Final = ("*.safetensors", "*.bin", "*.gguf", "*.pt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model by its name in requests; `folder` is None for one that the engine finds itself, by its `source`."""

    name: str
    source: str = ""
    folder: Path | None = None
    tokenizer_file: Path | None = None
    context_tokens: int = CONTEXT_TOKENS
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def location(self) -> str:
        """What the engine loads."""
        return str(self.folder or self.source or self.name)

    def card(self, engine_args: Sequence[str]) -> dict[str, Any]:
        """The model card for the api, when an engine with these arguments serves it."""
        card: dict[str, Any] = {"name": self.name, "context_tokens": self.context_tokens}
        if self.tokenizer_file is not None:
            card["tokenizer_file"] = str(self.tokenizer_file)
        files = [path.name for path in self.folder.iterdir()] if self.folder is not None else []
        if (found := capabilities_of(self.config, files, engine_args)) is not None:
            card["capabilities"] = sorted(found)
        return card


async def prepare_model(
    name: str, cache_dir: Path, report: Callable[[str], None], *, context_tokens: int | None = None
) -> Model:
    """The model, converted if necessary; `report` gets each line of progress. The conversion ends when this is
    cancelled. Raises `StackError` for a model that no engine could load.
    """
    _require_folder(name)
    argv = python_module(
        "predictor.model_files.weights", "--model", name, "--cache-dir", str(cache_dir)
    )
    process = await asyncio.create_subprocess_exec(
        *argv,
        env=child_env(os.environ),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        preexec_fn=die_with_parent,
        start_new_session=True,  # Ctrl-C is for us; a traceback of its own would be all one saw
    )
    try:
        place, said = await _heard(process, report)
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode != 0:
        raise StackError(f"the model {name} cannot be had: {' '.join(said[-3:])}")
    return _described(name, Path(place), context_tokens)


def _require_folder(name: str) -> None:
    """Raises `StackError` for a path that does not exist or contains no model."""
    folder = Path(name)
    if name.startswith(("/", ".")) and not folder.exists():
        raise StackError(f"there is no folder {name} with a model; name another with --model")
    if not folder.is_dir():
        return
    if not (folder / "config.json").is_file():
        raise StackError(f"the folder {name} holds no model: it has no config.json")
    if not any(found for form in _WEIGHTS for found in folder.glob(form)):
        raise StackError(f"the folder {name} holds no weights ({', '.join(_WEIGHTS)})")


async def _heard(
    process: asyncio.subprocess.Process, report: Callable[[str], None]
) -> tuple[str, list[str]]:
    """The process's output, with its progress reported meanwhile, once it has ended."""
    assert process.stderr is not None  # noqa: S101
    assert process.stdout is not None  # noqa: S101
    said: list[str] = []
    async for line in process.stderr:
        said.append(line.decode(errors="replace").rstrip())
        report(said[-1])
    place = (await process.stdout.read()).decode().strip()
    await process.wait()
    return place, said


def _described(name: str, folder: Path, wanted: int | None) -> Model:
    """The model's own description of itself; a name that is not a folder is left to the engine. Raises `StackError`
    when the requested context is longer than the model's.
    """
    context = wanted or CONTEXT_TOKENS
    if not folder.is_dir():
        return Model(name=name, source=name, context_tokens=context)
    config: dict[str, Any] = {}
    with suppress(OSError, orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        config = orjson.loads((folder / "config.json").read_bytes())
        most = int(config["max_position_embeddings"])
        if wanted is not None and wanted > most:
            raise StackError(f"--max-model-len {wanted} is over the {most} tokens of {name}")
        context = min(context, most)
    tokenizer = folder / "tokenizer.json"
    return Model(
        name=name if "/" not in name else folder.name,
        folder=folder.resolve(),
        tokenizer_file=tokenizer.resolve() if tokenizer.exists() else None,
        context_tokens=context,
        config=config,
    )
