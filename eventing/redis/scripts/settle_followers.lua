-- End some of the jobs that follow one that has ended, with its answer; or, when it has none, say which of them is to run instead, or let
-- them follow that one.
-- USES _clock _job _end
-- KEYS  1 hash of the job that is followed, 2 its followers
-- ARGV  1 its id, 2 most to look at, 3 retention_s
-- gives {'done'} (none is left) | {'more'} | {'running'} | {'orphaned', the oldest follower} | {'moved', whom they follow now}
local job_ids = redis.call('ZRANGE', KEYS[2], 0, ARGV[2] - 1)
local state, heir = unpack(redis.call('HMGET', KEYS[1], 'state', 'heir'))
if #job_ids == 0 then return heir and {'moved', heir} or {'done'} end
if state == 'queued' or state == 'in_progress' then return {'running'} end
local has_answer, now = state == 'completed' or state == 'incomplete', now_ms()
for _, job_id in ipairs(job_ids) do
  local key = 'torpor:{' .. job_id .. '}'
  local job = read_job(key)
  if job.state ~= 'queued' or job.follows ~= ARGV[1] then
    redis.call('ZREM', KEYS[2], job_id)
  elseif has_answer then
    local times = redis.call('HMGET', KEYS[1], 'started_ms', 'first_token_ms')
    local created = redis.call('HGET', key, 'created_ms')
    redis.call('HSET', key, 'started_ms', math.max(created, times[1] or 0), 'first_token_ms', math.max(created, times[2] or 0))
    local use = string.format('{"status":"hit","kind":"coalesced","key":"%s","source_job":"%s"', cjson.decode(job.cache).key, ARGV[1])
    redis.call('ZREM', KEYS[2], job_id)
    job.queues = nil
    end_with(key, job, KEYS[1], state, now, ARGV[3], use, true)
  elseif heir then
    local use = cjson.decode(job.cache)
    use.source_job = heir
    redis.call('HSET', key, 'follows', heir, 'cache', cjson.encode(use))
    redis.call('ZADD', 'torpor:{' .. heir .. '}:followers', redis.call('ZSCORE', KEYS[2], job_id), job_id)
    redis.call('ZREM', KEYS[2], job_id)
  else
    return {'orphaned', job_id}
  end
end
if redis.call('EXISTS', KEYS[2]) == 1 then return {'more'} end
if has_answer or not heir then return {'done'} end
return {'moved', heir}
