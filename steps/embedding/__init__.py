"""Text to vectors: a small model in this process, or any endpoint that speaks OpenAI's `/v1/embeddings`."""
