# From here on the same for every job. What is above: `arguments` and `run` of the run, `join_timeout` in seconds,
# and set_up, which every node does first.

say() { echo "job $SLURM_JOB_ID: $*"; }

fail() {
    say "$*" >&2
    exit 1
}

# Ray on this node. Every port but the head's is one that the kernel gives, and that is too (--port=0): other jobs may
# have their Ray on the same machine. For their sake `ray stop` is never used; what is started here ends as a process.
start_ray() {
    scratch=/tmp/localpipe-$SLURM_JOB_ID-$SLURMD_NODENAME # short: the names of Ray's sockets begin with it
    rm -rf "$scratch"                                     # of this job before it was requeued
    mkdir -m 700 "$scratch"
    ray start "$@" --block --disable-usage-stats --temp-dir="$scratch" --object-store-memory=$((1 << 30)) \
        --num-cpus="$SLURM_CPUS_ON_NODE" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" \
        --min-worker-port=0 --max-worker-port=0 --dashboard-agent-listen-port=0 > "$scratch/ray.log" 2>&1 &
    ray=$!
}

# Ray's own processes end with the one that started them. Half of the time that Slurm gives a job to end is enough.
end_ray() {
    kill -TERM "$ray" 2> /dev/null || true
    for _ in {1..15}; do
        kill -0 "$ray" 2> /dev/null || break
        sleep 1
    done
    kill -KILL "$ray" 2> /dev/null || true
    rm -rf "$scratch"
}

# What every other node does, as a task of srun's.
# shellcheck disable=SC2317 # called by the name that srun's shell is given
join() {
    set -euo pipefail
    set_up
    start_ray --address="$address"
    trap end_ray EXIT
    trap 'exit 0' USR1 TERM
    wait "$ray" || cat "$scratch/ray.log"
}

# Signals are passed on to what is being waited for. USR1 is the one that Slurm sends before the time limit (--signal
# above); TERM is `scancel --signal=TERM --batch`. A bare `scancel` ends Ray's processes as well, so nothing is saved.
limit='' child='' heard='' status=0
# shellcheck disable=SC2317 # called by traps
pass_on() {
    heard=1
    [ -z "$child" ] || kill -TERM "$child" 2> /dev/null || true
}
trap 'limit=1; pass_on' USR1
trap 'limit=; pass_on' TERM INT HUP

# Runs a command to its end and leaves its exit status in `status`. A signal ends a shell's `wait`, not the command.
attend() {
    status=130
    [ -z "$heard" ] || return 0
    "$@" &
    child=$!
    [ -z "$heard" ] || kill -TERM "$child" # it came while `child` was not yet known
    while kill -0 "$child" 2> /dev/null; do
        wait "$child" || true
    done
    status=0
    wait "$child" || status=$? # the shell remembers it
    child=''
}

# The name of the run's last checkpoint that is whole, if there is one. Names sort as their places in the run do.
last_checkpoint() {
    local manifests=("$run"/checkpoints/*/manifest.json)
    [ ! -e "${manifests[-1]}" ] || basename "$(dirname "${manifests[-1]}")"
}

others=''
clean_up() {
    trap '' USR1 TERM INT HUP
    [ -z "$child" ] || kill -KILL "$child" 2> /dev/null || true
    [ -z "$others" ] || kill -USR1 "$others" 2> /dev/null || true # with TERM srun kills at once, and files stay
    end_ray
    [ -z "$others" ] || wait "$others" || true
}

set_up
# Whoever has the token may run code in this job's Ray cluster. Nothing but the environment of its processes has it.
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
unset RAY_ADDRESS RAY_AUTH_TOKEN_PATH
start_ray --head --port=0 --include-dashboard=false
trap clean_up EXIT
address=''
for ((second = 0; second < join_timeout; second++)); do
    [ -z "$heard" ] || exit 130
    if [ -s "$scratch/ray_current_cluster" ]; then
        address=$(< "$scratch/ray_current_cluster")
        break
    fi
    kill -0 "$ray" 2> /dev/null || break
    sleep 1
done
if [ -z "$address" ]; then
    cat "$scratch/ray.log" >&2
    fail "Ray does not start on $SLURMD_NODENAME."
fi

if ((SLURM_JOB_NUM_NODES > 1)); then
    export address
    srun --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks=$((SLURM_JOB_NUM_NODES - 1)) --ntasks-per-node=1 --relative=1 \
        --cpus-per-task="${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}" --cpu-bind=none --kill-on-bad-exit=0 \
        bash -c "$(declare -f set_up start_ray end_ray join); join" &
    others=$!
fi
attend python -m launch.slurm.joined "$address" "$SLURM_JOB_NUM_NODES" "$join_timeout"
((status == 0)) || exit "$status"

before=$(last_checkpoint)
if [ -n "$before" ]; then
    say "going on with $run"
    attend launch resume "$run" --address "$address"
else
    if [ -e "$run" ] && ((${SLURM_RESTART_COUNT:-0} > 0)); then
        say "$run has no checkpoint yet: it is kept as $run.lost-$SLURM_RESTART_COUNT, and the run begins anew"
        mv -- "$run" "$run.lost-$SLURM_RESTART_COUNT"
    fi
    attend launch "${arguments[@]}" --run-dir "$run" --address "$address"
fi

if [ -n "$limit" ] && ((status == 130)); then
    [ "$(last_checkpoint)" != "$before" ] ||
        fail "the time limit left no room for a checkpoint. Not queued again: give more --time."
    clean_up
    trap - EXIT
    say "stopped before the time limit; queued again, and going on from $(last_checkpoint)"
    scontrol requeue "$SLURM_JOB_ID" || fail "cannot be queued again. Go on with: LOCALPIPE_RUN=$run sbatch …"
fi
exit "$status"
