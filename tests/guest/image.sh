#!/bin/bash
# Makes in DIR what QEMU boots: Debian's stock kernel (DIR/vmlinuz) and an initramfs (DIR/base.cpio)
# with soft-RoCE, the RDMA tools and an init that runs /job.sh. Downloads packages, installs none.
#
# usage: image.sh DIR
set -euo pipefail
dir=$1
here=$(cd "$(dirname "$0")" && pwd)
tools=(bash busybox-static iproute2 kmod perftest ibverbs-providers libibverbs1
  libgcc-s1 tcpdump)
modules=(rdma_rxe ib_uverbs rdma_ucm crc32_generic veth sch_netem sch_tbf sch_red sch_ingress cls_bpf
  cls_matchall act_gact)

if [[ -e $dir/base.cpio && $dir/base.cpio -nt $here/image.sh && $dir/base.cpio -nt $here/init ]]; then
  exit 0
fi
rm -rf "$dir"
mkdir -p "$dir"/{packages,root}
cd "$dir"

kernel=$(apt-cache depends linux-image-amd64 | awk '/Depends: linux-image-/ {print $2; exit}')
version=${kernel#linux-image-}
# Everything that the tools need, and what that needs; virtual packages have no archive of their own.
needed=$(apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks \
  --no-replaces --no-enhances "${tools[@]}" | grep -E '^[a-z0-9]' | sort -u |
  grep -vE '^(debconf|perl-base|dpkg|tar|udev|adduser|passwd|login|libpam.*|systemd.*|init-system-helpers)$')
(cd packages && apt-get -qq -o APT::Sandbox::User=root download "$kernel" $needed)
for package in packages/*.deb; do
  dpkg -x "$package" root
done
mv "root/boot/vmlinuz-$version" vmlinuz

# Only the modules that are loaded, and what they need.
mkdir -p kernel/lib && mv root/lib/modules kernel/lib/
depmod -b "$PWD/kernel" "$version"
mkdir -p "root/lib/modules/$version"
for module in "${modules[@]}"; do
  modprobe -d "$PWD/kernel" -S "$version" --show-depends "$module"
done | awk '$1 == "insmod" {print $2}' | sort -u | while read -r file; do
  to=root/lib/modules/$version/$(basename "${file%.xz}")
  if [[ $file == *.xz ]]; then xz -dc "$file" >"$to"; else cp "$file" "$to"; fi
done
touch "root/lib/modules/$version/modules."{order,builtin,builtin.modinfo}
depmod -b "$PWD/root" "$version"

rm -rf root/usr/share root/usr/lib/udev root/lib/udev root/boot packages kernel
mkdir -p root/{proc,sys,dev,tmp,run/netns,root,var/lib}
ln -sfn bash root/bin/sh
install -m 755 "$here/init" root/init
(cd root && find . | cpio --quiet -o -H newc -R 0:0) >base.cpio.new
rm -rf root
mv base.cpio.new base.cpio
