-- Add to the GPU time that a job has used. A job that is gone is not brought back.
-- KEYS  1 job hash
-- ARGV  1 milliseconds
-- gives the milliseconds so far, 0 when there is no such job
if redis.call('HEXISTS', KEYS[1], 'state') == 0 then return 0 end
return redis.call('HINCRBY', KEYS[1], 'gpu_ms', ARGV[1])
