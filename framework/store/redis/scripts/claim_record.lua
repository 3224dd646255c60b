-- A claim's record. Behind the head: owner, attempts, takeovers, generation, fingerprint, holder, who waits for the end of
-- the run, and the rest is a text: the result, or why it was given up.
local running, failed, done, dead = 1, 2, 3, 4
-- Marks: a copy is at the broker; somebody waits; there is a text.
local copied, awaited, told = 1, 2, 4
local claim_layout = '>BBdddI4c0I4I4I4c16I4c0I4c0'

local function read_claim(record)
  local state, marks, ends, fence, forgotten, owner, attempts, takeovers, generation, fingerprint, holder, waiting, rest =
    struct.unpack(claim_layout, record)
  return {
    state = state, copied = marks % 2 == 1, ends = ends, fence = fence, forgotten = forgotten, owner = owner,
    attempts = attempts, takeovers = takeovers, generation = generation, fingerprint = fingerprint, holder = holder,
    waiting = waiting, text = marks >= told and string.sub(record, rest) or nil,
  }
end

-- `keep`: for how long from now on; as long as it is kept already without it.
local function write_claim(key, r, keep)
  if keep then r.forgotten = now + keep end
  local marks = (r.copied and copied or 0) + (r.waiting ~= '' and awaited or 0) + (r.text and told or 0)
  local record = struct.pack(claim_layout, r.state, marks, r.ends, r.fence, r.forgotten, #r.owner, r.owner,
    r.attempts, r.takeovers, r.generation, r.fingerprint, #r.holder, r.holder, #r.waiting, r.waiting)
  if r.text then record = record .. r.text end
  if keep then
    redis.call('SET', key, record, 'PX', whole(keep))
  else
    redis.call('SET', key, record, 'KEEPTTL')
  end
end
