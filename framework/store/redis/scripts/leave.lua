-- KEYS: lock, queue, beats. ARGV: owner, channels. Out of the queue, and out of a hold that came too late.
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
if release(KEYS[1], KEYS[2], KEYS[3], ARGV[1], ARGV[2]) == 1 then return 1 end
local r = redis.call('HMGET', KEYS[1], 'ow', 'un')
if not r[1] or r[1] == '' or r[2] - now <= 0 then
  -- Perhaps the wake-up was for the one who leaves: it goes on to the next.
  wake(KEYS[2], KEYS[3], ARGV[2])
end
return 0
