-- KEYS: for each, the claim. ARGV: the largest fence that was seen; then, for all that share them, how many, lease, keep,
-- force, waits, and for each what is behind the head of its record.
local fence = math.max(now_us, ARGV[1] + 1)
local answers, a = {}, 2
while ARGV[a] do
  local lease, force, waits = tonumber(ARGV[a + 1]), ARGV[a + 3] == '1', ARGV[a + 4] == '1'
  local kept = kept_for(tonumber(ARGV[a + 2]), lease)
  local digits = whole(kept)
  local fresh = head(running, 0, now + lease, fence, now + kept)
  local last = a + 4 + ARGV[a]
  for tail = a + 5, last do
    local k = #answers + 1
    answers[k] = claim(KEYS[k], fresh, ARGV[tail], fence, lease, kept, digits, force, waits)
  end
  a = last + 1
end
return alike(answers)
