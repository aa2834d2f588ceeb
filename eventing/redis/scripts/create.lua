-- Record a job once. The same identity with the same request is the same job; with another request it is a conflict.
-- KEYS  1 job hash
-- ARGV  1 sha of the request, 2.. field, value pairs of the new job
-- gives {'created' | 'exists' | 'conflict', created_ms}
local sha = redis.call('HGET', KEYS[1], 'sha')
if sha then
  if sha ~= ARGV[1] then return {'conflict', 0} end
  return {'exists', tonumber(redis.call('HGET', KEYS[1], 'created_ms'))}
end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('HSET', KEYS[1], 'sha', ARGV[1], 'state', 'queued', 'attempt', 0, 'failures', 0, 'token_count', 0,
  'created_ms', now, unpack(ARGV, 2))
return {'created', now}
