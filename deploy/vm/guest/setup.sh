#!/bin/busybox sh
# Runs on the host's files in the guest, as process 1: file systems, addresses, rxe0; then becomes
# the agent. Whatever fails here is said on the console and ends the guest.
# mount and the like are busybox's own, which is one program without libraries: under emulation the
# host's take ten times as long to start. modprobe, ip and rdma are the host's.
# Parameters (environment): SANPROXY_VM_CHECKOUT, _MODULES, _SHARE, _ROLE, _ADDRESS, _PEER_ADDRESS.
set -eu
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
exec </dev/null >/dev/console 2>&1
say() { echo "vm: $*"; }
trap 'say "cannot go on: setup ended with $?"; echo o >/proc/sysrq-trigger; sleep 10' EXIT

checkout=$SANPROXY_VM_CHECKOUT
interface=roce0

# The modules and the checkout may lie below /tmp, which gets hidden: take hold of them first.
release=$(uname -r)
mkdir -p "/lib/modules/$release"
mount --bind "$SANPROXY_VM_MODULES" "/lib/modules/$release"
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lock /run/checkout
mount --bind "$checkout" /run/checkout
mount -t tmpfs -o mode=1777 tmpfs /tmp
mkdir -p "$checkout"
mount --bind /run/checkout "$checkout"
umount /run/checkout
rmdir /run/checkout
mkdir -p "$SANPROXY_VM_SHARE"
mount -t 9p -o trans=virtio,version=9p2000.L,rw,cache=mmap,msize=512000 share "$SANPROXY_VM_SHARE"

mkdir -p /dev/pts /dev/shm /run/home
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs tmpfs /var/tmp
chmod 1777 /var/tmp
mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null || true
ln -sfn /proc/self/fd /dev/fd
ln -sfn fd/0 /dev/stdin
ln -sfn fd/1 /dev/stdout
ln -sfn fd/2 /dev/stderr

name=sanproxy-vm
[ "$SANPROXY_VM_ROLE" = single ] || name=sanproxy-vm-$SANPROXY_VM_ROLE
echo "$name" >/proc/sys/kernel/hostname
printf '127.0.0.1 localhost %s\n::1 localhost\n' "$name" >/etc/hosts

say "making $interface and rxe0"
# Without crc32_generic rxe says "failed to add".
/sbin/modprobe -a crc32_generic tun veth rdma_rxe rdma_ucm ib_umad
sysctl -q -w net.ipv4.tcp_congestion_control=cubic \
  net.core.rmem_max=8388608 net.core.wmem_max=8388608
# active_mtu follows from the MTU: 4300 leaves room for 4096 bytes of payload.
if [ "$SANPROXY_VM_ROLE" = single ]; then
  /sbin/ip -batch - <<END
link add $interface type veth peer name ${interface}-peer
link set ${interface}-peer mtu 4300 up
address add $SANPROXY_VM_PEER_ADDRESS/24 dev $interface
END
else
  /sbin/modprobe virtio_net
  card=$(cd /sys/bus/virtio/drivers/virtio_net/virtio*/net && echo *)
  /sbin/ip link set "$card" name "$interface"
fi
/sbin/ip -batch - <<END
link set lo up
link set $interface mtu 4300 up
address add $SANPROXY_VM_ADDRESS/24 dev $interface
END
rdma link add rxe0 type rxe netdev "$interface"

ulimit -l unlimited
ulimit -n 1000000
export SANPROXY_VM=1 SANPROXY_VM_INTERFACE=$interface SANPROXY_VM_DEVICE=rxe0
export HOME=/run/home TMPDIR=/tmp LANG=C.UTF-8 SHELL=/bin/sh USER=root LOGNAME=root
export PATH=$checkout/deploy/vm/guest/bin:$PATH
unset TERM
trap - EXIT
exec /usr/bin/python3 -IS "$checkout/deploy/vm/guest/agent.py"
