"""Torpor on a cluster: manifests from one file of values, their check, and the client.

Called by the `torpor` command line and by tests. Must not know how a token is made.
"""
