#!/usr/bin/env bash
# The contents page of a Makefile: `##@` begins a section, `## ` says what a target or an argument is for.
set -euo pipefail
echo "firstsight: train a CLIP that has seen before it reads, and report whether that helped"
awk '
    !/^include / { print; next }
    { while ((getline line < $2) > 0) print line }
' "$1" | awk '
    /^##@ / { printf "\n%s\n", substr($0, 5); next }
    /^[A-Z_]+ *\?=.*## / {
        split($0, part, "## "); name = part[1]; sub(/ *\?=.*/, "", name)
        value = part[1]; sub(/^[A-Z_]+ *\?= */, "", value); sub(/ +$/, "", value)
        printf "    %-21s %s%s\n", name "=", part[2], value == "" ? "" : " (default: " value ")"; next
    }
    /^[a-z][a-z0-9-]+*:.*## / { split($0, part, "## "); name = part[1]; sub(/:.*/, "", name); printf "  make %-15s %s\n", name, part[2] }
'
