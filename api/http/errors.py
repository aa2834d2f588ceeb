"""Errors of the HTTP API only; they extend the tree of `eventing.errors`.

BadRequest
├── FileQuotaExceeded  the tenant's file quota is full               413
└── UnsupportedMedia   the content type is not JSON                  415
TorporError
├── Unauthorized       no credential, or an invalid one              401
├── Forbidden          a key without the scope                       403
└── ReaderCutOff       a live reader that did not keep up            409
"""

from eventing.errors import BadRequest, TorporError


class FileQuotaExceeded(BadRequest):
    """The tenant's files fill their quota; nothing was stored."""

    status = 413
    code = "file_quota_exceeded"


class UnsupportedMedia(BadRequest):
    """The body has the wrong content type for this call."""

    status = 415
    code = "unsupported_media_type"


class ModelNotFound(BadRequest):
    """No model with that name is served here."""

    status = 422
    code = "model_not_found"


class Unauthorized(TorporError):
    """There is no credential, or it is not valid."""

    status = 401
    code = "unauthorized"


class Forbidden(TorporError):
    """The credential is valid, but lacks the permission."""

    status = 403
    code = "forbidden"


class ModelNotAllowed(Forbidden):
    """The key, or its tenant, may not use the model."""

    code = "model_not_allowed"
