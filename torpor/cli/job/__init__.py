"""Commands on jobs: hand in, watch, list, chat, and what was set aside."""
