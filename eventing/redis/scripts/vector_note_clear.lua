-- Clear the note of a file whose chunks are as its record says, unless the record has changed since it was read.
-- KEYS  1 notes of files to be indexed or removed, 2 hash of the file, or of the store
-- ARGV  1 note, 2 settings as they were read, '' when there was no record
-- gives 1 | 0 (the record has changed)
if (redis.call('HGET', KEYS[2], 'settings') or '') ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[2], 'stale')
redis.call('ZREM', KEYS[1], ARGV[1])
return 1
