# What the scripts of the GPU share: $command and $model are the caller's.

need_gpu() { # need_gpu WHAT: ends the script, with a word, where there is no GPU; any other failure is one
    why=$("$command" generate -m "$model" -p 1 --gen-length 32 --device cuda 2>&1 > /dev/null) && return
    case $why in
    *"no CUDA device"*) echo "skipped: $1 ($why)"; exit 0 ;;
    esac
    echo "failed: $why"
    exit 1
}
