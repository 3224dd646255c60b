-- One lock that is free and that nobody waits for: what acquire.lua does with it, without anything that it does not need.
-- KEYS: the lock. ARGV: the largest fence that was seen, lease, what is behind the head of its record. Nothing, and nothing is
-- done, where it is not as simple as that.
local known = redis.call('GET', KEYS[1])
local state, marks, ends, last, forgotten = free, 0, 0, 0, 0
if known then state, marks, ends, last, forgotten = struct.unpack('>BBddd', known) end
if state ~= free or marks ~= 0 then return false end
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now = math.floor(now_us / 1000)
local fence = math.max(last + 1, now_us, ARGV[1] + 1)
ends = now + ARGV[2]
local is_kept = forgotten - ends >= fence_memory
if not is_kept then forgotten = ends + fence_memory + fence_slack end
local record = struct.pack('>BBdddc0d', held, 0, ends, fence, forgotten, ARGV[3], now)
if is_kept then
  redis.call('SET', KEYS[1], record, 'KEEPTTL')
else
  redis.call('SET', KEYS[1], record, 'PX', forgotten - now)
end
return fence
