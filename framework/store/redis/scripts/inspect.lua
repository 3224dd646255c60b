-- KEYS: lock, queue, beats. Changes nothing but the queue of the dead.
local known = redis.call('GET', KEYS[1])
local r = known and read_lock(known)
head_of(KEYS[2], KEYS[3])
local waiting = redis.call('ZCOUNT', KEYS[3], whole(now - waiter_silent_max), whole(now + waiter_silent_max))
local is_held = r and r.is_held
if not is_held and waiting == 0 then return false end
if not r then return {0, '', '0', '0', '0', waiting} end
return {is_held and 1 or 0, r.holder, whole(r.since), whole(r.ends), whole(r.fence), waiting}
