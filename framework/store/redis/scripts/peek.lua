-- KEYS: the claim. Changes nothing.
local r = redis.call('HMGET', KEYS[1], 'st', 'at', 'ge', 'by', 'un')
if not r[1] then return {'', 0, 0, '', 0} end
return {r[1], r[2], r[3], r[4], whole(math.max((r[5] or 0) - now, 0))}
