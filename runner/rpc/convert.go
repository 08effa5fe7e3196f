package rpc

import (
	"encoding/json"
	"fmt"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	stepdv1 "github.com/stepd/stepd/proto/stepd/v1"
	"github.com/stepd/stepd/steps"
)

// contextToProto encodes everything of sc but its Config and Log.
func contextToProto(sc *steps.Context) (*stepdv1.StepContext, error) {
	state, err := rounded.toStruct(sc.SharedState)
	if err != nil {
		return nil, fmt.Errorf("shared state: %w", err)
	}
	c := &stepdv1.StepContext{
		UiBaseUrl:          sc.UIBaseURL,
		WorkDir:            sc.WorkDir,
		SharedState:        state,
		Alias:              sc.Alias,
		ConfigFile:         sc.ConfigFile,
		Project:            sc.Project,
		Stage:              sc.Stage,
		Promotion:          sc.Promotion,
		PromotionActor:     sc.PromotionActor,
		Rollback:           sc.Rollback,
		TargetFreightAlias: sc.TargetFreightAlias,
	}
	for _, r := range sc.FreightRequests {
		sources, err := rawToProto(r.Sources)
		if err != nil {
			return nil, fmt.Errorf("sources of requested freight: %w", err)
		}
		c.FreightRequests = append(c.FreightRequests, &stepdv1.FreightRequest{
			Origin: &stepdv1.FreightOrigin{Kind: r.Origin.Kind, Name: r.Origin.Name}, Sources: sources,
		})
	}
	c.Freight = &stepdv1.FreightCollection{Id: sc.Freight.ID}
	for k, f := range sc.Freight.Freight {
		ref, err := freightToProto(f)
		if err != nil {
			return nil, err
		}
		if c.Freight.Items == nil {
			c.Freight.Items = map[string]*stepdv1.FreightReference{}
		}
		c.Freight.Items[k] = ref
	}
	c.TargetFreightRef, err = freightToProto(sc.TargetFreightRef)
	return c, err
}

// contextFromProto is the inverse of contextToProto.
func contextFromProto(c *stepdv1.StepContext) *steps.Context {
	sc := &steps.Context{
		UIBaseURL:          c.GetUiBaseUrl(),
		WorkDir:            c.GetWorkDir(),
		SharedState:        fromStruct(c.GetSharedState(), asInt64),
		Alias:              c.GetAlias(),
		ConfigFile:         c.GetConfigFile(),
		Project:            c.GetProject(),
		Stage:              c.GetStage(),
		Promotion:          c.GetPromotion(),
		PromotionActor:     c.GetPromotionActor(),
		Rollback:           c.GetRollback(),
		Freight:            steps.FreightCollection{ID: c.GetFreight().GetId()},
		TargetFreightRef:   freightFromProto(c.GetTargetFreightRef()),
		TargetFreightAlias: c.GetTargetFreightAlias(),
	}
	for _, r := range c.GetFreightRequests() {
		sc.FreightRequests = append(sc.FreightRequests, steps.FreightRequest{
			Origin: originFromProto(r.GetOrigin()), Sources: rawFromProto(r.GetSources()),
		})
	}
	for k, f := range c.GetFreight().GetItems() {
		if sc.Freight.Freight == nil {
			sc.Freight.Freight = map[string]steps.FreightReference{}
		}
		sc.Freight.Freight[k] = freightFromProto(f)
	}
	return sc
}

func freightToProto(f steps.FreightReference) (*stepdv1.FreightReference, error) {
	ref := &stepdv1.FreightReference{
		Name:   f.Name,
		Origin: &stepdv1.FreightOrigin{Kind: f.Origin.Kind, Name: f.Origin.Name},
	}
	for _, c := range f.Commits {
		ref.Commits = append(ref.Commits, &stepdv1.GitCommit{
			RepoUrl: c.RepoURL, Id: c.ID, Branch: c.Branch, Tag: c.Tag,
			Message: c.Message, Author: c.Author, Committer: c.Committer,
		})
	}
	for _, i := range f.Images {
		ref.Images = append(ref.Images, &stepdv1.Image{
			RepoUrl: i.RepoURL, Tag: i.Tag, Digest: i.Digest, Annotations: i.Annotations,
		})
	}
	for _, c := range f.Charts {
		ref.Charts = append(ref.Charts, &stepdv1.Chart{RepoUrl: c.RepoURL, Name: c.Name, Version: c.Version})
	}
	for _, a := range f.Artifacts {
		metadata, err := rawToProto(a.Metadata)
		if err != nil {
			return nil, fmt.Errorf("metadata of artifact %q in freight %q: %w", a.SubscriptionName, f.Name, err)
		}
		ref.Artifacts = append(ref.Artifacts, &stepdv1.ArtifactReference{
			ArtifactType: a.ArtifactType, SubscriptionName: a.SubscriptionName, Version: a.Version, Metadata: metadata,
		})
	}
	return ref, nil
}

func freightFromProto(ref *stepdv1.FreightReference) steps.FreightReference {
	f := steps.FreightReference{Name: ref.GetName(), Origin: originFromProto(ref.GetOrigin())}
	for _, c := range ref.GetCommits() {
		f.Commits = append(f.Commits, steps.GitCommit{
			RepoURL: c.GetRepoUrl(), ID: c.GetId(), Branch: c.GetBranch(), Tag: c.GetTag(),
			Message: c.GetMessage(), Author: c.GetAuthor(), Committer: c.GetCommitter(),
		})
	}
	for _, i := range ref.GetImages() {
		f.Images = append(f.Images, steps.Image{
			RepoURL: i.GetRepoUrl(), Tag: i.GetTag(), Digest: i.GetDigest(), Annotations: i.GetAnnotations(),
		})
	}
	for _, c := range ref.GetCharts() {
		f.Charts = append(f.Charts, steps.Chart{RepoURL: c.GetRepoUrl(), Name: c.GetName(), Version: c.GetVersion()})
	}
	for _, a := range ref.GetArtifacts() {
		f.Artifacts = append(f.Artifacts, steps.ArtifactReference{
			ArtifactType: a.GetArtifactType(), SubscriptionName: a.GetSubscriptionName(), Version: a.GetVersion(),
			Metadata: rawFromProto(a.GetMetadata()),
		})
	}
	return f
}

func originFromProto(o *stepdv1.FreightOrigin) steps.FreightOrigin {
	return steps.FreightOrigin{Kind: o.GetKind(), Name: o.GetName()}
}

func rawToProto(raw json.RawMessage) (*structpb.Value, error) {
	if len(raw) == 0 {
		return nil, nil
	}
	v := &structpb.Value{}
	return v, protojson.Unmarshal(raw, v)
}

func rawFromProto(v *structpb.Value) json.RawMessage {
	if v == nil {
		return nil
	}
	// Values are JSON types, so this cannot fail; a value without a kind, which
	// only a hand-made message has, counts as absent.
	raw, err := json.Marshal(fromValue(v, asInt64))
	if err != nil {
		return nil
	}
	return raw
}

// resultToProto encodes what Run returned.
func resultToProto(r steps.Result, err error) (*stepdv1.StepResult, error) {
	output, encErr := exact.toStruct(r.Output)
	if encErr != nil {
		return nil, fmt.Errorf("output: %w", encErr)
	}
	p := &stepdv1.StepResult{
		Status:  statusToProto(r.Status),
		Message: valid(r.Message),
		Output:  output,
		Error:   errorToProto(err),
	}
	if err != nil && r.Status != steps.Failed {
		p.Status = stepdv1.Status_STATUS_ERRORED
	}
	if r.RetryAfter != nil {
		p.RetryAfter = durationpb.New(*r.RetryAfter)
	}
	if h := r.HealthCheck; h != nil {
		input, encErr := exact.toStruct(h.Input)
		if encErr != nil {
			return nil, fmt.Errorf("health check input: %w", encErr)
		}
		p.HealthCheck = &stepdv1.HealthCheck{Kind: h.Kind, Input: input}
	}
	return p, nil
}

// resultFromProto is the inverse of resultToProto. A status it does not know
// is an error of the server's.
func resultFromProto(p *stepdv1.StepResult) (steps.Result, error) {
	for _, s := range []*structpb.Struct{p.GetOutput(), p.GetHealthCheck().GetInput(), p.GetError().GetDetail()} {
		if err := checkStruct(s); err != nil {
			return errored(), steps.Terminal(fmt.Errorf("cannot use the step's result: %w", err))
		}
	}
	r := steps.Result{
		Status:  statusFromProto(p.GetStatus()),
		Message: p.GetMessage(),
		Output:  fromStruct(p.GetOutput(), asInt64),
	}
	if d := p.GetRetryAfter(); d != nil {
		if err := d.CheckValid(); err != nil {
			return errored(), fmt.Errorf("the step answered with a bad retry_after: %w", err)
		}
		after := d.AsDuration()
		r.RetryAfter = &after
	}
	if h := p.GetHealthCheck(); h != nil {
		r.HealthCheck = &steps.HealthCheck{Kind: h.GetKind(), Input: fromStruct(h.GetInput(), asInt64)}
	}
	if err := errorFromProto(p.GetError()); err != nil {
		if r.Status != steps.Failed {
			r.Status = steps.Errored
		}
		return r, err
	}
	if !r.Status.Valid() {
		r.Status = steps.Errored
		return r, fmt.Errorf("the step answered with status %v, which this version does not know", p.GetStatus())
	}
	return r, nil
}

func errored() steps.Result { return steps.Result{Status: steps.Errored} }

func statusToProto(s steps.Status) stepdv1.Status {
	switch s {
	case steps.Succeeded:
		return stepdv1.Status_STATUS_SUCCEEDED
	case steps.Failed:
		return stepdv1.Status_STATUS_FAILED
	case steps.Errored:
		return stepdv1.Status_STATUS_ERRORED
	case steps.Running:
		return stepdv1.Status_STATUS_RUNNING
	case steps.Skipped:
		return stepdv1.Status_STATUS_SKIPPED
	case steps.Aborted:
		return stepdv1.Status_STATUS_ABORTED
	}
	return stepdv1.Status_STATUS_UNSPECIFIED
}

func statusFromProto(s stepdv1.Status) steps.Status {
	switch s {
	case stepdv1.Status_STATUS_SUCCEEDED:
		return steps.Succeeded
	case stepdv1.Status_STATUS_FAILED:
		return steps.Failed
	case stepdv1.Status_STATUS_ERRORED:
		return steps.Errored
	case stepdv1.Status_STATUS_RUNNING:
		return steps.Running
	case stepdv1.Status_STATUS_SKIPPED:
		return steps.Skipped
	case stepdv1.Status_STATUS_ABORTED:
		return steps.Aborted
	}
	return ""
}
