"""Other forms of the rendered objects: a Helm chart, a compose file."""
