"""Ensures that child processes do not survive their parent (Linux).

Called by `predictor.process.parent` in its forks, and by `predictor.engine.vllm.start` for vLLM's engine process,
which would otherwise keep 2 GB when its predictor is killed (seen for 10 minutes).
"""

import ctypes
import os
import signal
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_libc: Final = ctypes.CDLL(None, use_errno=True)  # loaded here: not safe to load after a fork


def die_with_parent(parent_pid: int, signal_number: int = signal.SIGKILL) -> None:
    """Ask the kernel to signal this process when the *thread* that forked it ends; exit at once if it has ended.

    The thread, not the process: fork from one that lives as long as the child should.
    """
    _prctl(_PR_SET_PDEATHSIG, signal_number)
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signal_number)


def adopt_orphans() -> None:
    """Become the new parent of the children's orphans, so that they can be ended."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, argument: int) -> None:
    if _libc.prctl(option, argument, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")
