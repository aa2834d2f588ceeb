"""What `torpor up` takes from the user's environment for all of its parts. Pure.

Called by `torpor.local.stack`.
"""

from collections.abc import Mapping

from torpor.local.errors import StackError


def broker_token(environ: Mapping[str, str]) -> str:
    """The token with which events are sent to the local broker: the user's, or empty. Broker and senders start together
    here, so it has two names, and one is enough. Raises `StackError` for two tokens, and for one in a file.
    """
    if environ.get("TORPOR_BROKER_TOKEN_FILE"):
        raise StackError(
            "TORPOR_BROKER_TOKEN_FILE is for a broker elsewhere; torpor up starts its own: set TORPOR_INGRESS_TOKEN to "
            "the token, or neither"
        )
    ingress, sender = (
        environ.get(name, "") for name in ("TORPOR_INGRESS_TOKEN", "TORPOR_BROKER_TOKEN")
    )
    if ingress and sender and ingress != sender:
        raise StackError(
            "TORPOR_INGRESS_TOKEN and TORPOR_BROKER_TOKEN differ, and the local broker takes one token: set one of them"
        )
    return ingress or sender
