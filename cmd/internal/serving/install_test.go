package serving

import (
	"encoding/json"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/stepd/stepd/cmd/internal/cli"
)

// container is what matters here of a container in examples/kargo.
type container struct {
	Args         []string
	Ports        []containerPort
	VolumeMounts []struct{ Name, MountPath string }
}

type containerPort struct{ ContainerPort int }

// TestInstalledCommandLines parses the command lines of examples/kargo with the
// commands themselves, and holds the two against each other and against the
// containers that they run in.
func TestInstalledCommandLines(t *testing.T) {
	var values struct {
		Controller struct{ Containers []container }
	}
	readInstalled(t, "values.yaml", "", &values)
	var deployment struct {
		Spec struct {
			Template struct {
				Spec struct{ Containers []container }
			}
		}
	}
	readInstalled(t, filepath.Join("webhook", "deployment.yaml"), "Deployment", &deployment)
	if len(values.Controller.Containers) != 1 || len(deployment.Spec.Template.Spec.Containers) != 1 {
		t.Fatal("there is not one sidecar and one webhook")
	}
	inController, inWebhook := values.Controller.Containers[0], deployment.Spec.Template.Spec.Containers[0]
	sidecar, webhook := parseInstalled(t, "serve", inController.Args), parseInstalled(t, "webhook", inWebhook.Args)

	target, err := url.Parse(flagValue(t, webhook, "sidecar-url"))
	if err != nil || target.Host != flagValue(t, sidecar, "http") {
		t.Errorf("steps are sent to %s, and the sidecar listens at %s: %v", target, flagValue(t, sidecar, "http"), err)
	}
	if ip := net.ParseIP(target.Hostname()); ip == nil || !ip.IsLoopback() {
		t.Errorf("the sidecar at %s can be reached from outside of the pod", target.Host)
	}
	for _, c := range []struct {
		cmd       *cobra.Command
		flag      string
		container container
	}{{sidecar, "metrics", inController}, {webhook, "metrics", inWebhook}, {webhook, "listen", inWebhook}} {
		_, port, err := net.SplitHostPort(flagValue(t, c.cmd, c.flag))
		if err != nil {
			t.Error(err)
		}
		if !slices.ContainsFunc(c.container.Ports, func(p containerPort) bool { return port == strconv.Itoa(p.ContainerPort) }) {
			t.Errorf("--%s of %s is at port %s, which the container does not name", c.flag, c.cmd.Name(), port)
		}
	}
	mounts := map[string]string{}
	for _, m := range inController.VolumeMounts {
		mounts[m.MountPath] = m.Name
	}
	if name := mounts[flagValue(t, sidecar, "public-keys")]; name != "stepd-public-keys" {
		t.Errorf("--public-keys names a place where the volume %q is mounted", name)
	}
	if name := mounts[flagValue(t, sidecar, "work-root")]; name != "tmp-data" {
		t.Errorf("--work-root names a place where the volume %q is mounted, not the one Kargo makes work dirs in", name)
	}
	if state := flagValue(t, sidecar, "state-dir"); !strings.HasPrefix(state, flagValue(t, sidecar, "work-root")+"/") {
		t.Errorf("--state-dir %s is on another volume than the work dirs, and would outlive them", state)
	}
	if got := flagValue(t, webhook, "public-keys"); got != "kargo/stepd-public-keys" {
		t.Errorf("public keys are published in %s, which is not what the sidecar mounts", got)
	}
	if got, want := flagValue(t, webhook, "configuration"), "stepd"; got != want {
		t.Errorf("the caBundle goes into %q, want %q", got, want)
	}
}

// TestSidecarsDefaultIsWhereTheWebhookSends holds the defaults of both commands
// against each other.
func TestSidecarsDefaultIsWhereTheWebhookSends(t *testing.T) {
	if got, want := flagValue(t, parseInstalled(t, "webhook", []string{"webhook"}), "sidecar-url"), "http://"+defaultSidecar; got != want {
		t.Errorf("steps are sent to %s, and the sidecar listens at %s", got, want)
	}
}

// readInstalled decodes the document of a kind in a file of examples/kargo.
func readInstalled(t *testing.T, name, kind string, to any) {
	t.Helper()
	f, err := os.Open(filepath.Join("..", "..", "..", "examples", "kargo", name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for dec := yaml.NewYAMLOrJSONDecoder(f, 4096); ; {
		var raw map[string]any
		if err := dec.Decode(&raw); err != nil {
			t.Fatalf("no %s in %s: %v", kind, name, err)
		}
		if got, _ := raw["kind"].(string); got != kind {
			continue
		}
		text, err := json.Marshal(raw)
		if err == nil {
			err = json.Unmarshal(text, to)
		}
		if err != nil {
			t.Fatal(err)
		}
		return
	}
}

// parseInstalled parses args with the command they name, which has to be want.
func parseInstalled(t *testing.T, want string, args []string) *cobra.Command {
	t.Helper()
	cmd, rest, err := NewRoot(&cli.App{}).Find(args)
	if err != nil {
		t.Fatal(err)
	}
	if cmd.Name() != want {
		t.Fatalf("%q runs %s, want %s", args, cmd.Name(), want)
	}
	if err := cmd.ParseFlags(rest); err != nil {
		t.Fatalf("%q: %v", args, err)
	}
	if left := cmd.Flags().Args(); len(left) > 0 {
		t.Errorf("%q has arguments that mean nothing: %q", args, left)
	}
	return cmd
}

func flagValue(t *testing.T, cmd *cobra.Command, name string) string {
	t.Helper()
	f := cmd.Flags().Lookup(name)
	if f == nil {
		t.Fatalf("%s has no flag --%s", cmd.Name(), name)
	}
	return f.Value.String()
}
