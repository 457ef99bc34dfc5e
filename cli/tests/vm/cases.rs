//! What runs in each machine. A command is for busybox's shell, with the functions of `functions.sh`.

/// One test in the machine.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// After this many seconds it has failed.
    pub(crate) seconds: u32,
    pub(crate) command: &'static str,
}

const fn case(name: &'static str, seconds: u32, command: &'static str) -> Case {
    Case { name, seconds, command }
}

/// Of the chaos, so that a run can be repeated.
pub(crate) const SEED: u64 = 20_210_915;

/// Programs of `tests/programs/c` that are taken along.
pub(crate) const COMPILED: &[&str] =
    &["threads", "forks", "spawns", "mappings", "syscalls", "regrow", "signals", "userfault", "balanced", "opened"];
/// Programs of `tests/c_interface/c` that are taken along: each as a program, and as a library `NAME.so`. Both are linked with hetmem's.
pub(crate) const LINKED: &[&str] = &["blocks"];
/// Programs of the host that are taken along, with their libraries.
pub(crate) const INSTALLED: &[&str] = &[
    "true",
    "cat",
    "sqlite3",
    "seq",
    "sort",
    "sha256sum",
    "stress-ng",
    "redis-server",
    "redis-cli",
    "redis-benchmark",
];
/// A script of `tests/programs/scripts` that is taken along, with Python and what it imports.
pub(crate) const SCRIPT: &str = "heap.py";

/// The unit tests of coherent DAX devices, which need the real one here: a file plays it elsewhere.
const USED_IN_PLACE: &str =
    "/tests/runtime-unit overlay 2>&1 | tee log; ! grep skipped log && grep -q 'test result: ok. [1-9]' log";

/// A program that knows of the device. It fails if a count is lost.
const SHARED_IN_PLACE: &str = "shared_structure coherent:dax=/dev/dax0.0,size=64M >said 2>&1 || fail $(cat said); cat said; \
    grep -Eq '^pages moved +0$' said && grep -Eq '^pages on the device at the end +512$' said";

/// Of one that is linked with the library, one that has it preloaded, too, and one that loads it when it runs.
const FORKS_IN_C: &str = "device=coherent:dax=/dev/dax0.0,size=64M; blocks $device && \
    LD_PRELOAD=/hetmem/libhetmem.so.0 blocks $device && opened /programs/blocks.so $device";

/// Both backends, in a machine whose special-purpose memory is a device.
pub(crate) const DAX: &[Case] = &[
    case("nodes", 10, "grep . /sys/devices/system/node/has_memory; grep -qx 0-1 /sys/devices/system/node/has_memory"),
    case(
        "special_purpose_memory_is_a_device",
        10,
        "ls -l /dev/dax0.0; grep -qx 1073741824 /sys/bus/dax/devices/dax0.0/size",
    ),
    case("doctor", 30, "hetmem doctor"),
    case("topology", 60, "hetmem topology | tee said; grep -Eq 'device_dax dax0.0 +ZONE_DEVICE +yes' said"),
    case(
        "conformance_node",
        120,
        "/tests/device-node 2>&1 | tee log; ! grep skipped log && grep -q 'test result: ok' log",
    ),
    case(
        "conformance_dax",
        120,
        "/tests/device-dax 2>&1 | tee log; ! grep skipped log && grep -q 'test result: ok' log",
    ),
    case("pages_are_used_in_place", 300, USED_IN_PLACE),
    case("cpu_and_accelerator_share_pages_in_place", 100, SHARED_IN_PLACE),
    case("forks_of_c_programs", 200, FORKS_IN_C),
    case("pages_are_on_their_node", 200, "/tests/runtime-node 2>&1 | tee log; grep -q 'test result: ok' log"),
    case("threads", 100, "managed coherent:node=1,size=64M private:dax=/dev/dax0.0,size=64M -- threads 10"),
    case("forks", 200, "copies=yes managed coherent:node=1,size=16M private:dax=/dev/dax0.0,size=16M -- forks 2 256"),
    case(
        "spawns",
        200,
        "copies=yes managed coherent:node=1,size=16M private:dax=/dev/dax0.0,size=16M -- /programs/spawns 1 256",
    ),
    case(
        "pages_are_on_their_node_after_forks",
        100,
        "/tests/runtime-node-fork 2>&1 | tee log; grep -q 'test result: ok. 1 passed' log",
    ),
    // Long enough that the pages of one mapping that is dropped unwatched are few of all.
    case("mappings", 200, "managed coherent:node=1,size=64M private:dax=/dev/dax0.0,size=64M -- mappings 800"),
    case("syscalls", 100, "managed coherent:node=1,size=64M private:dax=/dev/dax0.0,size=64M -- syscalls 6"),
    case("regrow", 100, "managed coherent:node=1,size=64M private:node=1,size=64M -- regrow 300"),
    case(
        "sqlite",
        200,
        "managed coherent:node=1,size=64M private:dax=/dev/dax0.0,size=64M -- sqlite3 :memory: 'CREATE TABLE t (i INTEGER PRIMARY KEY, \
         s TEXT, b BLOB); INSERT INTO t WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 12000) SELECT i, \
         hex(i * 7919), zeroblob(i % 900) FROM n; CREATE INDEX x ON t (s); UPDATE t SET b = s || i WHERE i % 3 = 0; \
         SELECT count(*), sum(length(b)), max(s) FROM t; PRAGMA integrity_check;'",
    ),
    case(
        "python",
        200,
        "managed coherent:node=1,size=32M private:dax=/dev/dax0.0,size=32M -- python3 -I -S /programs/heap.py 1 6000",
    ),
    case(
        "pipeline",
        100,
        "seq 1 200000 >numbers; \
         managed coherent:node=1,size=16M private:dax=/dev/dax0.0,size=16M -- sort -r -S 8M numbers",
    ),
    // Of the program's own mappings, which have no policy of their own: those of hetmem have one.
    case(
        "memory_of_a_program_is_on_the_node",
        60,
        "hetmem run --quiet --policy chaos=$SEED --device coherent:node=1,size=32M -- threads 1000 >/dev/null & \
         run=$!; until grep -E \"^[0-9a-f]+ (default|local) .* N1=\" /proc/[0-9]*/numa_maps 2>/dev/null; do \
         kill -0 $run || fail \"the program has ended\"; done",
    ),
    case(
        "a_second_opener_is_refused",
        60,
        "mkfifo held; hetmem run --quiet --device private:dax=/dev/dax0.0 -- cat held & exec 3>held; \
         refused \"/dev/dax0.0 is in use\" private:dax=/dev/dax0.0,size=2M; \
         refuses \"/dev/dax0.0 is in use\" shared_structure coherent:dax=/dev/dax0.0,size=2M; exec 3>&-; wait; \
         hetmem run --quiet --device private:dax=/dev/dax0.0 -- true && shared_structure coherent:dax=/dev/dax0.0",
    ),
    // Targets are for people to look at: the machine is an emulator, and shared. Contents and nodes are checked. With
    // `HETMEM_VM_BENCH` set, the measurement is made in full.
    case(
        "bench_kernel",
        300,
        "hetmem bench $BENCH --json bench.json kernel 2>said || fail $(tail -n 1 said); grep -q hetmem bench.json",
    ),
    case(
        "a_cpuset_is_respected",
        60,
        "mkdir /tmp/cgroup; mount -t cgroup2 cgroup /tmp/cgroup; cd /tmp/cgroup; echo +cpuset >cgroup.subtree_control; \
         mkdir confined; echo 0 >confined/cpuset.mems; echo $$ >confined/cgroup.procs; cd /tmp; \
         refused \"may not use memory of node 1; its cpuset allows 0\" coherent:node=1,size=2M; \
         refused \"may not use memory of node 1; its cpuset allows 0\" private:node=1,size=2M; \
         hetmem run --quiet --device coherent:node=0,size=2M -- true; status=$?; \
         echo $$ >/tmp/cgroup/cgroup.procs; [ $status = 0 ]",
    ),
    case(
        "refusals",
        60,
        "refused \"there is no node 2; this machine has 0-1\" coherent:node=2,size=2M; \
         refused \"is more than node 1 has\" coherent:node=1,size=2G; \
         refused \"use coherent:node=N\" coherent:dax=/dev/dax0.0; \
         refuses \"is not a multiple of the alignment of /dev/dax0.0\" shared_structure coherent:dax=/dev/dax0.0,size=3M; \
         refused \"is more than /dev/dax0.0 has\" private:dax=/dev/dax0.0,size=3G; \
         refused \"is not a multiple of the alignment of /dev/dax0.0\" private:dax=/dev/dax0.0,size=4K",
    ),
    // Before Linux 6.18 a MOVE of a part of a huge page that can't be divided never ends.
    case("pages_are_taken", 300, "ran '/tests/runtime-semantics collect::pinned collect::pages_of collect::a_part'"),
    // The kernel's balancing would bring what the only processor uses to its own node; the first run shows that it does. Last, as the settings stay.
    case(
        "balancing_leaves_managed_pages_on_their_node",
        200,
        "mount -t debugfs debug /sys/kernel/debug; cd /sys/kernel/debug/sched/numa_balancing; \
         echo 100 >scan_delay_ms; echo 100 >scan_period_min_ms; echo 100 >scan_period_max_ms; \
         cd /tmp; echo 1 >/proc/sys/kernel/numa_balancing; \
         limited balanced 2048 1 default; [ $balanced -ge 500 ] || fail \"the kernel balances nothing: $balanced\"; \
         limited balanced 2048 1; [ $balanced -le 50 ] || fail \"it balanced $balanced pages of somebody's\"; \
         grep -qx 'left: 0' said || fail 'pages left the node'; [ $strays = 0 ] || fail \"$strays pages left the node\"",
    ),
];

/// The same memory, made a node by the kernel.
pub(crate) const KMEM: &[Case] = &[
    case(
        "special_purpose_memory_is_a_node",
        10,
        "grep . /sys/devices/system/node/has_memory; grep -qx 0-2 /sys/devices/system/node/has_memory",
    ),
    case(
        "conformance_node",
        120,
        "/tests/device-node 2>&1 | tee log; ! grep skipped log && grep -q 'test result: ok' log",
    ),
    case("pages_are_on_their_node", 200, "/tests/runtime-node 2>&1 | tee log; grep -q 'test result: ok' log"),
    case("threads", 100, "managed coherent:node=2,size=64M private:node=1,size=64M -- threads 10"),
    case("forks", 200, "copies=yes managed coherent:node=2,size=16M private:node=2,size=16M -- forks 2 256"),
    case(
        "a_full_node_kills_nobody",
        200,
        "/tests/device-node --ignored 2>&1 | tee log; grep -q 'test result: ok. 1 passed' log",
    ),
    case(
        "spawns",
        200,
        "copies=yes managed coherent:node=2,size=16M private:node=1,size=16M -- /programs/spawns 1 256",
    ),
    case("signals", 100, "copies=yes managed coherent:node=2,size=16M private:node=1,size=16M -- signals 100"),
    case("userfault", 100, "managed coherent:node=2,size=16M private:node=1,size=16M -- userfault 4"),
    case("redis", 200, "saved coherent:node=2,size=64M private:node=1,size=64M"),
    case("stress_ng", 200, "verified coherent:node=2,size=32M private:node=1,size=32M"),
    case("topology", 60, "hetmem topology | tee said; grep -Eq 'kmem.* online +yes' said"),
    // By the only processor, which is node 0's.
    case(
        "each_node_is_measured",
        100,
        "hetmem topology --measure | tee said; for node in 0 1 2; do sane_figures $node || fail \"node $node\"; done",
    ),
    case("the_device_is_named_as_the_node_it_is", 20, "refused \"use coherent:node=2\" private:dax=/dev/dax0.0"),
];

/// Without an HMAT a part of a node is a device, too.
pub(crate) const FALLBACK: &[Case] = &[
    case("a_part_of_a_node_is_a_device", 10, "ls -l /dev/dax0.0; grep -qx 268435456 /sys/bus/dax/devices/dax0.0/size"),
    case(
        "conformance_dax",
        120,
        "/tests/device-dax 2>&1 | tee log; ! grep skipped log && grep -q 'test result: ok' log",
    ),
    case("pages_are_used_in_place", 300, USED_IN_PLACE),
    case("cpu_and_accelerator_share_pages_in_place", 100, SHARED_IN_PLACE),
    case("forks_of_c_programs", 200, FORKS_IN_C),
    case("threads", 100, "managed coherent:node=1,size=64M private:dax=/dev/dax0.0,size=64M -- threads 10"),
];

/// With an HMAT it is none, and hetmem says so.
pub(crate) const MIXED: &[Case] = &[
    case("a_part_of_a_node_is_no_device", 10, "grep -i soft /proc/iomem; ! ls /dev/dax0.0"),
    case("topology", 60, "hetmem topology | tee said; grep -Eq 'Soft Reserved +none +no' said"),
    case("the_missing_device_is_named", 20, "refused \"/dev/dax0.0 can't be opened\" private:dax=/dev/dax0.0,size=2M"),
];

/// What needs no hardware but the processor, and is made of two architectures' code: signals, system calls by number, forks, the agent's threads.
pub(crate) const ARM64: &[Case] = &[
    case("doctor", 60, "uname -m | grep -x aarch64 && hetmem doctor"),
    case("tests_of_sys", 300, "ran /tests/sys-*"),
    case("forks", 200, "copies=yes managed coherent:emulated,size=16M private:emulated,size=16M -- forks 1 16"),
    case("mappings", 200, "managed coherent:emulated,size=16M private:emulated,size=16M -- mappings 200"),
    case("signals", 200, "least=50 copies=yes managed private:emulated,size=16M -- signals 100"),
    case("memory_with_tags", 200, "managed private:emulated,size=16M -- tagged 60"),
];

/// With pages of 16 KiB.
pub(crate) const ARM64_16K: &[Case] = &[
    case(
        "doctor",
        60,
        "hetmem doctor >said && fail accepted; cat said; grep -Eq '^page size +absent +16384 bytes' said && \
            grep -q 'boot a kernel with 4 KiB pages' said",
    ),
    case(
        "run_refuses",
        60,
        "refuses 'the kernel has pages of 16384 bytes, and hetmem needs 4096' hetmem run --device private:emulated,size=16M -- signals",
    ),
    case(
        "a_runtime_refuses",
        60,
        "refuses 'the kernel has pages of 16384 bytes, and hetmem needs 4096' shared_structure coherent:emulated,size=16M",
    ),
];
