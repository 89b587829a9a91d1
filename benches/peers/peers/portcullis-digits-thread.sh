#!/bin/bash
# portcullis-digits without its worker: the model runs in the gateway's own process, on a thread. What isolation costs is the difference.
ISOLATION=thread
. "$(dirname "$0")/portcullis-digits.sh"
