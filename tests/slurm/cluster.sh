# Sourced: a Slurm of one node on this machine, in the folder $ROOT, without systemd; as root, with Debian's packages
# slurmctld, slurmd, slurm-client and munge. `cluster_start` returns when it takes jobs, `cluster_stop` ends it.
# shellcheck shell=bash
export SLURM_CONF=$ROOT/slurm.conf

cluster_start() {
    mkdir -p "$ROOT"/{state,spool,munge}
    chmod 700 "$ROOT/munge" # munged refuses a socket or key that others may replace
    head -c 1024 /dev/urandom >"$ROOT/munge/key"
    chmod 400 "$ROOT/munge/key"
    local host
    host=$(hostname -s)
    # without cgroups: processes are found by their parents; a requeued job waits for cred_expire + 1 seconds
    cat >"$SLURM_CONF" <<CONF
ClusterName=arcvae
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
AuthInfo=socket=$ROOT/munge/socket,cred_expire=5
StateSaveLocation=$ROOT/state
SlurmdSpoolDir=$ROOT/spool
SlurmctldPidFile=$ROOT/slurmctld.pid
SlurmdPidFile=$ROOT/slurmd.pid
SlurmctldLogFile=$ROOT/slurmctld.log
SlurmdLogFile=$ROOT/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
SwitchType=switch/none
KillWait=20
$(slurmd -C | head -n 1)
PartitionName=main Nodes=$host Default=YES
CONF
    sed -i "s/^NodeName=$host /&NodeAddr=127.0.0.1 /" "$SLURM_CONF"
    munged --force --key-file="$ROOT/munge/key" --socket="$ROOT/munge/socket" --pid-file="$ROOT/munge/pid" \
        --log-file="$ROOT/munge/log" --seed-file="$ROOT/munge/seed"
    slurmctld -c
    slurmd -c
    for _ in $(seq 30); do
        [ "$(sinfo --noheader --format=%T)" = idle ] && return
        sleep 1
    done
    echo "the node is not idle after 30 seconds: see $ROOT/*.log" && return 1
}

cluster_stop() {
    scancel --full --partition=main 2>/dev/null
    for daemon in slurmd slurmctld munge/; do
        kill "$(cat "$ROOT/$daemon"*pid)" 2>/dev/null
    done
    sleep 1 # they write as they end
}
