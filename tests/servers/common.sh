# shellcheck shell=bash
# What the server scripts share: words to the user, packages, ports, and processes that are started and ended.
#
# Sourced, never run. Never ends a process that it did not start: one is known by its pid and the moment it began,
# so that a pid that was given to somebody else in the meantime is left alone.

say() { printf '%s\n' "$*" >&2; }

die() {
    say "error: $*"
    exit 1
}

# dispatch COMMAND ARGUMENTS...: the command line that all server scripts have.
dispatch() {
    local command=${1-}
    [[ $# -gt 0 ]] && shift
    case $command in
        install) install ;;
        start) start "${1:?start needs a folder}" "${2-}" ;;
        stop) stop "${1:?stop needs a folder}" ;;
        kill) crash "${1:?kill needs a folder}" ;;
        *) die "unknown command \`$command\`; use: $0 install | start DIR [PORT] | stop DIR | kill DIR" ;;
    esac
}

# need COMMAND PACKAGE [VARIABLE]: has COMMAND, by Debian's PACKAGE where that is possible; a server that runs already
# can be named in VARIABLE instead.
need() {
    local command=$1 package=$2 variable=${3-}
    command -v "$command" >/dev/null && return 0
    if can_install; then
        say "$command is missing: installing $package"
        apt_get "$package" && command -v "$command" >/dev/null && return 0
    fi
    die "$command is missing and could not be installed. Install it (Debian: apt-get install $package)" \
        "${variable:+or name a server that runs already in $variable (compose.yaml has one: docker compose up --detach)}"
}

# need_build_tools: what the crates need besides Rust. librdkafka is C, and its TLS needs OpenSSL's headers.
need_build_tools() {
    command -v cargo >/dev/null || die "cargo is missing: install Rust first, https://rustup.rs says how"
    need cc build-essential
    need make build-essential
    need pkg-config pkg-config
    pkg-config --exists openssl && return 0
    if can_install; then apt_get libssl-dev && return 0; fi
    die "OpenSSL's headers are missing and could not be installed. Install them (Debian: apt-get install libssl-dev)"
}

can_install() { command -v apt-get >/dev/null && [[ $(id -u) -eq 0 ]]; }

# RUNLEVEL=1 keeps the package from starting a service of its own: the tests start private ones.
apt_get() {
    export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
    local options=(-qq -o DPkg::Lock::Timeout=300)
    {
        apt-get "${options[@]}" update || say "apt-get update failed: trying with the package lists that are here"
        apt-get "${options[@]}" install --yes --no-install-recommends "$@"
    } </dev/null >&2
}

# make_folder DIR: DIR, made where missing, as an absolute path.
make_folder() {
    mkdir -p "$1"
    (cd "$1" && pwd)
}

# listens PORT: whether something accepts connections there.
listens() { (: <>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# free_port: below the range that the system hands to outgoing connections, so that none of them takes it.
free_port() {
    local port
    for _ in {1..100}; do
        port=$((20000 + RANDOM % 12000))
        listens "$port" || { echo "$port" && return; }
    done
    die "found no free port between 20000 and 32000"
}

# spawn DIR NAME COMMAND...: runs COMMAND in the background; pid in DIR/NAME.pid, output in DIR/NAME.log.
spawn() {
    local dir=$1 name=$2
    shift 2
    runs "$dir" "$name" && die "$name runs already in $dir; stop it first"
    [[ -f $dir/$name.log ]] && mv "$dir/$name.log" "$dir/$name.previous.log"
    # A process group of its own: Ctrl-C reaches the tests only, and their end stops the servers in order.
    set -m
    "$@" </dev/null >"$dir/$name.log" 2>&1 &
    set +m
    printf '%s %s\n' "$!" "$(began "$!")" >"$dir/$name.pid"
    disown
}

# began PID: the moment a process began, as the system writes it; nothing if there is none, or if it has ended and
# only waits to be noticed by its parent (a zombie), which may take seconds.
began() {
    if [[ -d /proc/self ]]; then
        sed -n 's/^.*) [^ZX] //p' "/proc/$1/stat" 2>/dev/null | cut -d ' ' -f 19
    else
        ps -o state=,lstart= -p "$1" | sed -n 's/^[^ZX][^ ]* *//p'
    fi
}

# runs DIR NAME: whether the process that spawn started is still there.
runs() {
    local pid start
    [[ -f $1/$2.pid ]] || return 1
    # Not every file of that name is ours: RabbitMQ writes one with a pid alone.
    read -r pid start <"$1/$2.pid" || true
    [[ -n $start && $(began "$pid") == "$start" ]]
}

# end DIR NAME [SIGNAL]: TERM unless told otherwise; KILL for what is still there after 30 seconds.
end() {
    local dir=$1 name=$2 signal=${3-TERM} pid
    # A bare `return` would hand on the status of what came before, which in a trap is the status that ends the script.
    runs "$dir" "$name" || { rm -f "$dir/$name.pid" && return 0; }
    read -r pid _ <"$dir/$name.pid"
    kill "-$signal" "$pid" 2>/dev/null || true
    if ! wait_for 30 gone "$dir" "$name"; then
        say "$name in $dir did not end on $signal: killed"
        kill -KILL "$pid" 2>/dev/null || true
        wait_for 10 gone "$dir" "$name" || die "process $pid ($name in $dir) cannot be ended"
    fi
    rm -f "$dir/$name.pid"
}

gone() { ! runs "$1" "$2"; }

# wait_for SECONDS COMMAND...: until COMMAND succeeds, or SECONDS have passed.
wait_for() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < end)) || return 1
        sleep 0.05
    done
}

# wait_ready SECONDS DIR NAME COMMAND...: until COMMAND succeeds; a server that ends or is late is shown and stopped.
wait_ready() {
    local seconds=$1 dir=$2 name=$3
    shift 3
    if wait_for "$seconds" ready_or_gone "$dir" "$name" "$@" && runs "$dir" "$name"; then return 0; fi
    say "the last lines of $dir/$name.log:"
    tail -n 30 "$dir/$name.log" >&2
    stop "$dir"
    die "$name in $dir did not get ready: it ended by itself, or $seconds seconds passed"
}

ready_or_gone() {
    local dir=$1 name=$2
    shift 2
    gone "$dir" "$name" || "$@"
}
