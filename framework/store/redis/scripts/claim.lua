-- A claim: read, decide and write in one step. The same rules as memory/idempotency.rs.
local waiting_bytes_max = 4096

-- A hundredth longer than it has to be: then an end soon after need not prolong it.
local function kept_for(keep, lease)
  return math.ceil(math.max(keep, lease * 2) * 1.01)
end

-- The latest that asked in vain: whoever is forgotten here asks again all the same.
local function await_end(key, r, owner)
  local waiting = r.waiting == '' and owner or r.waiting .. ' ' .. owner
  if #waiting > waiting_bytes_max then
    waiting = string.sub(waiting, string.find(waiting, ' ', #waiting - waiting_bytes_max, true) + 1)
  end
  r.waiting = waiting
  write_claim(key, r)
end

-- The same for an id that is known already; `new` is what would have been written.
local function claim_known(key, r, new, lease, kept, force, waits)
  local redriven = new.generation > r.generation
  local attempts, takeovers = new.attempts, 0
  if not redriven then attempts = math.max(new.attempts, r.attempts) end
  if r.fingerprint ~= new.fingerprint and not redriven then return {'mismatch'} end
  local remaining = r.ends - now
  if r.state == done then
    if not (redriven and force) then return {'done', r.text} end
  elseif r.state == dead then
    if not redriven then return {'dead', r.text or ''} end
  elseif r.state == running then
    if r.owner == new.owner then
      -- The answer to the first request was lost: the same again.
      r.ends = now + lease
      write_claim(key, r, kept)
      return {r.takeovers > 0 and 'taken' or 'fresh', r.attempts, r.takeovers, whole(r.fence)}
    end
    if remaining > 0 then
      if waits then await_end(key, r, new.owner) end
      return {'running', remaining}
    end
    takeovers = r.takeovers + 1
  else
    if new.generation < r.generation then return {'superseded'} end
    if remaining > 0 and not redriven then
      if not r.copied then return {'waiting', remaining} end
      if new.attempts < r.attempts then return {'superseded'} end
    end
    takeovers = r.takeovers
  end
  new.attempts, new.takeovers, new.waiting = attempts, takeovers, r.waiting
  new.generation = math.max(new.generation, r.generation)
  new.fence = math.max(new.fence, r.fence + 1)
  write_claim(key, new, kept)
  return {takeovers > 0 and 'taken' or 'fresh', attempts, takeovers, whole(new.fence)}
end

-- `fresh` is the head of an id that nobody knows, `tail` what comes behind it, `digits` those of `kept`: writing them takes
-- as long as half a command. The fence alone: fresh, with the attempts that were asked with.
local function claim(key, fresh, tail, fence, lease, kept, digits, force, waits)
  local known = redis.call('SET', key, fresh .. tail, 'NX', 'GET', 'PX', digits)
  if not known then return fence end
  return claim_known(key, read_claim(known), read_claim(fresh .. tail), lease, kept, force, waits)
end

local function is_granted(claimed)
  return type(claimed) == 'number' or claimed[1] == 'fresh' or claimed[1] == 'taken'
end
