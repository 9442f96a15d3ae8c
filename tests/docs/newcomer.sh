#!/usr/bin/env bash
# A newcomer's first hour, from `git clone` to a site with a change of their own in it, each step timed: newcomer.sh <repository> <folder>
# VENV and PYTHON are make's; CONTRIBUTING.md tells the same story in words.
set -euo pipefail
repository=$1 folder=$2

step() {
    local name=$1 started=$SECONDS
    shift
    if ! "$@" > "$folder.log" 2>&1; then
        tail -n 40 "$folder.log" >&2
        echo "newcomer: $name failed" >&2
        exit 1
    fi
    printf '%5d s  %s\n' $((SECONDS - started)) "$name"
}

step "git clone" git clone --quiet "$repository" "$folder"
cd "$folder"
step "set up" make setup
step "run the smoke experiment" make pipeline-run RECIPE=smoke
cat > trainer/arms/permuted_instance.py <<'ARM'
"""Control: the norms of a tower that learned to tell pictures apart, without its structure."""

from trainer.arms import Arm

ARM = Arm(
    name="permuted-instance", order=65, start="permuted", labels="instance",
    meaning="the weights of `instance`, permuted within each tensor",
    control="the same warm-up on pictures without judgements, without its structure",
)
ARM
step "add an arm, and run it" make pipeline-run RECIPE=smoke ARMS=random,permuted-instance
step "test the room that it lies in" make test ARGS="tests/arms tests/pipelines/planning/test_arms.py"
step "build the documents" make docs
grep -q permuted-instance runs/experiments/smoke/report/results.json
