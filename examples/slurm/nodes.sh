#!/bin/sh
# One run on all GPUs of several nodes: sbatch examples/slurm/nodes.sh
#
# torchrun starts a rank for each GPU, and begins again from the last checkpoint where one of them dies. Near the end of
# the job's time all ranks stop and save, and the job is queued again.
#SBATCH --job-name=gumbel-nodes
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@120
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out

RUN=runs/nodes-$SLURM_JOB_ID
FIRST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" torchrun --nnodes="$SLURM_NNODES" --nproc-per-node="$SLURM_GPUS_ON_NODE" --max-restarts=3 --shutdown-timeout=100 \
    --rdzv-backend=c10d --rdzv-endpoint="$FIRST:29500" --rdzv-id="$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" \
    train.py cartpole env.id=Tensor/CartPole-v1 env.num_envs=64 seeds=1024 device=cuda run_dir="$RUN" --resume auto
code=$?
# Not after a mistake at the beginning, which leaves no checkpoint.
[ ! -f "$RUN/result.json" ] && [ -f "$RUN/checkpoints/latest" ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 20 ] &&
    scontrol requeue "$SLURM_JOB_ID"
exit $code
