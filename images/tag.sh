#!/usr/bin/env bash
# The tag of images of this checkout: the version where its commit is tagged v<version>, else also the commit, and of what is not
# committed a hash: another content, another tag.
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
