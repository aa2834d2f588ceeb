"""What a call for a list of jobs costs: no prompt and no answer is read for it."""

from tests.integration.api.conftest import Rig
from tests.integration.api.fakes import chat_result

MEGABYTE = 1024 * 1024


async def large_job(rig: Rig) -> str:
    job_id = await rig.submit("p" * 40)
    await (await rig.predictor(job_id)).finish(chat_result("r" * MEGABYTE))
    return job_id


async def test_sixteen_calls_for_one_large_job_read_none_of_their_answers(rig: Rig) -> None:
    for _ in range(5):
        await large_job(rig)
    await rig.until_told()  # the listeners read the answers, which no list is to blame for
    before = int((await rig.store.redis.info("stats"))["total_net_output_bytes"])

    for _ in range(16):
        answer = await rig.client.get("/v1/jobs?limit=1")
        assert len(answer.json()["data"]) == 1

    after = int((await rig.store.redis.info("stats"))["total_net_output_bytes"])
    assert after - before < MEGABYTE


async def test_a_list_shows_results_only_on_request(rig: Rig) -> None:
    await large_job(rig)

    (bare,) = (await rig.client.get("/v1/jobs")).json()["data"]
    (whole,) = (await rig.client.get("/v1/jobs?include=result")).json()["data"]

    assert "result" not in bare
    assert len(whole["result"]["choices"][0]["message"]["content"]) == MEGABYTE


async def test_a_list_can_be_asked_for_nothing_else(rig: Rig) -> None:
    answer = await rig.client.get("/v1/jobs?include=everything")

    assert answer.status_code == 400
    assert "request, result" in answer.json()["detail"]
