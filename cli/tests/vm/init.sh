#!/bin/busybox sh
# The first process of the virtual machine: mounts what there is, loads modules, runs the cases, and turns the machine off.
#
# What it says on the second serial port is read by the tests: `@@ begin NAME`, the case's output, `@@ end NAME STATUS`.
/bin/busybox mkdir -p /bin /proc /sys /dev /tmp
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
# The second serial port, as the command line names it.
port=/dev/$(sed -n 's/.*report=\([^ ]*\).*/\1/p' /proc/cmdline)
exec </dev/null >"$port" 2>&1
stty raw -echo <"$port"
export PATH=/hetmem:/programs:/bin:/usr/bin HOME=/tmp RUST_BACKTRACE=1
cd /tmp
# It makes a huge page of pages of several nodes now and then, on one of them: where pages are that nobody has moved is asked here.
echo 4000000000 >/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs

# load MODULE...: in that order.
load() {
    for module in "$@"; do
        insmod "/modules/$module.ko" || echo "$module can't be loaded"
    done
}

# until_there SECONDS PATH: whether it is there by then.
until_there() {
    tries=$(($1 * 10))
    while [ ! -e "$2" ] && [ "$tries" -gt 0 ]; do
        tries=$((tries - 1))
        sleep 0.1
    done
    [ -e "$2" ]
}

# The kernel means such memory for kmem, and binds no other driver by itself once it could have that one (CONFIG_DEV_DAX_KMEM).
# Before that, /dev/dax0.0 is there and can't be opened.
give_to_device_dax() {
    until_there 10 /dev/dax0.0 && cat /dev/dax0.0 2>&1
    echo dax0.0 >/sys/bus/dax/drivers/device_dax/new_id
    ls -l /sys/bus/dax/devices/dax0.0/driver
}

# case_ NAME SECONDS COMMAND: in a shell of its own, which is ended when its time is over.
case_() {
    echo "@@ begin $1"
    began=$(cut -d. -f1 /proc/uptime)
    timeout -k 5 "$2" sh -c ". /functions.sh; $3"
    status=$?
    if [ "$status" = 143 ]; then
        echo "its time is over; what is left of it, and where:"
        cat /proc/uptime /proc/loadavg
        for task in /proc/[0-9]*/task/*; do
            [ -n "$(cat "$task/cmdline")" ] || continue
            echo "$task $(cat "$task/comm") $(cut -d' ' -f3,14,15 "$task/stat") $(cat "$task/syscall")"
            cat "$task/stack"
        done
    fi
    # Whatever it left behind: everybody but this process.
    kill -9 -1 2>/dev/null
    echo
    echo "@@ end $1 $status $(($(cut -d. -f1 /proc/uptime) - began))"
}

. /boot.sh
echo "@@ done"
sync
poweroff -f
