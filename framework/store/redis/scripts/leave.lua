-- KEYS: lock, queue, beats. ARGV: owner's length and owner, channels. Out of the queue, and out of a hold that came too late.
local owner = string.sub(ARGV[1], 5)
redis.call('ZREM', KEYS[2], owner)
redis.call('ZREM', KEYS[3], owner)
local known = redis.call('GET', KEYS[1])
if release(KEYS[1], known, ARGV[1], ARGV[2]) == 1 then return 1 end
if not known or not read_lock(known).is_held then
  -- Perhaps the wake-up was for the one who leaves: it goes on to the next.
  wake(KEYS[2], KEYS[3], ARGV[2])
end
return 0
