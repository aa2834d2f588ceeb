-- Queue a job that followed another which ended without an answer: it goes on from the other's tokens, and the other's followers will follow
-- it.
-- USES _clock _job _queue _cache
-- KEYS  1 job hash, 2 token stream, 3 hash of the job that it followed, 4 that one's token stream, 5 that one's followers
-- ARGV  1 job id, 2 id of the job that it followed, 3 recheck_ms, 4 '1' to note that its event is unpublished, 5 event record,
--       6 retention_s, 7.. prefixes of the queues that want it
-- gives 'queued' | 'changed' (it follows that job no more, or that job runs again, or another was promoted)
local job = read_job(KEYS[1])
if job.state ~= 'queued' or job.follows ~= ARGV[2] then return 'changed' end
local led = redis.call('HMGET', KEYS[3], 'state', 'heir', 'token_count', 'attempt', 'turns')
if led[1] == 'queued' or led[1] == 'in_progress' or led[1] == 'completed' or led[1] == 'incomplete' or led[2] then return 'changed' end
local now, list, use = now_ms(), job.tenant_key or job.tenant, cjson.decode(job.cache)
local newest = redis.call('XREVRANGE', KEYS[4], '+', '-', 'COUNT', 1)[1]
if newest and newest[2][2] ~= 'archived' and not led[5] and -- what its tools said is its own
  redis.call('COPY', KEYS[4], KEYS[2], 'REPLACE') == 1 then
  redis.call('PERSIST', KEYS[2])
  redis.call('HSET', KEYS[1], 'token_count', led[3], 'attempt', led[4])
end
redis.call('XADD', KEYS[2], '*', 'kind', 'state', 'state', 'queued', 'attempt', led[4] or 0, 'at_ms', now)
use = {status = 'miss', key = use.key, ttl_s = use.ttl_s, fwd = 'uri-miss'}
redis.call('HSET', KEYS[1], 'cache', cjson.encode(use))
redis.call('HDEL', KEYS[1], 'follows')
redis.call('HSET', KEYS[3], 'heir', ARGV[1])
if redis.call('TTL', KEYS[3]) < 0 then redis.call('EXPIRE', KEYS[3], ARGV[6]) end
redis.call('ZREM', KEYS[5], ARGV[1])
local entry, epoch = cache_entry(list, use.key), cache_epoch(list, job.model)
if epoch and redis.call('EXISTS', entry) == 0 then
  redis.call('HSET', entry, 'job', ARGV[1], 'model', job.model, 'epoch', epoch, 'revision', cache_revision(job.model))
  redis.call('EXPIRE', entry, 604800)
end
redis.call('ZADD', UNSTARTED, now + ARGV[3], ARGV[1])
watch_start(ARGV[1], job.fallback, now)
if ARGV[4] == '1' then redis.call('ZADD', UNPUBLISHED, now + SWEEP_AFTER_MS, ARGV[1]) end
local queues = {unpack(ARGV, 7)}
if #queues > 0 then redis.call('HSET', KEYS[1], 'queues', cjson.encode(queues)) end
local member = event_identity(job.source, job.event_id, job.tenant)
for _, prefix in ipairs(queues) do enqueue(prefix, job.lane, member, ARGV[5], job.tenant, false, now) end
return 'queued'
