-- KEYS: for each, the claim. ARGV: channels; then, for all that share it, how many, keep, and for each its owner's length
-- and owner, what is behind them where the record is gone, and the ending.
local answers, a = {}, 2
while ARGV[a] do
  local count, keep = ARGV[a], tonumber(ARGV[a + 1])
  a = a + 2
  for _ = 1, count do
    local k = #answers + 1
    answers[k] = finish(KEYS[k], ARGV[a], ARGV[a + 1], ARGV[a + 2], keep, ARGV[1])
    a = a + 3
  end
end
return answers
