-- A lock: taken if it is free; the fence alone if it was. `tail` is what comes behind the head of its record, its owner
-- first, less since when.

-- The same for one that is held, or that somebody may wait for.
local function acquire_known(key, known, tail, least, lease, fair, waits)
  local state, marks, ends, last, forgotten = struct.unpack(head_layout, known)
  local owner = struct.unpack('>I4c0', tail)
  local remaining = ends - now
  local is_held = state == held and remaining > 0
  if is_held and is_of(known, string.sub(tail, 1, 4 + #owner)) then
    hold(key, marks, lease, last, forgotten, string.sub(known, head_bytes + 1))
    return last
  end
  local queue, beats = queue_of(key), beats_of(key)
  local is_first = true
  if fair and not is_held and marks == queued then
    local first = head_of(queue, beats)
    is_first = not first or first == owner
  end
  if is_held or not is_first then
    local ahead
    if waits then
      ahead = enqueue(queue, beats, owner)
      if marks ~= queued then redis.call('SETRANGE', key, 1, string.char(queued)) end
    else
      ahead = redis.call('ZCARD', queue)
    end
    return {'busy', is_held and whole(remaining) or 0, ahead}
  end
  if marks == queued then
    -- Whoever asks for the last time waits no more, but may have waited before.
    redis.call('ZREM', queue, owner)
    redis.call('ZREM', beats, owner)
    if redis.call('ZCARD', queue) == 0 then marks = 0 end
  end
  local fence = math.max(last + 1, least)
  hold(key, marks, lease, fence, forgotten, tail .. struct.pack('>d', now))
  return fence
end

-- `least`: what the fence is without those that the key had before.
local function acquire(key, known, tail, least, lease, fair, waits)
  if not known then
    local keep = lock_keep(lease)
    local record = struct.pack(record_layout, held, 0, now + lease, least, now + keep, tail, now)
    -- Nothing but what is no string can be there after all, and `GET` says so.
    if not redis.call('SET', key, record, 'NX', 'PX', digits_of(keep)) then redis.call('GET', key) end
    return least
  end
  local state, marks, ends, last, forgotten = struct.unpack(head_layout, known)
  if marks == queued or state == held and ends > now then
    return acquire_known(key, known, tail, least, lease, fair, waits)
  end
  local fence = last < least and least or last + 1
  if forgotten - now < lease + fence_memory then
    hold(key, 0, lease, fence, forgotten, tail .. struct.pack('>d', now))
  else
    redis.call('SET', key, struct.pack(record_layout, held, 0, now + lease, fence, forgotten, tail, now), 'KEEPTTL')
  end
  return fence
end
