-- KEYS: the lock. ARGV: owner, lease.
local known = redis.call('GET', KEYS[1])
local r = known and read_lock(known)
if r and r.is_held and r.owner == ARGV[1] then
  hold(KEYS[1], r.marks, tonumber(ARGV[2]), r.fence, r.forgotten, string.sub(known, head_bytes + 1))
  return 1
end
if r and r.forced == ARGV[1] then return 2 end
return 0
