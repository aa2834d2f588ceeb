"""Authentication: API keys, the broker's token, and uniform refusals."""

from collections.abc import Mapping

import pytest
from starlette.requests import HTTPConnection

from api.auth.authenticator import CredentialAuthenticator, Credentials, RememberedKeys, bearer
from api.auth.principal import Scope
from api.auth.rules import anonymous_access_warning, startup_error
from api.settings import ApiSettings
from eventing.api_key import SCOPES, ApiKey, key_id_of, mint
from eventing.errors import Forbidden, Unauthorized

NOW_S = 1_764_000_000
BROKER = "b" * 48


class Shelf:
    """A `KeySource` of a few keys, which counts its questions."""

    def __init__(self, *kept: ApiKey) -> None:
        self.kept = {key.id: key for key in kept}
        self.questions = 0

    async def find(self, key_id: str) -> ApiKey | None:
        self.questions += 1
        return self.kept.get(key_id)


def calling(token: str = "", path: str = "/v1/jobs", **headers: str) -> HTTPConnection:
    named: Mapping[str, str] = ({"authorization": f"Bearer {token}"} if token else {}) | headers
    raw = [(name.encode(), value.encode("latin-1")) for name, value in named.items()]
    return HTTPConnection({"type": "http", "path": path, "headers": raw, "query_string": b""})


def authenticator(
    *kept: ApiKey, token: str = BROKER, now_s: float = NOW_S
) -> CredentialAuthenticator:
    credentials = Credentials(keys=Shelf(*kept), delivery_token=token)
    return CredentialAuthenticator(credentials, wall_s=lambda: now_s)


KEY, TEXT = mint("acme", now_s=NOW_S, scopes=("jobs:read", "jobs:write"))


async def test_a_key_says_whose_it_is_and_what_it_may() -> None:
    principal = await authenticator(KEY).principal_of(calling(TEXT))

    assert (principal.tenant, principal.key_id) == ("acme", KEY.id)
    assert principal.scopes == {Scope.JOBS_READ, Scope.JOBS_WRITE}


def test_only_a_digest_is_kept() -> None:
    assert TEXT not in repr(KEY)
    assert TEXT[-20:] not in repr(KEY)  # random; it may have an underscore anywhere
    assert len(KEY.digest) == 64


def test_two_keys_are_never_the_same() -> None:
    texts = {mint("t", now_s=0)[1] for _ in range(100)}

    assert len({key_id_of(text) for text in texts}) == 100


EXPIRED, EXPIRED_TEXT = mint("acme", now_s=NOW_S - 10, expires_s=NOW_S)
OTHER, OTHER_TEXT = mint("acme", now_s=NOW_S)


@pytest.mark.parametrize(
    "connection",
    [
        pytest.param(calling(), id="nothing"),
        pytest.param(calling(authorization="Bearer "), id="an empty token"),
        pytest.param(calling(authorization=f"Basic {TEXT}"), id="another scheme"),
        pytest.param(calling("x" * 40), id="no key at all"),
        pytest.param(calling(OTHER_TEXT), id="a key of nobody"),
        pytest.param(calling(TEXT[:-1] + ("A" if TEXT[-1] != "A" else "B")), id="one letter off"),
        pytest.param(calling(f"torpor_{KEY.id}_" + OTHER_TEXT[-43:]), id="a secret of another key"),
        pytest.param(calling(EXPIRED_TEXT), id="an expired key"),
        pytest.param(calling("a.b.c"), id="a token, without a provider"),
        pytest.param(calling(authorization="Bearer ÿ"), id="bytes beyond ASCII"),
    ],
)
async def test_every_refusal_looks_the_same(connection: HTTPConnection) -> None:
    with pytest.raises(Unauthorized) as refused:
        await authenticator(KEY, EXPIRED).principal_of(connection)

    assert refused.value.message == "send a valid key as «Authorization: Bearer ...»"


async def test_an_expired_key_was_good_until_then() -> None:
    principal = await authenticator(EXPIRED, now_s=NOW_S - 1).principal_of(calling(EXPIRED_TEXT))

    assert principal.tenant == "acme"


async def test_the_brokers_token_delivers_results_and_nothing_else() -> None:
    principal = await authenticator(KEY).principal_of(calling(BROKER))

    assert principal.scopes == {Scope.RESULTS_WRITE}


async def test_no_key_can_deliver_results() -> None:
    every, text = mint("acme", now_s=NOW_S, scopes=SCOPES)

    principal = await authenticator(every).principal_of(calling(text))

    assert Scope.RESULTS_WRITE not in principal.scopes


def test_keys_can_be_good_for_every_scope_but_the_brokers() -> None:
    assert set(SCOPES) == {str(scope) for scope in Scope} - {"results:write"}


class TestWithoutKeys:
    OPEN = CredentialAuthenticator(Credentials(is_anonymous=True, delivery_token=BROKER))

    @pytest.mark.parametrize("token", ["", "sk-anything"])
    async def test_every_anonymous_caller_is_the_default_tenant(self, token: str) -> None:
        principal = await self.OPEN.principal_of(calling(token))

        assert principal.tenant == "default"
        assert Scope.ADMIN in principal.scopes

    @pytest.mark.parametrize("token", ["", "wrong", BROKER[:-1]])
    async def test_but_results_are_the_brokers_to_deliver(self, token: str) -> None:
        with pytest.raises(Unauthorized):
            await self.OPEN.principal_of(calling(token, "/internal/events"))

    async def test_the_broker_may_write_results(self) -> None:
        principal = await self.OPEN.principal_of(calling(BROKER, "/internal/events"))

        assert Scope.RESULTS_WRITE in principal.scopes

    async def test_without_a_token_set_none_is_asked_for(self) -> None:
        principal = await CredentialAuthenticator(Credentials(is_anonymous=True)).principal_of(
            calling("", "/internal/events")
        )

        assert Scope.RESULTS_WRITE in principal.scopes


async def test_without_keys_no_call_is_served_unless_anonymous_access_is_set() -> None:
    with pytest.raises(Unauthorized):
        await CredentialAuthenticator(Credentials()).principal_of(calling())


class TestPagesOfOthers:
    """A browser must not be made to call an open api for a page that is not the api's own."""

    OPEN = CredentialAuthenticator(Credentials(is_anonymous=True, is_local=True))

    @pytest.mark.parametrize(
        "headers",
        [
            pytest.param({"host": "127.0.0.1:8000", "origin": "https://evil.example"}, id="a page"),
            pytest.param({"host": "127.0.0.1:8000", "origin": "null"}, id="a sandboxed page"),
            pytest.param(
                {"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:3000"}, id="another port"
            ),
            pytest.param(
                {"host": "evil.example:8000", "origin": "http://evil.example:8000"}, id="rebinding"
            ),
            pytest.param({"host": "evil.example"}, id="rebinding, a plain read"),
        ],
    )
    async def test_is_refused(self, headers: dict[str, str]) -> None:
        with pytest.raises(Forbidden):
            await self.OPEN.principal_of(calling(**headers))

    @pytest.mark.parametrize(
        "headers",
        [
            pytest.param(
                {"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:8000"}, id="console"
            ),
            pytest.param({"host": "localhost:8000"}, id="by name"),
            pytest.param({"host": "[::1]:8000"}, id="IPv6"),
            pytest.param({}, id="no host"),
        ],
    )
    async def test_but_our_own_page_and_programs_may(self, headers: dict[str, str]) -> None:
        assert await self.OPEN.principal_of(calling(**headers))

    async def test_with_keys_a_page_needs_one(self) -> None:
        headers = {"host": "127.0.0.1:8000", "origin": "https://evil.example"}

        principal = await authenticator(KEY).principal_of(calling(TEXT, **headers))

        assert principal.tenant == "acme"


async def test_a_key_is_looked_up_once_in_a_while() -> None:
    key_store, now_s = Shelf(KEY), [0.0]
    remembered = RememberedKeys(key_store, lambda: now_s[0])

    for now_s[0] in (0.0, 1.0, 4.9):
        assert await remembered.find(KEY.id) == KEY

    assert key_store.questions == 1


async def test_a_revoked_key_is_forgotten_within_seconds() -> None:
    key_store, now_s = Shelf(KEY), [0.0]
    remembered = RememberedKeys(key_store, lambda: now_s[0])
    await remembered.find(KEY.id)
    key_store.kept.clear()

    now_s[0] = 5.0

    assert await remembered.find(KEY.id) is None


async def test_guessing_ids_does_not_fill_the_memory() -> None:
    remembered = RememberedKeys(Shelf())

    for number in range(10_200):
        await remembered.find(f"{number:016x}")

    assert len(remembered._seen) == 10_000


@pytest.mark.parametrize(
    ("header", "token"),
    [("Bearer a", "a"), ("bearer  a ", "a"), ("Basic a", ""), ("a", ""), ("", "")],
)
def test_a_bearer_header_is_read(header: str, token: str) -> None:
    assert bearer(header) == token


@pytest.mark.parametrize(
    ("fields", "may"),
    [
        pytest.param({}, False, id="nothing said"),
        pytest.param({"anonymous_access": "loopback"}, True, id="loopback"),
        pytest.param({"host": "::1", "anonymous_access": "loopback"}, True, id="loopback 6"),
        pytest.param({"host": "localhost", "anonymous_access": "loopback"}, True, id="localhost"),
        pytest.param({"host": "0.0.0.0", "anonymous_access": "loopback"}, False, id="everywhere"),
        pytest.param({"host": "::", "anonymous_access": "loopback"}, False, id="everywhere 6"),
        pytest.param(
            {"host": "10.0.0.5", "anonymous_access": "loopback"}, False, id="a private network"
        ),
        pytest.param({"host": "0.0.0.0", "keys_source": "redis"}, True, id="with keys"),
        pytest.param({"host": "0.0.0.0", "anonymous_access": "anywhere"}, True, id="said so"),
        pytest.param(
            {"host": "0.0.0.0", "oidc_issuer": "https://i", "oidc_audience": "a"},
            True,
            id="with a provider",
        ),
        pytest.param({"oidc_issuer": "https://i"}, False, id="a provider without an audience"),
        pytest.param(
            {"keys_source": "/no/such/keys.json"}, False, id="a key file that is not there"
        ),
    ],
)
def test_anonymous_access_must_be_asked_for_by_name(fields: dict[str, object], may: bool) -> None:
    assert (startup_error(ApiSettings(**fields)) == "") is may


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"anonymous_access": "loopback"}, True),
        ({"host": "0.0.0.0", "anonymous_access": "anywhere"}, True),
        ({"keys_source": "redis"}, False),
    ],
)
def test_anonymous_access_is_logged_at_start(fields: dict[str, object], says: bool) -> None:
    assert bool(anonymous_access_warning(ApiSettings(**fields))) is says
