"""Refusals that only an HTTP API can give; they extend the tree of `eventing.errors`.

BadRequest
├── FileQuotaExceeded  the tenant's files take all they may          413
└── UnsupportedMedia   not JSON by its own content type              415
TorporError
├── Unauthorized       no key, or one that is not ours               401
├── Forbidden          a key without the scope                       403
└── ReaderCutOff       a live reader that could not keep up          409
"""

from eventing.errors import BadRequest, TorporError


class FileQuotaExceeded(BadRequest):
    """The tenant's files take as much as they may; nothing was kept."""

    status = 413
    code = "file_quota_exceeded"


class UnsupportedMedia(BadRequest):
    """The content type says that the body is not what this call takes."""

    status = 415
    code = "unsupported_media_type"


class ModelNotFound(BadRequest):
    """No model of that name is served here."""

    status = 422
    code = "model_not_found"


class Unauthorized(TorporError):
    """No credential, or one that we do not know."""

    status = 401
    code = "unauthorized"


class Forbidden(TorporError):
    """The credential is good, but not for this."""

    status = 403
    code = "forbidden"
