# Redis → PostgreSQL, beside \copy of the same rows into the same table.
# shellcheck shell=bash disable=SC2154

bench_postgres() {
    local round ours best=0
    start_redis
    start_postgres
    flow_topology
    sql -c 'DROP TABLE IF EXISTS lines'
    echo "Redis → PostgreSQL, beside \\copy of the same rows into the same table ($lines lines)"
    for round in $(seq "$rounds"); do
        rm -rf data
        redis FLUSHALL >/dev/null
        measured "$aqueduct" run flow.toml --only source.input --until-idle
        measured "$aqueduct" run flow.toml --only group.writer --until-idle
        ours=$(rate "$lines" "$took")
        check_rows
        ours_peak=$peak
        measure_copy
        figures "$round" "$ours" "$floor" "\\\\copy" "$ours_peak"
        best=$(best "$best" "$ours")
    done
    measure_ompgsql
    compare "$best" "$ompgsql_rate" "$ompgsql_peak" "rsyslog, imfile → ompgsql, no broker between"
}
