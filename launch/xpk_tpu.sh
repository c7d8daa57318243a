#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster that XPK made:
#
#   BUCKET=gs://your-bucket IMAGE=REGION-docker.pkg.dev/PROJECT/REPOSITORY/align-jax:tpu \
#     CLUSTER=your-cluster PROJECT=your-project ZONE=us-central1-a launch/xpk_tpu.sh
#
# Further flags, such as --spot or --dry-run, go to `xpk workload create`. See
# docs/slice.md.
set -euo pipefail

: "${BUCKET:?gs://... that has the records and gets the run}"
: "${IMAGE:?image of launch/Dockerfile with DEVICE=tpu, in a registry}"
: "${CLUSTER:?a cluster that xpk cluster create made}"
: "${PROJECT:?project of the cluster}"
: "${ZONE:?zone of the cluster}"
TYPE="${TYPE:-v5litepod-256}"
SLICES="${SLICES:-1}"
CONFIG="${CONFIG:-configs/pretrain_align_b7_base.py}"
RUN="${RUN:-align_b7_base}"
NAME="${NAME:-align-${RUN//_/-}}"
RESTARTS="${RESTARTS:-50}" # after preemptions; bad input, code 2, ends the workload

# A shell in the container reads the command, so %q quotes what the user named.
command="cd /align && exec python main.py --distributed$(printf ' %q' \
  "--config=$CONFIG" "--workdir=$BUCKET/runs/$RUN" \
  "--config.input.datasets.corpus.directory=$BUCKET/corpus/records" \
  "--config.vocabulary=$BUCKET/corpus/records/vocabulary.txt")"

exec xpk workload create --cluster="$CLUSTER" --project="$PROJECT" --zone="$ZONE" \
  --workload="$NAME" --tpu-type="$TYPE" --num-slices="$SLICES" \
  --docker-image="$IMAGE" --max-restarts="$RESTARTS" \
  --termination-grace-period-seconds=60 --command="$command" "$@"
