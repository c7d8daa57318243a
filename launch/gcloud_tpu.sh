#!/usr/bin/env bash
# Trains on a spot TPU slice by gcloud alone, and requests it again after preemption:
#
#   BUCKET=gs://your-bucket ZONE=us-central1-a launch/gcloud_tpu.sh
#
# The run is written to BUCKET/runs/RUN. The slice is deleted at the end. See docs/tpu.md.
set -euo pipefail

: "${BUCKET:?gs://... that has the records and gets the run}"
: "${ZONE:?a zone with such slices}"
TYPE="${TYPE:-v5litepod-256}"
RUNTIME="${RUNTIME:-v2-alpha-tpuv5-lite}"
CONFIG="${CONFIG:-configs/pretrain_align_b7_base.py}"
RUN="${RUN:-align_b7_base}"
NAME="${NAME:-align-${RUN//_/-}}"
POLL="${POLL:-60}" # seconds between checks of the queue
TRIES="${TRIES:-3}" # failures in a row on an available slice before giving up

cd "$(dirname "$0")/.."
tpus=(gcloud compute tpus)

state() {
  local found
  if found="$("${tpus[@]}" queued-resources describe "$NAME" --zone="$ZONE" \
    --format='value(state.state)' 2>&1)"; then
    echo "$found"
  elif [[ "$found" == *NOT_FOUND* ]]; then
    echo ABSENT
  else
    echo UNKNOWN # gcloud itself failed
  fi
}

delete() {
  if [ "$(state)" != ABSENT ]; then
    "${tpus[@]}" queued-resources delete "$NAME" --zone="$ZONE" --force --quiet
  fi
}

create() {
  "${tpus[@]}" queued-resources create "$NAME" --node-id="$NAME" --zone="$ZONE" \
    --accelerator-type="$TYPE" --runtime-version="$RUNTIME" --spot
  while true; do
    case "$(state)" in
      ACTIVE) return ;;
      FAILED | SUSPENDED | ABSENT) return 1 ;;
    esac
    sleep "$POLL"
  done
}

everywhere() {
  "${tpus[@]}" tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"
}

# git archive packs the committed files only, without environments and runs.
install() {
  git archive --format=tar.gz --output=/tmp/"$NAME".tar.gz HEAD
  "${tpus[@]}" tpu-vm scp /tmp/"$NAME".tar.gz "$NAME":code.tar.gz \
    --zone="$ZONE" --worker=all
  everywhere "mkdir -p align && tar -xzf code.tar.gz -C align && cd align &&
    pip install --quiet uv && export PATH=\$HOME/.local/bin:\$PATH &&
    uv venv --quiet --python 3.11 .venv &&
    uv pip install --quiet --python .venv -r requirements.txt -c constraints.txt &&
    uv pip install --quiet --python .venv -e '.[tpu,gs]' -c constraints.txt"
}

train() {
  everywhere "cd align && .venv/bin/python main.py --distributed \
    --config=$CONFIG --workdir=$BUCKET/runs/$RUN \
    --config.input.datasets.corpus.directory=$BUCKET/corpus/records \
    --config.vocabulary=$BUCKET/corpus/records/vocabulary.txt"
}

trap delete EXIT
failures=0
while true; do
  delete
  if create && install && train; then
    echo "$RUN is finished: $BUCKET/runs/$RUN"
    exit 0
  fi
  case "$(state)" in
    ACTIVE | UNKNOWN) failures=$((failures + 1)) ;; # not a preemption
    *) failures=0 ;;
  esac
  if [ "$failures" -ge "$TRIES" ]; then
    echo "$RUN failed $failures times in a row; the last output is above" >&2
    exit 1
  fi
  echo "asking for $TYPE again" >&2
done
