# shellcheck shell=bash
# Part of tools/package-jetson: what the aarch64 program does, under qemu. Says nothing about speed or real time.

qemu=$(command -v qemu-aarch64 || command -v qemu-aarch64-static)
sysroot=$out/sysroot
work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$work"' EXIT

# The C library of the cross compiler, and a processor list: ONNX Runtime reads it, and the host's says nothing of ARM.
mkdir -p "$sysroot/proc"
ln -sfn "$(dirname "$(realpath "$(aarch64-linux-gnu-gcc -print-file-name=libc.so.6)")")" "$sysroot/lib"
for core in 0 1; do
    printf 'processor\t: %s\nFeatures\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: 0xd42\nCPU revision\t: 1\n\n' $core
done > "$sysroot/proc/cpuinfo"
arm() { "$qemu" -L "$sysroot" -cpu cortex-a76 "$program" "$@"; }

[ -x "$program" ] || fail "$program is not there: run tools/package-jetson build"
[ -x target/release/fieldtune ] || "$host_cargo" build --release
host() { target/release/fieldtune "$@"; }
arm --version

step "unit tests"
# Left out: what asks the kernel for what qemu does not emulate, starts a second program, or proves itself by its speed.
CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="$qemu -L $sysroot -cpu cortex-a76" \
    cross_cargo test --lib -p fieldtune -p firmware-bridge -- --test-threads "$jobs" \
    $(sed 's/#.*//; s/^/--skip /' tools/jetson/skipped-under-qemu | grep -v '^--skip *$')

step "a run in lockstep, beside this machine's"
# qemu does not start other programs, so the simulated robot is started here.
# Forty updates: differences of the last bit grow with every one (2e-1 after 800).
steps=110
in_lockstep() { # name of the program (a function), folder
    "$1" simulate --task pendulum --clock lockstep --quiet --listen "unix:$work/$1.sock" > "$work/$1.ready" &
    until grep -q ready "$work/$1.ready"; do kill -0 $! 2>/dev/null || fail "the simulated robot ended"; sleep 0.1; done
    "$1" run --quiet --config config/quickstart.toml --set run.clock=lockstep --set run.steps=$steps \
        --set run.evaluate_episodes=0 --set realtime.lock_memory=false --set robot.address="$work/$1.sock" \
        --set run.directory="$2" > "$work/$1.log" || { cat "$work/$1.log"; fail "$1 did not end its run"; }
    kill $! 2>/dev/null || true
}
in_lockstep host "$work/on-host"
in_lockstep arm "$work/on-arm"
grep -E '^  (replay|learner)' "$work/arm.log"
python3 tools/jetson/compare.py "$work/on-host/bundle/weights.safetensors" "$work/on-arm/bundle/weights.safetensors"

step "replay files in both directions"
# Each verifies what the other wrote, and both make the same bytes of it.
for made in host arm; do
    for reader in host arm; do
        "$reader" data verify "$work/on-$made/replay" > "$work/verified" || { cat "$work/verified"; fail "$reader refuses what $made wrote"; }
        "$reader" data export "$work/on-$made" --out "$work/$made-by-$reader.npz" > /dev/null
    done
    cmp "$work/$made-by-host.npz" "$work/$made-by-arm.npz" || fail "what $made wrote is read differently"
    echo "written by $made: verified and exported by both, $(stat -c %s "$work/$made-by-arm.npz") equal bytes"
done

step "ONNX Runtime for aarch64"
tools/setup-native --arch aarch64 "$out/native" > "$work/native" || { cat "$work/native"; fail "ONNX Runtime could not be fetched"; }
arm policy verify models/pendulum-cql --onnxruntime "$out/native/libonnxruntime.so"
