#!/bin/bash
# MLServer with the digits classifier on ONNX Runtime, one worker, plain HTTP, no authentication. It has no ONNX runtime of its own: the
# custom one below is the shortest there is. MODELS_VENV has mlserver and onnxruntime (`setup.sh models`).
ROOT=$(cd "$(dirname "$0")/../../.." && pwd); VENV=${MODELS_VENV:-$(dirname "$RUN")/run/venv-models}
D=$RUN/mlserver; rm -rf "$D"; mkdir -p "$D"; cd "$D"
cat > digits.py <<'P'
import numpy, onnxruntime
from mlserver import MLModel
from mlserver.types import InferenceResponse, ResponseOutput

class Digits(MLModel):
    async def load(self):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(self.settings.parameters.uri, options, ["CPUExecutionProvider"])
        return True

    async def predict(self, request):
        [tensor] = request.inputs
        rows = numpy.asarray(tensor.data.root, dtype=numpy.float32).reshape(tensor.shape)
        answers = zip(self.session.get_outputs(), self.session.run(None, {tensor.name: rows}))
        kinds = {"tensor(float)": "FP32", "tensor(int64)": "INT64"}
        outputs = [ResponseOutput(name=port.name, shape=list(a.shape), datatype=kinds[port.type], data=a.ravel().tolist()) for port, a in answers]
        return InferenceResponse(id=request.id, model_name=self.name, outputs=outputs)
P
printf '{"http_port": %s, "grpc_port": %s, "metrics_port": %s, "host": "127.0.0.1", "parallel_workers": 0, "debug": false, "log_level": "ERROR"}' \
    $PORT $((PORT + 500)) $((PORT + 700)) > settings.json
printf '{"name": "digits", "implementation": "digits.Digits", "parameters": {"uri": "%s/policies/models/digits.onnx"}}' "$ROOT" > model-settings.json
PYTHONPATH=$D "$VENV/bin/mlserver" start "$D" >log 2>&1 &
echo "pid=$! port=$PORT protos=h1 scheme=http slow=2 wait=60"
