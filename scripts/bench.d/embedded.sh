# file → embedded stream → SQLite, beside sqlite3's .import of the same rows.
# shellcheck shell=bash disable=SC2154

import_rows() {
    sqlite3 floor.db '.mode csv' '.import rows.csv lines'
}

bench_embedded() {
    local round ours schema
    need sqlite3=sqlite3
    cat > embedded.toml <<TOML
[runtime]
data_dir = "data"
log = "warn"
[source.input]
kind = "tail"
path = "in.log"
to = "lines"
[stream.lines]
[group.writer]
from = "lines"
to = "db"
members = ${MEMBERS:-2}
[sink.db]
kind = "sqlite"
path = "out.db"
table = "lines"
columns = { event_id = "@id", line = "@body", source = "@source", at = "@time" }
TOML
    echo "file → embedded stream → SQLite, beside sqlite3's .import of the same rows ($lines lines)"
    for round in $(seq "$rounds"); do
        rm -rf data out.db* floor.db*
        measured "$aqueduct" run embedded.toml --until-idle
        ours=$(rate "$lines" "$took")
        stored=$(sqlite3 out.db 'SELECT count(*) FROM lines')
        [ "$stored" = "$lines" ] || { cat run.log; echo "stored $stored of $lines"; exit 1; }
        if [ "$round" = 1 ]; then
            schema=$(sqlite3 out.db "SELECT sql FROM sqlite_schema WHERE name = 'lines'")
            sqlite3 -csv out.db 'SELECT * FROM lines ORDER BY rowid' > rows.csv
        fi
        ours_peak=$peak
        sqlite3 floor.db 'PRAGMA journal_mode = WAL' "$schema" >/dev/null
        measured import_rows
        figures "$round" "$ours" "$(rate "$lines" "$took")" ".import" "$ours_peak"
    done
    rm -rf data out.db* floor.db* rows.csv
}
