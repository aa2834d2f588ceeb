"""The `torpor` command: a stack on this machine, jobs, measurements, and deployment on a cluster.

Each module has the commands of one topic; `app` builds the application from `catalog`. Commands talk to the api
over HTTP, as any client.
"""

import sys


def main() -> None:
    """The console script. Ctrl-C during the imports ends it silently."""
    try:
        from torpor.cli import app
    except KeyboardInterrupt:
        sys.exit(130)
    app.main()
