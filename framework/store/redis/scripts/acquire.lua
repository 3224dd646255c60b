-- A lock: taken if it is free; the fence alone if it was. `rest` is what comes behind the owner, less since when.
local since = struct.pack('>d', now)

local function acquire(key, queue, beats, who, rest, seen, lease, fair, waits)
  local known = redis.call('GET', key)
  local state, marks, ends, last, forgotten = free, 0, 0, 0, 0
  if known then state, marks, ends, last, forgotten = struct.unpack(head_layout, known) end
  local remaining = ends - now
  local is_held = state == held and remaining > 0
  if is_held and is_of(known, who) then
    hold(key, marks, lease, last, forgotten, string.sub(known, head_bytes + 1))
    return last
  end
  local owner = string.sub(who, 5)
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
  local fence = math.max(last + 1, now_us, seen + 1)
  hold(key, marks, lease, fence, forgotten, who .. rest .. since)
  return fence
end
