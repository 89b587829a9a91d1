#!/bin/bash
# hyper-digits, which hashes what passes, signs it once and writes it to a file.
RECEIPTS="--receipts $RUN/receipts"
. "$(dirname "$0")/hyper-digits.sh"
