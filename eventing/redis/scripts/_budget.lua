-- What the scripts of budgets share. An account is a hash: `month` (of `spent`), `spent`, and `hold:<job>` = amount and time a job that has
-- not ended; amounts are millionths of the currency. A new month, of store time in UTC, begins with nothing spent.

-- Days since the epoch as year and month, and the day on which the next month begins (Howard Hinnant's civil_from_days).
local function days_from_civil(year, month)
  if month <= 2 then year = year - 1 end
  local era, shifted = math.floor(year / 400), (month + 9) % 12
  local yoe = year - era * 400
  local doe = yoe * 365 + math.floor(yoe / 4) - math.floor(yoe / 100) + math.floor((153 * shifted + 2) / 5)
  return era * 146097 + doe - 719468
end
local function month_of(day)
  local z = day + 719468
  local era = math.floor(z / 146097)
  local doe = z - era * 146097
  local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
  local shifted = math.floor((5 * doy + 2) / 153)
  local month = shifted < 10 and shifted + 3 or shifted - 9
  local year = yoe + era * 400 + (month <= 2 and 1 or 0)
  local next_year, next_month = year, month + 1
  if next_month > 12 then next_year, next_month = year + 1, 1 end
  return string.format('%04d-%02d', year, month), days_from_civil(next_year, next_month)
end

local KEPT_S = 100 * 24 * 3600
-- What is spent of an account in a month, with the GPU time that was charged after its jobs had ended; `price` is that of a millisecond.
local function spent_in(key, month, price)
  local held = redis.call('HMGET', key, 'month', 'spent', 'late_gpu_ms')
  local spent = tonumber(held[2])
  -- A clock that went back begins no older month.
  if not held[1] or held[1] < month then
    redis.call('HSET', key, 'month', month, 'spent', 0)
    redis.call('EXPIRE', key, KEPT_S)
    spent = 0
  end
  if held[3] then
    redis.call('HDEL', key, 'late_gpu_ms')
    spent = redis.call('HINCRBY', key, 'spent', string.format('%.0f', held[3] * price))
  end
  return spent
end

-- What jobs that have not ended may cost. A hold whose job was never recorded is given up after a minute, and one whose job ended long ago
-- after an hour: a repeat that came too late took it.
local function held_in(key, now)
  local rows, sum = redis.call('HGETALL', key), 0
  for i = 1, #rows, 2 do
    local job_id = string.match(rows[i], '^hold:(.*)$')
    if job_id then
      local amount, since = string.match(rows[i + 1], '^(%d+) (%d+)$')
      local is_over = false
      if now - since > 60000 then
        local job = redis.call('HMGET', 'torpor:{' .. job_id .. '}', 'state', 'finished_ms', 'deleted')
        local finished = tonumber(job[2] or 0)
        is_over = (not job[1] and not job[3]) or (finished > 0 and now - math.max(finished, since) > 3600000)
      end
      if is_over then redis.call('HDEL', key, rows[i]) else sum = sum + amount end
    end
  end
  return sum
end
