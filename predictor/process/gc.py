"""Disables the garbage collector during imports.

Used around the large ones: KServe's and vLLM's, in a predictor and in the parent of predictors.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def gc_disabled() -> Iterator[None]:
    """Objects made inside the block are never examined by the collector.

    Examining vLLM's modules 1,850 times during their import took a quarter of its CPU time, each later full
    collection half a second, and in a forked child a copy of every page.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
