-- Wakes those who wait for the end of a run: one message a process, which listens on one channel for all of them.
local function wake_waiting(waiting, channels)
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

-- `ending` is a letter and what belongs to it; `r` is what is known, or what was if the record is gone.
local function finish_known(key, r, is_known, ending, keep, channels)
  local how = string.sub(ending, 1, 1)
  local attempts, due_in, is_copied
  if how == 'f' then attempts, due_in, is_copied = struct.unpack('>I4dB', ending, 2) end
  -- Who waits in its process for its next attempt may find that the last one does not count.
  local recounts = r.state == failed and not r.copied and how == 'f' and is_copied == 0
  if r.state ~= running and not recounts then return 1 end
  if r.waiting ~= '' then wake_waiting(r.waiting, channels) end
  r.waiting = ''
  if how == 'r' or how == 'a' then
    if not is_known then return 1 end
    -- The record of a redrive stands in place of what was known before: without it that would be forgotten too.
    if how == 'r' and r.attempts == 0 and r.takeovers == 0 and r.generation == 0 then
      redis.call('DEL', key)
      return 1
    end
    if how == 'a' then r.takeovers = r.takeovers + 1 end
    r.state, r.ends, r.copied = failed, now, false
  elseif how == 'c' then
    r.state, r.ends = done, 0
  elseif how == 't' or how == 'd' then
    r.state, r.ends, r.text = how == 't' and done or dead, 0, string.sub(ending, 2)
  else
    r.state, r.ends, r.attempts, r.takeovers, r.copied = failed, now + due_in, attempts, 0, is_copied == 1
    keep = keep + due_in
  end
  write_claim(key, r, keep)
  return 1
end

local running_alone, done_byte = string.char(running, 0), string.char(done)

-- The end of a claim; 0 if somebody else took it over. Safe to repeat: the owner stays on record. `rest` is what comes behind
-- `who` where the record is gone; without it the answer is 2 then, and nothing is done.
local function finish(key, known, who, rest, ending, keep, channels)
  known = known or redis.call('GET', key)
  if not known then
    if not rest then return 2 end
    -- Nobody took over: what happened is written down all the same.
    return finish_known(key, read_claim(head(running, 0, 0, 0, 0) .. who .. rest), false, ending, keep, channels)
  end
  if not is_of(known, who) then return 0 end
  if ending == 'c' and string.sub(known, 1, 2) == running_alone then
    -- The common one: nothing but its first byte changes.
    local forgotten = struct.unpack('>d', known, 19)
    if forgotten - now >= keep then
      redis.call('SETRANGE', key, '0', done_byte)
      return 1
    end
  end
  return finish_known(key, read_claim(known), true, ending, keep, channels)
end
