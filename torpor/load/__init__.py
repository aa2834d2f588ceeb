"""A real load on a real Torpor, and an honest report of it.

`schedule` says what is asked and when, `client` asks it, `run` drives the clients, `watch` reads
the other side's metrics meanwhile, `summary` and `page` say what happened. Called by `torpor load`
and the benches; knows Torpor only by its HTTP face.
"""
