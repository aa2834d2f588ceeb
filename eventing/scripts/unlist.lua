-- Take a member out of an index; a script, so that it shares a round trip with others.
-- KEYS  1 sorted set
-- ARGV  1 member
-- gives 1 | 0 (it was not there)
return redis.call('ZREM', KEYS[1], ARGV[1])
