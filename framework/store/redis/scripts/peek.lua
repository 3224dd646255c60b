-- KEYS: the claim. Changes nothing.
local known = redis.call('GET', KEYS[1])
if not known then return {0, 0, 0, '', 0} end
local r = read_claim(known)
local remaining = (r.state == running or r.state == failed) and math.max(r.ends - now, 0) or 0
return {r.state, r.attempts, r.generation, r.holder, whole(remaining)}
