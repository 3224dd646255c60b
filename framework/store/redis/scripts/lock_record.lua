-- A lock's record, which outlives the lease, so that fences grow over a clock that is set back. Behind the head: owner,
-- holder, the owner that it was taken from by force, since when it is held.
local fence_memory = 3600000
-- So long nobody has to prolong that.
local fence_slack = 900000
local free, held = 0, 1
-- Marks: somebody may wait.
local queued = 1
local lock_layout = '>BBdddI4c0I4c0I4c0d'

local function read_lock(record)
  local state, marks, ends, fence, forgotten, owner, holder, forced, since = struct.unpack(lock_layout, record)
  return {
    is_held = state == held and ends - now > 0, marks = marks, ends = ends, fence = fence, forgotten = forgotten,
    owner = owner, holder = holder, forced = forced, since = since,
  }
end

-- Held from now on; `rest` is what comes behind the head.
local function hold(key, marks, lease, fence, forgotten, rest)
  if forgotten - now >= lease + fence_memory then
    redis.call('SET', key, head(held, marks, now + lease, fence, forgotten) .. rest, 'KEEPTTL')
  else
    local keep = lease + fence_memory + fence_slack
    redis.call('SET', key, head(held, marks, now + lease, fence, now + keep) .. rest, 'PX', whole(keep))
  end
end
