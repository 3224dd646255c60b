-- The owner is taken out, the fence stays; whoever is first in the queue is woken.
local function release(key, queue, beats, owner, channels)
  local r = redis.call('HMGET', key, 'ow', 'un')
  if r[1] ~= owner then return 0 end
  redis.call('HSET', key, 'ow', '')
  wake(queue, beats, channels)
  return r[2] - now > 0 and 1 or 0
end
