-- The owner is out, the fence stays; whoever is first in the queue is woken.
local function release(key, queue, beats, who, channels)
  local known = redis.call('GET', key)
  if not known or string.byte(known) ~= held or not is_of(known, who) then return 0 end
  redis.call('SETRANGE', key, 0, string.char(free))
  local _, marks, ends = struct.unpack('>BBd', known)
  if marks == queued then wake(queue, beats, channels) end
  return ends - now > 0 and 1 or 0
end
