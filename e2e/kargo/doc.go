// Package kargo is where stepd is tested in a cluster: `stepd webhook` and
// `stepd serve --kargo` as they are installed, Promotions made through the
// Kubernetes API, and answers read from there, from the git repository and
// from the Argo CD Application.
//
// The cluster is one of
//
//   - a real API server on loopback with a stand-in for Kargo's controllers
//     (packages apiserver and standin). This is the default and needs nothing;
//   - with STEPD_E2E_KUBECONFIG, any cluster with Kargo v1.11 or later. stepd is
//     either installed there, or, with STEPD_E2E_WORKDIR_ROOT, run by the suite
//     beside a Kargo controller on this machine whose TMPDIR that is.
//     STEPD_E2E_LISTEN is an address of this machine that the cluster reaches
//     (default 127.0.0.1): the git server, the registry and the webhook are
//     there. See cluster_test.go;
//   - with `make e2e-kind`, a kind cluster with everything from its charts.
//
// The suite makes what it needs in namespaces of its own, named stepd-e2e-…,
// and removes them.
package kargo
