-- Note what a job was charged of a limit, and when, so that it can be corrected once it is known what the job took.
-- KEYS  1 charge
-- ARGV  1 cost, 2 ttl_s
-- gives 'ok'
local t = redis.call('TIME')
redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. (t[1] * 1000 + math.floor(t[2] / 1000)), 'EX', ARGV[2])
return 'ok'
