-- KEYS: the claim. ARGV: owner, lease. A lease that ended and was not taken over is still ours.
local r = redis.call('HMGET', KEYS[1], 'st', 'ow')
if r[1] ~= 'running' or r[2] ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'un', whole(now + ARGV[2]))
-- A record that is forgotten while it is held would be fresh for the next who asks.
redis.call('PEXPIRE', KEYS[1], whole(ARGV[2] * 2), 'GT')
return 1
