# What the parts of scripts/bench share: a folder, measured runs, private servers, and figures.
# shellcheck shell=bash disable=SC2034,SC2154

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

# COMMAND=PACKAGE…: installs the packages whose commands are missing.
need() {
    local pair missing=()
    for pair in "$@"; do
        command -v "${pair%=*}" >/dev/null || [ -e "${pair%=*}" ] || missing+=("${pair#*=}")
    done
    [ ${#missing[@]} = 0 ] && return
    as_root apt-get update -q >&2
    as_root apt-get install -y -q --no-install-recommends "${missing[@]}" >&2
}

enter_workplace() {
    work=$(mktemp -d)
    # The user postgres has to pass.
    chmod 755 "$work"
    servers=()
    trap leave_workplace EXIT
    cd "$work"
}

leave_workplace() {
    for pid in "${servers[@]}"; do kill -9 "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    rm -rf "$work"
}

# in.log: lines of 58 bytes, newline included.
make_lines() {
    seq -f '%08.0f  GET /some/page/of/the/site HTTP/1.1 200 4711' 1 "$lines" |
        awk '{ printf "%-57.57s\n", $0 }' > in.log
}

free_port() {
    local port
    while port=$((20000 + RANDOM % 12000)); do
        (: > "/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
    done
    echo "$port"
}

# until_true WHAT COMMAND…: tries ten times a second, for ten minutes.
until_true() {
    local what=$1 tries=0
    shift
    until "$@" >/dev/null 2>&1; do
        tries=$((tries + 1))
        [ $tries -lt 6000 ] || { echo "never came: $what" >&2; exit 1; }
        sleep 0.1
    done
}

# watch_peak PID FILE: keeps the peak memory of a process, in KiB, in a file until it ends.
watch_peak() {
    local key value
    while [ -e "/proc/$1/status" ]; do
        while read -r key value _; do
            [ "$key" = VmHWM: ] && echo "$value" > "$2"
        done 2>/dev/null < "/proc/$1/status" || true
        sleep 0.05
    done
}

# measured COMMAND…: runs it; then $took is its seconds and $peak its memory in KiB.
measured() {
    local began=$EPOCHREALTIME pid watcher
    echo 0 > peak
    "$@" >run.log 2>&1 &
    pid=$!
    watch_peak $pid peak &
    watcher=$!
    wait $pid || { cat run.log >&2; echo "failed: $*" >&2; exit 1; }
    took=$(awk "BEGIN { print $EPOCHREALTIME - $began }")
    wait $watcher
    peak=$(cat peak)
}

rate() { awk "BEGIN { printf \"%.0f\", $1 / $2 }"; }
mib() { awk "BEGIN { printf \"%.0f\", $1 / 1024 }"; }

# figures ROUND OURS FLOOR WHAT-THE-FLOOR-IS PEAK-KIB
figures() {
    awk "BEGIN { printf \"round %s: %8.0f events/s, %s %8.0f, ratio %.2f, memory %.0f MiB\n\",
        \"$1\", $2, \"$4\", $3, $2 / $3, $5 / 1024 }"
}

# compare OURS PEER PEAK-KIB WHAT-THE-PEER-IS
compare() {
    awk "BEGIN { printf \"peer:    %8.0f events/s, ours is %.1f times that; memory %.0f MiB (%s)\n\",
        $2, $1 / $2, $3 / 1024, \"$4\" }"
}

# best A B: the greater one.
best() { awk "BEGIN { print ($1 > $2) ? $1 : $2 }"; }

# Redis without persistence, on $redis_port.
start_redis() {
    [ -z "${redis_port:-}" ] || return 0
    need redis-server=redis-server redis-benchmark=redis-tools
    redis_port=$(free_port)
    mkdir redis
    redis-server --port "$redis_port" --bind 127.0.0.1 --save '' --appendonly no \
        --dir "$work/redis" >redis.log 2>&1 &
    servers+=($!)
    until_true redis-server redis PING
}

redis() { redis-cli -p "$redis_port" "$@"; }

as_postgres() {
    if [ "$(id -u)" = 0 ]; then
        setpriv --reuid=postgres --regid=postgres --clear-groups -- "$@"
    else
        "$@"
    fi
}

# PostgreSQL with its defaults and a database `bench`, on $pg_port.
start_postgres() {
    [ -z "${pg_port:-}" ] || return 0
    ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || need initdb=postgresql
    local bin
    bin=$(dirname "$(ls /usr/lib/postgresql/*/bin/initdb | tail -1)")
    pg_port=$(free_port)
    mkdir pg
    [ "$(id -u)" != 0 ] || chown postgres:postgres pg
    as_postgres "$bin/initdb" --auth=trust --username=postgres --encoding=UTF8 \
        --locale=C.UTF-8 -D "$work/pg/data" >initdb.log
    as_postgres "$bin/postgres" -D "$work/pg/data" -p "$pg_port" -c listen_addresses=127.0.0.1 \
        -c unix_socket_directories= >postgres.log 2>&1 &
    servers+=($!)
    pg_url="postgres://postgres@127.0.0.1:$pg_port/bench"
    until_true PostgreSQL psql -XqAt "postgres://postgres@127.0.0.1:$pg_port/postgres" -c 'SELECT 1'
    psql -Xq "postgres://postgres@127.0.0.1:$pg_port/postgres" -c 'CREATE DATABASE bench'
}

sql() { psql -XqAt -v ON_ERROR_STOP=1 "$pg_url" "$@"; }

# file → Redis → PostgreSQL; its parts run by --only.
flow_topology() {
    cat > flow.toml <<TOML
[runtime]
data_dir = "data"
log = "warn"
[source.input]
kind = "tail"
path = "in.log"
to = "lines"
[stream.lines]
kind = "redis"
url = "redis://127.0.0.1:$redis_port"
[group.writer]
from = "lines"
to = "db"
members = ${MEMBERS:-3}
[sink.db]
kind = "postgres"
url = "$pg_url"
table = "lines"
connections = ${CONNECTIONS:-2}
columns = { event_id = "@id", line = "@body", source = "@source", at = "@time" }
TOML
}

# All lines are rows, once each.
check_rows() {
    local stored
    stored=$(sql -c 'SELECT count(*), count(DISTINCT line) FROM lines')
    [ "$stored" = "$lines|$lines" ] || { cat run.log; echo "stored $stored of $lines"; exit 1; }
}

# The floor: \copy of the rows that we stored, into the same table. Sets $floor.
measure_copy() {
    [ -e rows.txt ] || sql -c "\\copy (SELECT * FROM lines ORDER BY event_id) TO rows.txt"
    sql -c 'TRUNCATE lines'
    measured sql -c "\\copy lines FROM rows.txt"
    floor=$(rate "$lines" "$took")
    sql -c 'TRUNCATE lines' -c 'CHECKPOINT'
}

# Where the package keeps the table that its own template writes to.
ompgsql_table=/usr/share/dbconfig-common/data/rsyslog-pgsql/install/pgsql

rsyslog_queue='queue.type="LinkedList" queue.size="200000" queue.dequeueBatchSize="1000"'

# run_rsyslog MODULE ACTION COUNT READY…: reads the first COUNT lines of in.log by imfile and hands
# them to the action, until the command READY answers COUNT. Sets $peer_rate and $peer_peak.
# The template `entry` makes an entry of a line: its omhiredis has no mode for streams, and takes
# what stands between blanks for arguments. A line of ours is six of them, three fields.
run_rsyslog() {
    local module=$1 action=$2 count=$3 began pid watcher
    shift 3
    need /usr/sbin/rsyslogd=rsyslog "/usr/lib/$(uname -m)-linux-gnu/rsyslog/$module.so=$package"
    rm -rf rsyslog
    mkdir rsyslog
    head -n "$count" in.log > rsyslog/in.log
    cat > rsyslog/rsyslog.conf <<CONF
global(workDirectory="$work/rsyslog")
module(load="imfile")
module(load="$module")
template(name="entry" type="string" string="XADD lines * %msg%")
template(name="insert" type="string" option.stdsql="on"
    string="INSERT INTO peer (line, source, at) VALUES ('%msg%', '%hostname%', '%timereported:::date-rfc3339%')")
input(type="imfile" file="$work/rsyslog/in.log" tag="bench" ruleset="out")
ruleset(name="out" $queue) {
    $action
}
CONF
    began=$EPOCHREALTIME
    echo 0 > peak
    rsyslogd -n -f "$work/rsyslog/rsyslog.conf" -i "$work/rsyslog/pid" >rsyslog/log 2>&1 &
    pid=$!
    servers+=($pid)
    watch_peak $pid peak &
    watcher=$!
    until_true "rsyslog's last line" answers "$count" "$@"
    peer_rate=$(rate "$count" "$(awk "BEGIN { print $EPOCHREALTIME - $began }")")
    kill -9 $pid
    wait $pid 2>/dev/null || true
    wait $watcher
    peer_peak=$(cat peak)
}

answers() {
    local wanted=$1
    shift
    [ "$("$@")" = "$wanted" ]
}

# rsyslog from a file into PostgreSQL, measured once, with a tenth of the lines, it is slow: with its
# own template into its own table, behind a queue with batches of 1000, and at its fastest here:
# without the queue, told to write what we write into a table like ours. The queue costs it speed on
# two cores: its own table without one was filled at 30,000 to 34,000 rows/s.
measure_ompgsql() {
    [ -z "${ompgsql_rate:-}" ] || return 0
    local package=rsyslog-pgsql queue=$rsyslog_queue count=$((lines / 10))
    need "$ompgsql_table=$package"
    sql -f "$ompgsql_table" >/dev/null
    run_rsyslog ompgsql "action(type=\"ompgsql\" conninfo=\"$pg_url\")" \
        "$count" sql -c 'SELECT count(*) FROM SystemEvents'
    ompgsql_rate=$peer_rate
    ompgsql_peak=$peer_peak
    queue=
    sql -c 'CREATE TABLE peer (event_id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        line text, source text, at timestamptz)'
    run_rsyslog ompgsql \
        "action(type=\"ompgsql\" conninfo=\"$pg_url\" template=\"insert\")" \
        "$count" sql -c 'SELECT count(*) FROM peer'
    keyed_rate=$peer_rate
    keyed_peak=$peer_peak
    sql -c 'DROP TABLE peer, SystemEvents, SystemEventsProperties'
}

# compare_ompgsql OURS
compare_ompgsql() {
    measure_ompgsql
    compare "$1" "$ompgsql_rate" "$ompgsql_peak" \
        "rsyslog, imfile → queue → ompgsql with its own table, no broker between"
    compare "$1" "$keyed_rate" "$keyed_peak" "rsyslog at its fastest, into a table like ours"
}
