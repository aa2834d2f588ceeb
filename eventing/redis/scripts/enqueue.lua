-- Put an event into a queue, unless the same event is still in it. See docs/adr/0003: a ticket stream counts, a sorted set a lane orders.
-- One that is in somebody's hands is delivered once more when those are done with it: what they do may have been decided before this
-- event was sent (a dead letter redriven before it was settled).
-- KEYS  1 tickets stream, 2 events hash, 3 ready set of the lane, 4 fair-share hash of the lane, 5 tries hash
-- ARGV  1 member, 2 event record, 3 tenant, 4 '1' for an event that came from outside, '' for a reply
-- gives 1 when it was added, 0 for a duplicate
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
if redis.call('HSETNX', KEYS[2], ARGV[1], string.format('%d ', now) .. ARGV[2]) == 0 then
  local is_in_hand = redis.call('HEXISTS', KEYS[5], ARGV[1]) == 1
  if is_in_hand and ARGV[4] == '1' then redis.call('HSET', KEYS[5], 'again:' .. ARGV[1], 1) end
  if is_in_hand or redis.call('ZSCORE', KEYS[3], ARGV[1]) then return 0 end
  -- Known, but neither waiting nor in hand: half of an earlier put survived a power cut (Redis 7.0 can do that). Put it again.
  redis.call('HSET', KEYS[2], ARGV[1], string.format('%d ', now) .. ARGV[2])
end
redis.call('XADD', KEYS[1], '*', 't', '1')
-- Start-time fair queuing (Goyal 1996): a tenant's next event starts one step after its last, never before the lane's own clock.
local clock = tonumber(redis.call('HGET', KEYS[4], 'clock') or 0)
local last = tonumber(redis.call('HGET', KEYS[4], 'last:' .. ARGV[3]) or 0)
local start = math.max(clock, last)
redis.call('HSET', KEYS[4], 'last:' .. ARGV[3], string.format('%.17g', start + 1))
redis.call('ZADD', KEYS[3], string.format('%.17g', start), ARGV[1])
return 1
