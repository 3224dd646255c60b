-- KEYS: the claim. ARGV: owner, lease. A lease that ended and was not taken over is still ours.
local known = redis.call('GET', KEYS[1])
local r = known and read_claim(known)
if not r or r.state ~= running or r.owner ~= ARGV[1] then return 0 end
r.ends = now + ARGV[2]
write_claim(KEYS[1], r)
-- A record that is forgotten while it is held would be fresh for the next who asks.
redis.call('PEXPIRE', KEYS[1], whole(ARGV[2] * 2), 'GT')
return 1
