"""The step of ../main.go in Python, over plain gRPC: the proto suffices.

It needs python3-grpcio and python3-protobuf and no generated code: messages
come from the descriptors in proto/stepd.v1.binpb.

    python3 checksum_server.py ../../../proto/stepd.v1.binpb /tmp/checksum.sock
    stepd run -f task.yaml --live --step-server unix:/tmp/checksum.sock
"""

import concurrent.futures
import hashlib
import os
import pathlib
import signal
import sys

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

SCHEMA = """{"type": "object", "additionalProperties": false, "required": ["path"], "properties": {
  "path": {"type": "string", "minLength": 1, "description": "File in the work dir.", "examples": ["values.yaml"]}}}"""
SERVICE = "stepd.v1.StepService"


def load_messages(path):
    """Returns a function from a message's name in stepd.v1 to its class."""
    pool = descriptor_pool.DescriptorPool()
    files = descriptor_pb2.FileDescriptorSet.FromString(pathlib.Path(path).read_bytes())
    for file in files.file:
        pool.AddSerializedFile(file.SerializeToString())
    # Protobuf 4.22 renamed it.
    get_class = getattr(message_factory, "GetMessageClass", None) or message_factory.MessageFactory(pool).GetPrototype
    return lambda name: get_class(pool.FindMessageTypeByName("stepd.v1." + name))


def main(descriptors, socket):
    message = load_messages(descriptors)

    def list_steps(_request, _context):
        return message("ListStepsResponse")(
            steps=[{"name": "checksum", "config_schema": SCHEMA}], server_version="checksum-example"
        )

    def violations(config):
        path = config.get("path")
        if not isinstance(path, str) or not path or len(config) != 1:
            return [{"field": "/path", "description": "path: a string, and nothing else, is required"}]
        return []

    def validate(request, _context):
        found = violations(json_format.MessageToDict(request.config))
        return message("ValidateConfigResponse")(violations=found)

    def result(**fields):
        return message("RunStepResponse")(result=message("StepResult")(**fields))

    def failed(text, reason="ERROR_REASON_UNSPECIFIED", found=()):
        error = {"message": text, "terminal": True, "reason": reason, "violations": found}
        return result(status="STATUS_FAILED", error=error)

    def run(request, context):
        if request.kind != "checksum":
            context.abort(grpc.StatusCode.NOT_FOUND, f"no step is named {request.kind!r}")
        config = json_format.MessageToDict(request.config)
        found = violations(config)
        if found:
            yield failed(found[0]["description"], "ERROR_REASON_CONFIG", found)
            return
        work = pathlib.Path(request.context.work_dir).resolve()
        file = (work / config["path"]).resolve()
        if work not in file.parents:
            yield failed(f"{config['path']} is outside the work dir")
            return
        try:
            content = file.read_bytes()
        except OSError as e:
            yield failed(f"cannot read {config['path']}: {e.strerror}")
            return
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        file.with_name(file.name + ".sha256").write_text(digest + "\n")
        yield message("RunStepResponse")(log={"level": 0, "message": "hashed"})
        response = result(status="STATUS_SUCCEEDED")
        response.result.output.update({"digest": digest})
        yield response

    def unary(handler, request):
        return grpc.unary_unary_rpc_method_handler(handler, message(request).FromString, lambda m: m.SerializeToString())

    server = grpc.server(concurrent.futures.ThreadPoolExecutor(max_workers=8))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {
        "ListSteps": unary(list_steps, "ListStepsRequest"),
        "ValidateConfig": unary(validate, "ValidateConfigRequest"),
        "RunStep": grpc.unary_stream_rpc_method_handler(
            run, message("RunStepRequest").FromString, lambda m: m.SerializeToString()),
    }),))
    os.umask(0o077)  # the socket is for this user only
    server.add_insecure_port("unix:" + os.path.abspath(socket))
    server.start()
    print("serving", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: server.stop(grace=5))
    server.wait_for_termination()


if __name__ == "__main__":
    main(*sys.argv[1:])
