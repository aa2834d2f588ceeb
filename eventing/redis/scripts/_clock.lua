-- Store time, and what is done when it goes back (docs/adr/0184).
local CLOCK, CLOCK_SLACK_MS = 'torpor:clock', 1000
local SWEEP_AFTER_MS = 10000 -- a note this old was not cleared by its writer

-- Store time in milliseconds.
local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- A store's clock can go back: it is set, or another host takes over. What a time index holds would then be due that much later. `CLOCK`
-- keeps the newest time at which each index was read; when it is ahead of now, the whole index is moved back by the difference.
local function follow_clock(index, now)
  local seen = tonumber(redis.call('HGET', CLOCK, index) or 0)
  if seen > now + CLOCK_SLACK_MS then
    local rows = redis.call('ZRANGE', index, 0, -1, 'WITHSCORES')
    for i = 1, #rows, 2 do redis.call('ZADD', index, string.format('%d', rows[i + 1] + now - seen), rows[i]) end
  end
  redis.call('HSET', CLOCK, index, now)
end

-- How long a lease lasts yet, in milliseconds. No lease is given for longer than `lease_ms`: one that ends later was given before the
-- store's clock went back, and lasts `lease_ms` from now on.
local function lease_left(key, lease_until, now, lease_ms)
  local left, most = (lease_until or 0) - now, tonumber(lease_ms)
  if left <= most then return left end
  redis.call('HSET', key, 'lease_until_ms', now + most)
  return most
end
