#!/usr/bin/env bash
# What the tests need from the system; installed where we may (root on Debian), else named.
# `tests/system-packages.sh slurm`: also a real Slurm, for the tests of that kind.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
missing=()
need() { command -v "$1" >/dev/null || missing+=("$2"); } # PROGRAM PACKAGE
need shellcheck shellcheck
need git git
python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
if [ "${1:-}" = slurm ]; then
  need munged munge
  need slurmctld slurmctld
  need slurmd slurmd
  need sbatch slurm-client
  need slurmdbd slurmdbd
  need mariadbd mariadb-server-core
  need mariadb mariadb-client-core
  need modulecmd environment-modules
fi
[ "${#missing[@]}" -gt 0 ] || exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
  echo "error: missing: ${missing[*]}" >&2
  echo "hint: install them with your system's package manager, then run make again" >&2
  exit 2
fi
if [ ! -e /usr/sbin/policy-rc.d ]; then # the tests start their own daemons: the packages shall not
  trap 'rm -f /usr/sbin/policy-rc.d' EXIT
  printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
  chmod +x /usr/sbin/policy-rc.d
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
