#!/bin/bash
# Portcullis running all-MiniLM-L6-v2 as ONNX (`make minilm-onnx`), each call a run of its own.
MODEL=minilm FILE=${XDG_DATA_HOME:-$HOME/.local/share}/portcullis/all-minilm-l6-v2-onnx/model.onnx
. "$(dirname "$0")/portcullis-digits.sh"
