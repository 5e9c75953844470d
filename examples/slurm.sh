#!/usr/bin/env bash
# Fine-tune on the nodes of a SLURM job: sbatch examples/slurm.sh DATA OUTPUT [flags of timm-sk finetune]
# OUTPUT must be on a file system that all nodes share. Submit it again to continue.
#SBATCH --job-name=timm-sk
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -euo pipefail
data=$1 output=$2
shift 2
read -r first_node _ < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # without it, restarts on several nodes wait for processes that are gone

# one torchrun per node, one process per GPU; the port is of this job
srun torchrun --nnodes="$SLURM_NNODES" --nproc-per-node="${SLURM_GPUS_ON_NODE:-1}" --max-restarts=3 \
    --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$first_node:$((20000 + SLURM_JOB_ID % 10000))" \
    -m timm_sk finetune "$data" --output "$output" --resume auto "$@"
