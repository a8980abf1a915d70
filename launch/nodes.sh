#!/bin/bash
# Pretrain on several machines that cannot reach each other by ssh. The same line on every one, with its own NODE_RANK:
#   NODE_RANK=0 NODES=4 GPUS=8 MASTER_ADDR=10.0.0.1 launch/nodes.sh --config configs/pretrain/base.yaml --run.dir ...
# MASTER_ADDR is an address of node 0 that the others reach, MASTER_PORT (29500) a free port there.
#
# * "Connection refused" or a start that hangs: the ranks chose a wrong network interface. Name it, as `ip -br address` does:
#   export NCCL_SOCKET_IFNAME=eth0 GLOO_SOCKET_IFNAME=eth0
# * All nodes must start within 10 minutes, or --engine.timeout seconds; DEEPSPEED_TIMEOUT is without effect.
# * `kill` of the deepspeed process leaves its ranks alive. Signal the process group: kill -TERM -- -PGID, or Ctrl-C.

set -euo pipefail

: "${NODE_RANK:?the number of this node, 0 to NODES - 1}" "${NODES:?how many nodes}" "${GPUS:?ranks per node}"
: "${MASTER_ADDR:?an address of node 0}"
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
export PATH="$root/.venv/bin:$PATH"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export PYTHONSAFEPATH=1 # no process runs code that lies in the current folder

hosts=$(mktemp "${TMPDIR:-/tmp}/alliance-hosts.XXXXXX") # the names need not resolve; deepspeed reads it at its start only
for ((node = 0; node < NODES; node++)); do
    echo "node-$node slots=$GPUS"
done >"$hosts"

exec deepspeed --hostfile "$hosts" --no_ssh --node_rank "$NODE_RANK" \
    --master_addr "$MASTER_ADDR" --master_port "${MASTER_PORT:-29500}" "$root/launch/pretrain.py" "$@"
