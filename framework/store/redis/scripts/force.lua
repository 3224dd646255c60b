-- KEYS: lock, queue, beats. ARGV: channels. The holder learns of it at the next renewal.
local known = redis.call('GET', KEYS[1])
local r = known and read_lock(known)
if not r or not r.is_held then return 0 end
local record = struct.pack(lock_layout, free, r.marks, r.ends, r.fence, r.forgotten, #r.owner, r.owner, #r.holder, r.holder,
  #r.owner, r.owner, r.since)
redis.call('SET', KEYS[1], record, 'KEEPTTL')
wake(KEYS[2], KEYS[3], ARGV[1])
return 1
