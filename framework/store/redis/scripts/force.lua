-- KEYS: lock, queue, beats. ARGV: channels. The holder learns of it at the next renewal.
local r = redis.call('HMGET', KEYS[1], 'ow', 'un')
if not r[1] or r[1] == '' or r[2] - now <= 0 then return 0 end
redis.call('HSET', KEYS[1], 'ow', '', 'fo', r[1])
wake(KEYS[2], KEYS[3], ARGV[1])
return 1
