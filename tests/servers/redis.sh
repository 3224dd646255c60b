#!/usr/bin/env bash
# A private Redis server: install | start DIR [PORT] | stop DIR | kill DIR.
#
# Everything it writes is in DIR. A DIR that was started before is started again on its port, with its data and
# DIR/server.conf as they are (that file keeps what Redis itself wrote at a failover). Lines that the first start shall
# add to it (replicaof, appendonly yes, cluster-enabled yes, requirepass, ...) stand in DIR/extra.conf; where one of
# them is a `sentinel` line, a Sentinel is started. Prints the environment for its users, one NAME=VALUE a line.
set -euo pipefail
# shellcheck source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

install() { need redis-server redis-server REDIS_URL; }

start() {
    local dir port flags=()
    dir=$(make_folder "$1")
    [[ -f $dir/env ]] || configure "$dir" "${2:-$(free_port)}"
    port=$(<"$dir/port")
    if grep -qi '^sentinel ' "$dir/server.conf"; then flags=(--sentinel); fi
    spawn "$dir" redis redis-server "$dir/server.conf" ${flags[@]+"${flags[@]}"}
    wait_ready 30 "$dir" redis answers "$port"
    cat "$dir/env"
}

stop() { end "$1" redis; }

crash() { end "$1" redis KILL; }

configure() {
    local dir=$1 port=$2
    echo "$port" >"$dir/port"
    cat >"$dir/server.conf" <<CONF
port $port
bind 127.0.0.1
dir "$dir"
save ""
appendonly no
CONF
    if [[ -f $dir/extra.conf ]]; then cat "$dir/extra.conf" >>"$dir/server.conf"; fi
    cat >"$dir/env" <<ENV
REDIS_URL=redis://127.0.0.1:$port
REDELIVER_REDIS_BIN=$(dirname "$(command -v redis-server)")
ENV
}

# Redis listens before it has loaded its data, and says LOADING until then.
answers() {
    listens "$1" || return 1
    local answer
    answer=$(redis-cli -h 127.0.0.1 -p "$1" ping 2>&1 || true)
    [[ $answer != LOADING* && $answer != *refused* ]]
}

dispatch "$@"
