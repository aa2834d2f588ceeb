"""The step that answers `/v1/embeddings` by itself."""
