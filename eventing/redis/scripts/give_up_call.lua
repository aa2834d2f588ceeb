-- The delivery of a call was given up by its broker: it was not run, or it is in doubt.
-- USES _clock _job _calls _tools
-- KEYS  1 job hash, 2 token stream
-- ARGV  1 turn, 2 place, 3 idempotency key of the call that was delivered, 4 reason, 5 recheck_ms, 6 retention_s of a job that ends,
--       7.. the predictor's event: record, '1' to note that it is unpublished, number of queues, prefixes of their keys
-- gives 'ok' | 'next' | 'ended' | 'held' (it runs, under a live lease) | 'done' (it waits for no delivery) | 'terminal' | 'missing'
local key, stream, job = KEYS[1], KEYS[2], read_job(KEYS[1])
if not job.state then return 'missing' end
if job.state ~= 'queued' and job.state ~= 'in_progress' then return 'terminal' end
local calling, turn, place = job.calling and cjson.decode(job.calling), tonumber(ARGV[1]), tonumber(ARGV[2])
if calling and ARGV[3] ~= call_key(string.match(key, '{(.*)}'), calling, place) then return 'done' end
local state = calling and calling.turn == turn and calling.states[place + 1]
if not state or FINAL[state] or WAITING[state] then return 'done' end
local now, call = now_ms(), read_call(key, turn, place)
if (call.lease_until_ms or 0) > now then return 'held' end
call.reason, call.lease_until_ms, call.owner = ARGV[4], 0, ''
if state == 'pending' and (call.sends or 0) == 0 then
  call.state, call.output, call.is_error, call.ended_ms = 'not_run', 'The call was not run: ' .. ARGV[4] .. '.', 1, now
elseif call.effect == 'once' and calling.ask_ms > 0 then
  ask(job, string.match(key, '{(.*)}'), calling, call, 'in_doubt', now)
else
  call.state, call.output, call.ended_ms = 'unknown', TOLD.unknown, now
end
put_call(key, calling, call)
tell(stream, call, now)
return go_on(key, stream, job, calling, read_publication(reader(7)), now, ARGV[5], ARGV[6])
