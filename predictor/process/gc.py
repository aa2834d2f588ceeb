"""Imports without the garbage collector.

Used around the large ones: KServe's and vLLM's, in a predictor and in the parent of predictors.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def gc_disabled() -> Iterator[None]:
    """What is made meanwhile stays for good, and the collector never looks at it.

    Looking through vLLM's modules 1,850 times while they are imported took a quarter of their CPU
    time, each full pass later half a second, and in a forked child a copy of every page.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
