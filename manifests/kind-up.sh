#!/usr/bin/env bash
# Create a kind cluster with everything firstsight needs, and load its images: kind-up.sh <registry> <tag> <folder of image archives>
set -euo pipefail
cd "$(dirname "$0")/.."
registry=$1 tag=$2 archives=$3 cluster=${KIND_CLUSTER:-firstsight}
for tool in kind kubectl "${HELM:=helm}"; do
    command -v "$tool" >/dev/null || { echo "kind-up: needs $tool" >&2; exit 2; }
done

kind get clusters | grep -qx "$cluster" || kind create cluster --name "$cluster" --config manifests/kind-cluster.yaml --wait 180s
kubectl config use-context "kind-$cluster"
for archive in "$archives"/*.tar; do kind load image-archive --name "$cluster" "$archive"; done

apply() { kubectl apply --server-side --force-conflicts -k "$1"; }
apply manifests/prometheus-operator # its CRDs must exist before the Prometheus object that needs them
kubectl wait --for=condition=Established crd/prometheuses.monitoring.coreos.com --timeout=60s
apply manifests/overlays/kind
apply manifests/kubeflow-pipelines/cluster-scoped
kubectl wait --for=condition=Established crd/workflows.argoproj.io --timeout=60s
apply manifests/kubeflow-pipelines
kubectl -n kubeflow rollout status deployment/training-operator --timeout=300s
kubectl -n kubeflow rollout status deployment/ml-pipeline --timeout=600s

"$HELM" upgrade --install firstsight charts/firstsight --namespace firstsight --create-namespace --wait --timeout 10m \
    --set images.registry="$registry" --set images.tag="$tag" --set metrics.podMonitor.enabled=true --set metrics.prometheusRule.enabled=true
echo "kind-up: installed; next: $HELM test firstsight --namespace firstsight --timeout 5m"
