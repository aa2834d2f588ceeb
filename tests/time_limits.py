"""Time limits that a machine which stands still for ten seconds does not reach.

For tests whose subject is not the limit itself: those set their own, and move a clock or stop the store.
"""

from typing import Any, Final

STORE_S: Final = 30.0
"""For one reply of the store: the longest that the settings allow."""
HANG_S: Final = 60.0
"""For a condition to come true, or an answer to come: a test that waits longer hangs."""

API: Final[dict[str, Any]] = {
    "store_timeout_s": STORE_S,
    "submit_timeout_s": 30.0,
    "body_timeout_s": HANG_S,
    "broker_timeout_s": HANG_S,
    "webhook_timeout_s": 30.0,
}
"""Settings of an api."""
ENVIRONMENT: Final = {f"TORPOR_{name.upper()}": str(seconds) for name, seconds in API.items()}
"""The same for processes."""
