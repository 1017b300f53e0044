#!/bin/busybox sh
# The guest's first program, from the initramfs: mounts the host's root read-only with a tmpfs over
# it, and goes on there. Parameters come as environment variables from the kernel's command line.
export PATH=/bin
say() { echo "vm: $*" >/dev/console; }
die() { say "cannot go on: $*"; poweroff -f; }

busybox mkdir -p /proc /sys /dev /lower /room /new
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null

say "kernel is up, loading modules"
while read -r module; do
  insmod "/modules/$module" || die "no module $module"
done </modules/order

say "mounting the host's files"
mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=512000 root /lower ||
  die "the host's root does not mount"
mount -t tmpfs -o size=75%,mode=755 tmpfs /room || die "no tmpfs"
mkdir /room/upper /room/work
mount -t overlay -o lowerdir=/lower,upperdir=/room/upper,workdir=/room/work overlay /new ||
  die "no overlay"
for folder in proc sys dev; do
  mount --move "/$folder" "/new/$folder" || die "$folder does not move"
done
exec switch_root /new /bin/busybox sh "$SANPROXY_VM_CHECKOUT/deploy/vm/guest/setup.sh"
