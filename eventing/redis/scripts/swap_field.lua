-- Remember the newest span in a role of a job, and give the one before it. A job that is gone is not brought back.
-- KEYS  1 job hash
-- ARGV  1 field, 2 traceparent
-- gives the traceparent before, or '' for none
if redis.call('HEXISTS', KEYS[1], 'state') == 0 then return '' end
local before = redis.call('HGET', KEYS[1], ARGV[1])
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return before or ''
