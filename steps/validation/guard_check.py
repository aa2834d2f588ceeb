"""Whether a guard model calls an answer safe, by the setting `guard`.

Called by the step `validate-output`, which holds the whole answer back meanwhile where it blocks.
"""

from typing import Any

from eventing.errors import Unavailable
from steps.handler import StepCall
from steps.validation.guard import judge
from steps.validation.guard_forms import SETTING, parse_guard
from steps.validation.model_client import ModelClient
from steps.validation.texts import choice_texts
from steps.validation.verdict import Verdict, not_allowed


class GuardCheck:
    """The check. The client belongs to the caller."""

    def __init__(self, guards: ModelClient) -> None:
        self._guards = guards

    async def __call__(self, call: StepCall) -> Verdict:
        """What the guard says of each choice, reasoning and tool calls included. Where the step blocks, a guard that
        is away raises `Unavailable`, and an answer without a verdict is not valid.
        """
        guard = parse_guard(call.settings.get(SETTING))
        if guard is None:
            return Verdict()
        found: set[str] = set()
        is_clear = True
        for number, choice in enumerate((call.candidate or {}).get("choices") or ()):
            text = "\n\n".join(choice_texts(choice))
            asker = f"{call.job.id} {SETTING} {call.job.attempt} {number}"
            try:
                said = await judge(self._guards, guard, "assistant", text, asker=asker)
            except Unavailable:
                if call.settings.get("mode") == "block":
                    raise
                return Verdict(detail={"guard": "unavailable"})
            found |= set(said.categories)
            is_clear = is_clear and said.is_clear
        detail: dict[str, Any] = {"flagged": bool(found)}
        detail |= {"categories": sorted(found)} if found else {}
        detail |= {} if is_clear else {"guard": "no_verdict"}
        problems = not_allowed(sorted(found))
        if not is_clear and not problems:
            problems = ("It could not be judged.",)
        return Verdict(problems=problems, may_repair=False, detail=detail)
