-- KEYS: for each, the lock, its queue, its beats. ARGV: channels; then, how many, and for each its owner with its length.
local answers = {}
for a = 3, #ARGV do
  local k = 3 * (a - 3)
  answers[a - 2] = release(KEYS[k + 1], KEYS[k + 2], KEYS[k + 3], ARGV[a], ARGV[1])
end
return answers
