#!/usr/bin/env bash
# A private Apache Kafka broker (KRaft): install | start DIR [PORT] | stop DIR | kill DIR.
#
# Everything it writes is in DIR. A DIR that was started before is started again on its ports, with its data and
# DIR/server.conf as they are. Lines that the first start shall add to that file (TLS listeners, replication, ...; the
# last line of a name counts) stand in DIR/extra.conf; brokers of one cluster get the same id in DIR/cluster, and are
# started side by side, because none is ready before most of them are.
# Prints the environment for its users, one NAME=VALUE a line: the console tools are classes of $REDELIVER_KAFKA_HOME/libs.
set -euo pipefail
servers=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=common.sh
. "$servers/common.sh"

home=${REDELIVER_KAFKA_HOME:-${servers%/tests/servers}/.servers/kafka}

install() {
    need java default-jre-headless KAFKA_URL
    [[ -d $home/libs ]] && return
    need mvn maven KAFKA_URL
    say "fetching Apache Kafka's jars into $home"
    # Elsewhere first, so that another run never sees half of them.
    local fetched
    mkdir -p "$home"
    fetched=$(mktemp -d "$home/fetching.XXXXXX")
    mvn --quiet --batch-mode -Dstyle.color=never --file "$servers/../kafka/pom.xml" dependency:copy-dependencies \
        -DincludeScope=runtime -DoutputDirectory="$fetched" </dev/null >&2 ||
        die "Maven could not fetch Apache Kafka's jars; fetch them by hand into $home/libs, or set KAFKA_URL"
    mv --no-target-directory "$fetched" "$home/libs" 2>/dev/null || rm -rf "$fetched"
}

start() {
    local dir
    [[ -d $home/libs ]] || die "there is no Kafka in $home; call $0 install first"
    dir=$(make_folder "$1")
    [[ -f $dir/env ]] || configure "$dir" "${2:-$(free_port)}"
    spawn "$dir" kafka java "${jvm[@]}" -cp "$home/libs/*" kafka.Kafka "$dir/server.conf"
    wait_ready 90 "$dir" kafka booted "$dir/kafka.log"
    cat "$dir/env"
}

stop() { end "$1" kafka; }

crash() { end "$1" kafka KILL; }

# A small machine's share: the quick compiler alone, and a collector without threads of its own.
jvm=(-Xms64m -Xmx512m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Dlog4j2.level=INFO)

configure() {
    local dir=$1 port=$2
    write_configuration "$dir" "$port" "$(free_port)" >"$dir/server.conf"
    if [[ -f $dir/extra.conf ]]; then cat "$dir/extra.conf" >>"$dir/server.conf"; fi
    [[ -f $dir/cluster ]] || new_cluster >"$dir/cluster"
    java "${jvm[@]}" -cp "$home/libs/*" kafka.tools.StorageTool format \
        --cluster-id "$(<"$dir/cluster")" --config "$dir/server.conf" >"$dir/format.log" 2>&1 ||
        { tail -n 20 "$dir/format.log" >&2 && die "Kafka could not make its storage in $dir"; }
    cat >"$dir/env" <<ENV
KAFKA_URL=127.0.0.1:$port
REDELIVER_KAFKA_HOME=$home
ENV
}

# 16 random bytes as Kafka writes them; its own tool for it takes a second.
new_cluster() { printf 'r%s\n' "$(head -c 16 /dev/urandom | base64 | tr '+/' '_-' | cut -c 2-22)"; }

# The short session lets a killed broker come back in seconds: its cluster waits for the old one to be gone.
write_configuration() {
    local dir=$1 port=$2 controller=$3
    cat <<CONF
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$controller
listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$controller
advertised.listeners=PLAINTEXT://127.0.0.1:$port
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
log.dirs=$dir/data
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
group.initial.rebalance.delay.ms=0
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=4000
auto.create.topics.enable=false
CONF
}

# It listens before it takes part in its cluster.
booted() { grep -q 'Kafka Server started' "$1"; }

dispatch "$@"
