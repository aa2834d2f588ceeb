"""Commands on jobs: submit, watch, list, chat, and what was set aside."""
