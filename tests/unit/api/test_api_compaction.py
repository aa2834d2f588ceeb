"""What stands for a conversation that was made shorter."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.job.compaction import compacted, compaction_view
from api.view.outcome import CallFailed
from eventing.job.job import Job, JobId, JobRequest, JobState
from eventing.store.conversation.messages import GIVEN


def job(answer: str | None) -> Job:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}, {"role": "user"}]}
    return Job(
        id=JobId("job_" + "a" * 24),
        state=JobState.COMPLETED,
        request=JobRequest(url="/v1/chat/completions", body=body),
        result={"choices": [{"message": {"content": answer}}]},
    )


@pytest.mark.parametrize("answer", ["", " \n", None])
def test_a_compaction_without_words_is_refused(answer: str | None) -> None:
    with pytest.raises(CallFailed) as refused:
        compaction_view(job(answer))

    assert refused.value.code == "no_answer"


def said(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": text}


def test_facts_are_carried_from_compaction_to_compaction_word_for_word() -> None:
    told = compacted([said("user", "The port is 8443."), *[said("user", "hm")] * 9], 2000)

    for _ in range(5):
        history = [said("assistant", GIVEN + told), *[said("user", "Well then.")] * 9]
        told = compacted(history, 2000)

    assert told.count("- user said: The port is 8443.") == 1


texts = st.text(alphabet="ab 12.\n", min_size=1, max_size=80)


@given(st.lists(st.builds(said, st.sampled_from(["user", "assistant"]), texts), max_size=30))
def test_a_compaction_is_as_long_as_it_may_be_at_most(messages: list[dict[str, Any]]) -> None:
    assert len(compacted(messages, 1000)) < 1000 + 36 * 24
