-- KEYS: for each, the claim, the lock, its queue, its beats. ARGV: the largest fence that was seen; then, for all that share
-- them, how many, lease, keep, force and waits of the claim, lease, fair and waits of the lock; and for each what is behind
-- the head of its claim, its lock's owner with its length, and what is behind that.
local seen = tonumber(ARGV[1])
local fence = math.max(now_us, seen + 1)
local answers, a, k = {}, 2, 1
while ARGV[a] do
  local count, lease, force, waits = ARGV[a], tonumber(ARGV[a + 1]), ARGV[a + 3] == '1', ARGV[a + 4] == '1'
  local lock_lease, fair, lock_waits = tonumber(ARGV[a + 5]), ARGV[a + 6] == '1', ARGV[a + 7] == '1'
  local kept = kept_for(tonumber(ARGV[a + 2]), lease)
  local digits = whole(kept)
  local fresh = head(running, 0, now + lease, fence, now + kept)
  a = a + 8
  for _ = 1, count do
    local claimed = claim(KEYS[k], fresh, ARGV[a], fence, lease, kept, digits, force, waits)
    local locked = is_granted(claimed) and acquire(KEYS[k + 1], KEYS[k + 2], KEYS[k + 3], ARGV[a + 1], ARGV[a + 2],
      seen, lock_lease, fair, lock_waits)
    answers[#answers + 1] = {claimed, locked}
    k, a = k + 4, a + 3
  end
end
return answers
