"""OpenAI's vector stores: what is asked for, and the events that have it done."""
