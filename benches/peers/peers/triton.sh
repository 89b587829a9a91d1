#!/bin/bash
# Triton (PyPI nvidia-pytriton bundles the server, with its Python backend alone) with the digits classifier on ONNX Runtime, plain HTTP, no
# authentication. MODELS_VENV has nvidia-pytriton and onnxruntime (`setup.sh models`).
ROOT=$(cd "$(dirname "$0")/../../.." && pwd); VENV=${MODELS_VENV:-$(dirname "$RUN")/run/venv-models}
D=$RUN/triton; rm -rf "$D"; mkdir -p "$D"/repo/digits/1 "$D"/backends "$D"/tmp; cd "$D"
P=$(echo "$VENV"/lib/python3.*/site-packages); V=$(basename "$(dirname "$P")"); V=${V#python}
cp -r "$P/pytriton/tritonserver/backends/python" backends/python
cp "$P/pytriton/tritonserver/python_backend_stubs/$V/triton_python_backend_stub" backends/python/
cat > repo/digits/config.pbtxt <<'C'
name: "digits"
backend: "python"
max_batch_size: 0
input [ { name: "input", data_type: TYPE_FP32, dims: [ -1, 64 ] } ]
output [ { name: "label", data_type: TYPE_INT64, dims: [ -1 ] }, { name: "probabilities", data_type: TYPE_FP32, dims: [ -1, 10 ] } ]
instance_group [ { count: 1, kind: KIND_CPU } ]
C
cat > repo/digits/1/model.py <<M
import sys
sys.path.insert(0, "$P")
import onnxruntime
import triton_python_backend_utils as triton

class TritonPythonModel:
    def initialize(self, args):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession("$ROOT/policies/models/digits.onnx", options, ["CPUExecutionProvider"])
        self.names = [port.name for port in self.session.get_outputs()]

    def execute(self, requests):
        answers = []
        for request in requests:
            rows = triton.get_input_tensor_by_name(request, "input").as_numpy()
            outputs = self.session.run(None, {"input": rows})
            answers.append(triton.InferenceResponse([triton.Tensor(name, output) for name, output in zip(self.names, outputs)]))
        return answers
M
LD_LIBRARY_PATH=$(echo "$P"/nvidia_pytriton.libs) PYTHONPATH=$P TMPDIR=$D/tmp "$P/pytriton/tritonserver/bin/tritonserver" --model-repository="$D/repo" \
    --backend-directory="$D/backends" --cache-directory="$P/pytriton/tritonserver/caches" --http-address=127.0.0.1 --http-port=$PORT \
    --http-thread-count=1 --allow-grpc=false --allow-metrics=false --allow-gpu-metrics=false >log 2>&1 &
echo "pid=$! port=$PORT protos=h1 scheme=http wait=60"
