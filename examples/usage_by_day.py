"""Prints what your tenant used in the last days, by API key, and writes it as CSV.

    TORPOR_API_URL=http://127.0.0.1:8000 TORPOR_API_KEY=torpor_... python examples/usage_by_day.py usage.csv

Needs nothing but Python.
"""

import json
import os
import sys
import urllib.request
from datetime import UTC, datetime

URL = os.environ.get("TORPOR_API_URL", "http://127.0.0.1:8000")
USAGE = "/v1/organization/usage/completions?group_by=api_key_id&limit=31"


def get(path: str, accept: str = "application/json") -> bytes:
    """What the api answers."""
    headers = {"accept": accept}
    if key := os.environ.get("TORPOR_API_KEY"):
        headers["authorization"] = f"Bearer {key}"
    asked = urllib.request.Request(URL + path, headers=headers)  # noqa: S310 (it is our own api)
    with urllib.request.urlopen(asked) as answer:  # noqa: S310
        return bytes(answer.read())


def main() -> None:
    """Print a line a day and key; with a file name, write the same days into it."""
    for day in json.loads(get(USAGE))["data"]:
        date = datetime.fromtimestamp(day["start_time"], UTC).date()
        for used in day["results"]:
            tokens = f"{used['input_tokens']} in, {used['output_tokens']} out"
            saved = used["saved"]["output_tokens"]
            key = used["api_key_id"] or "no key"
            print(f"{date}  {key}  {tokens}, {saved} saved, cost {used['cost']:.4f}")
    for budget in json.loads(get("/v1/tenant"))["budgets"]:
        print(f"budget of the {budget['of']}: {budget['left']} left of {budget['budget']}")
    if len(sys.argv) > 1:
        with open(sys.argv[1], "wb") as table:
            table.write(get(USAGE, "text/csv"))


if __name__ == "__main__":
    main()
