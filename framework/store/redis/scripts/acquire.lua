-- A lock: taken if it is free. Fields: ow owner, by holder, si since, un until, fe fence, fo forced.
-- The record outlives the lease, so that fences grow over a clock that is set back.
local fence_memory = 3600000

local function acquire(key, queue, beats, owner, lease, holder, fair, waits, seen)
  local r = redis.call('HMGET', key, 'ow', 'un', 'fe')
  local remaining = (r[2] or 0) - now
  local held = r[1] and r[1] ~= '' and remaining > 0
  if held and r[1] == owner then
    redis.call('HSET', key, 'un', whole(now + lease))
    redis.call('PEXPIRE', key, whole(lease + fence_memory))
    return {'held', r[3]}
  end
  local first = true
  if fair and not held then
    local head = head_of(queue, beats)
    first = not head or head == owner
  end
  if held or not first then
    local ahead = waits and enqueue(queue, beats, owner) or redis.call('ZCARD', queue)
    return {'busy', held and whole(remaining) or 0, ahead}
  end
  local fence = math.max((r[3] or 0) + 1, now_us, seen + 1)
  redis.call('HSET', key, 'ow', owner, 'by', holder, 'si', whole(now), 'un', whole(now + lease),
    'fe', whole(fence), 'fo', '')
  redis.call('PEXPIRE', key, whole(lease + fence_memory))
  -- Whoever asks for the last time waits no more, but may have waited before.
  redis.call('ZREM', queue, owner)
  redis.call('ZREM', beats, owner)
  return {'held', whole(fence)}
end
