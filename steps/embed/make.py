"""Makes the step `embed` of the parts of a process."""

from steps.embed.step import EmbedStep
from steps.embedding.packaged import PackagedEmbedder
from steps.handler import Handler
from steps.parts import Parts


def embed(parts: Parts) -> Handler:
    """The handler. It has the packaged model even where the other steps use an endpoint's."""
    shared = parts.embedder
    if isinstance(shared, PackagedEmbedder):
        return EmbedStep(shared)
    own = PackagedEmbedder(threads=parts.settings.embedding_threads)
    parts.at_end.append(own.aclose)
    return EmbedStep(own)
