-- What the scripts of a provider's state share. `level_*` is what may be sent now of requests (r) and tokens (t), `limit_*` what a window
-- allows, 0 for unknown. The breaker counts answers in six slots.
local NUMBERS = {'seq', 'settled', 'reserved', 'level_r', 'level_t', 'limit_r', 'limit_t', 'at', 'blocked_until', 'seen_seq', 'told',
  'cut_at', 'open_until', 'probe_until', 'successes', 'unreachable', 'closed_at', 'p95', 'answers', 'firsts', 'hedge_after', 'failures'}
local PROVIDER_KEPT_S = 7 * 24 * 3600

local function read_provider(key)
  local p = {state = redis.call('HGET', key, 'state') or 'closed'}
  for i, value in ipairs(redis.call('HMGET', key, unpack(NUMBERS))) do p[NUMBERS[i]] = tonumber(value or 0) end
  return p
end

local function write_provider(key, p)
  local row = {'state', p.state}
  for _, name in ipairs(NUMBERS) do
    row[#row + 1] = name
    row[#row + 1] = string.format('%.17g', p[name])
  end
  redis.call('HSET', key, unpack(row))
  redis.call('EXPIRE', key, PROVIDER_KEPT_S)
end

-- Let what has leaked since `at` be sent again. A clock that went back gives nothing.
local function refill(p, now, window, first)
  if p.limit_r == 0 then p.limit_r, p.level_r = first, first end
  local passed = p.at > 0 and math.max(now - p.at, 0) / window or 0
  p.level_r = math.min(p.level_r + p.limit_r * passed, p.limit_r)
  if p.limit_t > 0 then p.level_t = math.min(p.level_t + p.limit_t * passed, p.limit_t) end
  p.at = now
end

-- Milliseconds until `need` can be taken and the lane's share is left; a call above the whole limit waits for a full bucket.
local function wait_for(level, limit, need, argv)
  if limit == 0 then return 0 end
  local missing = math.min(need + limit * argv[4], limit) - level
  return missing > 0 and math.ceil(missing / limit * argv[3]) or 0
end

-- The numbers in a list, in order.
local function sorted(key)
  local numbers = redis.call('LRANGE', key, 0, -1)
  for i, each in ipairs(numbers) do numbers[i] = tonumber(each) end
  table.sort(numbers)
  return numbers
end
