-- Write a batch's record, by the runner of the newest epoch only.
-- KEYS  1 batch hash
-- ARGV  1 epoch, 2 record (JSON), 3 retention_s
-- gives 1 | 0 (another runner has taken over, or the batch is gone)
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'record', ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
return 1
