package kargo_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/stepd/stepd/e2e/kargo/apiserver"
	"github.com/stepd/stepd/e2e/kargo/standin"
	"github.com/stepd/stepd/e2e/tools"
)

// Users of the API server on loopback.
const (
	controllerUser = "kargo-controller"
	webhookUser    = "stepd-webhook"
)

// cluster is what the tests run in.
type cluster struct {
	config *rest.Config
	client client.Client
	// servers are the git server and the registry.
	servers *servers
	// stepd is what the suite runs of stepd itself; nil if it is installed in the
	// cluster, and then tests cannot stop it, nor stand between it and Kargo.
	stepd *stepd
	// workRoot is Kargo's TMPDIR; empty if it is out of reach.
	workRoot string
	// argocd is the namespace of Applications; empty without Argo CD.
	argocd string
	// restartKargo restarts Kargo's controller, as a crash would; nil if that is
	// not the stand-in.
	restartKargo func()

	closers []func()
}

func (c *cluster) close() {
	for i := len(c.closers) - 1; i >= 0; i-- {
		c.closers[i]()
	}
}

// startCluster makes the cluster that the environment asks for, with files in
// dir. crds is the folder of Kargo's CustomResourceDefinitions.
func startCluster(ctx context.Context, dir, crds string) (_ *cluster, err error) {
	c := &cluster{}
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	listen := os.Getenv("STEPD_E2E_LISTEN")
	if listen == "" {
		listen = "127.0.0.1"
	}
	host, webhookPort, err := net.SplitHostPort(listen)
	if err != nil {
		host, webhookPort = listen, "0"
	}
	if c.servers, err = startServers(ctx, filepath.Join(dir, "servers"), host); err != nil {
		return nil, err
	}
	c.closers = append(c.closers, c.servers.close)
	var kubeconfig, webhookConfig string
	if kubeconfig = os.Getenv("STEPD_E2E_KUBECONFIG"); kubeconfig != "" {
		webhookConfig = kubeconfig
		err = c.existing(kubeconfig)
	} else {
		kubeconfig, webhookConfig, err = c.apiserver(ctx, dir, crds)
	}
	if err != nil {
		return nil, err
	}
	if c.workRoot == "" {
		return c, nil // stepd is installed
	}
	bin, err := tools.StepdServing(ctx, dir)
	if err != nil {
		return nil, err
	}
	c.stepd, err = startStepd(ctx, c.client, stepdOptions{
		bin: bin, dir: filepath.Join(dir, "host"), workRoot: c.workRoot,
		sidecarConfig: kubeconfig, webhookConfig: webhookConfig, webhookHost: host, webhookPort: webhookPort,
	})
	if err != nil {
		return nil, err
	}
	c.closers = append(c.closers, c.stepd.close)
	return c, nil
}

// existing uses a cluster with Kargo in it.
func (c *cluster) existing(kubeconfig string) (err error) {
	if c.config, err = clientcmd.BuildConfigFromFlags("", kubeconfig); err != nil {
		return fmt.Errorf("cannot use STEPD_E2E_KUBECONFIG: %w", err)
	}
	c.config.QPS = -1
	if c.client, err = client.New(c.config, client.Options{}); err != nil {
		return fmt.Errorf("cannot use STEPD_E2E_KUBECONFIG: %w", err)
	}
	c.workRoot = os.Getenv("STEPD_E2E_WORKDIR_ROOT")
	kind := schema.GroupKind{Group: "kargo.akuity.io", Kind: "Promotion"}
	if _, err := c.client.RESTMapper().RESTMapping(kind); err != nil {
		return fmt.Errorf("there is no Kargo in the cluster of STEPD_E2E_KUBECONFIG: %w", err)
	}
	if _, err := c.client.RESTMapper().RESTMapping(schema.GroupKind{Group: "argoproj.io", Kind: "Application"}); err == nil {
		if c.argocd = os.Getenv("STEPD_E2E_ARGOCD_NAMESPACE"); c.argocd == "" {
			c.argocd = "argocd"
		}
	}
	return nil
}

// apiserver starts an API server with Kargo's stand-in.
func (c *cluster) apiserver(ctx context.Context, dir, crds string) (sidecar, webhook string, err error) {
	fail := func(err error) (string, string, error) { return "", "", err }
	serverDir, workRoot := filepath.Join(dir, "apiserver"), filepath.Join(dir, "tmp")
	for _, d := range []string{serverDir, workRoot} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return fail(fmt.Errorf("cannot make a folder: %w", err))
		}
	}
	server, err := apiserver.Start(ctx, serverDir, controllerUser, webhookUser)
	if err != nil {
		return fail(err)
	}
	c.closers = append(c.closers, server.Close)
	c.config, c.workRoot, c.argocd = server.Config(apiserver.Admin), workRoot, "argocd"
	if c.client, err = client.New(c.config, client.Options{}); err != nil {
		return fail(fmt.Errorf("cannot make a client: %w", err))
	}
	files, err := filepath.Glob(filepath.Join(crds, "*.yaml"))
	if err != nil || len(files) == 0 {
		return fail(fmt.Errorf("no CustomResourceDefinitions in %s: %w", crds, err))
	}
	for _, file := range append(files, filepath.Join("testdata", "cluster.yaml")) {
		if err := c.apply(ctx, file); err != nil {
			return fail(err)
		}
	}
	if err := c.established(ctx); err != nil {
		return fail(err)
	}
	stop, err := c.standIn(server.Config(controllerUser))
	if err != nil {
		return fail(err)
	}
	c.closers = append(c.closers, stop)
	if sidecar, err = server.Kubeconfig(controllerUser); err != nil {
		return fail(err)
	}
	webhook, err = server.Kubeconfig(webhookUser)
	return sidecar, webhook, err
}

// standIn starts the stand-ins for Kargo's controller and webhook. The latter
// is registered as Kargo's is.
func (c *cluster) standIn(config *rest.Config) (stop func(), err error) {
	hook, err := serveTLS(standin.Admission(c.client), "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	registration := kind("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration", "", "kargo")
	registration.Object["webhooks"] = []any{map[string]any{
		"name": "promotion.kargo.akuity.io", "admissionReviewVersions": []any{"v1"}, "sideEffects": "None", "failurePolicy": "Fail",
		"clientConfig": map[string]any{"url": hook.URL + "/", "caBundle": base64Text(certificatePEM(hook))},
		"rules": []any{map[string]any{
			"apiGroups": []any{"kargo.akuity.io"}, "apiVersions": []any{"v1alpha1"}, "resources": []any{"promotions"},
			"operations": []any{"CREATE", "UPDATE"},
		}},
	}}
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	if err := c.client.Create(ctx, registration); err != nil {
		hook.Close()
		return nil, fmt.Errorf("cannot register Kargo's webhook: %w", err)
	}
	end := c.runController(config)
	c.restartKargo = func() {
		end()
		end = c.runController(config)
	}
	return func() {
		end()
		hook.Close()
	}, nil
}

// runController runs the stand-in for Kargo's controller until end is called.
func (c *cluster) runController(config *rest.Config) (end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- standin.Run(ctx, config, standin.Options{TempDir: c.workRoot, Requeue: soon})
	}()
	return func() {
		cancel()
		if err := <-ended; err != nil {
			fmt.Fprintln(os.Stderr, "the stand-in for Kargo's controller:", err)
		}
	}
}

// soon asks again far sooner than Kargo, which never does within 10 s.
func soon(asked *time.Duration) time.Duration {
	return min(standin.KargoRequeue(asked), 100*time.Millisecond)
}

// apply creates all objects in a file.
func (c *cluster) apply(ctx context.Context, file string) error {
	list, err := objects(file)
	if err != nil {
		return err
	}
	for _, u := range list {
		if err := c.client.Create(ctx, u); err != nil {
			return fmt.Errorf("cannot apply %s: %w", file, err)
		}
	}
	return nil
}

// objects reads all objects in a file.
func objects(file string) ([]*unstructured.Unstructured, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var list []*unstructured.Unstructured
	for _, doc := range documents(string(text)) {
		u := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(doc), &u.Object); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		if len(u.Object) > 0 {
			list = append(list, u)
		}
	}
	return list, nil
}

// established waits until every kind that was defined is served.
func (c *cluster) established(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for _, k := range []struct{ version, kind string }{
		{"kargo.akuity.io/v1alpha1", "Project"}, {"kargo.akuity.io/v1alpha1", "Warehouse"}, {"kargo.akuity.io/v1alpha1", "Freight"},
		{"kargo.akuity.io/v1alpha1", "Stage"}, {"kargo.akuity.io/v1alpha1", "PromotionTask"}, {"kargo.akuity.io/v1alpha1", "ClusterPromotionTask"},
		{"kargo.akuity.io/v1alpha1", "Promotion"}, {"kargo.akuity.io/v1alpha1", "ClusterConfig"}, {"argoproj.io/v1alpha1", "Application"},
	} {
		for {
			list := &unstructured.UnstructuredList{Object: map[string]any{"apiVersion": k.version, "kind": k.kind + "List"}}
			err := c.client.List(ctx, list)
			if err == nil {
				break
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return errors.Join(fmt.Errorf("the API server does not serve %s", k.kind), err)
			}
		}
	}
	return nil
}

// as is a client for somebody else.
func (c *cluster) as(user string) (client.Client, error) {
	config := rest.CopyConfig(c.config)
	config.Impersonate.UserName = user
	return client.New(config, client.Options{Mapper: c.client.RESTMapper()})
}

// kind is an empty object.
func kind(apiVersion, kind, namespace, name string) *unstructured.Unstructured {
	u := &unstructured.Unstructured{Object: map[string]any{"apiVersion": apiVersion, "kind": kind}}
	u.SetNamespace(namespace)
	u.SetName(name)
	return u
}
