package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
)

// TestStepServerFromDescriptorsAlone runs a step server that has nothing of
// ours but proto/stepd.v1.binpb, as one in another language has: no generated
// code, no SDK. The Python example, which make e2e runs, is the same in another
// language.
func TestStepServerFromDescriptorsAlone(t *testing.T) {
	message := messages(t, filepath.Join(repository(t), "proto/stepd.v1.binpb"))
	decode := func(m proto.Message) map[string]any { return asJSONMap(t, m) }
	encode := func(name, text string) proto.Message {
		m := message(name)
		if err := protojson.Unmarshal([]byte(text), m); err != nil {
			t.Error(err)
		}
		return m
	}
	run := func(request map[string]any) string {
		config, _ := request["config"].(map[string]any)
		of, _ := request["context"].(map[string]any)
		name, _ := config["path"].(string)
		workDir, _ := of["workDir"].(string)
		root, err := os.OpenRoot(workDir)
		if err != nil {
			return `{"result": {"status": "STATUS_ERRORED", "error": {"message": "no work dir"}}}`
		}
		content, err := root.ReadFile(name)
		if err != nil {
			return `{"result": {"status": "STATUS_FAILED", "error": {"terminal": true, "message": "cannot read ` + name + `"}}}`
		}
		sum := sha256.Sum256(content)
		digest := "sha256:" + hex.EncodeToString(sum[:])
		if err := root.WriteFile(name+".sha256", []byte(digest+"\n"), 0o600); err != nil {
			t.Error(err)
		}
		return `{"result": {"status": "STATUS_SUCCEEDED", "output": {"digest": "` + digest + `"}}}`
	}
	server := grpc.NewServer()
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "stepd.v1.StepService",
		Methods: []grpc.MethodDesc{{MethodName: "ListSteps", Handler: func(_ any, _ context.Context, read func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			return encode("ListStepsResponse", `{"steps": [{"name": "checksum"}]}`), read(message("ListStepsRequest"))
		}}},
		Streams: []grpc.StreamDesc{{StreamName: "RunStep", ServerStreams: true, Handler: func(_ any, stream grpc.ServerStream) error {
			request := message("RunStepRequest")
			if err := stream.RecvMsg(request); err != nil {
				return err
			}
			if err := stream.SendMsg(encode("RunStepResponse", `{"log": {"message": "hashing"}}`)); err != nil {
				return err
			}
			return stream.SendMsg(encode("RunStepResponse", run(decode(request))))
		}}},
	}, nil)
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	defer func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	t.Setenv("XDG_DATA_HOME", t.TempDir())
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	checkChecksum(t, "--live", "--step-server", "unix:"+socket)
}

// messages makes messages of stepd.v1 from a committed descriptor image.
func messages(t *testing.T, image string) func(name string) proto.Message {
	t.Helper()
	b, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	set := &descriptorpb.FileDescriptorSet{}
	if err := proto.Unmarshal(b, set); err != nil {
		t.Fatal(err)
	}
	files, err := protodesc.NewFiles(set)
	if err != nil {
		t.Fatal(err)
	}
	return func(name string) proto.Message {
		d, err := files.FindDescriptorByName(protoreflect.FullName("stepd.v1." + name))
		if err != nil {
			t.Fatal(err)
		}
		return dynamicpb.NewMessage(d.(protoreflect.MessageDescriptor))
	}
}

func asJSONMap(t *testing.T, m proto.Message) map[string]any {
	t.Helper()
	b, err := protojson.Marshal(m)
	if err != nil {
		t.Error(err)
	}
	var out map[string]any
	if err := json.Unmarshal(b, &out); err != nil {
		t.Error(err)
	}
	return out
}
