# What a page's commands find, and how they are run. $1: an empty folder; $2: hsup's programs;
# $3: the repository.
set -e
# Nothing of this machine is changed but what is in memory.
mount -o remount,bind,ro /
ip link set lo up
# nginx makes folders there when it is first run on a machine.
[ ! -d /var/lib/nginx ] || mount -t tmpfs tmpfs /var/lib/nginx
mount -t tmpfs tmpfs "$1"
mkdir -p "$1"/{home,rt,out,bin,here/target}
mount --bind "$2" "$1/bin"
cp -r "$3/examples" "$1/here"
for profile in release debug; do ln -s ../../bin "$1/here/target/$profile"; done
# For scenes alone.
cp -r "$3"/{tests/tests/docs/scenes,tests/docker/stack,docs/swarm.md} "$1/out"
mount --rbind "$1" /tmp
cd /tmp/here
export HOME=/tmp/home XDG_RUNTIME_DIR=/tmp/rt XDG_STATE_HOME=/tmp/home/state TMPDIR=/tmp
export PATH=/tmp/bin:$PATH
# To a terminal it does not show its progress either.
echo silent >"$HOME/.curlrc"
set +e
service=''
# A name that nothing else on this machine has.
own=${1##*/}
# What runs the commands of another user, where a scene has one.
user=()

# What a block needs, each once.
declare -A scenes
scene() {
    [ -z "${scenes[$1]}" ] || return 0
    scenes[$1]=made
    . "/tmp/out/scenes/$1.sh"
}

as_root() { eval "$1"; }

as_user() {
    [ "${#user[@]}" -gt 0 ] || { eval "$1"; return; }
    # The user's next command finds what this one has exported, and is where it went.
    "${user[@]}" bash -c '
        [ ! -e /tmp/rt/terminal ] || . /tmp/rt/terminal
        eval "$1"
        code=$?
        { export -p; printf "cd %q\n" "$PWD"; } >/tmp/rt/terminal
        exit $code' bash "$1"
}

# What came of the process $1, which goes on: `up` once the command succeeds, else `ended` or `late`.
becomes() {
    local tries
    for tries in $(seq 900); do
        "${@:2}" >/dev/null 2>&1 && { echo up; return; }
        kill -0 "$1" 2>/dev/null || { echo ended; return 1; }
        sleep 0.1
    done
    echo late
    return 1
}

# A page's programs are there already.
cargo() {
    local program
    [ "$1" = build ] || { echo "cargo: only \`cargo build\` is run here"; return 1; }
    for program in hsup hsupctl hsup-shim hsup-driver-{simple,docker,libcontainer,check,example}; do
        [ -x "/tmp/bin/$program" ] || { echo "cargo: $program is not built"; return 1; }
    done
}

# How it ended, and what it printed.
report() {
    printf '\036%s\n' "$1"
    cat /tmp/out/printed
}

run() {
    "$@" >/tmp/out/printed 2>&1 </dev/null
    report $?
}

# hsup answers, and its dynos are as they should be, or there is nothing for it to run yet.
is_up() {
    as_user 'hsupctl ps' || grep -q 'No release yet' /tmp/out/printed
}

serve() {
    end_service
    "$@" >/tmp/out/printed 2>&1 </dev/null &
    service=$!
    report "$(becomes $service is_up)"
    # It goes on writing to what has no name any more.
    rm /tmp/out/printed
}

end_service() {
    [ -n "$service" ] || return 0
    as_user 'hsupctl shutdown' >/dev/null 2>&1
    wait $service
    service=''
}

# Somebody speaks gRPC there, whatever he says.
answers() {
    curl --max-time 5 --http2-prior-knowledge --unix-socket "$1" http://localhost
}

# A driver that is a service ends with all else in here.
drive() {
    "$@" >/tmp/out/printed 2>&1 </dev/null &
    [[ $2 =~ --socket\ ([^ ]+) ]]
    report "$(becomes $! answers "${BASH_REMATCH[1]}")"
    rm /tmp/out/printed
}
