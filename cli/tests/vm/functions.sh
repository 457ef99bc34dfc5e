# What the cases use.

fail() {
    echo "$*"
    exit 1
}

# managed SPEC... -- PROGRAM...: runs the program natively and under chaos on those devices. Output and status must be the same,
# pages must have moved, and frames must have come back with the node's own pages: with another only where the program has
# dropped a page and touched it anew while nobody watched (a few of a thousand) or, with copies=yes, where the kernel has
# copied a page after a fork, to wherever the program's policy says.
managed() {
    devices=
    while [ "$1" != -- ]; do
        devices="$devices --device $1"
        shift
    done
    shift
    "$@" >/tmp/native.$$ 2>&1
    native=$?
    # shellcheck disable=SC2086
    hetmem run --quiet --stats /tmp/stats.$$ --policy "chaos=$SEED" $devices -- "$@" >/tmp/managed.$$ 2>&1
    status=$?
    cat /tmp/stats.$$
    [ "$status" = "$native" ] || fail "exit status $status and not $native: $(cat /tmp/managed.$$)"
    cmp /tmp/native.$$ /tmp/managed.$$ || fail "other output: $(cat /tmp/managed.$$)"
    moved=$(sed -n 's/.*"pages_migrated_to_device": \([0-9]*\).*/\1/p' /tmp/stats.$$)
    [ "$moved" -ge 500 ] || fail "only $moved pages moved"
    strays=$(sed -n 's/.*"stray_pages": \([0-9]*\).*/\1/p' /tmp/stats.$$ | awk '{ sum += $1 } END { print sum }')
    [ -n "$copies" ] || [ $((strays * 100)) -le "$moved" ] || fail "$strays of $moved pages were not on their node"
    grep -q '"errors": 0' /tmp/stats.$$ || fail "hetmem counted errors"
}

# refused TEXT DEVICE: hetmem run must refuse the device in one line that has the text.
refused() {
    said=$(hetmem run --device "$2" -- /programs/true 2>&1) && fail "$2 was accepted"
    echo "$said"
    [ "$(echo "$said" | wc -l)" = 1 ] || fail "more than one line"
    case $said in
    *"$1"*) ;;
    *) fail "it does not say: $1" ;;
    esac
}
