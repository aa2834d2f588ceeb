-- Whether a job whose request event another broker gave up is to be published again, or that broker can have spent its retries.
-- Time is counted from the last moment at which the job was published or an attempt of it held it.
-- USES _clock _job
-- KEYS  1 job hash
-- ARGV  1 retry_span_ms, 2 '1' if the last try of that broker was answered, 3 longest_delay_ms, 4 lease_ms
-- gives 'requeued' (and noted as unpublished, due after a pause that grows) | 'spent' | 'held' | 'terminal' | 'missing'
local job = redis.call('HMGET', KEYS[1], 'state', 'lease_until_ms', 'history', 'created_ms', 'redriven_ms', 'requeued_ms', 'requeues')
if not job[1] then return 'missing' end
if job[1] ~= 'in_progress' and job[1] ~= 'queued' then return 'terminal' end
local now = now_ms()
local lease_until = tonumber(job[2] or 0)
if job[1] == 'in_progress' and lease_left(KEYS[1], lease_until, now, tonumber(ARGV[4])) > 0 then return 'held' end
local since = lease_until
for _, moment in ipairs({job[4] or 0, job[5] or 0, job[6] or 0}) do since = math.max(since, tonumber(moment)) end
local history = history_of(job[3])
if #history > 0 then since = math.max(since, tonumber(history[#history].ended_ms or 0)) end
local requeues = tonumber(job[7] or 0)
-- No answer can mean a consumer that shut down while it held the event: tolerated more than once, but not for ever.
if now - since >= tonumber(ARGV[1]) and (ARGV[2] == '1' or requeues >= 3) then return 'spent' end
local delay = requeues > 0 and math.min(1000 * 2 ^ requeues, tonumber(ARGV[3])) or 0
redis.call('HSET', KEYS[1], 'requeued_ms', now + delay, 'requeues', requeues + 1)
redis.call('ZADD', UNPUBLISHED, now + delay, string.match(KEYS[1], '{(.*)}'))
return 'requeued'
