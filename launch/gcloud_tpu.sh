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
TRIES="${TRIES:-3}" # failures in a row, other than preemptions, before giving up

for name in POLL TRIES; do
  if [[ ! "${!name}" =~ ^[0-9]+$ ]]; then
    echo "$name is '${!name}'; wanted a number" >&2
    exit 1
  fi
done

cd "$(dirname "$0")/.."
tpus=(gcloud compute tpus)

# The slice gets the committed files only.
if ! git cat-file -e "HEAD:${CONFIG%%:*}" 2>/dev/null; then
  echo "$CONFIG is not committed, so the slice would not have it; commit it" >&2
  exit 1
fi
if changed="$(git status --porcelain)" && [ -n "$changed" ]; then
  echo "the slice gets the last commit, without these changes:" >&2
  echo "$changed" >&2
fi

scratch="$(mktemp -d)"

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

# Fails if the request is refused, or if the slice is lost before it is active.
create() {
  "${tpus[@]}" queued-resources create "$NAME" --node-id="$NAME" --zone="$ZONE" \
    --accelerator-type="$TYPE" --runtime-version="$RUNTIME" --spot || return 1
  requested=true
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

install() {
  git archive --format=tar.gz --output="$scratch/code.tar.gz" HEAD &&
    "${tpus[@]}" tpu-vm scp "$scratch/code.tar.gz" "$NAME":code.tar.gz \
      --zone="$ZONE" --worker=all &&
    everywhere "mkdir -p align && tar -xzf code.tar.gz -C align && cd align &&
    pip install --quiet uv && export PATH=\$HOME/.local/bin:\$PATH &&
    uv venv --quiet --python 3.11 .venv &&
    uv pip install --quiet --python .venv -r requirements.txt -c constraints.txt &&
    uv pip install --quiet --python .venv -e '.[tpu,gs]' -c constraints.txt"
}

# The remote shell reads the command, so %q quotes what the user named.
train() {
  everywhere "cd align && .venv/bin/python main.py --distributed$(printf ' %q' \
    "--config=$CONFIG" "--workdir=$BUCKET/runs/$RUN" \
    "--config.input.datasets.corpus.directory=$BUCKET/corpus/records" \
    "--config.vocabulary=$BUCKET/corpus/records/vocabulary.txt")"
}

trap 'delete; rm -rf "$scratch"' EXIT
failures=0
while true; do
  delete
  requested=false
  if create && install && train; then
    echo "$RUN is finished: $BUCKET/runs/$RUN"
    exit 0
  fi
  case "$requested-$(state)" in
    true-SUSPENDING | true-SUSPENDED | true-DELETING | true-ABSENT) failures=0 ;; # a preemption
    *) failures=$((failures + 1)) ;;
  esac
  if [ "$failures" -ge "$TRIES" ]; then
    echo "$RUN failed $failures times in a row; the last output is above" >&2
    exit 1
  fi
  echo "asking for $TYPE again in $POLL s" >&2
  sleep "$POLL"
done
