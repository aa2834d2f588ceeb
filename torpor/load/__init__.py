"""A load generator for a running Torpor, and its report.

`schedule` says what is sent and when, `client` sends it, `run` drives the clients, `watch` reads the servers'
metrics meanwhile, `summary` and `page` make the report. Called by `torpor load` and the benches; uses Torpor's HTTP
interface only.
"""
