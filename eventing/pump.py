"""`python -m eventing.pump`: pumps without an ingress, in the pod of a predictor."""

import os
import signal

if __name__ == "__main__":
    # Before the imports, which take a second: as PID 1 a process ignores what it does not handle.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))

import sys
from collections.abc import Sequence

from eventing.broker import __main__ as broker


def main(arguments: Sequence[str] = ()) -> int:
    """As `eventing.broker.__main__.main`, without an ingress."""
    return broker.main(arguments, with_ingress=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
