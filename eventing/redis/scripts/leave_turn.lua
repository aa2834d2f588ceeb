-- End the turn of a submit, if it is still its own.
-- KEYS  1 turn
-- ARGV  1 token of who has it
-- gives 1 | 0
return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('DEL', KEYS[1]) or 0
