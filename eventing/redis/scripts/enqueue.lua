-- Put an event into a queue, unless the same event is still in it.
-- USES _clock _queue
-- KEYS  1 tickets stream
-- ARGV  1 prefix of the queue's keys, 2 lane, 3 member, 4 event record, 5 tenant, 6 '1' for a reply to what the queue delivers
-- gives 1 when it was added, 0 for a duplicate
return enqueue(ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6] == '1', now_ms())
