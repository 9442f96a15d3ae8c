#!/usr/bin/env bash
# Make a virtual environment with exactly the hashed requirements of one file: setup.sh <folder> <requirements> <mark>
# The mark is a file that is left in the folder: `ready` if runs work, `tools` if tests work as well, `site` if the site can be
# built, `light` if clusters and stores can be queried, `scan` if the chart can be scanned.
set -euo pipefail
folder=$1 requirements=$2 mark=$3

fail() { echo "setup: $*" >&2; exit 2; }
supported() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; }

if [ -n "${PYTHON:-}" ]; then
    supported "$PYTHON" || fail "PYTHON=$PYTHON is $("$PYTHON" -V 2>&1 || true); firstsight needs Python 3.11 or 3.12"
else
    for candidate in python3.12 python3.11 python3; do
        if supported "$candidate"; then PYTHON=$candidate; break; fi
    done
    [ -n "${PYTHON:-}" ] || fail "no Python 3.11 or 3.12 found (python3 is $(python3 -V 2>&1 || true)); install one, or name it with PYTHON="
fi

started=$SECONDS
case $mark in
    ready) what="what runs need (some 6 GB, minutes)" ;;
    site) what="what the site is built with" ;;
    light) what="what asks clusters and stores (some 400 MB)" ;;
    scan) what="what scans the chart" ;;
    *) what="the tools of tests" ;;
esac
printf 'setup: %s with %s, once: %s ... ' "$folder" "$("$PYTHON" -V)" "$what"
trap 'code=$?; [ "$code" = 0 ] || echo failed' EXIT
if ! supported "$folder/bin/python"; then
    rm -rf "$folder"
    "$PYTHON" -m venv "$folder" || fail "$PYTHON cannot make a virtual environment: install its venv module (Debian: python3-venv)"
fi
if ! "$folder/bin/python" -c "import importlib.metadata as m; assert m.version('uv') == '$UV_VERSION'" 2>/dev/null; then
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "uv==$UV_VERSION"
fi
if [ "$mark" = ready ] && [ -x "$folder/bin/pytest" ]; then  # exact as soon as tests are asked for; until then their tools stay
    VIRTUAL_ENV=$folder "$folder/bin/uv" pip install --quiet --require-hashes --requirements "$requirements"
else
    VIRTUAL_ENV=$folder "$folder/bin/uv" pip sync --quiet --require-hashes "$requirements"
fi
touch "$folder/$mark"
echo "done in $((SECONDS - started)) s"
