package rpc

import (
	"context"
	"fmt"
	"log/slog"
	"sort"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/stepd/stepd/internal/configschema"
	"github.com/stepd/stepd/internal/redact"
	stepdv1 "github.com/stepd/stepd/proto/stepd/v1"
	"github.com/stepd/stepd/runner/guard"
	"github.com/stepd/stepd/steps"
)

const (
	// MaxMessageBytes bounds one gRPC message either way.
	MaxMessageBytes = 16 << 20
	// MaxOutputBytes bounds the encoded output of one attempt. Kargo keeps
	// outputs in a Kubernetes object, which holds less than 2 MiB.
	MaxOutputBytes = 8 << 20
)

// ServerOptions says what a Server serves and how far it goes.
type ServerOptions struct {
	// Steps are the kinds of step served. Their names must differ.
	Steps []steps.Registration
	// Grant returns what an attempt may use; it is asked only for kinds that
	// declare a capability. Nil grants nothing.
	Grant func(ctx context.Context, reg steps.Registration, req *stepdv1.RunStepRequest) steps.Capabilities
	// WorkDirs confines work dirs. Nil accepts any absolute path: only for a
	// plugin, whose host vouches for it.
	WorkDirs *WorkDirs
	// LocalFiles tells whether a caller may name a ConfigFile, which is what
	// relative trust paths start from. False drops it.
	LocalFiles bool
	// Timeout bounds one attempt on top of the caller's deadline; 0 is none.
	Timeout time.Duration
	// Queue bounds how many attempts run and wait. Nil is no bound.
	Queue *Queue
	// Observer is told of every attempt. Optional.
	Observer Observer
	// Redactor masks secrets in everything that leaves a step. Nil makes one
	// for the secrets that each attempt is given.
	Redactor *redact.Redactor
	// Log receives what steps log besides the caller; nil discards it.
	Log *slog.Logger
	// Version is reported by ListSteps.
	Version string
	// Features are reported by ListSteps.
	Features []string
}

// Observer is told when attempts start and end. It must be safe for
// concurrent use.
type Observer interface {
	// Started is called when an attempt starts to run and returns what to call
	// when it is over.
	Started(ctx context.Context, a Attempt) (context.Context, func(steps.Result, error))
}

// Attempt names an attempt of a step.
type Attempt struct {
	Kind, Alias, Project, Stage, Promotion string
	// Number counts from 1; 0 when unknown.
	Number uint32
}

// Server implements the StepService of stepd.v1 over step registrations.
type Server struct {
	stepdv1.UnimplementedStepServiceServer
	opts    ServerOptions
	kinds   map[string]*kind
	names   []string
	running sync.WaitGroup
}

// kind is a registration with its schema, compiled when first used.
type kind struct {
	steps.Registration
	schema func() (*configschema.Schema, error)
}

// NewServer makes a Server. It refuses two steps of one name, a step without
// a name and a step without a factory.
func NewServer(opts ServerOptions) (*Server, error) {
	s := &Server{opts: opts, kinds: make(map[string]*kind, len(opts.Steps))}
	if s.opts.Log == nil {
		s.opts.Log = slog.New(slog.DiscardHandler)
	}
	for _, reg := range opts.Steps {
		if reg.Name == "" || reg.New == nil {
			return nil, fmt.Errorf("cannot serve step %q: it needs a name and a factory", reg.Name)
		}
		if s.kinds[reg.Name] != nil {
			return nil, fmt.Errorf("cannot serve step %q twice", reg.Name)
		}
		s.kinds[reg.Name] = &kind{reg, sync.OnceValues(func() (*configschema.Schema, error) {
			if reg.ConfigSchema == nil {
				return nil, nil
			}
			schema, err := configschema.Compile(reg.ConfigSchema)
			if err != nil {
				return nil, fmt.Errorf("cannot use the config schema of step %q: %w", reg.Name, err)
			}
			return schema, nil
		})}
		s.names = append(s.names, reg.Name)
	}
	sort.Strings(s.names)
	return s, nil
}

// Register adds the service to g.
func (s *Server) Register(g grpc.ServiceRegistrar) { stepdv1.RegisterStepServiceServer(g, s) }

// Wait waits for the attempts that run. It is for after the gRPC server's end,
// which cancels them but does not wait.
func (s *Server) Wait() { s.running.Wait() }

// ListSteps implements the StepService.
func (s *Server) ListSteps(context.Context, *stepdv1.ListStepsRequest) (*stepdv1.ListStepsResponse, error) {
	resp := &stepdv1.ListStepsResponse{ServerVersion: s.opts.Version, Features: s.opts.Features}
	for _, name := range s.names {
		k := s.kinds[name]
		step := &stepdv1.Step{
			Name:                  k.Name,
			ConfigSchema:          string(k.ConfigSchema),
			OutputSchema:          string(k.OutputSchema),
			DefaultErrorThreshold: k.DefaultErrorThreshold,
		}
		if k.DefaultTimeout > 0 {
			step.DefaultTimeout = durationpb.New(k.DefaultTimeout)
		}
		for _, c := range k.RequiredCapabilities {
			step.RequiredCapabilities = append(step.RequiredCapabilities, string(c))
		}
		resp.Steps = append(resp.Steps, step)
	}
	return resp, nil
}

// ValidateConfig implements the StepService.
func (s *Server) ValidateConfig(_ context.Context, req *stepdv1.ValidateConfigRequest) (*stepdv1.ValidateConfigResponse, error) {
	k, err := s.lookup(req.GetKind())
	if err != nil {
		return nil, err
	}
	schema, err := k.schema()
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	if err := checkStruct(req.GetConfig()); err != nil {
		return nil, badRequest("config", err.Error())
	}
	resp := &stepdv1.ValidateConfigResponse{}
	if schema != nil {
		resp.Violations = violationsToProto(schema.Validate(fromConfig(req.GetConfig())))
	}
	return resp, nil
}

// RunStep implements the StepService.
func (s *Server) RunStep(req *stepdv1.RunStepRequest, stream grpc.ServerStreamingServer[stepdv1.RunStepResponse]) error {
	events := &eventStream{stream: stream}
	result, err := s.run(stream.Context(), req, events)
	events.close()
	if err != nil {
		return err
	}
	return stream.Send(&stepdv1.RunStepResponse{Event: &stepdv1.RunStepResponse_Result{Result: result}})
}

// CallStep implements the StepService.
func (s *Server) CallStep(ctx context.Context, req *stepdv1.CallStepRequest) (*stepdv1.CallStepResponse, error) {
	r, err := s.run(ctx, &stepdv1.RunStepRequest{
		Kind: req.GetKind(), Config: req.GetConfig(), Context: req.GetContext(), Attempt: req.GetAttempt(),
	}, nil)
	if err != nil {
		return nil, err
	}
	message := r.GetMessage()
	if message == "" {
		message = r.GetError().GetMessage()
	}
	return &stepdv1.CallStepResponse{
		Status: string(statusFromProto(r.GetStatus())), Message: message, Output: r.GetOutput(),
		RetryAfter: r.GetRetryAfter(), HealthCheck: r.GetHealthCheck(), Error: r.GetError(),
	}, nil
}

// run makes one attempt. Its error is about the call; what the step did is in
// the result. A nil events drops log and progress.
func (s *Server) run(ctx context.Context, req *stepdv1.RunStepRequest, events *eventStream) (*stepdv1.StepResult, error) {
	s.running.Add(1)
	defer s.running.Done()
	k, err := s.lookup(req.GetKind())
	if err != nil {
		return nil, err
	}
	sc, err := s.stepContext(req)
	if err != nil {
		return nil, err
	}
	done, err := s.opts.Queue.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if s.opts.Timeout > 0 {
		ctx, cancel = context.WithTimeout(ctx, s.opts.Timeout)
		defer cancel()
	}
	events.start(ctx)

	redactor := s.opts.Redactor
	if redactor == nil {
		redactor = redact.New()
	}
	// The caller knows which step this is.
	own := s.opts.Log.With("step", sc.Alias, "kind", k.Name, "promotion", sc.Promotion)
	sc.Log = slog.New(redactor.Handler(newTee(own.Handler(), events.handler())))
	ctx = withProgress(ctx, func(message string, completed, total uint64) {
		events.progress(redactor.String(message), completed, total)
	})

	finish := func(steps.Result, error) {}
	if s.opts.Observer != nil {
		ctx, finish = s.opts.Observer.Started(ctx, Attempt{
			Kind: k.Name, Alias: sc.Alias, Project: sc.Project, Stage: sc.Stage, Promotion: sc.Promotion,
			Number: req.GetAttempt(),
		})
	}
	result, err := k.attempt(ctx, sc, redactor, func() steps.Capabilities {
		return s.grant(ctx, k.Registration, req, redactor, sc.Log)
	})
	p, encErr := encode(result, err, redactor)
	if encErr != nil {
		result, err = errored(), steps.Terminal(fmt.Errorf("cannot return the result of step %q: %w", k.Name, encErr))
		p, _ = resultToProto(result, err) // no output, so nothing that could fail
	}
	finish(result, err)
	return p, nil
}

// attempt runs the step under what surrounds it in every engine, and settles
// the status of an attempt that failed.
func (k *kind) attempt(ctx context.Context, sc *steps.Context, redactor *redact.Redactor, grant func() steps.Capabilities) (steps.Result, error) {
	schema, err := k.schema()
	if err != nil {
		return errored(), steps.Terminal(err)
	}
	step := steps.RunnerFunc(func(ctx context.Context, sc *steps.Context) (steps.Result, error) {
		return k.New(grant()).Run(ctx, sc)
	})
	r, err := guard.Redacted(guard.Recovered(guard.Validated(step, k.Name, schema), sc.Log), redactor).Run(ctx, sc)
	if err == nil && !r.Status.Valid() {
		err = fmt.Errorf("step %q answered with status %q, which is none of Kargo's", k.Name, r.Status)
	}
	if err != nil && r.Status != steps.Failed {
		r.Status = steps.Errored
	}
	return r, err
}

func (s *Server) lookup(name string) (*kind, error) {
	if name == "" {
		return nil, badRequest("kind", "is required")
	}
	k := s.kinds[name]
	if k == nil {
		return nil, status.Errorf(codes.NotFound, "no step is named %q; ListSteps names those there are", name)
	}
	return k, nil
}

// stepContext decodes and confines what the caller sent.
func (s *Server) stepContext(req *stepdv1.RunStepRequest) (*steps.Context, error) {
	for field, v := range map[string]*structpb.Struct{"config": req.GetConfig(), "context.shared_state": req.GetContext().GetSharedState()} {
		if err := checkStruct(v); err != nil {
			return nil, badRequest(field, err.Error())
		}
	}
	sc := contextFromProto(req.GetContext())
	sc.Config = fromConfig(req.GetConfig())
	if !s.opts.LocalFiles {
		sc.ConfigFile = ""
	}
	var err error
	sc.WorkDir, err = s.opts.WorkDirs.check(sc.WorkDir)
	return sc, err
}

func (s *Server) grant(ctx context.Context, reg steps.Registration, req *stepdv1.RunStepRequest, redactor *redact.Redactor, log *slog.Logger) steps.Capabilities {
	if len(reg.RequiredCapabilities) == 0 {
		return steps.Capabilities{}
	}
	var granted steps.Capabilities
	if s.opts.Grant != nil {
		granted = s.opts.Grant(ctx, reg, req).Only(reg.RequiredCapabilities)
	}
	log.Info("capabilities", "requested", reg.RequiredCapabilities, "granted", granted.Names())
	if granted.Credentials != nil {
		granted.Credentials = redactor.Credentials(granted.Credentials)
	}
	if granted.GitUser != nil {
		granted.GitUser = redactor.GitUser(granted.GitUser)
	}
	return granted
}

// encode masks and encodes a result, and holds it against the limit.
func encode(r steps.Result, err error, redactor *redact.Redactor) (*stepdv1.StepResult, error) {
	p, encErr := resultToProto(r, err)
	if encErr != nil {
		return nil, encErr
	}
	for _, s := range []*structpb.Struct{p.GetOutput(), p.GetHealthCheck().GetInput(), p.GetError().GetDetail()} {
		mask(s, redactor)
	}
	for _, v := range p.GetError().GetViolations() {
		v.Description = redactor.String(v.GetDescription())
	}
	if size := proto.Size(p); size > MaxOutputBytes {
		return nil, fmt.Errorf("it is %d bytes long, and the limit is %d", size, MaxOutputBytes)
	}
	return p, nil
}

// mask masks the secrets in s, keys included.
func mask(s *structpb.Struct, redactor *redact.Redactor) {
	for k, v := range s.GetFields() {
		maskValue(v, redactor)
		if masked := redactor.String(k); masked != k {
			delete(s.Fields, k)
			s.Fields[masked] = v
		}
	}
}

func maskValue(v *structpb.Value, redactor *redact.Redactor) {
	switch kind := v.GetKind().(type) {
	case *structpb.Value_StringValue:
		kind.StringValue = redactor.String(kind.StringValue)
	case *structpb.Value_StructValue:
		mask(kind.StructValue, redactor)
	case *structpb.Value_ListValue:
		for _, item := range kind.ListValue.GetValues() {
			maskValue(item, redactor)
		}
	}
}

// fromConfig decodes a config; absent is empty.
func fromConfig(s *structpb.Struct) map[string]any {
	if s == nil {
		return map[string]any{}
	}
	return fromStruct(s, asInt)
}
