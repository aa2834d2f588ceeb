"""Gets the model ready on disk before anything needs it, and tells the front door what it must know
of it.

Called by the stack. The work is the predictor's (`python -m predictor.model_files.weights`), run as a process:
nothing of vLLM is imported here.
"""

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson

from torpor.local.child import child_env, die_with_parent, python_module
from torpor.local.errors import StackError

_CONTEXT_ON_A_LAPTOP: Final = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model by the name in requests; `folder` is None for one the engine finds itself."""

    name: str
    folder: Path | None = None
    tokenizer_file: Path | None = None
    context_tokens: int = _CONTEXT_ON_A_LAPTOP


async def prepare_model(name: str, cache_dir: Path, report: Callable[[str], None]) -> Model:
    """The model, converted if it must be; `report` gets each line of progress. The conversion ends
    with whoever waits for it.
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
    return _described(name, Path(place))


def _require_folder(name: str) -> None:
    """Raises `StackError` for a path that leads nowhere; the engine would try it for ever."""
    if name.startswith(("/", ".")) and not Path(name).is_dir():
        raise StackError(f"there is no folder {name} with a model; name another with --model")


async def _heard(
    process: asyncio.subprocess.Process, report: Callable[[str], None]
) -> tuple[str, list[str]]:
    """What it printed, and what it said meanwhile, once it has ended."""
    assert process.stderr is not None  # noqa: S101
    assert process.stdout is not None  # noqa: S101
    said: list[str] = []
    async for line in process.stderr:
        said.append(line.decode(errors="replace").rstrip())
        report(said[-1])
    place = (await process.stdout.read()).decode().strip()
    await process.wait()
    return place, said


def _described(name: str, folder: Path) -> Model:
    """What the folder says of itself; a name that is no folder is the engine's to find."""
    if not folder.is_dir():
        return Model(name=name)
    context = _CONTEXT_ON_A_LAPTOP
    with suppress(OSError, orjson.JSONDecodeError, KeyError):
        config = orjson.loads((folder / "config.json").read_bytes())
        context = min(int(config["max_position_embeddings"]), _CONTEXT_ON_A_LAPTOP)
    tokenizer = folder / "tokenizer.json"
    return Model(
        name=name if "/" not in name else folder.name,
        folder=folder.resolve(),
        tokenizer_file=tokenizer.resolve() if tokenizer.exists() else None,
        context_tokens=context,
    )
