#!/usr/bin/env bash
# Print the image tag for this checkout: the version; if the commit is not tagged v<version>, also the commit; and if there are uncommitted
# changes, a hash of them, so that different content gets a different tag.
set -euo pipefail
cd "$(dirname "$0")/.."

tag=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
if commit=$(git rev-parse --short=12 HEAD 2>/dev/null); then
    [ "$(git describe --tags --exact-match 2>/dev/null || true)" = "v$tag" ] || tag="$tag-$commit"
    [ -z "$(git status --porcelain)" ] || {
        changed=$( (git diff HEAD --binary; git ls-files --others --exclude-standard -z | xargs -0 -r sha256sum) | sha256sum)
        tag="$tag-${changed:0:8}"
    }
fi
echo "$tag"
