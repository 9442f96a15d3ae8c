#!/bin/sh
# What the cluster of the current kubeconfig lacks for the chart; nothing is made.
# usage: chart_preflight.sh HELM PYTHON CHART NAMESPACE [VALUES [CUDA [RELEASE]]]   (an empty HELM: that of PATH, else one that is fetched)
set -eu
helm=$1 python=$2 chart=$3 namespace=$4 values=${5:-} cuda=${6:-} release=${7:-firstsight}
[ -n "$helm" ] || helm=$(command -v helm) || helm=$("$python" -m tests.cluster program helm)
rendered=$(mktemp)
trap 'rm -f "$rendered"' EXIT
kinds=$("$python" -c 'from pipelines.jobs.shapes import job_kinds
print(*(f"--api-versions {kind.api_version}/{kind.kind}" for kind in job_kinds()))')
# Helm must not refuse because a kind is missing: the preflight says so, with everything else that is missing.
# shellcheck disable=SC2086 # the kinds are words of their own
"$helm" template "$release" "$chart" --namespace "$namespace" ${values:+--values "$values"} --dry-run=server \
	--api-versions monitoring.coreos.com/v1/PodMonitor --api-versions monitoring.coreos.com/v1/PrometheusRule \
	--api-versions trainer.kubeflow.org/v1alpha1/TrainingRuntime $kinds >"$rendered"
"$python" -m pipelines check preflight ${cuda:+--cuda "$cuda"} <"$rendered"
