#!/usr/bin/env bash
# Ends what up.sh started in a folder, and takes its links out of /etc/slurm.
# usage: down.sh FOLDER
set -uo pipefail
folder=$(realpath -m "${1:?the folder that up.sh was given}")
if [ -f "$folder/slurmctld.pid" ]; then
  scancel --quiet --state=PENDING --state=RUNNING --user="$(id -un)" 2>/dev/null
fi
for daemon in slurmd slurmctld munge/munged; do
  pid=$(cat "$folder/$daemon.pid" 2>/dev/null) || continue
  kill "$pid" 2>/dev/null
  for _ in $(seq 40); do
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.25
  done
done
for name in slurm.conf gres.conf; do
  link=/etc/slurm/$name
  if [ "$(readlink $link)" = "$folder/$name" ]; then
    rm $link
  fi
done
