# complete.bash SCRIPT WORD...: what bash, with the completion of SCRIPT, offers for the last word; as readline does it,
# an "=" is a word of its own. "compopt ..." stands for what bash itself then completes, like the names of files.
source "$1" || exit 1
shift
compopt() { echo "compopt $*"; }
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
_tokenskip
[[ ${#COMPREPLY[@]} -eq 0 ]] || printf '%s\n' "${COMPREPLY[@]}"
