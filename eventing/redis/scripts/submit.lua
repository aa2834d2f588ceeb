-- Take a job in: its record, its place in the lists, and its event in every queue that wants it, or the note that it is to be published
-- on a broker that is not ours. The same identity with the same request and options is the same job; with others it is a conflict.
-- USES _lib
-- KEYS  1 job hash, 2 list of the tenant's jobs, 3 hash of its conversation (of a job that has one)
-- ARGV  1 job id, 2 sha of the request, 3 sha of the call's options, '' for any, 4 deadline_ms, 5 recheck_ms,
--       6 most unpublished notes ('' for none: nothing is to be published), 7 lane, 8 tenant, 9 member, 10 event record,
--       11 sequence number that its conversation was read at, '' for any, 12 number n of queues that want it,
--       13..12+n prefixes of their keys, 13+n.. field, value pairs of the record
-- gives {'created' | 'exists' | 'conflict', created_ms} | {'deleted', 0} | {'full', 0} (too many unpublished)
--       | {'locked', 0} (another job is adding to its conversation) | {'moved', 0} (the conversation is longer now) | {'gone', 0} (deleted)
local job = redis.call('HMGET', KEYS[1], 'sha', 'options_sha', 'created_ms', 'deleted')
if job[4] then return {'deleted', 0} end
if job[1] then
  -- A record without options comes from an event or an older version: its options are unknown.
  if job[1] ~= ARGV[2] or (job[2] and ARGV[3] ~= '' and job[2] ~= ARGV[3]) then return {'conflict', 0} end
  return {'exists', tonumber(job[3])}
end
if ARGV[6] ~= '' and redis.call('ZCARD', UNPUBLISHED) >= tonumber(ARGV[6]) then return {'full', 0} end
if KEYS[3] then
  local refused = begin_turn(KEYS[3], ARGV[1], ARGV[11])
  if refused then return {refused, 0} end
end
local now, n = now_ms(), tonumber(ARGV[12])
-- Notes first: Redis 7.0 can apply the first half of a script after a power cut.
redis.call('ZADD', UNSTARTED, now + ARGV[5], ARGV[1])
if ARGV[6] ~= '' then redis.call('ZADD', UNPUBLISHED, now + SWEEP_AFTER_MS, ARGV[1]) end
redis.call('HSET', KEYS[1], 'sha', ARGV[2], 'state', 'queued', 'attempt', 0, 'failures', 0, 'token_count', 0,
  'created_ms', now, unpack(ARGV, 13 + n))
redis.call('ZADD', KEYS[2], now, ARGV[1])
if ARGV[4] ~= '0' then redis.call('ZADD', DEADLINES, ARGV[4], ARGV[1]) end
for _, prefix in ipairs({unpack(ARGV, 13, 12 + n)}) do enqueue(prefix, ARGV[7], ARGV[9], ARGV[10], ARGV[8], false, now) end
return {'created', now}
