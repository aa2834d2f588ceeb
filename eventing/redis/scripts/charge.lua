-- Add to the GPU time that a job has used. A job that is gone is not brought back. Of one that has ended, which was counted with what it had
-- used until then (`ack_ended`), it is added to its tenant's day as well.
-- USES _usage
-- KEYS  1 job hash
-- ARGV  1 milliseconds
-- gives the milliseconds so far, 0 when there is no such job
local job = redis.call('HMGET', KEYS[1], 'state', 'finished_ms', 'tenant_key', 'tenant', 'url', 'model', 'key_id')
if not job[1] then return 0 end
if job[1] ~= 'queued' and job[1] ~= 'in_progress' then
  local day = 'torpor:usage:' .. (job[3] or job[4]) .. ':' .. string.format('%d', math.floor(job[2] / 86400000))
  add_usage(day, usage_row(job[5] or '', job[6] or '', job[7] or ''), {gpu_ms = tonumber(ARGV[1])})
  if redis.call('TTL', day) < 0 then redis.call('EXPIRE', day, LATE_DAY_S) end
end
return redis.call('HINCRBY', KEYS[1], 'gpu_ms', ARGV[1])
