-- Correct a charge by what the job really took, once: the charge is gone afterwards. Less is given back to the window it was taken from; once that has faded, to this one and the last, as far as they go and at most a whole limit a window. More is taken from this one.
-- KEYS  1 charge, 2 previous window, 3 current window (both as the library `limits` keeps them), 4 given back late in this window
-- ARGV  1 tokens taken, 2 window_ms, 3 limit
-- gives what was added (negative: given back); 0 when there was no charge
local row = redis.call('GET', KEYS[1])
if not row then return 0 end
redis.call('DEL', KEYS[1])
local cost, charged_ms = string.match(row, '^(%d+) (%d+)$')
local owed = tonumber(ARGV[1]) - tonumber(cost)
if owed == 0 then return 0 end
local window = tonumber(ARGV[2])
local left = redis.call('PTTL', KEYS[3])
if left > 0 and left < window then -- the current window is over: shift it, as the library does
  redis.call('RENAME', KEYS[3], KEYS[2])
  redis.call('SET', KEYS[3], 0, 'PX', left + window)
  left = left + window
end
if owed > 0 then
  if left > 0 then redis.call('INCRBY', KEYS[3], owed)
  else redis.call('SET', KEYS[3], owed, 'PX', 2 * window) end
  return owed
end
if left <= 0 then return 0 end
local t = redis.call('TIME')
-- Times are whole milliseconds, rounded twice: a charge right at the start of its window must not look older than that.
local started_ms = t[1] * 1000 + math.floor(t[2] / 1000) + left - 2 * window - 10
local function give(key, most)
  local back = math.min(tonumber(redis.call('GET', key)) or 0, most)
  if back > 0 then redis.call('DECRBY', key, back) end
  return math.max(back, 0)
end
if tonumber(charged_ms) >= started_ms then return -give(KEYS[3], -owed) end
if tonumber(charged_ms) >= started_ms - window then return -give(KEYS[2], -owed) end
local most = math.min(-owed, tonumber(ARGV[3]) - (tonumber(redis.call('GET', KEYS[4])) or 0))
local back = give(KEYS[3], most)
back = back + give(KEYS[2], most - back)
if back > 0 then
  redis.call('INCRBY', KEYS[4], back)
  if redis.call('PTTL', KEYS[4]) < 0 then redis.call('PEXPIRE', KEYS[4], math.max(left - window, 1)) end
end
return -back
