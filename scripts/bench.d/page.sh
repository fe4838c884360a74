# What ten viewers of the status page cost the process, idle and at work. Phases with and without
# them take turns in one process, as its own work varies more than they cost.
# shellcheck shell=bash disable=SC2154

page_topology() {
    cat <<TOML
[runtime]
data_dir = "data"
log = "error"
[http]
listen = "127.0.0.1:$1"
TOML
    local n
    for n in 1 2 3 4 5; do
        cat <<TOML
[source.source-$n]
kind = "publisher"
to = "stream-$n"
rate = "$2/s"
[stream.stream-$n]
[group.group-$n]
from = "stream-$n"
to = "sink-$n"
members = 2
[sink.sink-$n]
kind = "file"
path = "out-$n.log"
TOML
    done
}

# cpu_us: microseconds of processor time so far.
cpu_us() {
    curl -fs "http://127.0.0.1:$port/metrics" | awk '/^process_cpu_seconds_total/ { printf "%.0f\n", $2 * 1e6 }'
}

# phase VIEWERS SECONDS: microseconds of processor time a second.
page_phase() {
    local viewers=() n before after
    for n in $(seq "$1"); do
        curl -sN "http://127.0.0.1:$port/api/live" > "viewer-$n" &
        viewers+=($!)
    done
    sleep 2
    before=$(cpu_us)
    sleep "$2"
    after=$(cpu_us)
    for n in "${viewers[@]}"; do kill "$n"; wait "$n" 2>/dev/null || true; done
    sleep 1
    echo $(((after - before) / $2))
}

bench_page() {
    local port load round cost seconds=${SECONDS_EACH:-20} pid
    for load in 1 2000; do
        port=$(free_port)
        rm -rf data out-*.log .out-*
        page_topology "$port" "$load" > page.toml
        "$aqueduct" run page.toml > page.log 2>&1 &
        pid=$!
        servers+=("$pid")
        until_true "it is ready" curl -fs "http://127.0.0.1:$port/readyz"
        echo "five routes of $load events/s each, $seconds s a phase"
        : > pairs
        for round in $(seq "$rounds"); do
            if [ $((round % 2)) = 0 ]; then
                ten=$(page_phase 10 "$seconds"); none=$(page_phase 0 "$seconds")
            else
                none=$(page_phase 0 "$seconds"); ten=$(page_phase 10 "$seconds")
            fi
            echo "$none $ten" >> pairs
            printf 'round %s: %7.2f ms/s with ten viewers, %7.2f without\n' "$round" \
                "$(awk "BEGIN { print $ten / 1000 }")" "$(awk "BEGIN { print $none / 1000 }")"
        done
        awk '{ none += $1; ten += $2 } END {
            printf "mean:    %+.2f ms/s, %+.2f %% of a processor, %+.2f %% of what the process takes\n",
                (ten - none) / NR / 1000, (ten - none) / NR / 10000, (ten - none) / ten * 100 }' pairs
        # Under load the process's own work varies more than viewers cost: what they cost the idle
        # one is the better measure of that.
        if [ "$load" = 1 ]; then
            cost=$(awk '{ sum += $2 - $1 } END { print sum / NR }' pairs)
        else
            awk -v "cost=$cost" '{ sum += $1 } END {
                printf "so:      what they cost the idle one is %.2f %% of this\n", cost / sum * NR * 100 }' pairs
        fi
        kill "$pid"
        wait "$pid" 2>/dev/null || true
    done
    echo "a viewer got $(wc -c < viewer-1) bytes in its last phase"
}
