#!/usr/bin/env bash
# Print the image tag for this checkout: the version; if the commit is not tagged v<version>, also the commit; and if there are uncommitted
# changes, a hash of them, so that different content gets a different tag. Where git refuses to say, so does this: a tag without a commit is a
# release's.
set -euo pipefail
cd "$(dirname "$0")/.."

tag=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
if [ -e .git ] || git rev-parse HEAD >/dev/null 2>&1; then
    commit=$(git rev-parse --short=12 HEAD) || { echo "tag: git does not say which commit this is; set TAG=" >&2; exit 2; }
    [ "$(git describe --tags --exact-match 2>/dev/null || true)" = "v$tag" ] || tag="$tag-$commit"
    [ -z "$(git status --porcelain)" ] || {
        # Hashed as git would commit it, links and modes included, in an index and a store of its own.
        scratch=$(mktemp -d) && trap 'rm -rf "$scratch"' EXIT && mkdir "$scratch/objects"
        GIT_ALTERNATE_OBJECT_DIRECTORIES=$(cd "$(git rev-parse --git-path objects)" && pwd)
        export GIT_ALTERNATE_OBJECT_DIRECTORIES GIT_INDEX_FILE="$scratch/index" GIT_OBJECT_DIRECTORY="$scratch/objects"
        git read-tree HEAD && git -c advice.addEmbeddedRepo=false add --all && tree=$(git write-tree)
        tag="$tag-${tree:0:8}"
    }
fi
echo "$tag"
