-- KEYS: for all, the lock; then the queue of each, then its beats. ARGV: channels; then, how many, and for each its owner with
-- its length.
local answers, count = {}, #ARGV - 2
local read = reader(1, count)
for k = 1, count do
  answers[k] = release(KEYS[k], read(k), ARGV[k + 2], ARGV[1])
end
return alike(answers)
