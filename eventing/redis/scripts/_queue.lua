-- Queues of events: put one in, take one out; and jobs that have a predictor's start before them.
local GROUP = 'torpor'

-- What names an event in a queue, as `eventing.job.job.event_identity` says it.
local function event_identity(source, event_id, tenant)
  if tenant == 'default' or string.sub(source, 1, 8) == '/torpor/' then return source .. '\0' .. event_id end
  return source .. '\0' .. event_id .. '\0' .. tenant
end

-- Put an event into a queue, unless the same event is still in it (docs/adr/0003): a ticket stream counts, a sorted set a lane orders.
-- One that is claimed by a consumer is delivered once more when those are done with it, unless it `is_reply`: what they do may have been
-- decided before this event was sent (a dead letter redriven before it was settled). Gives 1 when it was added, 0 for a duplicate.
local function enqueue(prefix, lane, member, record, tenant, is_reply, now)
  local events, ready, fair, tries = prefix .. 'events', prefix .. 'ready:' .. lane, prefix .. 'fair:' .. lane, prefix .. 'tries'
  local stamped = string.format('%d ', now) .. record
  if redis.call('HSETNX', events, member, stamped) == 0 then
    local is_in_hand = redis.call('HEXISTS', tries, member) == 1
    if is_in_hand and not is_reply then redis.call('HSET', tries, '\0again:' .. member, 1) end
    if is_in_hand or redis.call('ZSCORE', ready, member) then return 0 end
    -- Known, but neither waiting nor in flight: half of an earlier put survived a power cut (Redis 7.0 can do that). Put it again.
    redis.call('HSET', events, member, stamped)
  end
  redis.call('XADD', prefix .. 'tickets', '*', 't', '1')
  -- Start-time fair queuing (Goyal 1996): a tenant's next event starts one step after its last, never before the lane's own clock.
  local tags = redis.call('HMGET', fair, 'clock', 'last:' .. tenant)
  local start = math.max(tonumber(tags[1] or 0), tonumber(tags[2] or 0))
  redis.call('HSET', fair, 'last:' .. tenant, string.format('%.17g', start + 1))
  redis.call('ZADD', ready, string.format('%.17g', start), member)
  return 1
end

-- Take an event out of a queue, with its ticket, unless it is in flight, so that no predictor is started for it.
local function void_entry(prefix, lane, member)
  local tickets, held, retry = prefix .. 'tickets', prefix .. 'held', prefix .. 'retry'
  local ticket
  if redis.call('ZREM', prefix .. 'ready:' .. lane, member) == 1 then
    if redis.call('EXISTS', prefix .. 'ready:' .. lane) == 0 then redis.call('DEL', prefix .. 'fair:' .. lane) end
    -- Unclaimed tickets are alike: the next one is given up. Deleting it would make KEDA's lag unknown.
    local read = redis.pcall('XREADGROUP', 'GROUP', GROUP, 'void', 'COUNT', 1, 'STREAMS', tickets, '>')
    if read and not read.err and read[1] then ticket = read[1][2][1][1] end
  elseif redis.call('HEXISTS', prefix .. 'tries', member) == 1 then
    local pairs_held = redis.call('HGETALL', held)
    for i = 1, #pairs_held, 2 do
      if pairs_held[i + 1] == member and redis.call('ZREM', retry, pairs_held[i]) == 1 then ticket = pairs_held[i] end
    end
    if not ticket then return end -- claimed by a consumer, who will learn that the job has ended
    redis.call('HDEL', held, ticket)
  end
  if ticket then redis.call('XACK', tickets, GROUP, ticket) end
  redis.call('HDEL', prefix .. 'events', member)
  redis.call('HDEL', prefix .. 'tries', member, '\0again:' .. member, '\0refused:' .. member, '\0refused_ms:' .. member,
    '\0passed:' .. member)
end

-- Jobs that have a predictor before them, of a model that another stands in for: by model, since when; and whether it starts. Of any other
-- model nothing is kept. `fallback` is that field of a job's record: 'MODEL OTHER' where OTHER stands in for MODEL, 'MODEL none' or 'MODEL -' for a job that waits for MODEL whatever comes.
local function starting(model) return 'torpor:starting:' .. model, 'torpor:starting:' .. model .. ':jobs' end
local function starting_model(fallback) return fallback and string.match(fallback, '^(%S+) %S+$') end
local function watch_start(job_id, fallback, now)
  local model = starting_model(fallback)
  if model and fallback ~= model .. ' none' and fallback ~= model .. ' -' then
    local _, jobs = starting(model)
    redis.call('ZADD', jobs, now, job_id)
  end
end
local function unwatch_start(job_id, fallback)
  local model = starting_model(fallback)
  if model then
    local _, jobs = starting(model)
    redis.call('ZREM', jobs, job_id)
  end
end
local function note_began(fallback, now)
  local model = starting_model(fallback)
  if model then redis.call('HSET', (starting(model)), 'began_ms', now, 'tripped_ms', 0, 'probe', '') end
end
