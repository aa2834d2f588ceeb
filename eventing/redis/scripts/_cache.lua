-- Kept answers, by request and by meaning.
-- USES _clock
local REVISIONS = 'torpor:cache:revisions'

-- The names of a tenant's cached answers: an entry, the index of a model's entries by when they expire, and the counters that void them.
local function cache_entry(list, name) return 'torpor:cache:entry:' .. list .. ':' .. name end
local function cache_index(list, model) return 'torpor:cache:index:' .. list .. ':' .. string.gsub(model, '[^%w._-]', function(c)
  return string.format('%%%02X', string.byte(c)) end) end
local function cache_epoch(list, model)
  local counts = redis.pcall('HMGET', 'torpor:cache:epochs:' .. list, '*', model)
  if counts.err then return false end
  return (counts[1] or '0') .. ':' .. (counts[2] or '0')
end
local function cache_revision(model)
  local revision = redis.pcall('HGET', REVISIONS, model)
  return type(revision) == 'string' and revision or ''
end

-- The vectors of questions that were answered, of one tenant and one partition of its requests.
local function semantic_vectors(list, partition) return 'torpor:cache:vectors:' .. list .. ':' .. partition end

-- Changes with every vector of a partition, so that a process knows whether it knows them all.
local function note_vectors(key, name) redis.call('HSET', key, 'version', now_ms() .. name) end
local function drop_vector(list, partition, name)
  local key = semantic_vectors(list, partition)
  redis.call('HDEL', key, name)
  if redis.call('HLEN', key) <= 1 then redis.call('DEL', key) else note_vectors(key, name) end
end

-- Forget the answer of a job for questions of the same meaning; a mark stays, so that it is not kept again.
local function forget_semantic(list, job_id, model, is_marked)
  local name = 'semantic_' .. string.sub(job_id, 5)
  local entry = cache_entry(list, name)
  local partition = redis.call('HGET', entry, 'partition')
  if not partition then return 0 end
  drop_vector(list, partition, name)
  redis.call('ZREM', 'torpor:cache:semantic:' .. list, partition .. ' ' .. name)
  if model then redis.call('ZREM', cache_index(list, model), name) end
  if is_marked then
    redis.call('HDEL', entry, 'job', 'partition')
    redis.call('HSET', entry, 'forgotten', now_ms())
  else
    redis.call('DEL', entry)
  end
  return 1
end

-- Keep the answer of a job that ended, for the same request; or, when it is none to be served, forget that it was to come. Not when
-- the model's weights changed meanwhile, since it is not known which of them answered, or the tenant's answers were voided.
local function keep_answer(job_id, list, job, state, now)
  local use = cjson.decode(job.cache)
  if use.status ~= 'miss' or not use.key then return end
  local entry = cache_entry(list, use.key)
  local held = redis.pcall('HMGET', entry, 'job', 'revision', 'epoch')
  if held.err or held[1] ~= job_id then return end
  local revision = cache_revision(job.model)
  if state ~= 'completed' or (held[2] ~= '' and held[2] ~= revision) or held[3] ~= cache_epoch(list, job.model) then
    redis.call('DEL', entry)
    return
  end
  local index = cache_index(list, job.model)
  redis.call('HSET', entry, 'revision', revision)
  redis.call('EXPIRE', entry, use.ttl_s)
  redis.call('ZREMRANGEBYSCORE', index, '-inf', now)
  redis.call('ZADD', index, now + 1000 * use.ttl_s, use.key)
  redis.call('PEXPIREAT', index, math.floor(math.max(now + 1000 * use.ttl_s, redis.call('ZRANGE', index, -1, -1, 'WITHSCORES')[2])))
end
