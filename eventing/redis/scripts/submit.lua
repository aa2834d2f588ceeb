-- Take a job in: its record, its place in the lists, and its event in every queue that wants it, or the note that it is to be published
-- on a broker that is not ours. The same identity with the same request and options is the same job; with others it is a conflict.
-- A job that may be answered from the exact cache ends here with a kept answer, or follows the job that is on its way to it, and is in no
-- queue. A cache that can not be read has no answer.
-- USES _clock _job _queue _conversation _cache _calls _end
-- KEYS  1 job hash, 2 list of the tenant's jobs, then the hash of its conversation (of a job that has one), and of the job whose last turn it
--       takes over (with the field `carried_from`)
-- ARGV  1 job id, 2 sha of the request, 3 sha of the call's options, '' for any, 4 deadline_ms, 5 recheck_ms,
--       6 most unpublished notes ('' for none: nothing is to be published), 7 lane, 8 tenant, 9 member, 10 event record,
--       11 sequence number that its conversation was read at, '' for any,
--       12 what is asked of the cache (JSON: key, model, ttl_s, max_age_s, reads, only_if_cached, has_objects, retention_s), '' for nothing,
--       13 number n of queues that want it, 14..13+n prefixes of their keys, 14+n.. field, value pairs of the record
-- gives {'created' | 'exists' | 'conflict', created_ms} | {'deleted', 0} | {'full', 0} (too many unpublished)
--       | {'locked', 0} (another job is adding to its conversation) | {'moved', 0} (the conversation is longer now) | {'gone', 0} (deleted)
--       | {'answered', 0} (another job took the turn over) | {'unasked', 0} (it can not be taken over)
--       | {'hit', created_ms, the record} | {'follows', created_ms, leader, use} | {'uncached', 0} (and nothing was recorded)
local MOST_FOLLOWERS = 10000 -- of one job
local LANES = {interactive = 1, default = 2, batch = 3}
local list = string.match(KEYS[2], '^torpor:jobs:(.*)$')

-- What the cache has for a request: 'hit' or 'follows' with the id and the record of the job that has, or will have, the answer; and its
-- age and how long it is served yet, in seconds.
local function look_up(ask, now)
  local entry = redis.pcall('HMGET', cache_entry(list, ask.key), 'job', 'epoch', 'revision')
  if entry.err or not entry[1] or entry[2] ~= ask.epoch then return nil end
  local from = 'torpor:{' .. entry[1] .. '}'
  local held = redis.pcall('HMGET', from, 'state', 'tenant', 'finished_ms', 'cache', 'lane', 'follows', 'object')
  if held.err or held[2] ~= ARGV[8] or not held[4] or (held[7] and not ask.has_objects) then return nil end
  -- Which weights will answer is not known before the model's first start.
  local is_running = held[1] == 'queued' or held[1] == 'in_progress'
  if entry[3] ~= ask.revision and not (is_running and entry[3] == '') then return nil end
  if held[1] == 'completed' then
    local age, ttl = math.max(0, math.floor((now - held[3]) / 1000)), cjson.decode(held[4]).ttl_s or 0
    if age < ttl and age <= ask.max_age_s then return 'hit', entry[1], age, ttl - age end
  elseif (held[1] == 'in_progress' or (held[1] == 'queued' and (LANES[held[5]] or 2) <= (LANES[ARGV[7]] or 2))) and not held[6]
    and not ask.only_if_cached and redis.call('ZCARD', from .. ':followers') < MOST_FOLLOWERS then
    return 'follows', entry[1], 0, 0
  end
end

-- Why the turn of an earlier job can not be taken over: it was before, by another job ('answered'), or what was asked there is no more as
-- it was, or its time has passed ('unasked').
local function cannot_take(from, take, now)
  local held = redis.call('HMGET', from, 'tenant', 'carried_by')
  if held[1] ~= ARGV[8] then return 'unasked' end
  if held[2] then return 'answered' end
  for _, each in ipairs(take.calls) do
    local text = redis.call('HGET', from, string.format('call:%d.%d', take.turn, each.place))
    local call = text and cjson.decode(text)
    if not call or call.approval_id ~= each.id or not WAITING[call.state] or now >= (call.expires_ms or 0) then return 'unasked' end
  end
end

local job = redis.call('HMGET', KEYS[1], 'sha', 'options_sha', 'created_ms', 'deleted')
if job[4] then return {'deleted', 0} end
if job[1] then
  -- A record without options comes from an event or an older version: its options are unknown.
  if job[1] ~= ARGV[2] or (job[2] and ARGV[3] ~= '' and job[2] ~= ARGV[3]) then return {'conflict', 0} end
  return {'exists', tonumber(job[3])}
end
local now, n = now_ms(), tonumber(ARGV[13])
local ask, found, source, age, left = nil
if ARGV[12] ~= '' then
  ask = cjson.decode(ARGV[12])
  if ask.key then
    ask.epoch, ask.revision = cache_epoch(list, ask.model), cache_revision(ask.model)
    if ask.reads then found, source, age, left = look_up(ask, now) end
  end
  if ask.only_if_cached and found ~= 'hit' then return {'uncached', 0} end
end
if not found and ARGV[6] ~= '' and redis.call('ZCARD', UNPUBLISHED) >= tonumber(ARGV[6]) then return {'full', 0} end
local take, from = value_in(ARGV, 'carried_from', 14 + n), nil
if take then
  from = table.remove(KEYS)
  local refused = cannot_take(from, cjson.decode(take), now)
  if refused then return {refused, 0} end
end
if KEYS[3] then
  local refused = begin_turn(KEYS[3], ARGV[1], ARGV[11])
  if refused then return {refused, 0} end
end
if from then redis.call('HSET', from, 'carried_by', ARGV[1]) end
-- Notes first: Redis 7.0 can apply the first half of a script after a power cut.
if found ~= 'hit' then redis.call('ZADD', UNSTARTED, now + ARGV[5], ARGV[1]) end
if not found and ARGV[6] ~= '' then redis.call('ZADD', UNPUBLISHED, now + SWEEP_AFTER_MS, ARGV[1]) end
redis.call('HSET', KEYS[1], 'sha', ARGV[2], 'state', 'queued', 'attempt', 0, 'failures', 0, 'token_count', 0,
  'created_ms', now, unpack(ARGV, 14 + n))
redis.call('ZADD', KEYS[2], now, ARGV[1])
if found == 'hit' then
  local use = string.format('{"status":"hit","kind":"exact","key":"%s","source_job":"%s","age_s":%d,"left_s":%d', ask.key, source, age, left)
  redis.call('HSET', KEYS[1], 'started_ms', now, 'first_token_ms', now)
  local record = read_job(KEYS[1])
  record.queues = nil
  end_with(KEYS[1], record, 'torpor:{' .. source .. '}', 'completed', now, ask.retention_s, use, false)
  return {'hit', now, redis.call('HGETALL', KEYS[1])}
end
if ARGV[4] ~= '0' then redis.call('ZADD', DEADLINES, ARGV[4], ARGV[1]) end
if found == 'follows' then
  local use = string.format('{"status":"hit","kind":"coalesced","key":"%s","source_job":"%s","ttl_s":%d}', ask.key, source, ask.ttl_s)
  redis.call('ZADD', 'torpor:{' .. source .. '}:followers', now, ARGV[1])
  redis.call('HSET', KEYS[1], 'follows', source, 'cache', use)
  return {'follows', now, source, use}
end
if ask and ask.key and ask.epoch then
  local entry = cache_entry(list, ask.key)
  redis.call('DEL', entry)
  redis.call('ZREM', cache_index(list, ask.model), ask.key)
  redis.call('HSET', entry, 'job', ARGV[1], 'model', ask.model, 'epoch', ask.epoch, 'revision', ask.revision)
  redis.call('EXPIRE', entry, 604800) -- the job's end decides; this is for a job that is lost
end
watch_start(ARGV[1], value_in(ARGV, 'fallback', 14 + n), now)
for _, prefix in ipairs({unpack(ARGV, 14, 13 + n)}) do enqueue(prefix, ARGV[7], ARGV[9], ARGV[10], ARGV[8], false, now) end
return {'created', now}
