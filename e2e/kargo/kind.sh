#!/usr/bin/env bash
# make e2e-kind: the suite against real Kargo and real Argo CD, in a kind cluster
# made for it and removed afterwards. Needs Docker, kind, helm, kubectl, Go, git
# and the internet. STEPD_E2E_KEEP=1 keeps the cluster and says how to use it.
set -euo pipefail
cd "$(dirname "$0")/../.."

# What is installed; each can be set from outside.
: "${KARGO_VERSION:=1.11.2}" "${ARGOCD_CHART_VERSION:=}" "${CERT_MANAGER_VERSION:=v1.18.2}" "${KIND_IMAGE:=}"
cluster=stepd-e2e

missing=()
for tool in docker kind helm kubectl go git tar python3; do
	command -v "$tool" >/dev/null || missing+=("$tool")
done
if [ ${#missing[@]} -gt 0 ]; then
	echo "make e2e-kind needs ${missing[*]} (make e2e needs none of them: it has an API server of its own)" >&2
	exit 2
fi
if ! docker info >/dev/null 2>&1; then
	echo "make e2e-kind needs Docker, and its daemon does not answer: $(docker info 2>&1 | tail -1)" >&2
	exit 2
fi
if kind get clusters 2>/dev/null | grep -qx "$cluster"; then
	echo "there is a kind cluster $cluster already; remove it with: kind delete cluster --name $cluster" >&2
	exit 2
fi

dir=$(mktemp -d)
finish() {
	status=$?
	if [ "$status" -ne 0 ] && [ -s "$dir/kubeconfig" ]; then
		kubectl get pods --all-namespaces || true
		kubectl -n kargo logs deploy/kargo-controller --all-containers --tail 100 || true
		kubectl -n stepd logs deploy/stepd-webhook --tail 100 || true
	fi
	if [ "${STEPD_E2E_KEEP:-}" = 1 ]; then
		echo "kept: KUBECONFIG=$dir/kubeconfig; remove with: kind delete cluster --name $cluster"
	else
		kind delete cluster --name "$cluster" || true
		rm -rf "$dir"
	fi
	exit "$status"
}
trap finish EXIT
export KUBECONFIG=$dir/kubeconfig # never the user's own

echo "== the image"
go run -C image . -output "$dir/image" -name localhost/stepd -platforms "linux/$(go env GOARCH)"
image=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["manifests"][0]["annotations"]["io.containerd.image.name"])' "$dir/image/oci/index.json")
tar -C "$dir/image/oci" -cf "$dir/image.tar" .

echo "== the cluster"
kind create cluster --name "$cluster" ${KIND_IMAGE:+--image "$KIND_IMAGE"} --wait 5m
kind load image-archive --name "$cluster" "$dir/image.tar"

echo "== cert-manager, Argo CD, Kargo"
helm install cert-manager oci://quay.io/jetstack/charts/cert-manager --version "$CERT_MANAGER_VERSION" \
	--namespace cert-manager --create-namespace --set crds.enabled=true --wait --timeout 10m
helm install argocd argo-cd --repo https://argoproj.github.io/argo-helm ${ARGOCD_CHART_VERSION:+--version "$ARGOCD_CHART_VERSION"} \
	--namespace argocd --create-namespace --set dex.enabled=false --set notifications.enabled=false --wait --timeout 10m
kargo=(oci://ghcr.io/akuity/kargo-charts/kargo --version "$KARGO_VERSION" --namespace kargo --wait --timeout 10m)
# Nobody logs in: the password's hash is of a random text that is thrown away.
helm install kargo "${kargo[@]}" --create-namespace \
	--set api.adminAccount.enabled=false --set-string api.adminAccount.tokenSigningKey="$(head -c 32 /dev/urandom | base64)"

echo "== stepd, as docs/kargo.md installs it"
cp -R examples/kargo/webhook "$dir/webhook"
sed -i.bak -e "s|newName: .*|newName: ${image%:*}|" -e "s|newTag: .*|newTag: \"${image##*:}\"|" "$dir/webhook/kustomization.yaml"
kubectl apply -k "$dir/webhook"
kubectl -n stepd rollout status deployment/stepd-webhook --timeout 5m
user=$(kubectl -n kargo exec deploy/kargo-controller -c controller -- id -u)
sed -e "s|image: ghcr.io/yourorg/stepd:.*|image: $image|" -e "s|runAsUser: .*|runAsUser: $user|" examples/kargo/values.yaml >"$dir/values.yaml"
helm upgrade kargo "${kargo[@]}" --reuse-values -f "$dir/values.yaml"
kubectl -n kargo rollout status deployment/kargo-controller --timeout 5m

echo "== the suite"
# Pods reach servers on this machine at the gateway of kind's network.
gateway=$(docker network inspect kind -f '{{range .IPAM.Config}}{{println .Gateway}}{{end}}' | grep -m1 -E '^[0-9.]+$')
cd e2e
STEPD_E2E_KUBECONFIG=$KUBECONFIG STEPD_E2E_LISTEN=$gateway go test -count=1 -timeout 60m -v ./kargo
