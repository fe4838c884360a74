# file → embedded stream → file, in pairs with and without [tracing]. COLLECTOR=… is a collector
# that is built already: examples/collector.rs.
# shellcheck shell=bash disable=SC2154

# once WITH: a run; then $took is its seconds.
traced_once() {
    cat > tracing.toml <<TOML
[runtime]
data_dir = "data"
log = "error"
$1
[source.input]
kind = "tail"
path = "in.log"
to = "lines"
[stream.lines]
[group.writer]
from = "lines"
to = "out"
members = ${MEMBERS:-2}
[sink.out]
kind = "file"
path = "out.log"
TOML
    rm -rf data out.log .out.log*
    measured "$aqueduct" run tracing.toml --until-idle
    [ "$(wc -l < out.log)" = "$lines" ] || { cat run.log; echo "lines are missing"; exit 1; }
}

bench_tracing() {
    local round with without tracing port
    port=$(free_port)
    "$collector" "127.0.0.1:$port" > spans.txt &
    servers+=($!)
    tracing=$'[tracing]\notlp = "http://127.0.0.1:'$port$'"\nsample = "10/s"'
    echo "file → embedded stream → file, with and without [tracing] at 10/s ($lines lines)"
    : > ratios
    for round in $(seq "$rounds"); do
        # Who goes first has the cooler machine.
        if [ $((round % 2)) = 0 ]; then
            traced_once "$tracing"; with=$took
            traced_once ""; without=$took
        else
            traced_once ""; without=$took
            traced_once "$tracing"; with=$took
        fi
        awk "BEGIN { print $without / $with }" >> ratios
        printf 'round %s: %8.0f events/s with, %8.0f without, ratio %.3f\n' "$round" \
            "$(rate "$lines" "$with")" "$(rate "$lines" "$without")" "$(tail -1 ratios)"
    done
    echo "$(wc -l < spans.txt) spans of $(cut -d' ' -f1 spans.txt | sort -u | wc -l) traces"
    sort -n ratios | awk '{ all[NR] = $1 } END {
        printf "median:  ratio %.3f\n", (all[int((NR + 1) / 2)] + all[int(NR / 2) + 1]) / 2 }'
    rm -rf data out.log .out.log*
}
