-- Checkpoint tokens of a running attempt: in order, without a gap, by the newest lease only.
-- KEYS  1 job hash, 2 token stream
-- ARGV  1 attempt, 2 lease id, 3 index of the first token, 4 number of tokens, 5 token ids, 6 what readers are shown (JSON),
--       7 position up to which they are shown it, where an answer is held back; '' for all
-- gives 'ok' | 'fenced' | 'terminal' | 'gap' | 'missing'
local job = redis.call('HMGET', KEYS[1], 'state', 'attempt', 'token_count', 'lease_id')
if not job[1] then return 'missing' end
if job[2] ~= ARGV[1] or job[4] ~= ARGV[2] or job[1] == 'queued' then
  redis.call('HINCRBY', KEYS[1], 'fenced', 1)
  return 'fenced'
end
if job[1] ~= 'in_progress' then
  redis.call('HINCRBY', KEYS[1], 'fenced', 1)
  return 'terminal'
end
if job[3] ~= ARGV[3] then return 'gap' end
redis.call('HSET', KEYS[1], 'token_count', ARGV[3] + ARGV[4])
if ARGV[3] == '0' then
  local t = redis.call('TIME')
  redis.call('HSETNX', KEYS[1], 'first_token_ms', t[1] * 1000 + math.floor(t[2] / 1000))
end
local entry = {'kind', 'tokens', 'attempt', ARGV[1], 'index', ARGV[3], 'ids', ARGV[5], 'delta', ARGV[6]}
if ARGV[7] ~= '' then entry[11], entry[12] = 'shown', ARGV[7] end
redis.call('XADD', KEYS[2], '*', unpack(entry))
return 'ok'
