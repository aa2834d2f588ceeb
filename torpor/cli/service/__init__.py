"""Commands on what an api keeps beside jobs: keys, webhooks, files, batches, models, usage."""
