-- What the scripts of usage share. A tenant's day is a hash of rows: `api call|model|API key` = sums by measure, as JSON.
local MOST_ROWS = 10000 -- of a day; what is more goes under the key `other`
local LATE_DAY_S = 30 * 86400 -- of a day that was not counted yet

local function usage_row(url, model, key_id) return url .. '|' .. model .. '|' .. key_id end

local function add_usage(day, row, measures)
  local held = redis.call('HGET', day, row)
  if not held and redis.call('HLEN', day) >= MOST_ROWS then
    row = string.match(row, '^([^|]*|[^|]*|)') .. 'other'
    held = redis.call('HGET', day, row)
  end
  local sums = held and cjson.decode(held) or {}
  for name, amount in pairs(measures) do sums[name] = (sums[name] or 0) + amount end
  redis.call('HSET', day, row, cjson.encode(sums))
end
