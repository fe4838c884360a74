# POST of a JSON event, answered once it is durable in the stream, beside a handler that only parses
# the JSON: the same load generator, one after the other.
# shellcheck shell=bash disable=SC2154

# RabbitMQ with its defaults, on $rabbit_port.
start_rabbit() {
    [ -z "${rabbit_port:-}" ] || return 0
    need /usr/lib/rabbitmq/bin/rabbitmq-server=rabbitmq-server
    rabbit_port=$(free_port)
    local node_port
    node_port=$(free_port)
    mkdir -p rabbit/home
    printf 'listeners.tcp.local = 127.0.0.1:%s\n' "$rabbit_port" > rabbit/rabbitmq.conf
    echo '[].' > rabbit/enabled_plugins
    (
        cd rabbit
        exec env HOME="$PWD/home" RABBITMQ_NODENAME="bench$rabbit_port@localhost" \
            RABBITMQ_DIST_PORT="$node_port" RABBITMQ_MNESIA_BASE="$PWD/data" \
            RABBITMQ_LOG_BASE="$PWD/logs" RABBITMQ_LOGS=- RABBITMQ_CONF_ENV_FILE=/dev/null \
            RABBITMQ_CONFIG_FILE="$PWD/rabbitmq.conf" \
            RABBITMQ_ENABLED_PLUGINS_FILE="$PWD/enabled_plugins" \
            RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="-start_epmd false -erl_epmd_port $node_port" \
            setsid /usr/lib/rabbitmq/bin/rabbitmq-server
    ) >rabbit.log 2>&1 &
    servers+=("-$!" "$!")
    until_true RabbitMQ grep -q 'startup complete' rabbit.log
}

# load PORT CONNECTIONS: for $seconds; sets $requests (a second, 0 where any failed) and $p99.
load() {
    wrk -t1 -c "$2" -d "${seconds}s" --latency -s post.lua "http://127.0.0.1:$1/log" > wrk.log
    if grep -q 'Non-2xx\|Socket errors' wrk.log; then
        cat wrk.log
        exit 1
    fi
    requests=$(awk '/^Requests\/sec:/ { print $2 }' wrk.log)
    p99=$(awk '$1 == "99%" { print $2 }' wrk.log)
}

# serve PORT COMMAND…: starts what listens there; its process is $served.
serve() {
    local port=$1
    shift
    "$@" >run.log 2>&1 &
    served=$!
    servers+=("$served")
    until_true "$1" curl -sf -o /dev/null -d '{}' -H 'Content-Type: application/json' \
        "http://127.0.0.1:$port/log"
}

stop_served() {
    kill -9 "$served"
    wait "$served" 2>/dev/null || true
}

# http_round NAME CONNECTIONS STREAM-TOML
http_round() {
    local port floor_port
    port=$(free_port)
    rm -rf data
    cat > http.toml <<TOML
[runtime]
data_dir = "data"
log = "error"
[http]
listen = "127.0.0.1:$port"
[source.intake]
kind = "http"
path = "/log"
to = "logs"
[stream.logs]
$3
[group.writer]
from = "logs"
to = "out"
[sink.out]
kind = "file"
path = "out.txt"
TOML
    floor_port=$(free_port)
    serve "$floor_port" "$floor_handler" "127.0.0.1:$floor_port"
    load "$floor_port" "$2"
    local floor_requests=$requests floor_p99=$p99
    stop_served
    serve "$port" "$aqueduct" run http.toml --only source.intake
    load "$port" "$2"
    peak=$(awk '/^VmHWM:/ { print $2 }' "/proc/$served/status")
    stop_served
    awk "BEGIN { printf \"%-28s %4d connections: %8.0f requests/s, p99 %s; the floor %8.0f, p99 %s; ratio %.2f, memory %.0f MiB\n\",
        \"$1\", $2, $requests, \"$p99\", $floor_requests, \"$floor_p99\", $requests / $floor_requests, $peak / 1024 }"
}

bench_http() {
    local connections seconds=${SECONDS_EACH:-8}
    need wrk=wrk curl=curl
    start_redis
    start_rabbit
    cat > post.lua <<'LUA'
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = '{"level":"info","service":"web","message":"GET /some/page HTTP/1.1 200","n":4711}'
LUA
    echo "POST /log, answered once durable, beside a handler that only parses the JSON"
    for connections in 64 256; do
        http_round embedded "$connections" ''
        redis FLUSHALL >/dev/null
        http_round "redis" "$connections" "kind = \"redis\"
url = \"redis://127.0.0.1:$redis_port\""
        redis FLUSHALL >/dev/null
        redis CONFIG SET appendonly yes >/dev/null
        redis CONFIG SET appendfsync always >/dev/null
        http_round "redis, appendfsync always" "$connections" "kind = \"redis\"
url = \"redis://127.0.0.1:$redis_port\""
        redis CONFIG SET appendonly no >/dev/null
        redis FLUSHALL >/dev/null
        http_round "rabbitmq, quorum queue" "$connections" "kind = \"rabbitmq\"
url = \"amqp://guest:guest@127.0.0.1:$rabbit_port/\""
    done
}
