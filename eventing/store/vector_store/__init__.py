"""Vector stores as the api shows them and the steps fill them: their records, files and batches of files."""
