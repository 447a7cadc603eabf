#!/bin/sh
# Many runs that need nothing of each other, one a job: sbatch examples/slurm/array.sh
#
# Each job of the array trains a population of its own seeds. One whose time is over is queued again and resumes.
#SBATCH --job-name=gumbel
#SBATCH --array=0-7
#SBATCH --cpus-per-task=1
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@120
#SBATCH --open-mode=append
#SBATCH --output=slurm-%A_%a.out

RUN=runs/cartpole-$SLURM_ARRAY_JOB_ID-$SLURM_ARRAY_TASK_ID
srun python train.py cartpole seed=$((1000 + 10 * SLURM_ARRAY_TASK_ID)) seeds=10 run_dir="$RUN" --resume auto
code=$?
[ $code -eq 143 ] && scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
exit $code
