"""Where the calls of a job's servers go, and with which credentials: one credential, one origin.

Called by the step `list-tools` and by what runs calls. A credential is read from its file for each call, so that it can
be replaced; one that a request brought is opened for its tenant, job and origin alone.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson
from yarl import URL

from eventing.errors import InvalidJob
from eventing.job.job import Job
from eventing.job.tools.asked import AskedServer, recorded_servers, recorded_urls
from eventing.job.tools.limits import ToolLimits
from eventing.job.tools.sealed import Binding, NotSealedHere, SealingKeys, origin_of, unseal
from eventing.job.tools.server import ToolConfig, ToolServer
from eventing.process.egress import AllowList, check_url
from steps.tools.client.answer import Refused, Target
from steps.tools.settings import limits_of

_HEADER: Final = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]{0,63}): ?(\S.*)\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What opens and holds credentials."""

    folder: Path | None = None
    keys: SealingKeys | None = None

    def named(self, name: str) -> dict[str, str]:
        """The headers in the file of this name: lines `Name: value`, or one token, which is a bearer token. Raises
        `Refused`, without a word of the content.
        """
        if not name:
            return {}
        try:
            if self.folder is None:
                raise FileNotFoundError(name)
            lines = (self.folder / name).read_text(encoding="utf-8").strip().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            message = f"the credential {name} of the server can not be read"
            raise Refused("credential_missing", message) from error
        found = [_HEADER.match(line) for line in lines]
        if lines and all(found):
            return {each[1].lower(): each[2] for each in found if each}
        if len(lines) != 1 or not lines[0].isprintable():
            raise Refused("credential_missing", f"the credential {name} is no token and no headers")
        return {"authorization": f"Bearer {lines[0]}"}

    def sealed(self, job: Job, label: str, origin: str) -> dict[str, str]:
        """The headers that a request brought for its server. Raises `Refused`."""
        sealed = orjson.loads(job.sealed or "{}").get(label)
        if not sealed:
            return {}
        if self.keys is None:
            raise Refused("credential_unreadable", "there is no key here for sealed credentials")
        try:
            return unseal(self.keys, Binding(job.tenant, job.id, origin), sealed)
        except NotSealedHere as error:
            raise Refused(error.code, error.message) from error


class Targets:
    """Finds the servers of jobs, and what bounds their loops."""

    def __init__(self, config: ToolConfig, credentials: Credentials) -> None:
        self._config = config
        self._credentials = credentials

    def configured(self, job: Job, label: str) -> ToolServer | None:
        """The operator's server of this label that the job's tenant may use; None for one that the request names by
        address, and for none.
        """
        if recorded_urls(job.request.body.get("tools")).get(label):
            return None
        return self._config.serving(job.tenant).get(label)

    def limits(self, job: Job) -> ToolLimits:
        """What bounds the job's loop, lists and results."""
        return limits_of(job, self._config)

    def sleeper(self, label: str) -> tuple[Target, float] | None:
        """The operator's server of this label, without its credentials, and the seconds that it may take to wake; None
        for one that is up, or that a request names by address.
        """
        server = self._config.servers.get(label)
        if server is None or not server.wake_ms:
            return None
        url = server.url
        own = Target(label=label, url=url, origin=origin_of(url), allowed=operators_own(url))
        return own, server.wake_ms / 1000

    def target(self, job: Job, label: str, pinned_origin: str = "") -> Target:
        """Where calls of the server go. Raises `Refused` for one that is not there any more, and for another origin
        than the one that was pinned, and `NewerRecord`.
        """
        asked, server = asked_of(job).get(label), self.configured(job, label)
        url = server.url if server else asked.url if asked else ""
        if not url or (server is None and not self._config.allows_urls(job.tenant)):
            raise Refused("server_gone", f"there is no tool server {label} for this job")
        allowed = operators_own(url) if server else AllowList()
        try:
            check_url(url, allowed, "server_url")
            origin = origin_of(url)
        except (InvalidJob, ValueError) as error:
            raise Refused("address_refused", str(error)) from error
        if pinned_origin and origin != pinned_origin:
            raise Refused("server_moved", f"the tool server {label} has another address by now")
        headers = self._credentials.named(server.credential if server else "")
        headers |= self._credentials.sealed(job, label, origin)
        return Target(
            label=label,
            url=url,
            origin=origin,
            allowed=allowed,
            headers=headers,
        )


def operators_own(url: str) -> AllowList:
    """The allow list for an address that the operator configured: its host, also inside the cluster."""
    host = (URL(url).raw_host or "").lower().removesuffix(".")
    return AllowList.parse([host.partition("%")[0]])


def asked_of(job: Job) -> Mapping[str, AskedServer]:
    """The servers that the job's request names. Raises `NewerRecord`."""
    return {each.label: each for each in recorded_servers(job.request.body.get("tools"))}
