# Long proofs of resuming, run by hand (minutes); a line of figures at the end of each part.
#   bash tests/soak/stops.sh build/ddpm [STOPS=20] [KILLS=500]
# STOPS: a training stopped by SIGTERM at random moments has, in the end, every byte of the one that was left alone.
# KILLS: SIGKILL at random moments of a training that saves after every step; the newest checkpoint always verifies, and no run
# ever goes back behind one that a finished save had made.
source "$(dirname "${BASH_SOURCE[0]}")/../cli/common.bash"
stops=${2:-20} kills=${3:-500} seed=1
RANDOM=$seed
make_pack

# ---- random stops ----
target=$((stops * 60))
"$ddpm" train tiny.yaml --run whole --max-steps $target >out 2>err || fail "the whole run"
stopped=0
while ((stopped < stops)); do
    "$ddpm" train tiny.yaml --run parts --max-steps $target >out 2>err &
    pid=$!
    sleep "0.$((RANDOM % 4 + 1))$((RANDOM % 10))"
    kill -s TERM "$pid" 2>/dev/null
    wait "$pid"
    got=$?
    if ((got == 0)); then # it came to the end before it was stopped: begin again with what is left of the stops
        cmp "$(newest whole)" "$(newest parts)" || fail "after $stopped stops the last checkpoint differs"
        rm -rf parts
        continue
    fi
    ((got == 75)) || fail "a stop ends with $got"
    stopped=$((stopped + 1))
done
"$ddpm" train tiny.yaml --run parts --max-steps $target >out 2>err || fail "the last part"
cmp "$(newest whole)" "$(newest parts)" || fail "after $stopped stops the last checkpoint differs"
echo "$stopped random stops, every byte of the last checkpoint the same"

# ---- kills ----
held=0 during=0
"$ddpm" train tiny.yaml --run killed --max-steps 1 --set train.save_every=1 >out 2>err || fail "the first step"
for ((i = 0; i < kills; i++)); do
    "$ddpm" train tiny.yaml --run killed --set train.save_every=1 >out 2>err &
    pid=$!
    sleep "0.$((RANDOM % 3 + 1))$((RANDOM % 10))$((RANDOM % 10))"
    kill -s KILL "$pid"
    wait "$pid" 2>/dev/null
    [[ -n $(find killed -name '*.tmp' -print -quit) ]] && during=$((during + 1))
    last=$(newest killed)
    "$ddpm" info --verify "$last" >out 2>err || fail "kill $i: $last does not verify"
    at=$(basename "$last" .safetensors)
    at=$((10#${at#step-}))
    ((at >= held)) || fail "kill $i: step $at after step $held"
    held=$at
done
echo "$kills kills, $during of them in the middle of writing, no checkpoint lost, now at step $held"
