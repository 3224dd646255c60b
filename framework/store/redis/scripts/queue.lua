-- Those who wait for a lock: a sorted set in the order of arrival, and one of when each was last heard.
local waiter_silent_max = 5000

-- In the hash tag of their lock. Named here only where somebody waits: each key of a call costs 1,300 instructions.
local function queue_of(key)
  return key .. ':queue'
end

local function beats_of(key)
  return key .. ':beats'
end

-- The first who still lives.
local function head_of(queue, beats)
  while true do
    local head = redis.call('ZRANGE', queue, 0, 0)[1]
    if not head then return nil end
    local heard = redis.call('ZSCORE', beats, head)
    -- In either direction: the clock may have been set back.
    if heard and math.abs(now - heard) < waiter_silent_max then return head end
    redis.call('ZREM', queue, head)
    redis.call('ZREM', beats, head)
  end
end

-- How many are in front.
local function enqueue(queue, beats, owner)
  if not redis.call('ZRANK', queue, owner) then
    local last = redis.call('ZRANGE', queue, -1, -1, 'WITHSCORES')
    redis.call('ZADD', queue, whole(math.max((last[2] or 0) + 1, now_us)), owner)
  end
  redis.call('ZADD', beats, whole(now), owner)
  redis.call('PEXPIRE', queue, waiter_silent_max * 2)
  redis.call('PEXPIRE', beats, waiter_silent_max * 2)
  return redis.call('ZRANK', queue, owner)
end

-- The owner's first part names its process, which listens on one channel for all its waiters.
local function wake(queue, beats, channels)
  local head = head_of(queue, beats)
  if head then
    -- Whoever may not publish is still correct, only slower: a poll stands behind it.
    redis.pcall('PUBLISH', channels .. string.match(head, '^[^.]*'), head)
  end
end
