"""What `torpor up` takes from the user's environment."""

import pytest

from torpor.local.environment import broker_token
from torpor.local.errors import StackError

INGRESS, SENDER = "TORPOR_INGRESS_TOKEN", "TORPOR_BROKER_TOKEN"


@pytest.mark.parametrize(
    ("environ", "token"),
    [
        ({}, ""),
        ({INGRESS: "a"}, "a"),
        ({SENDER: "a"}, "a"),
        ({INGRESS: "a", SENDER: "a"}, "a"),
        ({INGRESS: "", SENDER: "a"}, "a"),
    ],
)
def test_the_token_of_the_local_broker_is_the_users_by_either_name(
    environ: dict[str, str], token: str
) -> None:
    assert broker_token(environ) == token


@pytest.mark.parametrize(
    ("environ", "name"),
    [
        ({INGRESS: "s3cret", SENDER: "b"}, "differ"),
        ({f"{SENDER}_FILE": "/run/token"}, f"{SENDER}_FILE"),
    ],
)
def test_a_token_that_no_part_could_use_is_said_before_anything_starts(
    environ: dict[str, str], name: str
) -> None:
    with pytest.raises(StackError, match=name) as refused:
        broker_token(environ)
    assert "s3cret" not in str(refused.value)
