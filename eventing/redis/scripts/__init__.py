"""One Lua file a script. Files that begin with `_` hold what several share: `eventing.redis.script` puts them before
each script that says so (`-- USES _clock _job`). Names of keys stand in `eventing.redis.keys` too;
`tests/unit/eventing/test_script_names.py` holds the two together.
"""
