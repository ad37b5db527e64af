# Copies the root file system of a build stage to the directory $1, less what no program of the image ever runs: the
# package manager and what it alone stands on, Perl, accounts and file system tools, documentation but the licences.
#
# Packages go through dpkg, so that its list, which scanners and the bill of materials read, says what is there. Others
# say that they depend on some of them, but debconf asks nobody here, and accounts are not made.
set -eu

# In this order: what their scripts run is removed after them.
gone="
  apt debian-archive-keyring gpgv libapt-pkg6.0 libseccomp2 libxxhash0
  libgnutls30 libhogweed6 libidn2-0 libnettle8 libp11-kit0 libtasn1-6 libunistring2
  adduser login passwd libsemanage2 libsemanage-common libsepol2 libpam-runtime libpam-modules libpam-modules-bin
  e2fsprogs libext2fs2 libss2 logsave tzdata usr-is-merged readline-common
  debconf perl-base
"
# A base that is made anew may lack one of them.
there=$(for package in $gone; do dpkg-query -W -f '${Package} ' "$package" 2>/dev/null || true; done)
dpkg --purge --force-depends --force-remove-essential --force-remove-protected $there

# Not by files' times: a build that sets them all to one would make every compiled module look stale.
python3 -m compileall -q -f --invalidation-mode unchecked-hash /usr/lib/python3*

find / -xdev -perm /6000 -type f -exec chmod ug-s {} +
mkdir "$1"
# Names and resolvers are the build's own; who runs a container gives it others.
tar -C / --one-file-system --sort=name --exclude="./${1#/}" --exclude=./trim.sh \
  --exclude=./etc/hostname --exclude=./etc/hosts --exclude=./etc/resolv.conf --exclude=./etc/apt \
  --exclude='./tmp/*' --exclude='./run/*' --exclude='./var/cache/*' --exclude='./var/log/*' \
  --exclude=./var/lib/apt --exclude='./var/lib/dpkg/*-old' --exclude='./usr/lib/*-linux-gnu/gconv' \
  --exclude=./usr/share/locale --exclude=./usr/share/man --exclude=./usr/share/info \
  --exclude=./usr/share/bash-completion \
  -cf - . | tar -C "$1" -xf -
