-- Note how a call to a provider went: what it really took, what the answer said of the limits, and whether the breaker opens or closes.
-- USES _clock _provider
-- KEYS  1 provider hash, 2 list of the newest answers' lengths, 3 list of their times to a first token
-- ARGV  1 seq, 2 tokens reserved, 3 tokens reserved by all at that time, 4 '1' for a probe,
--       5 'ok' | 'failed' | 'unreachable' | 'limited' | 'refused' (the call's own fault) | 'cut' (by us: says nothing of the provider),
--       6 tokens that it took ('' for unknown), 7 tokens of the answer ('' for none), 8 ms to wait when limited,
--       9 limit and 10 remaining of requests, 11 limit and 12 remaining of tokens ('' for not said),
--       13 window_ms, 14 requests a window to begin with, 15 open_ms with its jitter, 16 slot_ms: a sixth of what the breaker looks at,
--       17 ms to the first token ('' for none)
-- gives the breaker's state
local HEDGED, HEDGES, SAMPLES, USUAL = 0.06, 10, 100, 0.99
local AT_LEAST, HALF, IN_A_ROW, TO_CLOSE, KEPT = 10, 0.5, 5, 3, 200
local FAILURES, MANY = 10, 20 -- in a row, of any kind
local p = read_provider(KEYS[1])
local now, window, how = now_ms(), tonumber(ARGV[13]), ARGV[5]
refill(p, now, window, tonumber(ARGV[14]))
p.settled = p.settled + 1

-- Buckets. A call that the provider did not take gives everything back.
local took = tonumber(ARGV[6]) or (how == 'ok' and tonumber(ARGV[2])) or 0
p.level_t = p.level_t + ARGV[2] - took
local is_news, seq = tonumber(ARGV[1]) > p.seen_seq, tonumber(ARGV[1])
if is_news then p.seen_seq = seq end
local function follow(level, limit, said, remaining, since)
  if said ~= '' then
    if limit == 0 then level = tonumber(said) end
    limit = tonumber(said)
  end
  -- The answer may not know of what was sent after its call.
  if remaining ~= '' and is_news then level = math.min(level, remaining - since) end
  return level, limit
end
p.level_r, p.limit_r = follow(p.level_r, p.limit_r, ARGV[9], ARGV[10], p.seq - seq)
if ARGV[9] ~= '' then p.told = 1 end
p.level_t, p.limit_t = follow(p.level_t, p.limit_t, ARGV[11], ARGV[12], p.reserved - ARGV[3])
if how == 'limited' then
  p.blocked_until = math.max(p.blocked_until, now + ARGV[8])
  p.level_r, p.level_t = math.min(p.level_r, 0), math.min(p.level_t, 0)
end
-- Without headers: additive increase a window, multiplicative decrease at most once in a tenth of one.
if p.told == 0 and how == 'ok' then p.limit_r = p.limit_r + 0.05 * ARGV[14] / p.limit_r end
if p.told == 0 and how == 'limited' and now - p.cut_at > window / 10 then p.limit_r, p.cut_at = math.max(p.limit_r * 0.7, 1), now end

-- Times to a first token: later than twice the median is no usual time, and later than nearly all usual ones is late (docs/adr/0351). Answers
-- earn a budget of second calls.
if ARGV[17] ~= '' then
  redis.call('LPUSH', KEYS[3], ARGV[17])
  redis.call('LTRIM', KEYS[3], 0, KEPT - 1)
  redis.call('EXPIRE', KEYS[3], PROVIDER_KEPT_S)
  p.firsts = p.firsts + 1
  if p.firsts >= SAMPLES and p.firsts % 20 == 0 then
    local times = sorted(KEYS[3])
    local twice, usual = 2 * times[math.ceil(0.5 * #times)], 0
    for i, each in ipairs(times) do
      if each <= twice then usual = i end
    end
    p.hedge_after = times[math.ceil(USUAL * usual)]
  end
end
if how == 'ok' then
  local budget = tonumber(redis.call('HGET', KEYS[1], 'hedges') or 0)
  redis.call('HSET', KEYS[1], 'hedges', math.min(budget + HEDGED, HEDGES))
end

-- Lengths of answers: the next reservations go by their 95th percentile.
if ARGV[7] ~= '' then
  redis.call('LPUSH', KEYS[2], ARGV[7])
  redis.call('LTRIM', KEYS[2], 0, KEPT - 1)
  redis.call('EXPIRE', KEYS[2], PROVIDER_KEPT_S)
  p.answers = p.answers + 1
  if p.answers <= 20 or p.answers % 20 == 0 then
    local lengths = sorted(KEYS[2])
    p.p95 = lengths[math.ceil(0.95 * #lengths)]
  end
end

-- Breaker. A limit that is used up throttles and opens nothing.
local is_bad = how == 'failed' or how == 'unreachable'
local function open()
  p.state, p.open_until, p.unreachable, p.failures = 'open', now + ARGV[15], 0, 0
end
if ARGV[4] == '1' and p.state == 'half_open' then
  p.probe_until = 0
  if is_bad then open()
  elseif how == 'ok' or how == 'refused' then
    p.successes = p.successes + 1
    if p.successes >= TO_CLOSE then p.state, p.closed_at, p.unreachable, p.failures = 'closed', now, 0, 0 end
  end
elseif p.state == 'closed' and (is_bad or how == 'ok') then
  p.unreachable = how == 'unreachable' and p.unreachable + 1 or 0
  p.failures = is_bad and p.failures + 1 or 0
  local turn = math.floor(now / ARGV[16])
  local ok, bad = 0, 0
  for i = 0, 5 do
    local slot = redis.call('HMGET', KEYS[1], 'turn' .. i, 'ok' .. i, 'bad' .. i)
    local age, good, failed = turn - (tonumber(slot[1]) or -9), tonumber(slot[2]) or 0, tonumber(slot[3]) or 0
    if i == turn % 6 then
      if age ~= 0 then good, failed = 0, 0 end
      good, failed, age = good + (is_bad and 0 or 1), failed + (is_bad and 1 or 0), 0
      redis.call('HSET', KEYS[1], 'turn' .. i, turn, 'ok' .. i, good, 'bad' .. i, failed)
    end
    -- What was before it closed is over.
    if age >= 0 and age < 6 and (turn - age + 1) * ARGV[16] > p.closed_at then ok, bad = ok + good, bad + failed end
  end
  local share = bad / (ok + bad)
  -- Soon after it closed only many failures in a row open it again: a share of few calls would let it flap.
  local is_settled = now - p.closed_at > tonumber(ARGV[15])
  -- A provider that answered many calls before it died would have to fail as many: failures in a row open it sooner.
  local is_dead = p.unreachable >= IN_A_ROW or p.failures >= (is_settled and FAILURES or MANY)
  if is_dead or (is_settled and ok + bad >= AT_LEAST and share >= HALF) then open() end
end
write_provider(KEYS[1], p)
return p.state
