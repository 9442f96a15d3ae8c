#!/usr/bin/env bash
# Resolve pyproject.toml's groups into requirements/*.txt, hashed, for every platform and no index's address: lock.sh <uv> [--upgrade]
set -euo pipefail
uv=$1
more=("${@:2}")
export UV_CUSTOM_COMPILE_COMMAND="make lock"
compile() { "$uv" pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-emit-index-url "${more[@]}" "$@"; }

echo "lock: dev"
compile --group dev --output-file requirements/dev.txt
for group in run trainer pipelines; do
    echo "lock: $group, as dev has it"
    compile --group "$group" --constraint requirements/dev.txt --output-file "requirements/$group.txt"
done
echo "lock: build"
compile --group build --constraint requirements/dev.txt --output-file requirements/build.txt
echo "lock: sources"
compile --group sources --constraint requirements/dev.txt --output-file requirements/sources.txt
echo "lock: reference"
compile requirements/reference.in --output-file requirements/reference.txt
echo "lock: layouts"
compile requirements/layouts.in --output-file requirements/layouts.txt
echo "lock: sinks"
compile requirements/sinks.in --constraint requirements/dev.txt --output-file requirements/sinks.txt
echo "lock: docs"
compile requirements/docs.in --output-file requirements/docs.txt
echo "lock: operator"
compile requirements/operator.in --output-file requirements/operator.txt
echo "lock: scan"
compile requirements/scan.in --output-file requirements/scan.txt
