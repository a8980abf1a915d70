#!/bin/bash
# Pretrain on Slurm, from the clone's root. The first argument is the run folder; job after job goes on until it is finished:
#   sbatch --nodes 4 launch/slurm.sh /shared/runs/base --config configs/pretrain/base.yaml --data.sources '[...]'
#
# * One task per GPU: ntasks-per-node and gres must agree. Not --gpus-per-task: each task would see one GPU only, as number 0.
# * Every rank is warned 120 s before the time is over (no "B:" in --signal, which would warn this script alone). It then
#   saves, and the job is queued again. Large models on slow storage need more than 120 s.
# * "Connection refused" or a start that hangs: the ranks chose a wrong network interface. Name it, as `ip -br address` does:
#   export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0. All nodes have 10 minutes, or --engine.timeout seconds.
#
#SBATCH --job-name=alliance
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out

set -euo pipefail

run=${1:?the first argument is the run folder, on storage that all nodes see}
shift
[[ -f launch/pretrain.py ]] || { echo "error: submit from the clone's root; this is $PWD" >&2; exit 2; }

export PATH="$PWD/.venv/bin:$PATH"
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
MASTER_ADDR=${hosts%%$'\n'*}
MASTER_PORT=$((15000 + SLURM_JOB_ID % 15000)) # two jobs on one node do not meet
export MASTER_ADDR MASTER_PORT
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export PYTHONSAFEPATH=1 # no process runs code that lies in the current folder
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun does not take it from sbatch by itself

srun --kill-on-bad-exit=1 python launch/pretrain.py --run.dir "$run" --run.resume auto "$@"

if [[ $(tail -n 1 "$run/metrics.jsonl") == *'"event": "stopped"'* ]]; then # asked to stop before its last step
    scontrol requeue "$SLURM_JOB_ID"
fi
