-- Add amounts to the ledger: to the slice of time that runs, by store time, and those of models to the totals since ever.
-- KEYS  1 totals hash; the slices are `<it>:<slice start in seconds>`, in the same hash slot
-- ARGV  1 slice_s, 2 retention_s of a slice, 3.. field, whole amount pairs
-- gives the start of the slice in seconds
local now = tonumber(redis.call('TIME')[1])
local start = now - now % tonumber(ARGV[1])
local slice = KEYS[1] .. ':' .. string.format('%d', start)
for i = 3, #ARGV, 2 do
  if string.sub(ARGV[i], 1, 7) ~= 'tenant|' then redis.call('HINCRBY', KEYS[1], ARGV[i], ARGV[i + 1]) end
  redis.call('HINCRBY', slice, ARGV[i], ARGV[i + 1])
end
redis.call('EXPIRE', slice, ARGV[2])
return start
