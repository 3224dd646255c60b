#!/usr/bin/env bash
# A private RabbitMQ node: install | start DIR [PORT] | stop DIR | kill DIR.
#
# Everything it writes is in DIR. A DIR that was started before is started again on its ports, with its data and
# DIR/server.conf as they are. Lines that the first start shall add to that file (TLS listeners, consumer_timeout, ...)
# stand in DIR/extra.conf; the plugins that it shall have in DIR/plugins, `[rabbitmq_management].` unless told otherwise
# (a node with it takes 5 seconds longer to stop: `[].` where nobody asks it over HTTP).
# RABBITMQ_PROGRAMS=FOLDER starts the version whose `rabbitmq-server` and `rabbitmqctl` are there, not the installed one.
# DIR/rabbitmqctl controls this node. Prints the environment for its users, one NAME=VALUE a line.
set -euo pipefail
# shellcheck source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

install() { [[ -n ${RABBITMQ_PROGRAMS-} ]] || need rabbitmq-server rabbitmq-server RABBITMQ_URL; }

start() {
    local dir
    dir=$(make_folder "$1")
    [[ -f $dir/env ]] || configure "$dir" "${2:-$(free_port)}"
    # shellcheck source=/dev/null
    . "$dir/node.sh"
    # A name server of its own: the machine's is shared with other nodes and would stay behind.
    runs "$dir" epmd || spawn "$dir" epmd epmd -port "$ERL_EPMD_PORT" -address 127.0.0.1
    wait_ready 60 "$dir" epmd listens "$ERL_EPMD_PORT"
    spawn "$dir" rabbitmq "$(programs)/rabbitmq-server"
    wait_ready 300 "$dir" rabbitmq booted "$dir/rabbitmq.log"
    cat "$dir/env"
}

stop() {
    end "$1" rabbitmq
    end "$1" epmd
}

crash() {
    end "$1" rabbitmq KILL
    end "$1" epmd KILL
}

configure() {
    local dir=$1 port=$2
    [[ -f $dir/plugins ]] || echo '[rabbitmq_management].' >"$dir/plugins"
    write_node "$dir" "$port" >"$dir/node.sh"
    write_control "$dir" >"$dir/rabbitmqctl"
    chmod +x "$dir/rabbitmqctl"
    echo 'collect_statistics_interval = 1000' >"$dir/server.conf"
    cat >"$dir/env" <<ENV
RABBITMQ_URL=amqp://127.0.0.1:$port/%2f
REDELIVER_RABBITMQCTL=$dir/rabbitmqctl
ENV
    if grep -q management "$dir/plugins"; then configure_management "$dir" "$(free_port)"; fi
    if [[ -f $dir/extra.conf ]]; then cat "$dir/extra.conf" >>"$dir/server.conf"; fi
}

configure_management() {
    local dir=$1 port=$2
    printf 'management.tcp.%s\n' 'ip = 127.0.0.1' "port = $port" >>"$dir/server.conf"
    echo "RABBITMQ_MANAGEMENT_URL=http://guest:guest@127.0.0.1:$port" >>"$dir/env"
}

# What the node and its control command must agree on. HOME holds the Erlang cookie.
# ALLOW_INPUT makes the server's script become the server, so that its pid is ours to end; -noinput takes its other
# meaning back. The schedulers do not spin: the cores belong to the tests.
write_node() {
    local dir=$1 port=$2
    cat <<NODE
export HOME='$dir' ERL_EPMD_PORT=$(free_port)
export RABBITMQ_NODENAME=redeliver-$port@localhost RABBITMQ_NODE_IP_ADDRESS=127.0.0.1
export RABBITMQ_NODE_PORT=$port RABBITMQ_DIST_PORT=$(free_port)
export RABBITMQ_MNESIA_BASE='$dir/data' RABBITMQ_LOG_BASE='$dir/log'
export RABBITMQ_CONFIG_FILE='$dir/server.conf' RABBITMQ_ENABLED_PLUGINS_FILE='$dir/plugins'
export RABBITMQ_ALLOW_INPUT=1 RABBITMQ_SERVER_START_ARGS=-noinput
export RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS='+sbwt none +sbwtdcpu none +sbwtdio none'
NODE
}

write_control() {
    cat <<CONTROL
#!/bin/sh
. '$1/node.sh'
exec '$(programs)/rabbitmqctl' --node "\$RABBITMQ_NODENAME" "\$@"
CONTROL
}

# Debian's wrapper on the PATH becomes the user rabbitmq when root calls it, and then cannot write our folder.
programs() {
    local packaged newest=
    for packaged in /usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin; do newest=$packaged; done
    if [[ -n ${RABBITMQ_PROGRAMS-} ]]; then
        echo "$RABBITMQ_PROGRAMS"
    elif [[ -d $newest ]]; then
        echo "$newest"
    else
        dirname "$(command -v rabbitmq-server)"
    fi
}

# It listens before it has booted, and a node that is told to stop in between hangs.
booted() { grep -q 'completed with' "$1"; }

dispatch "$@"
