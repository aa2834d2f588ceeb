"""The credentials that this process requires, and whether it may start with its settings. Pure but for reading
files.

Called by `api.__main__` (before it starts) and `api.wiring` (builds the authenticator).
"""

from pathlib import Path
from typing import Final

from redis.asyncio import Redis

from api.auth.authenticator import CredentialAuthenticator, Credentials, RememberedKeys
from api.auth.oidc import OidcRules, OidcVerifier
from api.settings import AnonymousAccess, ApiSettings
from eventing.api_key import FileKeys, KeySource, RedisKeys
from eventing.clock import Clock
from eventing.errors import BadRequest
from eventing.process.address import is_loopback

IN_REDIS: Final = "redis"


def startup_error(settings: ApiSettings) -> str:
    """Why the process refuses to start with these settings; empty when it may start.

    Serving without credentials must be set explicitly, and separately for an address that other hosts can reach.
    """
    if settings.oidc_issuer and not settings.oidc_audience:
        return "TORPOR_OIDC_AUDIENCE must be set beside TORPOR_OIDC_ISSUER"
    try:
        if settings.keys_source not in ("", IN_REDIS):
            FileKeys(Path(settings.keys_source))
    except BadRequest as error:
        return f"TORPOR_KEYS_SOURCE: {error.message}"
    if settings.keys_source or settings.oidc_issuer:
        return ""
    match settings.anonymous_access:
        case AnonymousAccess.ANYWHERE:
            return ""
        case AnonymousAccess.LOOPBACK if is_loopback(settings.host):
            return ""
        case AnonymousAccess.LOOPBACK:
            why = (
                f"TORPOR_HOST is {settings.host}, which other hosts can reach, and no keys are set"
            )
            value = AnonymousAccess.ANYWHERE
        case AnonymousAccess.OFF:
            why, value = "no keys are set", AnonymousAccess.LOOPBACK
    return (
        f"{why}: set TORPOR_KEYS_SOURCE (redis, or a file) or TORPOR_OIDC_ISSUER, or serve every caller "
        f"with TORPOR_ANONYMOUS_ACCESS={value}"
    )


def anonymous_access_warning(settings: ApiSettings) -> str:
    """The warning to log at start when callers need no credential; empty when they do."""
    if settings.keys_source or settings.oidc_issuer:
        return ""
    where = "on loopback" if is_loopback(settings.host) else f"on {settings.host}"
    return (
        f"no keys: every caller that can reach this api {where} may do everything as tenant default"
    )


def authenticator_for(settings: ApiSettings, redis: Redis, clock: Clock) -> CredentialAuthenticator:
    """The authenticator of these settings. Raises `BadRequest` for an invalid key file."""
    verifier = None
    if settings.oidc_issuer:
        rules = OidcRules(
            issuer=settings.oidc_issuer,
            audience=settings.oidc_audience,
            jwks_url=settings.oidc_jwks_url,
            tenant_claim=settings.oidc_tenant_claim,
            scope_claim=settings.oidc_scope_claim,
        )
        verifier = OidcVerifier(rules, clock)
    credentials = Credentials(
        keys=_keys(settings.keys_source, redis),
        verifier=verifier,
        delivery_token=settings.delivery_token.get_secret_value(),
        is_anonymous=settings.anonymous_access is not AnonymousAccess.OFF,
        is_local=is_loopback(settings.host),
        cors_origins=settings.cors_origins,
    )
    return CredentialAuthenticator(credentials)


def _keys(source: str, redis: Redis) -> KeySource | None:
    if not source:
        return None
    return RememberedKeys(RedisKeys(redis)) if source == IN_REDIS else FileKeys(Path(source))
