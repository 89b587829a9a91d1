#!/bin/bash
# Portcullis with every control on: ES256 tokens, Cedar, per-caller limits (high, but counted), a JSON schema on every chat,
# detectors at their defaults, a signed receipt for every answer (async), the security log in a file.
# PORTCULLIS_BIN names another binary than target/release's, PROVE another mode of receipts.
ROOT=$(cd "$(dirname "$0")/../../.." && pwd)
D=$RUN/${RUN_AS:-$(basename "$0" .sh)}; rm -rf "$D"; mkdir -p "$D"/policies/{models,schemas,tls,keys}; P=$D/policies
cp "$KEYS/tls.crt" "$KEYS/tls.key" "$P/tls/"
openssl genpkey -algorithm ed25519 -out "$P/tls/provenance.key" 2>/dev/null
chmod 600 "$P"/tls/*.key
cp "$KEYS/jwks.json" "$P/keys/"
cp "$(dirname "$0")/../rust/tools/src/chat.schema.json" "$P/schemas/chat.json"
cat > "$P/gateway.toml" <<T
[accept]
listen = "127.0.0.1:$PORT"
deadlines = { idle = "600s" }

[accept.tls]
certificate = "tls/tls.crt"
key = "tls/tls.key"

[prove]
directory = "../log"
origin = "localhost/portcullis/bench"
key = "tls/provenance.key"

[record]
security_log = "../security.log"
T
cat > "$P/callers.toml" <<T
[[issuer]]
issuer = "https://issuer.test"
audience = ["bench"]
algorithms = ["ES256"]
jwks_file = "keys/jwks.json"
claims = { caller = "sub" }
T
# portcullis-digits.sh writes its own model.
[ "$1" = --policies-only ] && return
cat > "$P/access.cedar" <<T
permit (principal, action in [Action::"chat", Action::"embed"], resource) when { resource.public };
T
cat > "$P/models/m.toml" <<T
name = "m"
version = "1"
public = true

[backend.upstream]
protocol = "openai"
urls = ["http://$UPSTREAM"]

[check]
schema = "../schemas/chat.json"
max_tokens = 131072

[budget.default]
requests = { rate = "10000000/s", burst = 100000000 }
tokens = { rate = "1000000000/s", burst = 1000000000 }
in_flight = 4096

[prove]
mode = "${PROVE:-async}"
T
export TOKIO_WORKER_THREADS=$THREADS
"${PORTCULLIS_BIN:-$ROOT/target/release/portcullis}" serve --policies "$P" >"$D/log.txt" 2>&1 &
# One schema holds for all requests of a model, and it is the schema of chats; a model speaks one protocol.
echo "pid=$! port=$PORT protos=h1,h2 auth=jwt skip=embed,infer"
