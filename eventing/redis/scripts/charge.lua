-- Add to the GPU time that a job has used. A job that is gone is not brought back. Of one that has ended, which was counted with what it had
-- used until then (`ack_ended`), it is added to its tenant's day and budgets as well.
-- USES _spent _usage
-- KEYS  1 job hash
-- ARGV  1 milliseconds, 2 model, 3 tokens of the prompt and 4 of the answer that a provider takes money for though they are lost: the next attempt
--       starts over
-- gives the milliseconds so far, 0 when there is no such job
local job = redis.call('HMGET', KEYS[1], 'state', 'finished_ms', 'tenant_key', 'tenant', 'url', 'model', 'key_id', 'spent')
if not job[1] then return 0 end
if job[1] ~= 'queued' and job[1] ~= 'in_progress' then
  local day = 'torpor:usage:' .. (job[3] or job[4]) .. ':' .. string.format('%d', math.floor(job[2] / 86400000))
  add_usage(day, usage_row(job[5] or '', job[6] or '', job[7] or ''), {gpu_ms = tonumber(ARGV[1]), late_gpu_ms = tonumber(ARGV[1])})
  -- Its budgets were settled at its end, by prices that are not known here.
  for _, account in ipairs({'tenant:' .. (job[3] or job[4]), 'key:' .. (job[7] or '')}) do
    local key = 'torpor:{budgets}:' .. account
    if redis.call('EXISTS', key) == 1 then redis.call('HINCRBY', key, 'late_gpu_ms', ARGV[1]) end
  end
  if redis.call('TTL', day) < 0 then redis.call('EXPIRE', day, LATE_DAY_S) end
end
if ARGV[4] and ARGV[4] ~= '0' and (job[1] == 'queued' or job[1] == 'in_progress') then
  local list = spent_list(job[8])
  add_spent(list, 'retried', ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]))
  redis.call('HSET', KEYS[1], 'spent', cjson.encode(list))
end
return redis.call('HINCRBY', KEYS[1], 'gpu_ms', ARGV[1])
