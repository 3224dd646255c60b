-- KEYS: the lock. ARGV: owner, lease, how long the record outlives the lease.
local r = redis.call('HMGET', KEYS[1], 'ow', 'un', 'fo')
if r[1] == ARGV[1] and r[2] - now > 0 then
  redis.call('HSET', KEYS[1], 'un', whole(now + ARGV[2]))
  redis.call('PEXPIRE', KEYS[1], whole(ARGV[2] + 3600000))
  return 1
end
if r[3] == ARGV[1] then return 2 end
return 0
