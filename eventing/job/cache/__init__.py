"""The exact cache: what is asked of it, by which key, and who waits for whose answer."""
