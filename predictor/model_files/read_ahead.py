"""Reads a model's files into the page cache before they are needed.

Called by the vLLM engine as it starts: the weights come from the disk or the network while vLLM is imported, which
takes seconds of one core. Import is fast. It must not fail a start.
"""

from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil  # type: ignore[import-untyped]

_SUFFIXES: Final = frozenset({".safetensors", ".bin", ".gguf", ".json", ".model"})
_PIECE_BYTES: Final = 4 << 20
"""Read at once. Only asked for (`POSIX_FADV_WILLNEED`), a kernel reads about 1 MiB of each piece."""
_MOST_OF_MEMORY: Final = 0.5
"""Of what is available: pages that were read first must be there when the last are."""


def read_ahead(model: str) -> int:
    """Read the files of a model's folder, or a model in one file; the bytes that were read. 0 for a name on a hub, and
    for a model that would fill the memory.
    """
    with suppress(OSError):
        files = [path for path in _files(Path(model)) if path.suffix in _SUFFIXES]
        sizes = {path: path.stat().st_size for path in files}
        if sum(sizes.values()) <= _MOST_OF_MEMORY * psutil.virtual_memory().available:
            return sum(map(_read, sorted(sizes)))
    return 0


def _files(model: Path) -> list[Path]:
    return [model] if model.is_file() else sorted(model.iterdir())


def _read(path: Path) -> int:
    piece, total = bytearray(_PIECE_BYTES), 0
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(piece):
            total += count
    return total
