"""A model's files are asked for before vLLM needs them."""

import ctypes
import mmap
import os
from pathlib import Path
from types import SimpleNamespace

import psutil  # type: ignore[import-untyped]
import pytest

from predictor.model_files.read_ahead import read_ahead

PAGES = 8192


def resident(path: Path) -> int:
    """How many pages of a file are in the page cache."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        size = len(mapped)
        states = (ctypes.c_ubyte * (size // mmap.PAGESIZE))()
        first = ctypes.c_char.from_buffer(mapped)
        address = ctypes.c_void_p(ctypes.addressof(first))
        libc = ctypes.CDLL(None, use_errno=True)
        found = libc.mincore(address, ctypes.c_size_t(size), states)
        del first
        assert found == 0, os.strerror(ctypes.get_errno())
        return sum(state & 1 for state in states)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("model.safetensors", "notes.md"):
        with (folder / name).open("wb") as file:
            file.write(b"x" * mmap.PAGESIZE * PAGES)
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if resident(folder / "model.safetensors") > PAGES // 2:
        pytest.skip("this file system keeps its pages in memory")
    return folder


def test_weights_are_in_memory_then_and_other_files_are_left(model: Path) -> None:
    assert read_ahead(str(model)) == mmap.PAGESIZE * PAGES
    assert resident(model / "model.safetensors") > 0.9 * PAGES  # under pressure some go again
    assert resident(model / "notes.md") < PAGES // 2


def test_a_model_that_would_fill_the_memory_is_not_read(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    little = SimpleNamespace(available=mmap.PAGESIZE * PAGES)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: little)
    assert read_ahead(str(model)) == 0
    assert resident(model / "model.safetensors") < PAGES // 2


def test_a_name_on_a_hub_and_an_unreadable_folder_are_no_failure(tmp_path: Path) -> None:
    assert read_ahead("organisation/model") == 0
    assert read_ahead(str(tmp_path / "gone")) == 0
    one = tmp_path / "model.gguf"
    one.write_bytes(b"x" * 10)
    assert read_ahead(str(one)) == 10
