-- A lock's record. Behind the head: owner, holder, the owner that it was taken from by force, since when it is held.
local lock_layout = '>BBdddI4c0I4c0I4c0d'

local function read_lock(record)
  local state, marks, ends, fence, forgotten, owner, holder, forced, since = struct.unpack(lock_layout, record)
  return {
    is_held = state == held and ends - now > 0, marks = marks, ends = ends, fence = fence, forgotten = forgotten,
    owner = owner, holder = holder, forced = forced, since = since,
  }
end

-- The same in two pieces: `tail` is from the owner to what was taken by force.
local record_layout = '>BBdddc0d'

local function lock_keep(lease)
  return lease + fence_memory + fence_slack
end

-- Writing them takes as long as half a command, and most have the same.
local digits_known = {}
local function digits_of(keep)
  local digits = digits_known[keep] or whole(keep)
  digits_known[keep] = digits
  return digits
end

-- Held from now on; `rest` is what comes behind the head.
local function hold(key, marks, lease, fence, forgotten, rest)
  if forgotten - now >= lease + fence_memory then
    redis.call('SET', key, head(held, marks, now + lease, fence, forgotten) .. rest, 'KEEPTTL')
  else
    local keep = lock_keep(lease)
    redis.call('SET', key, head(held, marks, now + lease, fence, now + keep) .. rest, 'PX', digits_of(keep))
  end
end
