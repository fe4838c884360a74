# file → Redis, beside redis-benchmark's pipelined XADD of entries as large.
# shellcheck shell=bash disable=SC2154

bench_redis() {
    local round ours best=0 package=rsyslog-hiredis
    start_redis
    cat > redis.toml <<TOML
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
TOML
    echo "file → Redis, beside redis-benchmark -P 512 -c 4 xadd ($lines lines)"
    for round in $(seq "$rounds"); do
        rm -rf data
        redis FLUSHALL >/dev/null
        measured "$aqueduct" run redis.toml --until-idle
        ours=$(rate "$lines" "$took")
        [ "$(redis XLEN lines)" = "$lines" ] || { cat run.log; echo "lines are missing"; exit 1; }
        ours_peak=$peak
        redis FLUSHALL >/dev/null
        measured redis-benchmark -p "$redis_port" -q -n "$lines" -P 512 -c 4 \
            xadd floor '*' id numbers:1:123456 body "$(head -n 1 in.log)"
        floor=$(rate "$lines" "$took")
        figures "$round" "$ours" "$floor" "redis-benchmark" "$ours_peak"
        best=$(best "$best" "$ours")
    done
    redis FLUSHALL >/dev/null
    run_rsyslog omhiredis \
        "action(type=\"omhiredis\" server=\"127.0.0.1\" serverport=\"$redis_port\" mode=\"template\"
            template=\"entry\")" \
        "$lines" redis XLEN lines
    compare "$best" "$peer_rate" "$peer_peak" "rsyslog, imfile → omhiredis"
    redis FLUSHALL >/dev/null
}
