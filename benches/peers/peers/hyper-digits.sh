#!/bin/bash
# The digits classifier behind hyper and rustls and nothing else, on one thread: what is left when there is no gateway. RECEIPTS adds the least that a record costs.
ROOT=$(cd "$(dirname "$0")/../../.." && pwd)
DYLIB=$(ls "${XDG_DATA_HOME:-$HOME/.local/share}"/portcullis/onnxruntime-1.28.0/libonnxruntime.so* | head -1)
"$BIN/digits-floor" --port $PORT --cert $KEYS/tls.crt --key $KEYS/tls.key --model "$ROOT/policies/models/digits.onnx" --dylib "$DYLIB" $RECEIPTS >$RUN/hyper-digits.log 2>&1 &
echo "pid=$! port=$PORT protos=h1,h2"
