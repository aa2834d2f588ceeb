"""The `torpor` command: a stack on this machine, jobs, and what they do.

Each module holds the commands of one topic; `app` puts them together from `catalog`. Commands talk
to the api over HTTP, as any client would.
"""

import sys


def main() -> None:
    """The console script. Ctrl-C while it is still being imported ends it without a word."""
    try:
        from torpor.cli import app
    except KeyboardInterrupt:
        sys.exit(130)
    app.main()
