-- Whether a model that another stands in for starts, and which of its waiting jobs are to go to the other one. It trips when jobs waited and no
-- attempt began, or was under way, for `trip_ms`; an attempt that begins ends that (`note_began`). While it is tripped, one job after a
-- pause waits as a probe. Time in which nothing was checked does not count: the store stood still, or every process that checks.
-- USES _clock _job _queue
-- KEYS  1 hash of the model's starts, 2 its jobs that have a predictor before them, by since when
-- ARGV  1 model, 2 trip_ms, 3 probe_ms: how long a probe waits, 4 pause_ms before each, 5 gap_ms: longer than that between two checks does not
--       count, 6 lease_ms, 7 most jobs to look at
-- gives {'starts' | 'trips' (by this call) | 'tripped', jobs to go to the other model...}
local LANES = {batch = 1, default = 2, interactive = 3}
local now, trip, probe_ms, pause = now_ms(), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
follow_clock(KEYS[2], now)
local held = redis.call('HMGET', KEYS[1], 'began_ms', 'tripped_ms', 'checked_ms', 'floor_ms', 'probe', 'probe_until_ms', 'next_probe_ms')
-- After the store's clock went back, nothing lies further ahead than it can.
local function at(i, most) return math.min(tonumber(held[i]) or 0, most) end
local began, tripped, checked, floor = at(1, now), at(2, now), at(3, now), at(4, now)
local probe, probe_until, next_probe = held[5] or '', at(6, now + probe_ms), at(7, now + probe_ms + pause)
redis.call('HSET', KEYS[1], 'checked_ms', now)
local first = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2]
if not first then return {tripped > 0 and 'tripped' or 'starts'} end
if checked > 0 and now - checked > tonumber(ARGV[5]) then
  local counted = math.max(0, checked - math.max(tonumber(first), began, floor))
  floor = now - math.min(counted, now)
  redis.call('HSET', KEYS[1], 'floor_ms', floor)
end
if tripped == 0 and now - math.max(tonumber(first), began, floor) < trip then return {'starts'} end

-- The jobs that wait, the oldest first, and since when; those that do not any more were ended or sent on by a process of another version.
local waiting, since, is_running = {}, now, false
local rows = redis.call('ZRANGE', KEYS[2], 0, ARGV[7] - 1, 'WITHSCORES')
for i = 1, #rows, 2 do
  local key = 'torpor:{' .. rows[i] .. '}'
  local job = read_job(key)
  local has_ended = job.state ~= 'queued' and job.state ~= 'in_progress'
  if has_ended or (job.step and job.step ~= '') or job.candidate_state or starting_model(job.fallback) ~= ARGV[1] then
    redis.call('ZREM', KEYS[2], rows[i])
  elseif job.state == 'in_progress' and lease_left(key, job.lease_until_ms, now, ARGV[6]) > 0 then
    is_running = true
  else
    waiting[#waiting + 1] = {id = rows[i], lane = LANES[job.lane] or 2, deadline = tonumber(job.deadline_ms or 0)}
    since = math.min(since, tonumber(rows[i + 1]))
  end
end
if is_running then -- by a predictor of an older version, which notes no begin
  redis.call('HSET', KEYS[1], 'began_ms', now, 'tripped_ms', 0, 'probe', '')
  return {'starts'}
end
local answer = 'tripped'
if tripped == 0 then
  if #waiting == 0 or now - math.max(since, began, floor) < trip then return {'starts'} end
  answer, probe, probe_until, next_probe = 'trips', '', 0, now + pause
  redis.call('HSET', KEYS[1], 'tripped_ms', now, 'probe', '', 'probe_until_ms', 0, 'next_probe_ms', next_probe)
end

-- One probe at a time: of the least urgent lane, the oldest that can wait so long.
if probe ~= '' and now >= probe_until then
  probe = ''
  redis.call('HSET', KEYS[1], 'probe', '')
end
if probe == '' and now >= next_probe then
  local best
  for _, job in ipairs(waiting) do
    local can_wait = job.deadline == 0 or job.deadline > now + 2 * probe_ms
    if can_wait and (not best or job.lane < best.lane) then best = job end
  end
  if best then
    probe = best.id
    redis.call('HSET', KEYS[1], 'probe', probe, 'probe_until_ms', now + probe_ms, 'next_probe_ms', now + probe_ms + pause)
  end
end
local out = {answer}
for _, job in ipairs(waiting) do
  if job.id ~= probe then out[#out + 1] = job.id end
end
return out
