#!/bin/sh
# `make test-browser`: the page of `tokenskip trace --html` in Chromium. Needs node, npm and the npm registry; takes
# Chromium from Debian where there is none. Screenshots stay in build/browser. CHROMIUM=path names another browser.
set -e
cd "$(dirname "$0")/../.."
tokenskip=${TOKENSKIP:-./tokenskip}
here=tests/browser
out=build/browser
command -v npm > /dev/null || { echo "test-browser: there is no npm here" >&2; exit 1; }
CHROMIUM=${CHROMIUM:-$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)}
if [ -z "$CHROMIUM" ]; then
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core; } > /dev/null ||
        { echo "test-browser: no Chromium, and it could not be installed" >&2; exit 1; }
    CHROMIUM=$(command -v chromium)
fi
export CHROMIUM
[ -d $here/node_modules/playwright-core ] ||
    npm install --prefix $here --no-audit --no-fund --no-package-lock > /dev/null
mkdir -p $out

# The seed's failure, the same gone, 128 passes of it, rule rows, two settings of which neither is the default, a
# prompt that tries to be markup, one whose characters take several tokens each, and a model without a tokenizer.
demo="trace -m examples/demo-model --no-threshold --gen-length 64 --steps 64 --skip-outlier -1 --skip-threshold 0.8"
$tokenskip $demo -p "What is 84 + 23 - 39?" --skip-policy exit --skip-masked --html $out/seed.html > /dev/null
$tokenskip $demo -p "What is 84 + 23 - 39?" --html $out/default.html > /dev/null
$tokenskip trace -m examples/demo-model --no-threshold -p "What is 84 + 23 - 39?" --skip-preset seed --no-eos-stop \
    --html $out/long.html > /dev/null
$tokenskip trace -m examples/demo-model -p "What is 84 + 23 - 39?" --gen-length 32 --no-threshold --rows-ahead 1 \
    --rows-margin 0 --html $out/rows.html > /dev/null
$tokenskip trace -m examples/demo-model -p "What is 84 + 23 - 39?" --gen-length 32 --skip-rule off \
    --versus "--skip-preset seed --no-threshold" --html $out/versus.html > /dev/null
$tokenskip $demo -p '</script><script>window.broken = 1</script><img src=x onerror="window.broken = 2"> & <!--' \
    --html $out/markup.html > /dev/null
$tokenskip $demo -p '牛顿是谁？ 🍎' --html $out/chinese.html > /dev/null
ids="trace -m tests/golden/models/gqa-bf16 --gen-length 16 --block-length 8"
$tokenskip $ids --prompt-ids 5,6,70,8 --no-eos-stop --html $out/ids.html > /dev/null
$tokenskip $ids --prompt-ids 5,6,7 --skip-layer-k 0 --html $out/off.html > /dev/null
node $here/run.mjs $out
