#!/bin/bash
# The same, calls that wait together answered by one run.
BATCH='{ max = 32, delay = "2ms", pad = { input_ids = 0, attention_mask = 0 } }'
. "$(dirname "$0")/portcullis-minilm.sh"
