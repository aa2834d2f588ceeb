"""Deployment on a cluster: rendering manifests from a file of values, checking them, applying them.

Called by the `torpor` command line and by tests. Must not know how tokens are generated.
"""
