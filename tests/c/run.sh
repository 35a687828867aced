#!/usr/bin/env bash
# Tests of the C face. `tests/c/run.sh LIBDIR` tests liboffloop.so in LIBDIR (the fast part, in `make test`); `tests/c/run.sh --asan
# LIBRARY.a` runs the ABI suite, its panics included, under AddressSanitizer. Every step prints how long it took.
set -euo pipefail
cd "$(dirname "$0")/../.."
target=$(realpath "${CARGO_TARGET_DIR:-target}")
out="$target/c"
mkdir -p "$out"
CC=${CC:-cc} CXX=${CXX:-c++}
strict=(-Wall -Wextra -Werror -pedantic -Iinclude)
suite=(-std=c99 -g -O1 -Wall -Wextra -Werror -Wno-misleading-indentation -Iinclude tests/c/abi.c tests/c/rings.c tests/c/channels.c tests/c/processes.c tests/c/clusters.c tests/c/waits.c)

step() { # NAME COMMAND…
    local name="$1" from to
    shift
    from=$(date +%s.%N)
    "$@" || { echo "FAILED: $name: $*" >&2; exit 1; }
    to=$(date +%s.%N)
    printf '%-44s %6.2f s\n' "$name" "$(awk -v a="$from" -v b="$to" 'BEGIN { print b - a }')"
}

if [ "$1" = --asan ]; then
    step "compile and link with ASan" "$CC" "${suite[@]}" -fsanitize=address -DFAILPOINTS "$2" -o "$out/abi-asan" -lpthread -ldl -lm
    # The backtraces of the panics that the suite provokes are noise; a sanitizer's report is not.
    asan() { RUST_BACKTRACE=0 "$out/abi-asan" functions ops families completion reentry signals frees values codec bad_inputs rings channels process_pools clusters panics ring_panics channel_panics process_panics random_handles 2>"$out/asan.log" ||
        { grep -v 'panicked at\|^failpoint$\|^note: run with\|^$' "$out/asan.log" | head -60 >&2; return 1; }; }
    step "ABI suite under ASan and LSan" asan
    exit
fi

so="$(realpath "$1")/liboffloop.so"
ln -sf "$so" "$out/liboffloop.so.0"
ln -sf liboffloop.so.0 "$out/liboffloop.so"
link=(-L"$out" -loffloop -lpthread -Wl,-rpath,"$out")

headers() {
    printf '#include <offloop.h>\n#include <offloop.h>\nint main(void) { offloop_submit_options o = OFFLOOP_SUBMIT_OPTIONS_INIT; offloop_pool_options p = OFFLOOP_POOL_OPTIONS_INIT;\n offloop_op_def d = OFFLOOP_OP_DEF_INIT; offloop_ring_options r = OFFLOOP_RING_OPTIONS_INIT; offloop_producer_options w = OFFLOOP_PRODUCER_OPTIONS_INIT;\n offloop_consumer_options c = OFFLOOP_CONSUMER_OPTIONS_INIT; offloop_channel_options h = OFFLOOP_CHANNEL_OPTIONS_INIT; offloop_process_pool_options q = OFFLOOP_PROCESS_POOL_OPTIONS_INIT;\n offloop_cluster_options k = OFFLOOP_CLUSTER_OPTIONS_INIT; return (int)(o.priority + p.nice) + (int)(d.reserved + r.capacity + w.batch + (c.ack != 0) + h.capacity + (q.command != 0) + (k.command != 0)); }\n' >"$out/header.c"
    "$CC" -std=c99 "${strict[@]}" -c "$out/header.c" -o "$out/header.o" && "$CXX" -x c++ -std=c++17 "${strict[@]}" -c "$out/header.c" -o "$out/header.o"
}
symbols() { # exactly the functions of the header, nothing else
    nm -D --defined-only "$so" | awk '{ print $3 }' | sort >"$out/exported"
    "$CC" -E -P -Iinclude "$out/header.c" | tr '\n' ' ' | tr ';' '\n' | grep -v 'typedef' | grep -oE '\boffloop_[a-z_]+ ?\(' | tr -d ' (' | grep -vxE 'offloop_plugin|offloop_status' | sort -u >"$out/declared"
    diff "$out/declared" "$out/exported"
}
elf() { readelf -dW "$so" | grep -q 'SONAME.*liboffloop\.so\.0' && readelf -dW "$so" | grep -q NODELETE; }
plugin() { # links to nothing at all
    "$CC" -std=c99 -O2 "${strict[@]}" -shared -fPIC -nodefaultlibs -Wl,--no-undefined examples/plugin/wordcount.c -o "$out/wordcount.so"
    ! readelf -dW "$out/wordcount.so" | grep NEEDED
}
examples() {
    local name
    for name in ops loop functions ring_loop; do
        "$CC" -std=c99 -O1 -g "${strict[@]}" "examples/c/$name.c" -o "$out/$name" "${link[@]}"
    done
    [ "$("$out/ops")" = 2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824 ]
    [ "$(seq 3 | "$out/loop" | sort | sed -n 3p)" = "line 3: 4e074085, 32 bytes" ]
    "$out/functions" | grep -q '78498 (OFFLOOP_OK)'
    "$out/ring_loop" | grep -qx '60 blocks, 1 filler died, 0 blocks torn'
}
memcheck() {
    if command -v valgrind >/dev/null; then
        local name
        for name in ops ring_loop; do
            valgrind -q --error-exitcode=9 --leak-check=full --show-leak-kinds=definite --errors-for-leak-kinds=definite "$out/$name" >/dev/null
        done
    else
        echo "skipped: valgrind is not installed"
    fi
}

step "header: C99 and C++17, twice, no warnings" headers
step "symbols: the header's and no others" symbols
step "SONAME, nodelete" elf
step "plugin that links to nothing" plugin
step "examples" examples
step "memcheck of the examples" memcheck
step "compile the ABI suite" "$CC" "${suite[@]}" -o "$out/abi" "${link[@]}"
step "ABI suite" "$out/abi"
