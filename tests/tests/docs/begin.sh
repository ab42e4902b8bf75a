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
mount --rbind "$1" /tmp
cd /tmp/here
export HOME=/tmp/home XDG_RUNTIME_DIR=/tmp/rt XDG_STATE_HOME=/tmp/home/state TMPDIR=/tmp
export PATH=/tmp/bin:$PATH
# To a terminal it does not show its progress either.
echo silent >"$HOME/.curlrc"
set +e
service=''

# How it ended, and what it printed.
report() {
    printf '\036%s\n' "$1"
    cat /tmp/out/printed
}

run() {
    eval "$1" >/tmp/out/printed 2>&1 </dev/null
    report $?
}

# hsup answers, and its dynos are as they should be, or there is nothing for it to run yet.
is_up() {
    hsupctl ps >/dev/null 2>&1 || grep -q 'No release yet' /tmp/out/printed
}

serve() {
    local tries code=late
    end_service
    eval "$1" >/tmp/out/printed 2>&1 </dev/null &
    service=$!
    for tries in $(seq 400); do
        is_up && code=up && break
        kill -0 $service 2>/dev/null || { code=ended; break; }
        sleep 0.1
    done
    report $code
    # It goes on writing to what has no name any more.
    rm /tmp/out/printed
}

end_service() {
    [ -n "$service" ] || return 0
    hsupctl shutdown >/dev/null 2>&1
    wait $service
    service=''
}
