-- Record a job once. The same identity with the same request and options is the same job; with others it is a conflict.
-- KEYS  1 job hash
-- ARGV  1 sha of the request, 2 sha of the call's options, '' for any, 3.. field, value pairs of the new job
-- gives {'created' | 'exists' | 'conflict', created_ms}
local job = redis.call('HMGET', KEYS[1], 'sha', 'options_sha', 'created_ms')
if job[1] then
  -- A record without options is one of an event or of an older version: nobody knows what was asked.
  if job[1] ~= ARGV[1] or (job[2] and ARGV[2] ~= '' and job[2] ~= ARGV[2]) then return {'conflict', 0} end
  return {'exists', tonumber(job[3])}
end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('HSET', KEYS[1], 'sha', ARGV[1], 'state', 'queued', 'attempt', 0, 'failures', 0, 'token_count', 0,
  'created_ms', now, unpack(ARGV, 3))
return {'created', now}
