package standin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/stepd/stepd/internal/argocd"
	"github.com/stepd/stepd/internal/effects"
	"github.com/stepd/stepd/internal/gitremote"
	"github.com/stepd/stepd/internal/httpedge"
	"github.com/stepd/stepd/runner"
	"github.com/stepd/stepd/runner/expr"
	"github.com/stepd/stepd/runner/kargoapi"
	"github.com/stepd/stepd/steps"
	"github.com/stepd/stepd/steps/builtin"
)

// Options are how a Controller works.
type Options struct {
	// TempDir is the controller's $TMPDIR, where work dirs are made. Required.
	TempDir string
	// Parallel is how many Promotions are worked on at once; default 4, as
	// Kargo's.
	Parallel int
	// Requeue says when a Promotion that is still running is looked at again,
	// from what its step asked for. The default is Kargo's: no sooner than 10 s.
	Requeue func(asked *time.Duration) time.Duration
	// BeforePass is told of every pass before it is made. Optional.
	BeforePass func(namespace, promotion string)
}

// turnPoll is how often a Promotion that waits for its turn is looked at, as
// Kargo's own are again and again.
const turnPoll = 10 * time.Second

// KargoRequeue is Kargo's own Options.Requeue.
func KargoRequeue(asked *time.Duration) time.Duration {
	if asked == nil {
		return 5 * time.Minute
	}
	return max(*asked, 10*time.Second)
}

// Run is Kargo's Promotion controller, and Argo CD's stand-in: it works until
// ctx ends.
func Run(ctx context.Context, cluster *rest.Config, o Options) error {
	if o.Parallel == 0 {
		o.Parallel = 4
	}
	if o.Requeue == nil {
		o.Requeue = KargoRequeue
	}
	ctrl.SetLogger(logr.Discard())
	manager, err := ctrl.NewManager(cluster, ctrl.Options{
		Scheme: runtime.NewScheme(), Metrics: server.Options{BindAddress: "0"},
		Controller: config.Controller{SkipNameValidation: new(true)}, // one test process may run it again
		// Objects are read from the API: a stale one would only make tests differ
		// from run to run.
		Client: client.Options{Cache: nil},
		Cache:  cache.Options{DefaultTransform: cache.TransformStripManagedFields()},
	})
	if err != nil {
		return fmt.Errorf("cannot make the controller: %w", err)
	}
	direct, err := client.New(cluster, client.Options{Scheme: manager.GetScheme(), Mapper: manager.GetRESTMapper()})
	if err != nil {
		return fmt.Errorf("cannot make a client: %w", err)
	}
	c := &promotionController{Options: o, client: direct, running: map[types.NamespacedName]string{}, done: map[types.NamespacedName]bool{}, next: make(chan event.GenericEvent, 1024)}
	if c.engine, err = engine(cluster, direct); err != nil {
		return err
	}
	promotion := object(kargoapi.KindPromotion, "", "")
	if err := ctrl.NewControllerManagedBy(manager).Named("promotion").For(promotion).
		WatchesRawSource(source.Channel(c.next, &handler.EnqueueRequestForObject{})).
		WithOptions(controller.Options{MaxConcurrentReconciles: o.Parallel}).Complete(c); err != nil {
		return fmt.Errorf("cannot watch Promotions: %w", err)
	}
	if err := ctrl.NewControllerManagedBy(manager).Named("application").For(application()).
		Complete(applications{direct, c.wake}); err != nil {
		return fmt.Errorf("cannot watch Applications: %w", err)
	}
	if err := ctrl.NewControllerManagedBy(manager).Named("project").For(object(kargoapi.KindProject, "", "")).
		Complete(projects{direct}); err != nil {
		return fmt.Errorf("cannot watch Projects: %w", err)
	}
	return manager.Start(ctx)
}

// Data is what steps and expressions read from and write into a cluster.
type Data interface {
	expr.Data
	builtin.Resources
}

// Steps are Kargo's own steps, and none of stepd's. Without apps, Argo CD has
// every Application that is asked for.
func Steps(apps argocd.Applications, d Data) (*runner.Registry, error) {
	log := &effects.Log{}
	if apps == nil {
		apps = argocd.NewRecorder(log, true)
	}
	return runner.NewRegistry(builtin.Registrations(builtin.Edges{
		Git: gitremote.Live(log), HTTP: httpedge.Live(log), Downloads: httpedge.Live(log), ArgoCD: apps, Resources: d,
	})...)
}

func engine(cluster *rest.Config, c client.Client) (*runner.Engine, error) {
	httpClient, err := rest.HTTPClientFor(cluster)
	if err != nil {
		return nil, fmt.Errorf("cannot make a client: %w", err)
	}
	registry, err := Steps(argocd.NewCluster(httpClient, cluster.Host, &effects.Log{}), data{c})
	if err != nil {
		return nil, err
	}
	return &runner.Engine{Registry: registry, Data: data{c}, Log: slog.New(slog.DiscardHandler)}, nil
}

type promotionController struct {
	Options
	client client.Client
	engine *runner.Engine
	next   chan event.GenericEvent

	mu sync.Mutex
	// running has the Promotion of each Stage that is worked on, done those that
	// are over.
	running map[types.NamespacedName]string
	done    map[types.NamespacedName]bool
}

// Reconcile implements reconcile.Reconciler: it brings a Promotion one pass
// further.
func (c *promotionController) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	u, p, err := read[kargoapi.Promotion](ctx, c.client, kargoKind(kargoapi.KindPromotion), req.Namespace, req.Name)
	if apierrors.IsNotFound(err) {
		c.finished(ctx, req.NamespacedName)
		return reconcile.Result{}, nil
	}
	if err != nil {
		return reconcile.Result{}, err
	}
	if p.Status.Phase.Terminal() || p.DeletionTimestamp != nil {
		c.finished(ctx, req.NamespacedName)
		return reconcile.Result{}, nil
	}
	if by, wanted := abort(p.Annotations); wanted {
		return reconcile.Result{}, c.abort(ctx, u, p, by)
	}
	if !c.turn(ctx, req.NamespacedName, p.Spec.Stage) {
		if p.Status.Phase == "" {
			p.Status.Phase = kargoapi.PromotionPending
			if err := c.store(ctx, u, p); err != nil {
				return reconcile.Result{}, client.IgnoreNotFound(err)
			}
		}
		return reconcile.Result{RequeueAfter: turnPoll}, nil // it is also woken when its turn comes
	}
	if p.Status.Phase != kargoapi.PromotionRunning {
		now := time.Now()
		p.Status.Phase, p.Status.StartedAt = kargoapi.PromotionRunning, &now
		if err := c.store(ctx, u, p); err != nil {
			return reconcile.Result{}, err
		}
	}
	retry, passErr := c.pass(ctx, p)
	if ctx.Err() != nil {
		return reconcile.Result{}, ctx.Err() // the controller ends; nothing of the pass is stored
	}
	if err := c.store(ctx, u, p); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	switch {
	case p.Status.Phase.Terminal():
		c.finished(ctx, req.NamespacedName)
		return reconcile.Result{}, nil
	case passErr != nil:
		return reconcile.Result{}, passErr
	}
	return reconcile.Result{RequeueAfter: c.Requeue(retry)}, nil
}

// pass runs the engine once over p and keeps the outcome in p's status. The
// error is that of an attempt to be repeated.
func (c *promotionController) pass(ctx context.Context, p *kargoapi.Promotion) (*time.Duration, error) {
	fail := func(err error) (*time.Duration, error) {
		now := time.Now()
		p.Status.Phase, p.Status.Message, p.Status.FinishedAt = kargoapi.PromotionErrored, err.Error(), &now
		return nil, nil
	}
	_, stage, err := read[kargoapi.Stage](ctx, c.client, kargoKind(kargoapi.KindStage), p.Namespace, p.Spec.Stage)
	if err != nil {
		return fail(fmt.Errorf("error finding Stage %q: %w", p.Spec.Stage, err))
	}
	_, freight, err := read[kargoapi.Freight](ctx, c.client, kargoKind(kargoapi.KindFreight), p.Namespace, p.Spec.Freight)
	if err != nil {
		return fail(fmt.Errorf("error finding Freight %q: %w", p.Spec.Freight, err))
	}
	reference := freight.Reference()
	p.Status.Freight = &reference
	p.Status.FreightCollection = &kargoapi.FreightCollection{
		ID: freight.Name, Freight: map[string]steps.FreightReference{freight.Origin.String(): reference},
	}
	workDir := c.workDir(p)
	switch err := os.Mkdir(workDir, 0o700); {
	case err == nil: // first time, or lost since: everything is done again, with what is known
		p.Status.CurrentStep, p.Status.StepExecutionMetadata, p.Status.HealthChecks = 0, nil, nil
	case !errors.Is(err, fs.ErrExist):
		return fail(fmt.Errorf("error creating temporary working directory: %w", err))
	}
	state := map[string]any{}
	if len(p.Status.State) > 0 {
		if err := json.Unmarshal(p.Status.State, &state); err != nil {
			return fail(err)
		}
	}
	run := runner.Promotion{
		Project: p.Namespace, Stage: p.Spec.Stage, Name: p.Name, WorkDir: workDir, Vars: p.Spec.Vars,
		Actor: actor(p.Annotations[kargoapi.AnnotationCreateActor]), Rollback: p.Annotations[kargoapi.AnnotationRollback] == "true",
		FreightRequests: stage.Spec.RequestedFreight, Freight: p.Status.FreightCollection.Steps(),
		TargetFreight: reference, TargetFreightAlias: freight.Alias,
		StartFrom: int(p.Status.CurrentStep), StepMetadata: p.Status.StepExecutionMetadata, State: state,
	}
	for _, s := range p.Spec.Steps {
		run.Steps = append(run.Steps, runner.Step{PromotionStep: s})
	}
	if c.BeforePass != nil {
		c.BeforePass(p.Namespace, p.Name)
	}
	out, passErr := c.engine.Run(ctx, run)
	if out.Phase == "" {
		return fail(passErr)
	}
	p.Status.Phase, p.Status.Message, p.Status.CurrentStep = out.Phase, out.Message, int64(out.CurrentStep)
	p.Status.StepExecutionMetadata = out.StepMetadata
	for _, h := range out.HealthChecks {
		config, err := json.Marshal(h.Input)
		if err != nil {
			return fail(err)
		}
		p.Status.HealthChecks = append(p.Status.HealthChecks, kargoapi.HealthCheckStep{Uses: h.Kind, Config: config})
	}
	if p.Status.State, err = json.Marshal(out.State); err != nil {
		return fail(err)
	}
	if out.Phase.Terminal() {
		now := time.Now()
		p.Status.FinishedAt = &now
		_ = os.RemoveAll(workDir) // as Kargo does, before anybody can see the phase
	}
	return out.RetryAfter, passErr
}

func (c *promotionController) abort(ctx context.Context, u *unstructured.Unstructured, p *kargoapi.Promotion, by string) error {
	now := time.Now()
	steps := p.Status.StepExecutionMetadata
	if i := int(p.Status.CurrentStep); p.Status.Phase == kargoapi.PromotionRunning && len(steps) == i+1 && steps[i].Status == "Running" {
		steps[i].Status, steps[i].FinishedAt = "Aborted", &now
	}
	p.Status.Phase, p.Status.FinishedAt = kargoapi.PromotionAborted, &now
	p.Status.Message = "Promotion terminated"
	if by != "" {
		p.Status.Message += " by " + by
	}
	_ = os.RemoveAll(c.workDir(p))
	if err := c.store(ctx, u, p); err != nil {
		return client.IgnoreNotFound(err)
	}
	c.finished(ctx, client.ObjectKeyFromObject(u))
	return nil
}

func (c *promotionController) workDir(p *kargoapi.Promotion) string {
	return filepath.Join(c.TempDir, "promotion-"+p.UID)
}

// store writes p's status over that of u, as a patch of what differs.
func (c *promotionController) store(ctx context.Context, u *unstructured.Unstructured, p *kargoapi.Promotion) error {
	status := p.Status
	status.StartedAt, status.FinishedAt = second(status.StartedAt), second(status.FinishedAt)
	status.StepExecutionMetadata = slices.Clone(status.StepExecutionMetadata)
	for i := range status.StepExecutionMetadata {
		m := &status.StepExecutionMetadata[i]
		m.StartedAt, m.FinishedAt = second(m.StartedAt), second(m.FinishedAt)
	}
	before := u.DeepCopy()
	var err error
	if u.Object["status"], err = untyped(status); err != nil {
		return err
	}
	return c.client.Status().Patch(ctx, u, client.MergeFrom(before))
}

// second cuts a time to the second, which is what Kubernetes keeps of it.
func second(t *time.Time) *time.Time {
	if t == nil {
		return nil
	}
	s := t.UTC().Truncate(time.Second)
	return &s
}

// turn tells whether a Promotion may run: no other of its Stage does, and none
// that is not over is older.
func (c *promotionController) turn(ctx context.Context, p types.NamespacedName, stage string) bool {
	key := types.NamespacedName{Namespace: p.Namespace, Name: stage}
	oldest := c.oldest(ctx, key)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running[key] == "" && oldest == p.Name {
		c.running[key] = p.Name
	}
	return c.running[key] == p.Name
}

// oldest is the oldest Promotion of a Stage that is not over; empty if there is
// none, or if the API server does not say.
func (c *promotionController) oldest(ctx context.Context, stage types.NamespacedName) string {
	list := &metav1.PartialObjectMetadataList{}
	list.SetGroupVersionKind(kargoKind(kargoapi.KindPromotion + "List"))
	if err := c.client.List(ctx, list, client.InNamespace(stage.Namespace)); err != nil {
		return ""
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	oldest := ""
	for _, p := range list.Items {
		if strings.HasPrefix(p.Name, stage.Name+".") && !c.done[client.ObjectKeyFromObject(&p)] && (oldest == "" || p.Name < oldest) {
			oldest = p.Name // names of one Stage sort by age
		}
	}
	return oldest
}

// finished gives a Promotion's turn to the next of its Stage.
func (c *promotionController) finished(ctx context.Context, p types.NamespacedName) {
	c.mu.Lock()
	known := c.done[p]
	c.done[p] = true
	stage, _, _ := strings.Cut(p.Name, ".")
	key := types.NamespacedName{Namespace: p.Namespace, Name: stage}
	if c.running[key] == p.Name {
		delete(c.running, key)
	}
	c.mu.Unlock()
	if known {
		return
	}
	if next := c.oldest(ctx, key); next != "" {
		c.wake(p.Namespace, next)
	}
}

// wake has a Promotion looked at again.
func (c *promotionController) wake(namespace, name string) {
	c.next <- event.GenericEvent{Object: object(kargoapi.KindPromotion, namespace, name)}
}

// projects says of every Project that it is ready: its namespace is there, and
// the controller's rights are not limited to it.
type projects struct{ client client.Client }

// Reconcile implements reconcile.Reconciler.
func (p projects) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	u, project, err := read[kargoapi.Project](ctx, p.client, kargoKind(kargoapi.KindProject), "", req.Name)
	if err != nil || len(project.Status.Conditions) > 0 {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	before := u.DeepCopy()
	u.Object["status"] = map[string]any{"conditions": []any{map[string]any{
		"type": "Ready", "status": "True", "reason": "Synced", "message": "", "lastTransitionTime": time.Now().UTC().Format(time.RFC3339),
	}}}
	return reconcile.Result{}, p.client.Status().Patch(ctx, u, client.MergeFrom(before))
}
