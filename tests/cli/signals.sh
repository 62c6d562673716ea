# Signals, the lock and time limits while training: 75, a checkpoint, and the run goes on where it was.
source "$(dirname "$0")/common.bash"
make_pack

start() { # start RUN: training in the background, with at least one checkpoint made
    "$ddpm" train tiny.yaml --run "$1" >"$1.out" 2>"$1.err" &
    pid=$!
    wait_for 30 test -e "$1/checkpoints/step-00000040.safetensors"
}

step_of() {
    "$ddpm" info --json "$1" >step.json 2>err || fail "info $1"
    figure step step.json
}

for signal in INT TERM USR1; do
    start "run$signal"
    kill -s "$signal" "$pid"
    wait "$pid"
    got=$?
    [[ $got == 75 ]] || { cat "run$signal.err" >&2; fail "SIG$signal ends with $got instead of 75"; }
    [[ $(grep -c '^ddpm train: ' "run$signal.err") == 1 ]] || fail "SIG$signal: not one line"
    at=$(step_of "run$signal")
    ((at >= 20)) || fail "SIG$signal: checkpoint of step $at"
    train_to $((at + 5)) "run$signal"
    [[ $(step_of "run$signal") == $((at + 5)) ]] || fail "SIG$signal: did not go on from $at"
done

# two jobs, one folder: the second is told who holds it and leaves the first alone
start held
expect 73 "$pid" "$ddpm" train tiny.yaml --run held
"$ddpm" info held >out 2>err || fail "info of a run in use"
grep -q '^in_use  *yes' out || fail "info does not say that the run is in use"
kill -0 "$pid" || fail "the first job was disturbed"

# SIGKILL: what was committed is intact, the lock is gone with its holder, temporary files too after the next start
kill -s KILL "$pid"
wait "$pid" 2>/dev/null
expect 0 "" "$ddpm" info --verify held
at=$(step_of held)
train_to $((at + 5)) held
[[ -z $(find held -name '*.tmp') ]] || fail "left over: $(find held -name '*.tmp')"

# stopped and continued, with nothing lost
start paused
kill -s STOP "$pid"
sleep 0.3
kill -s CONT "$pid"
kill -s TERM "$pid"
wait "$pid"
[[ $? == 75 ]] || fail "STOP and CONT spoil the end"

# --max-time
expect 75 "" "$ddpm" train tiny.yaml --run timed --max-time 1
(($(step_of timed) > 0)) || fail "--max-time left no checkpoint"

# a stopped sampling job goes on, to the same bytes
train_to 20 model
"$ddpm" sample model -n 24 -o whole --seed 3 --set sample.spacing=100 >out 2>err || fail "sample"
"$ddpm" sample model -n 24 -o cut --seed 3 --set sample.spacing=100 >out 2>err &
pid=$!
sleep 0.3
kill -s TERM "$pid" 2>/dev/null
wait "$pid"
got=$?
[[ $got == 75 || $got == 0 ]] || fail "stopped sampling ends with $got"
"$ddpm" sample model -n 24 -o cut --seed 3 --set sample.spacing=100 >out 2>err || fail "sampling does not go on"
cmp whole/samples_24x8x8x1.npz cut/samples_24x8x8x1.npz || fail "a stopped job gives other bytes"
exit 0
