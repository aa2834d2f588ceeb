-- End a job that no attempt holds: cancelled by somebody, undeliverable, or answered by a predictor without a store.
-- KEYS  1 job hash, 2 token stream
-- ARGV  1 state, 2 retention_s, 3 '1' for a dead letter, 4 '1' to end it even under a live lease (cancel), 5.. field, value pairs
-- gives {'ok', now_ms} | {'terminal', state} | {'held', lease_left_ms} | {'missing'}
local job = redis.call('HMGET', KEYS[1], 'state', 'attempt', 'lease_until_ms', 'history')
if not job[1] then return {'missing'} end
if job[1] ~= 'in_progress' and job[1] ~= 'queued' then return {'terminal', job[1]} end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local left = tonumber(job[3] or 0) - now
if job[1] == 'in_progress' and left > 0 and ARGV[4] ~= '1' then return {'held', left} end
local history = cjson.decode(job[4] or '[]')
if job[1] == 'in_progress' and #history > 0 then
  history[#history].outcome = ARGV[1]
  history[#history].ended_ms = now
end
redis.call('HSET', KEYS[1], 'state', ARGV[1], 'finished_ms', now, 'lease_owner', '', 'lease_until_ms', 0, 'dead', ARGV[3],
  'history', #history > 0 and cjson.encode(history) or '[]', unpack(ARGV, 5))
redis.call('XADD', KEYS[2], '*', 'kind', 'state', 'state', ARGV[1], 'attempt', job[2], 'at_ms', now)
redis.call('EXPIRE', KEYS[1], ARGV[2])
redis.call('EXPIRE', KEYS[2], ARGV[2])
redis.call('PUBLISH', 'torpor:ended', KEYS[1])
return {'ok', now}
