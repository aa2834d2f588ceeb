"""Old private words do not come back: one term for one thing, and the field's own."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
SEARCHED = (
    "api",
    "eventing",
    "predictor",
    "knative",
    "steps",
    "torpor",
    "scripts",
    "docs",
    "README.md",
    "CONTRIBUTING.md",
)
OURS = (
    *("undertaker", "doorkeeper", "turnstile", "furnish", "EndBell", "TokenHub", "NoBell", "Knobs"),
    *("bury", "buried", "passengers", "taken in silence", "the short way", "free hand", "speak up"),
    *(
        "front door",
        "at the door",
        "in hand",
        "own_line",
        "tap_into",
        "wish_of",
        "_insist",
        "_nudge",
    ),
    *(
        "EverybodyIsDefault",
        "why_not_start",
        "openness",
        "take_stranded",
        "last_words",
        "crosses a room",
    ),
    *("Furnished", "Unkept", "QueueLook", "AbortWhenGone", "door_for", "wire_of", "manners"),
)
"""What stood for: dead-letter handler, authenticator, concurrency limiter, stream multiplexer, in flight ..."""
HISTORY = "docs/adr/"


def test_words_that_were_ours_alone_do_not_come_back() -> None:
    pattern = re.compile(r"(?<![\w])(" + "|".join(map(re.escape, OURS)) + r")(?![\w])")
    listed = subprocess.run(
        ["git", "ls-files", *SEARCHED], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = [
        f"{name}:{number}: {line.strip()[:80]}"
        for name in listed.stdout.splitlines()
        if not name.startswith(HISTORY)
        and Path(name).suffix in {".py", ".lua", ".md", ".html", ".js"}
        for number, line in enumerate((ROOT / name).read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]

    assert found == []


PRONOUNS = re.compile(r"\b(nobody|somebody|whoever|everybody|anybody)\b", re.IGNORECASE)


def test_product_code_names_its_subjects() -> None:
    """Say the caller, the consumer, the tenant or the pump, not «somebody» or «whoever»."""
    listed = subprocess.run(
        ["git", "ls-files", "api", "eventing", "predictor", "knative", "steps", "torpor"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found = [
        f"{name}:{number}: {line.strip()[:80]}"
        for name in listed.stdout.splitlines()
        if Path(name).suffix in {".py", ".lua", ".js"}
        if name != "steps/semantic_cache/words.py"  # lists of words that callers use
        for number, line in enumerate((ROOT / name).read_text(encoding="utf-8").splitlines(), 1)
        if PRONOUNS.search(line)
    ]

    assert found == []
