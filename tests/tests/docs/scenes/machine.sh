# A Debian machine whose packages and services are this section's own, with the address 10.0.0.1. Its
# user, whose commands are those at `$ `, has the uid 1000, and may use a Docker engine.

# A folder of the machine as it is there. What is changed in it is in memory.
own_folder() {
    local changes=/tmp/out/changes$1
    mkdir -p "$changes"/{upper,work} &&
        mount -t overlay -o "lowerdir=$1,upperdir=$changes/upper,workdir=$changes/work" overlay "$1"
}
own_folder /etc && own_folder /var/lib && mount -t tmpfs -o mode=755 tmpfs /run || return
# What is in these is made of overlays itself, and none may be on one.
for folder in docker hsup; do
    mkdir -p "/var/lib/$folder" && mount -t tmpfs -o mode=700 tmpfs "/var/lib/$folder" || return
done
rm -f /etc/docker/daemon.json
# Cgroups are the machine's, and in no namespace of the section: what makes some has one for them.
export LIBCONTAINER_CGROUP_PARENT=/$own

# A kernel need not have the kind `dummy`.
ip link add eth0 type veth peer name other0 &&
    ip addr add 10.0.0.1/24 dev eth0 && ip link set eth0 up && ip link set other0 up || return
hostname shop-1

chown -R 1000:1000 /tmp/home /tmp/rt /tmp/here
chmod 700 /tmp/rt
user=(setpriv --reuid 1000 --regid 1000 --groups "1000,$(getent group docker | cut -d: -f3)"
    env "HOME=$HOME" "XDG_RUNTIME_DIR=$XDG_RUNTIME_DIR" "XDG_STATE_HOME=$XDG_STATE_HOME")
# Root's are none of these, and neither of them has an engine elsewhere.
export HOME=/tmp/out/root
unset XDG_RUNTIME_DIR XDG_STATE_HOME DOCKER_HOST DOCKER_CONTEXT DOCKER_CONFIG
mkdir "$HOME" && cp /tmp/home/.curlrc "$HOME" || return

# Stands in for the real one, which would fetch packages: they are there.
apt-get() {
    [ "$1" = install ] || { echo "apt-get: only \`apt-get install\` is run here"; return 1; }
    dpkg --status "${@:2}" >/dev/null
}

# Stands in for the real one, which asks a systemd: starts what the unit says, as the user whom it
# names. A unit of the kind `notify` is started when it is ready; so are all here.
declare -gA units
systemctl() {
    local unit=$2 file=/lib/systemd/system/$2.service command user DOCKER_OPTS ready
    [ "$1" = restart ] || { echo "systemctl: only \`systemctl restart\` is run here"; return 1; }
    [ -z "${units[$unit]}" ] || { kill "${units[$unit]}" && wait "${units[$unit]}"; }
    command=$(sed -n 's/^ExecStart=//p' "$file") && [ -n "$command" ] || return 1
    user=$(sed -n 's/^User=//p' "$file")
    case $unit in
        docker)
            # Its socket and its containerd are units of their own, which it makes itself without them.
            command=${command/-H fd:\/\/ --containerd=\/run\/containerd\/containerd.sock/}
            DOCKER_OPTS="--cgroup-parent /$own"
            ready='docker version'
            ;;
        docker-registry) ready='curl http://localhost:5000/v2/' ;;
        *) echo "systemctl: no unit $unit here"; return 1 ;;
    esac
    eval "exec ${user:+setpriv --reuid $user --regid $user --init-groups} $command" >"/tmp/out/$unit.log" 2>&1 &
    units[$unit]=$!
    becomes $! $ready >/dev/null || { cat "/tmp/out/$unit.log"; return 1; }
}

# Stands in for the real one, which would fetch a distribution: of this machine's own files.
debootstrap() {
    /tmp/out/stack "${@: -1}" >/dev/null
}
