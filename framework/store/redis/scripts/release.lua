-- The owner is out, the fence stays; whoever is first in the queue is woken.
local free_byte = string.char(free)

local function release(key, known, who, channels)
  if not known or string.byte(known) ~= held or not is_of(known, who) then return 0 end
  redis.call('SETRANGE', key, '0', free_byte)
  local marks, ends = struct.unpack('>Bd', known, 2)
  if marks == queued then wake(queue_of(key), beats_of(key), channels) end
  return ends - now > 0 and 1 or 0
end
