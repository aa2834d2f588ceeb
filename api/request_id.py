"""The id under which a caller knows a request: taken as it comes, if it can stand in a log line.

Called by `api.edge` for each call, and by whoever makes a job of one.
"""

import re
from typing import Final

KEPT: Final = "torpor.request_id"
"""Under this name of its metadata a job remembers the id its caller gave."""
_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}\Z")


def checked(text: str) -> str:
    """The id, or nothing when it is none."""
    return text if _ID.match(text) else ""
