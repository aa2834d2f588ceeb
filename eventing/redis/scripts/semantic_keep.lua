-- Keep the answer of a job that ended for questions of the same meaning: the vector of its question, and which job answered. Not when its
-- answers were voided, or its model's weights changed, since it was looked for; and not again once it was forgotten.
-- USES _clock _job _cache
-- KEYS  1 job hash, 2 entry, 3 vectors of its partition, 4 the tenant's entries by when they expire
-- ARGV  1 job id, 2 the tenant's part of keys, 3 name of the entry, 4 partition, 5 vector, 6 version of the look-up, 7 ttl_s,
--       8 most entries of the tenant
-- gives 'kept' | 'known' | 'stale' | 'missing'
local job = read_job(KEYS[1])
if job.state ~= 'completed' then return 'missing' end
if redis.call('EXISTS', KEYS[2]) == 1 then return 'known' end
local epoch, revision = cache_epoch(ARGV[2], job.model), cache_revision(job.model)
if not epoch or epoch .. '/' .. revision ~= ARGV[6] then return 'stale' end
local now, ttl_s = now_ms(), tonumber(ARGV[7])
local until_ms, index, member = now + 1000 * ttl_s, cache_index(ARGV[2], job.model), ARGV[4] .. ' ' .. ARGV[3]

local function drop(old)
  local partition, name = string.match(old, '^(%S+) (%S+)$')
  redis.call('DEL', cache_entry(ARGV[2], name))
  drop_vector(ARGV[2], partition, name)
  redis.call('ZREM', KEYS[4], old)
end
for _, old in ipairs(redis.call('ZRANGE', KEYS[4], '-inf', now, 'BYSCORE', 'LIMIT', 0, 100)) do drop(old) end
redis.call('HSET', KEYS[2], 'job', ARGV[1], 'epoch', epoch, 'revision', revision, 'partition', ARGV[4])
redis.call('EXPIRE', KEYS[2], ttl_s)
redis.call('HSET', KEYS[3], ARGV[3], ARGV[5])
note_vectors(KEYS[3], ARGV[3])
redis.call('EXPIRE', KEYS[3], math.max(ttl_s, redis.call('TTL', KEYS[3])))
redis.call('ZADD', KEYS[4], until_ms, member)
redis.call('EXPIRE', KEYS[4], math.max(ttl_s, redis.call('TTL', KEYS[4])))
local many = redis.call('ZCARD', KEYS[4]) - ARGV[8]
if many > 0 then
  for _, old in ipairs(redis.call('ZRANGE', KEYS[4], 0, many - 1)) do drop(old) end
end
redis.call('ZREMRANGEBYSCORE', index, '-inf', now)
redis.call('ZADD', index, until_ms, ARGV[3])
redis.call('EXPIRE', index, math.max(ttl_s, redis.call('TTL', index)))
return 'kept'
