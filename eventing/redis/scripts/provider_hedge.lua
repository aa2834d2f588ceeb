-- Take a second call beside a late one out of the budget: a share of the calls that were answered.
-- KEYS  1 provider hash
-- gives 1 when it may be sent, else 0
local budget = tonumber(redis.call('HGET', KEYS[1], 'hedges') or 0)
if budget < 1 or redis.call('HGET', KEYS[1], 'state') ~= 'closed' then return 0 end
redis.call('HINCRBYFLOAT', KEYS[1], 'hedges', -1)
return 1
