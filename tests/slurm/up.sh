#!/usr/bin/env bash
# A Slurm of one node on loopback, by hand: munged, slurmctld, slurmd; root, no systemd, everything in one folder.
# usage: up.sh FOLDER      needs the Debian packages slurmctld slurmd slurm-client munge
#
# Two partitions, cpu and gpu; the two GPUs are names for /dev/null. /etc/slurm/slurm.conf becomes a link into FOLDER, as
# what Snakemake starts inside of a job does not know SLURM_CONF.
set -euo pipefail
folder=$(realpath -m "${1:?a folder to run in}")
node=$(hostname -s)
conf=/etc/slurm/slurm.conf
if [ -e $conf ] && [ ! -L $conf ]; then
  echo "error: $conf exists: this machine has a Slurm of its own, which is left alone" >&2
  exit 2
fi

mkdir -p "$folder"/{munge,state,spool,log} /etc/slurm
chmod 755 "$folder"
chmod 711 "$folder/munge"
cat >"$folder/slurm.conf" <<END
ClusterName=tests
SlurmctldHost=$node(127.0.0.1)
SlurmUser=root
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
AuthInfo=socket=$folder/munge/munge.socket
CryptoType=crypto/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/filetxt
JobCompLoc=$folder/jobs.txt
MpiDefault=none
ReturnToService=2
SchedulerParameters=bf_interval=5,sched_interval=5
MinJobAge=3600
GresTypes=gpu
NodeName=$node NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=${SLURM_TEST_MB:-64000} Gres=gpu:2 State=UNKNOWN
PartitionName=cpu Nodes=$node Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes=$node MaxTime=INFINITE State=UP
END
# no node is drained for having less memory than these tests' jobs ask for
echo "SlurmdParameters=config_overrides" >>"$folder/slurm.conf"
printf 'NodeName=%s Name=gpu File=/dev/null\nNodeName=%s Name=gpu File=/dev/zero\n' "$node" "$node" >"$folder/gres.conf"
ln -sfn "$folder/slurm.conf" $conf
ln -sfn "$folder/gres.conf" /etc/slurm/gres.conf

[ -f "$folder/munge/key" ] || (umask 077 && head -c 1024 /dev/urandom >"$folder/munge/key")
munged --force --key-file="$folder/munge/key" --socket="$folder/munge/munge.socket" --pid-file="$folder/munge/munged.pid" \
  --log-file="$folder/munge/munged.log" --seed-file="$folder/munge/seed"
slurmctld -f $conf
slurmd -f $conf -N "$node"
for _ in $(seq 60); do
  if sinfo -h -o %T 2>/dev/null | grep -q idle; then
    sinfo -o "%P %T %c %m %G"
    exit 0
  fi
  sleep 0.5
done
echo "error: no idle node after 30 s; see $folder/log" >&2
exit 1
