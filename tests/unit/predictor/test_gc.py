"""The collector keeps away from imports, and comes back."""

import gc

import pytest

from predictor.process.gc import gc_disabled


def test_objects_made_inside_the_block_are_never_collected() -> None:
    frozen = gc.get_freeze_count()
    try:
        with gc_disabled():
            assert not gc.isenabled()
            kept = [[] for _ in range(1000)]  # type: ignore[var-annotated]

        assert gc.get_freeze_count() >= frozen + len(kept)
    finally:
        gc.unfreeze()


def test_the_collector_is_back_after_an_import_that_fails() -> None:
    try:
        with pytest.raises(ImportError), gc_disabled():
            raise ImportError

        assert gc.isenabled()
    finally:
        gc.unfreeze()
