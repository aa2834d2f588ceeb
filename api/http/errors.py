"""Errors of the HTTP API only; they extend the tree of `eventing.errors`.

BadRequest
├── FileQuotaExceeded  the tenant's file quota is full               413
├── UnsupportedMedia   the content type is not JSON                  415
└── ModelNotFound      no model with that name is served             422
Forbidden
└── ModelNotAllowed    a model that the key may not use              403
"""

from eventing.errors import BadRequest, Forbidden


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


class ModelNotAllowed(Forbidden):
    """The key, or its tenant, may not use the model."""

    code = "model_not_allowed"
