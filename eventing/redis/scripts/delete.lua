-- Forget a job that has ended. One that was redriven meanwhile is not touched. What is left is a tombstone, which every script that
-- records jobs knows: an event of the job that comes later makes no new one. Its answer is served to no other job any more.
-- USES _job _cache
-- KEYS  1 job hash, 2 token stream, 3 list of the tenant's jobs, 4 list of its dead letters
-- ARGV  1 job id, 2 retention_s of the tombstone
-- gives 1 | 0 (there is none, or it has not ended)
local job = read_job(KEYS[1])
local state = job.state
if not state or state == 'queued' or state == 'in_progress' then return 0 end
local list = job.tenant_key or job.tenant
forget_semantic(list, ARGV[1], job.model, false)
if job.cache then
  local use = cjson.decode(job.cache)
  local entry = use.key and cache_entry(list, use.key)
  if entry and redis.pcall('HGET', entry, 'job') == ARGV[1] then
    redis.call('DEL', entry)
    redis.call('ZREM', cache_index(list, job.model), use.key)
  end
end
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('HSET', KEYS[1], 'deleted', 1)
redis.call('EXPIRE', KEYS[1], ARGV[2])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('ZREM', KEYS[4], ARGV[1])
return 1
