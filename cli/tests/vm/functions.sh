# What the cases use.

fail() {
    echo "$*"
    exit 1
}

# managed SPEC... -- PROGRAM...: runs the program natively and under chaos on those devices. Output and status must be the same,
# pages must have moved, and frames must have come back with the node's own pages: with another only where the program has
# dropped a page and touched it anew while nobody watched (a few of a thousand, but up to hundreds at once) or, with copies=yes, where the kernel has
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
    [ "$status" = "$native" ] || fail "exit status $status and not $native: $(cat /tmp/managed.$$), and natively $(cat /tmp/native.$$)"
    cmp /tmp/native.$$ /tmp/managed.$$ || fail "other output: $(cat /tmp/managed.$$), and natively $(cat /tmp/native.$$)"
    look_at_statistics
    [ -n "$copies" ] || [ $((strays * 100)) -le "$moved" ] || fail "$strays of $moved pages were not on their node"
}

# look_at_statistics: of the last run, in which at least $least pages have moved (500 unless said otherwise). Sets $moved and $strays.
look_at_statistics() {
    cat /tmp/stats.$$
    moved=$(sed -n 's/.*"pages_migrated_to_device": \([0-9]*\).*/\1/p' /tmp/stats.$$)
    [ "$moved" -ge "${least:-500}" ] || fail "only $moved pages moved"
    strays=$(sed -n 's/.*"stray_pages": \([0-9]*\).*/\1/p' /tmp/stats.$$ | awk '{ sum += $1 } END { print sum }')
    grep -q '"errors": 0' /tmp/stats.$$ || fail "hetmem counted errors"
}

# ran TEST...: runs these binaries of tests; a TEST may go on with the names of those in it that are to run.
ran() {
    for test in "$@"; do
        echo "$test"
        # shellcheck disable=SC2086
        $test >log 2>&1 || fail "$(cat log)"
        grep -E '^test result: ok. [1-9]|skipped' log || fail "$(cat log)"
    done
}

# ask COMMAND...: of the redis server that listens.
ask() {
    redis-cli -s /tmp/redis/socket "$@"
}

# serve COMMAND...: starts a redis server by the command, in the background, and waits until it answers.
serve() {
    "$@" --port 0 --unixsocket /tmp/redis/socket --dir /tmp/redis --save '' --enable-debug-command yes >/tmp/redis/log 2>&1 &
    server=$!
    until ask PING 2>/dev/null | grep -q PONG; do
        kill -0 $server || fail "redis-server has ended: $(cat /tmp/redis/log)"
    done
}

# saved SPEC...: a redis server under chaos is written to while a forked child saves what it had. What it saves in the end, a native
# server reads as the same.
saved() {
    devices=
    for device in "$@"; do
        devices="$devices --device $device"
    done
    mkdir -p /tmp/redis
    # shellcheck disable=SC2086
    serve hetmem run --quiet --stats /tmp/stats.$$ --policy "chaos=$SEED" $devices -- redis-server
    load="redis-benchmark -s /tmp/redis/socket -q -t set,lpush -n 2000 -r 2000 -d 700 -c 4"
    $load || fail "the load has failed"
    ask BGSAVE
    $load || fail "the load has failed"
    until ask INFO persistence | grep -q rdb_bgsave_in_progress:0; do
        kill -0 $server || fail "redis-server has ended: $(cat /tmp/redis/log)"
    done
    ask INFO persistence | grep -q rdb_last_bgsave_status:ok || fail "the child could not save"
    digest=$(ask DEBUG DIGEST)
    ask SAVE
    ask SHUTDOWN NOSAVE
    wait $server || fail "exit status $?: $(cat /tmp/redis/log)"
    look_at_statistics
    serve redis-server
    [ "$(ask DEBUG DIGEST)" = "$digest" ] || fail "other data was saved than $digest"
    [ "$(ask DBSIZE)" -ge 1000 ] || fail "there are only $(ask DBSIZE) keys"
    ask SHUTDOWN NOSAVE
}

# verified SPEC...: stress-ng's own verification of memory that moves. A worker that a signal killed it starts anew, and only says so.
verified() {
    devices=
    for device in "$@"; do
        devices="$devices --device $device"
    done
    # shellcheck disable=SC2086
    hetmem run --quiet --stats /tmp/stats.$$ --policy "chaos=$SEED" $devices -- stress-ng --vm 1 --vm-bytes 4M --vm-method all \
        --vm-ops 2000 --verify --seed 7 --temp-path /tmp --verbose >said 2>&1 || fail "exit status $?: $(cat said)"
    grep -E 'fail:|error:|terminated on|died|restarting|aborted|skipped|incorrect' said && fail "$(cat said)"
    grep -q 'successful run completed' said || fail "$(cat said)"
    look_at_statistics
}

# limited PROGRAM...: with nearly all of its memory on node 1. Sets $balanced to the number of pages that the kernel has balanced.
limited() {
    before=$(sed -n 's/^numa_pages_migrated //p' /proc/vmstat)
    hetmem run --quiet --stats /tmp/stats.$$ --policy limit --system-limit 1M --device coherent:node=1,size=64M -- "$@" >said || fail "$*"
    balanced=$(($(sed -n 's/^numa_pages_migrated //p' /proc/vmstat) - before))
    cat said
    look_at_statistics
}

# sane_figures NODE: whether the file `said` has one line of figures of the node, measured from node 0, and each could be a memory's:
# neither faster than light nor slower than a tape.
sane_figures() {
    awk -v node="$1:" '
        $2 == "node" { here = $3 == node }
        here && match($0, /[0-9.]+ ns, [0-9.]+ [MG]B.s( read, [0-9.]+ [MG]B.s write)? .measured from node 0/) {
            split(substr($0, RSTART, RLENGTH), word, " ")
            reads = word[3] * (word[4] ~ /^G/ ? 1000 : 1)
            # Equal ones are said once.
            writes = word[5] == "read," ? word[6] * (word[7] ~ /^G/ ? 1000 : 1) : reads
            good += word[1] >= 1 && word[1] < 1000000 && reads >= 1 && reads < 10000000 && writes >= 1 && writes < 10000000
        }
        END { exit good != 1 }' said
}

# refused TEXT DEVICE: hetmem run must refuse the device in one line that has the text.
refused() {
    refuses "$1" hetmem run --device "$2" -- /programs/true
}

# refuses TEXT COMMAND...: the command must fail, and say why in one line that has the text.
refuses() {
    text=$1
    shift
    said=$("$@" 2>&1) && fail "was accepted: $*"
    echo "$said"
    [ "$(echo "$said" | wc -l)" = 1 ] || fail "more than one line"
    case $said in
    *"$text"*) ;;
    *) fail "it does not say: $text" ;;
    esac
}
