-- Write a batch's record and hold on to it, or let an ended one go; by the runner of the newest epoch only.
-- KEYS  1 batch hash, 2 active batches
-- ARGV  1 epoch, 2 batch id, 3 claim_ms (0: it has ended), 4 record (JSON), '' to leave it as it is, 5 retention_s
-- gives 1 | 0 (another runner has taken over, or the batch is gone)
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return 0 end
if ARGV[4] ~= '' then
  redis.call('HSET', KEYS[1], 'record', ARGV[4])
  redis.call('EXPIRE', KEYS[1], ARGV[5])
end
if ARGV[3] == '0' then
  redis.call('ZREM', KEYS[2], ARGV[2])
else
  local t = redis.call('TIME')
  redis.call('ZADD', KEYS[2], t[1] * 1000 + math.floor(t[2] / 1000) + tonumber(ARGV[3]), ARGV[2])
end
return 1
