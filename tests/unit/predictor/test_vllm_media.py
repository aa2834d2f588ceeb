"""No call can make a predictor fetch an address (server-side request forgery by an image)."""

from typing import Any

import pytest

from predictor.engine.vllm.media import check_media
from predictor.errors import BadRequest


def body(part: Any) -> dict[str, Any]:
    return {"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": [part]}]}


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}},
        {"type": "image_url", "image_url": "HTTPS://inside.svc/"},
        {"type": "audio_url", "audio_url": {"url": "http://x"}},
        {"type": "video_url", "video_url": {"url": " ftp://x"}},
        {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
        {"image_url": "http://x"},
        {"type": "image_url", "image_url": {"url": "//x/y"}},
    ],
)
def test_an_address_is_refused_by_its_place(part: Any) -> None:
    with pytest.raises(BadRequest) as refused:
        check_media(body(part), domains=False, local_path=False)
    assert refused.value.field.startswith("messages[1].content[0].")
    assert "169.254" not in refused.value.message


def test_an_address_in_one_of_several_conversations_is_refused() -> None:
    part = {"type": "image_url", "image_url": {"url": "http://x"}}
    with pytest.raises(BadRequest) as refused:
        check_media({"messages": [[], body(part)["messages"]]}, domains=False, local_path=False)
    assert refused.value.field == "messages[1][1].content[0].image_url"


@pytest.mark.parametrize(
    "part",
    [
        "text",
        {"type": "text", "text": "see http://x"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
        {"type": "image_url", "image_url": None},
        {"type": "image_url", "image_url": {"url": 5}},
        None,
    ],
)
def test_media_without_an_address_pass(part: Any) -> None:
    check_media(body(part), domains=False, local_path=False)


@pytest.mark.parametrize("messages", [None, "x", [None], [{"content": None}], {}])
def test_other_shapes_are_the_engines_to_judge(messages: Any) -> None:
    check_media({"messages": messages}, domains=False, local_path=False)


def test_the_operator_may_allow_domains_and_a_folder_apart() -> None:
    web = body({"type": "image_url", "image_url": {"url": "https://cdn.example/x.png"}})
    file = body({"type": "image_url", "image_url": {"url": "file:///media/x.png"}})
    check_media(web, domains=True, local_path=False)
    check_media(file, domains=False, local_path=True)
    for refused, allowed in (
        (web, {"domains": False, "local_path": True}),
        (file, {"domains": True, "local_path": False}),
    ):
        with pytest.raises(BadRequest):
            check_media(refused, **allowed)
