"""The step `memory`: gives a job's prompt its conversation, as much of it as the plan says.

In the table of handlers. The prompt that the api made has the new input alone; what was said before goes in front of
it: the newest items as they are, and of the others a summary, the facts word for word, and those that bear on the
input. Nothing is changed but kept vectors, so a run may be repeated.
"""

from dataclasses import replace
from typing import Any

from eventing.errors import NotFound
from eventing.job.job import JobRequest
from eventing.job.tools.taint import told
from eventing.store.conversation.conversation import Conversation
from eventing.store.conversation.facts import facts_of, within
from eventing.store.conversation.messages import labels_of
from eventing.store.conversation.policy import MemoryPolicy, memory_policy
from eventing.store.conversation.store import Conversations
from steps.handler import Continue, Skip, StepCall, StepOutcome
from steps.memory.prompt import earlier_text, new_input, with_history
from steps.memory.recall import Recall
from steps.memory.window import BYTES_PER_TOKEN, window_start


class Memory:
    """A `Handler`."""

    def __init__(self, conversations: Conversations, recall: Recall) -> None:
        self._conversations = conversations
        self._recall = recall

    async def __call__(self, call: StepCall) -> StepOutcome:
        policy, job = memory_policy(call.settings), call.job
        if not job.conversation:
            return Skip(reason="no_conversation")
        try:
            found = await self._conversations.get(job.tenant, job.conversation)
        except NotFound:
            return Skip(reason="conversation_deleted")
        body, detail = await self._prepared(call, found, policy)
        return Continue(request=replace(call.request, body=body), detail=detail)

    async def _prepared(
        self, call: StepCall, found: Conversation, policy: MemoryPolicy
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The body with its conversation, and what is told of it."""
        messages = list(call.request.body["messages"])
        items = await self._conversations.items(found)
        start = window_start(items, policy.window_tokens, _answered_calls(call.request))
        window, older = items[start:], items[:start]
        recalled = await self._recall.find(found, older, new_input(messages), policy.recall_k)
        facts = within(facts_of(older), policy.facts_tokens * BYTES_PER_TOKEN)
        summary = found.summary if older else None
        earlier = told(labels_of(each.item for each in older))
        earlier += earlier_text(call.job.id, summary, facts, recalled)
        detail = {
            "window_items": len(window),
            "summary_id": summary.id if summary else None,
            "facts": len(facts),
            "recalled": [each.id for each in recalled],
        }
        body = {**call.request.body, "messages": with_history(messages, earlier, window)}
        return body, detail


def _answered_calls(request: JobRequest) -> set[str]:
    """The function calls whose outputs are in the new input."""
    return {
        str(message["tool_call_id"])
        for message in request.body["messages"]
        if message["role"] == "tool"
    }
