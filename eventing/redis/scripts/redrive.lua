-- Give a dead letter a new life under the same id: attempts go on counting, the budget starts anew.
-- KEYS  1 job hash, 2 token stream
-- ARGV  1 '1' if the request was edited (then tokens so far are void, and the next attempt says so), 2.. field, value pairs (request, sha, model)
-- gives 'queued' | 'not_dead' | 'missing'
local job = redis.call('HMGET', KEYS[1], 'state', 'dead', 'attempt', 'token_count')
if not job[1] then return 'missing' end
if job[1] ~= 'failed' or job[2] ~= '1' then return 'not_dead' end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('HSET', KEYS[1], 'state', 'queued', 'dead', 0, 'failures', 0, 'announced', 0, 'finished_ms', 0, 'deadline_ms', 0, 'redriven_ms', now)
redis.call('HDEL', KEYS[1], 'error', 'result', 'usage')
if ARGV[1] == '1' then
  redis.call('HDEL', KEYS[1], 'rejected')
  redis.call('HSET', KEYS[1], 'token_count', 0, 'restart', job[4] ~= '0' and 1 or 0, unpack(ARGV, 2))
end
redis.call('PERSIST', KEYS[1])
redis.call('PERSIST', KEYS[2])
redis.call('XADD', KEYS[2], '*', 'kind', 'state', 'state', 'queued', 'attempt', job[3], 'at_ms', now)
return 'queued'
