#!/bin/bash
#SBATCH --job-name=rl:rl
#SBATCH --comment=swiftlaunch:rl-20260101-000000-0000:rl
#SBATCH --output='/runs/it'"'"'s 100%%/rl-20260101-000000-0000/logs/rl/batch.log'
#SBATCH --open-mode=append
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --time=0-12:00:00
#SBATCH --signal=B:USR2@120
#SBATCH --requeue
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=1800000M
#SBATCH --gpus-per-node=8
#SBATCH --partition=gpu
# Stage rl of run rl-20260101-000000-0000, rendered by swiftlaunch 0.0.0.
set -uo pipefail
run_dir='/runs/it'"'"'s 100%/rl-20260101-000000-0000'
stage='rl'
logs=$run_dir/logs/$stage state=$run_dir/stages/$stage attempt=1
[ ! -e "$state/result.json" ] || exit 0 # started again although all was done, or a job that was kept for later
[ ! -e "$state/given-up" ] || exit 78   # an earlier job of this stage saw that no other attempt would help
while [ -e "$logs/attempt-$attempt" ]; do attempt=$((attempt + 1)); done
mkdir -p "$logs" && mkdir "$logs/attempt-$attempt" || exit 1
ranks=$logs/attempt-$attempt
cd "$run_dir" || exit 1 # python -m looks here first: not where somebody submitted from, perhaps another checkout

export SWIFTLAUNCH_ATTEMPT=$attempt PYTHONPATH='/runs/it'"'"'s 100%/rl-20260101-000000-0000/code'
set -a
# shellcheck disable=SC1091
. '/runs/it'"'"'s 100%/rl-20260101-000000-0000/secrets.sh'
set +a

# an array's own id would mean all of its tasks
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID} job=${job:-$SLURM_JOB_ID}
about() { scontrol show job --oneliner "$1" 2>/dev/null | head -n 1; }
if [[ -z ${SLURM_JOB_END_TIME:-} && $(about "$job") =~ \ EndTime=([^ ]+) ]]; then # Slurm before 23.02
  SLURM_JOB_END_TIME=$(date -d "${BASH_REMATCH[1]}" +%s 2>/dev/null) && export SLURM_JOB_END_TIME
fi
# a scheduler that could be told does not start this job before
early=$(($(cat "$state/not-before" 2>/dev/null || echo 0) - $(date +%s)))
[ "$early" -le 0 ] || sleep "$early"

# one job step per group, each started in a shell of its own; the stage ends as the first group does
run_group() {
  case $1 in
  0)
    export GLOO_SOCKET_IFNAME='hsn0'
    export NCCL_SOCKET_IFNAME='hsn0'
    exec srun --relative=0 --nodes=2 --ntasks=8 --ntasks-per-node=4 --cpus-per-task=8 --kill-on-bad-exit=1 --exact --open-mode=append --mem=1800000M --gpus-per-node=8 --output="${ranks//%/%%}/rank-%t.log" \
      apptainer exec --nv --bind /project/llm/data:/project/llm/data --bind /project/llm/runs:/project/llm/runs --bind /project/llm/models:/project/llm/models /project/llm/images/megatron.sif python3 -m launcher.work "$run_dir/plan.json" "$stage" 2>>"$ranks/step.log"
    ;;
  1)
    export GLOO_SOCKET_IFNAME='hsn0'
    export NCCL_SOCKET_IFNAME='hsn0'
    exec srun --relative=2 --nodes=1 --ntasks=4 --ntasks-per-node=4 --cpus-per-task=8 --kill-on-bad-exit=1 --exact --open-mode=append --mem=1800000M --gpus-per-node=8 --output="${ranks//%/%%}/rank-%t.log" \
      apptainer exec --nv --bind /project/llm/runs:/project/llm/runs --bind /project/llm/models:/project/llm/models /project/llm/images/vllm.sif /opt/venv/bin/python -m launcher.work "$run_dir/plan.json" "$stage" 2>>"$ranks/step.log"
    ;;
  esac
}
start() {
  starts[$1]=$((${starts[$1]:-0} + 1)) ranks=$logs/attempt-$attempt/${names[$1]}
  rm -f "$ranks"/hang* # what an earlier start's ranks told each other would end this one
  SWIFTLAUNCH_GROUP=${names[$1]} SWIFTLAUNCH_GROUP_START=${starts[$1]} run_group "$1" &
  steps[$1]=$!
}
signal_groups() { # signal all groups that still run; code 1 if there are none
  local step told=1
  for step in ${steps[@]+"${steps[@]}"}; do [ -z "$step" ] || ! kill -s "$1" "$step" 2>/dev/null || told=0; done
  return "$told"
}
names=(train sample)
essential=(1 0) restarts=(0 3)
SWIFTLAUNCH_NODES=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | tr '\n' ' ')
export SWIFTLAUNCH_NODES

# the scheduler itself tells the steps of TERM; from here it would make srun kill its tasks at once
asked=0 starts=() steps=() ended=''
trap 'asked=1; signal_groups USR2' USR2
trap 'asked=1' TERM
for group in "${!names[@]}"; do mkdir "$logs/attempt-$attempt/${names[group]}" && start "$group"; done
while [ -z "$ended" ]; do
  sleep 1 & wait $! # a trapped signal ends it early
  for group in "${!names[@]}"; do
    if [ -z "${steps[group]}" ] || kill -0 "${steps[group]}" 2>/dev/null; then continue; fi
    wait "${steps[group]}"; code=$? steps[group]='' ranks=$logs/attempt-$attempt/${names[group]}
    failed=0; [[ $code -eq 0 || $asked -eq 1 ]] || failed=1
    echo "swiftlaunch: group ${names[group]} of $stage attempt $attempt ended with code $code" >&2
    if [[ $group -eq 0 || $failed -eq 1 && ${essential[group]} -eq 1 ]]; then
      ended=$group && break
    elif [[ $failed -eq 0 || $code -eq 75 || $code -eq 78 || ${starts[group]} -gt ${restarts[group]} || -n $(find "$ranks" -name 'fatal-*' -print -quit) ]]; then
      echo "swiftlaunch: the others go on without group ${names[group]}" >&2
    else
      echo "swiftlaunch: group ${names[group]} is started again (${starts[group]} of ${restarts[group]})" >&2
      start "$group"
    fi
  done
done
echo "${names[ended]}" >"$logs/attempt-$attempt/ended-by"
cat "$ranks/step.log" >&2
# the rest is asked to stop; after a while srun is told to kill its tasks, then killed
patience=120
for signal in USR2 TERM KILL; do
  signal_groups "$signal" || break
  for ((second = 0; second < patience; second++)); do signal_groups 0 || break 2; sleep 1; done
  patience=5
done
logged() { # PATTERN: whether the last that the step or its ranks have written holds it
  grep -qE "$1" <(find "$ranks" \( -name 'step.log' -o -name 'rank-*.log' \) -exec tail -qc 4096 {} +)
}
# 128 + the signal: ranks that it ended before they could catch it, or what bash says (or -1) of a step that ended in
# the moment of a signal, whose code it has lost. After a stop, of which this shell may not be told, it is one; the next
# attempt finds what was left.
if [[ $code =~ ^(-1|140|143)$ ]] && { [ "$asked" -eq 1 ] || logged ' CANCELLED AT [^ ]+ DUE TO '; }; then
  asked=1 code=75
fi
[ "$code" -ne 0 ] || exit 0

# 75: state saved, run me again; unasked and with a failure-* file it is only what srun stopped after a rank failed.
# 78 or a fatal-* file: another attempt would end the same way. Completing for no reason, not preempted, and not
# about to be started again: somebody called scancel. Attempts up to number $forgiven came before a `resume`.
here=$logs/attempt-$attempt crashes=0 streak=0 idle=0 why='' now=$(about "$job")
fatal=$(find "$ranks" -name 'fatal-*' -print -quit) failed=$(find "$ranks" -name 'failure-*' -print -quit)
[[ $code -eq 75 && ($asked -eq 1 || -z $failed) ]] || : >"$here/crashed"
[[ ! $now =~ \ PreemptTime=[0-9] ]] || : >"$here/preempted"
crashes=$(find "$logs/" -mindepth 2 -maxdepth 2 -name crashed | wc -l)
forgiven=$(cat "$state/forgiven" 2>/dev/null || echo 0)
while [ -e "$logs/attempt-$((attempt - streak))/crashed" ]; do streak=$((streak + 1)); done
for ((number = attempt; number > forgiven; number--)); do # stops that nobody else asked for and that saved nothing
  [[ -d $logs/attempt-$number && ! -e $logs/attempt-$number/saved ]] || break
  [ -e "$logs/attempt-$number/preempted" ] || idle=$((idle + 1))
done
if [[ $code -eq 78 || -n $fatal ]]; then
  why="another attempt would end the same way"
elif [[ -e $state/cancelled || ($now =~ =COMPLETING\ Reason=None\ .*\ Restarts=${SLURM_RESTART_COUNT:-0}\  && ! $now =~ \ PreemptTime=[0-9]) ]]; then
  why="it was cancelled"
elif logged 'srun: error: .*: Out Of Memory|slurmstepd.*: error: .*([Oo][Oo][Mm][-_ ][Kk]ill|exceeded (job|step|virtual|memory)[^,]* limit)|slurmstepd.*: error: (Step|StepId=|Job)[^ ]* .*exceeded memory limit'; then
  why="it ran out of memory"
elif [ "$crashes" -ge 5 ]; then
  why="it crashed $crashes times"
elif [[ $code -eq 75 && $idle -ge 10 ]]; then
  why="nothing new was saved in $idle attempts"
fi
if [ -n "$why" ]; then
  echo "$why" >"$state/given-up"
  echo "swiftlaunch: $stage attempt $attempt ended with code $code; not run again: $why" >&2
  exit "$code"
fi

delay=0 # doubles with each crash in a row
[ "$streak" -eq 0 ] || delay=$((30 << (streak > 16 ? 16 : streak - 1)))
[ "$delay" -le 900 ] || delay=900
echo $(($(date +%s) + delay)) >"$state/not-before"
{
  find "$here" -name 'sick-*' | sed 's/.*sick-//'
  sed -nE 's/^(srun: error: ([^ :]+): tasks? [^:]*: Bus error.*|srun: error: Task launch for .* failed on node ([^ :]+): .*)$/\2\3/p' "$ranks/step.log"
} 2>/dev/null | sort -u >>"$state/excluded"
excluded=$(paste -sd, "$state/excluded")
own() { # JOB: nodes that the user excluded, and the comma after them
  [[ $(about "$1") =~ ExcNodeList=([^ \(]+) ]] && echo "${BASH_REMATCH[1]},"
}
if [ -n "$excluded" ] && ! sbatch --test-only --exclude="$(own "$job")$excluded" "$0" >/dev/null 2>&1; then
  excluded='' && : >"$state/excluded" # a sick node is better than none
fi
tell() { # JOB: when and where the next attempt may start
  scontrol update JobId="$1" ${excluded:+ExcNodeList="$(own "$1")$excluded"} StartTime="now+$delay" 2>/dev/null
}
trap '' TERM USR2 # what follows is done before the scheduler ends this shell, or not at all
echo "swiftlaunch: $stage attempt $attempt ended with code $code; another in $delay s${excluded:+, without $excluded}" >&2
tries=0
until said=$(scontrol requeue "$job" 2>&1); do
  echo "$said" >&2
  if scontrol ping >/dev/null 2>&1; then
    tries=$((tries + 1))
    if ! grep -qE 'timed out|Unable to contact|Zero Bytes|connect failure|Connection refused|Connection reset|did not end within|Resource temporarily unavailable|temporarily unable to accept|rate.?limit|[Bb]ackoff|back off|Too many outstanding|[Ss]erver.? too busy' <<<"$said"; then
      [ "$tries" -gt 1 ] || exit "$code" # it has refused; later on: the question before was heard, only its answer lost
      break
    fi
    [ "$tries" -lt 6 ] || exit "$code"
  fi
  sleep 10
done
tell "$job"
exit "$code"
