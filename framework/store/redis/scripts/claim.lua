-- A claim: read, decide and write in one step. The same rules as memory/idempotency.rs.
-- Fields: st state, ow owner, by holder, un until or due, at attempts, tk takeovers, ge generation,
-- fp fingerprint, fe fence, cp copied, re result, wy reason, wa who waits for the end of the run.
local waiting_bytes_max = 4096

-- The latest that asked in vain: whoever is forgotten here asks again all the same.
local function await_end(key, owner)
  local waiting = redis.call('HGET', key, 'wa')
  waiting = waiting and waiting .. ' ' .. owner or owner
  if #waiting > waiting_bytes_max then
    waiting = string.sub(waiting, string.find(waiting, ' ', #waiting - waiting_bytes_max, true) + 1)
  end
  redis.call('HSET', key, 'wa', waiting)
end

local function claim(key, owner, lease, keep, fingerprint, generation, carried, holder, force, seen, waits)
  local r = redis.call('HMGET', key, 'st', 'ow', 'un', 'at', 'tk', 'ge', 'fp', 'fe', 'cp', 're', 'wy')
  local state, attempts, takeovers, fence_last, generation_last = r[1], carried, 0, 0, generation
  if state then
    fence_last, generation_last = tonumber(r[8]), tonumber(r[6])
    local redriven = generation > generation_last
    local counted = tonumber(r[4])
    if not redriven then attempts = math.max(carried, counted) end
    if r[7] ~= fingerprint and not redriven then return {'mismatch'} end
    if state == 'done' then
      if not (redriven and force) then return {'done', r[10]} end
    elseif state == 'dead' then
      if not redriven then return {'dead', r[11]} end
    elseif state == 'running' then
      local remaining = tonumber(r[3]) - now
      if r[2] == owner then
        -- The answer to the first request was lost: the same again.
        redis.call('HSET', key, 'un', whole(now + lease))
        redis.call('PEXPIRE', key, whole(math.max(keep, lease * 2)))
        return {tonumber(r[5]) > 0 and 'taken' or 'fresh', counted, tonumber(r[5]), r[8]}
      end
      if remaining > 0 then
        if waits then await_end(key, owner) end
        return {'running', remaining}
      end
      takeovers = tonumber(r[5]) + 1
    else
      if generation < generation_last then return {'superseded'} end
      local remaining = tonumber(r[3]) - now
      if remaining > 0 and not redriven then
        if r[9] ~= '1' then return {'waiting', remaining} end
        if carried < counted then return {'superseded'} end
      end
      takeovers = tonumber(r[5])
    end
    redis.call('HDEL', key, 're', 'wy', 'cp')
  end
  local fence = math.max(fence_last + 1, now_us, seen + 1)
  redis.call('HSET', key, 'st', 'running', 'ow', owner, 'by', holder, 'un', whole(now + lease),
    'at', attempts, 'tk', takeovers, 'ge', math.max(generation, generation_last),
    'fp', fingerprint, 'fe', whole(fence))
  redis.call('PEXPIRE', key, whole(math.max(keep, lease * 2)))
  return {takeovers > 0 and 'taken' or 'fresh', attempts, takeovers, whole(fence)}
end
