"""The categories of OpenAI's moderations, and one result of them. Pure.

A rule names the category of what it finds; `pii`, `secrets` and whatever else an operator names stand beside OpenAI's
thirteen, which every client knows.
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


def moderation_result(scores: Mapping[str, float], judged: Collection[str] = ()) -> dict[str, Any]:
    """One element of `results`. `scores` are those of the categories that were found, from 0 to 1; `judged` are the
    categories that were looked for.
    """
    looked_for = {*judged, *scores}
    names = [*CATEGORIES, *sorted(looked_for - set(CATEGORIES))]
    return {
        "flagged": bool(scores),
        "categories": {name: name in scores for name in names},
        "category_scores": {name: float(scores.get(name, 0.0)) for name in names},
        "category_applied_input_types": {
            name: ["text"] if name in looked_for else [] for name in names
        },
    }
