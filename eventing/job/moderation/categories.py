"""The categories of OpenAI's `/v1/moderations`, and its result of a text. Pure.

A rule of ours names the category of what it finds; `pii`, `secrets` and whatever else an operator names stand beside
OpenAI's thirteen, which every client knows.
"""

from collections.abc import Collection, Mapping
from typing import Any, Final

CATEGORIES: Final = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/instructions",
    "self-harm/intent",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)
"""In OpenAI's order; a client's model of the answer requires each of them."""


def moderation_result(scores: Mapping[str, float], flagged: Collection[str]) -> dict[str, Any]:
    """One element of `results`: what was found in a text. `scores` are from 0 to 1; a rule's are 0 or 1."""
    names = [*CATEGORIES, *sorted(set(scores) - set(CATEGORIES))]
    return {
        "flagged": bool(flagged),
        "categories": {name: name in flagged for name in names},
        "category_scores": {name: float(scores.get(name, 0.0)) for name in names},
        "category_applied_input_types": {
            name: ["text"] if name in scores else [] for name in names
        },
    }
