#!/bin/bash
# Portcullis running the digits classifier itself, with every control on as in portcullis.sh: TLS, ES256 tokens, Cedar, limits, the tensor
# contract with its ranges, detectors, a signed receipt for every answer. ISOLATION, BATCH and PROVE say otherwise; MODEL and FILE name another
# model, whose ranges are not held.
ROOT=$(cd "$(dirname "$0")/../../.." && pwd)
RUN_AS=$(basename "$0" .sh) . "$(dirname "$0")/portcullis.sh" --policies-only
cp "${FILE:-$ROOT/policies/models/digits.onnx}" "$P/models/model.onnx"
RANGE='range = { input = [0.0, 16.0] }'; [ -z "$FILE" ] || RANGE=""
WALLS=""; [ -z "$ISOLATION" ] || WALLS="isolation = \"$ISOLATION\""
cat > "$P/access.cedar" <<T
permit (principal, action == Action::"infer", resource) when { resource.public };
T
cat > "$P/models/m.toml" <<T
name = "${MODEL:-digits}"
version = "1"
public = true

[backend.onnx]
path = "model.onnx"
sha256 = "$(sha256sum < "$P/models/model.onnx" | cut -c1-64)"
queue = 1024
$WALLS
${BATCH:+batch = $BATCH}

[check]
$RANGE

[budget.default]
requests = { rate = "10000000/s", burst = 100000000 }
in_flight = 4096

[prove]
mode = "${PROVE:-async}"
T
export TOKIO_WORKER_THREADS=$THREADS
"${PORTCULLIS_BIN:-$ROOT/target/release/portcullis}" serve --policies "$P" >"$D/log.txt" 2>&1 &
echo "pid=$! port=$PORT protos=h1,h2 auth=jwt"
