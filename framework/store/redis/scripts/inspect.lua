-- KEYS: lock, queue, beats. Changes nothing but the queue of the dead.
local r = redis.call('HMGET', KEYS[1], 'ow', 'un', 'by', 'si', 'fe')
head_of(KEYS[2], KEYS[3])
local waiting = redis.call('ZCOUNT', KEYS[3], whole(now - waiter_silent_max), whole(now + waiter_silent_max))
local held = r[1] and r[1] ~= '' and r[2] - now > 0
if not held and waiting == 0 then return false end
return {held and 1 or 0, r[3] or '', r[4] or '0', r[2] or '0', r[5] or '0', waiting}
