-- Wakes those who wait for the end of a run: one message a process, which listens on one channel for all of them.
local function wake_waiting(key, waiting, channels)
  redis.call('HDEL', key, 'wa')
  local owners_of = {}
  for owner in string.gmatch(waiting, '%S+') do
    local process = string.match(owner, '^[^.]*')
    owners_of[process] = owners_of[process] and owners_of[process] .. ' ' .. owner or owner
  end
  for process, owners in pairs(owners_of) do
    -- Whoever may not publish is still correct, only slower: those who wait ask again.
    redis.pcall('PUBLISH', channels .. process, owners)
  end
end

-- The end of a claim; 0 if somebody else took it over. Safe to repeat: the owner stays on record.
local function finish(key, owner, ending, keep, fingerprint, generation, attempts, due_in, copied, text, channels)
  local r = redis.call('HMGET', key, 'st', 'ow', 'at', 'tk', 'wa', 'cp')
  local state = r[1]
  if state and r[2] ~= owner then return 0 end
  -- Who waits in its process for its next attempt may find that the last one does not count.
  local recounts = state == 'failed' and r[6] == '0' and ending == 'failed' and copied == '0'
  if state and state ~= 'running' and not recounts then return 1 end
  if r[5] then wake_waiting(key, r[5], channels) end
  if ending == 'release' or ending == 'abandon' then
    if not state then return 1 end
    if ending == 'release' and r[3] == '0' and r[4] == '0' then
      redis.call('DEL', key)
      return 1
    end
    local takeovers = ending == 'abandon' and r[4] + 1 or tonumber(r[4])
    redis.call('HSET', key, 'st', 'failed', 'un', whole(now), 'cp', '0', 'tk', takeovers)
    redis.call('PEXPIRE', key, whole(keep))
    return 1
  end
  if not state then
    -- The record is gone, so nobody took over: what happened is written down all the same.
    redis.call('HSET', key, 'ow', owner, 'by', '', 'at', 0, 'tk', 0, 'ge', generation,
      'fp', fingerprint, 'fe', 0)
  end
  if ending == 'complete' then
    redis.call('HSET', key, 'st', 'done', 'un', 0)
    if text then redis.call('HSET', key, 're', text) end
  elseif ending == 'dead' then
    redis.call('HSET', key, 'st', 'dead', 'un', 0, 'wy', text)
  else
    redis.call('HSET', key, 'st', 'failed', 'un', whole(now + due_in), 'at', attempts, 'tk', 0, 'cp', copied)
    keep = keep + due_in
  end
  redis.call('PEXPIRE', key, whole(keep))
  return 1
end
