//! Compiles the learner's kernels (`src/kernels/cuda`): for GPUs with the feature `cuda`, for the processor with
//! `host-kernels`. Without either this does nothing.

fn main() {
    println!("cargo::rustc-check-cfg=cfg(host_kernels)");
    println!("cargo::rerun-if-changed=src/kernels/cuda");
    #[cfg(feature = "host-kernels")]
    host();
    #[cfg(feature = "cuda")]
    gpu();
}

/// A machine without a C++ compiler builds without the host's kernels; their tests then skip.
#[cfg(feature = "host-kernels")]
fn host() {
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .file("src/kernels/cuda/host_entry.cpp")
        .opt_level(2)
        // As exact as the GPU's own functions, and the same on every processor.
        .flag("-ffp-contract=off");
    let answers =
        |compiler: cc::Tool| compiler.to_command().arg("--version").output().is_ok_and(|o| o.status.success());
    if build.try_get_compiler().is_ok_and(answers) {
        // Kernels that do not compile end the build.
        build.compile("fieldtune_kernels");
        println!("cargo::rustc-cfg=host_kernels");
    } else {
        println!("cargo::warning=the kernels are not tested on this machine: no C++17 compiler");
    }
}

/// One image with machine code for the GPUs of robots and servers, and PTX that a driver compiles for any other.
#[cfg(feature = "cuda")]
fn gpu() {
    use std::env;
    use std::path::{Path, PathBuf};
    use std::process::Command;

    for name in ["NVCC", "CUDA_HOME"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let home = env::var_os("CUDA_HOME").map(|home| Path::new(&home).join("bin/nvcc"));
    let usual = Some(PathBuf::from("/usr/local/cuda/bin/nvcc")).filter(|path| path.exists());
    let nvcc = env::var_os("NVCC").map(PathBuf::from).or(home).or(usual).unwrap_or_else(|| "nvcc".into());
    let out = Path::new(&env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("kernels.fatbin");
    let mut command = Command::new(&nvcc);
    command.args(["-fatbin", "-std=c++17", "-O3", "-gencode=arch=compute_80,code=compute_80"]);
    for gpu in architectures(&nvcc) {
        command.arg(format!("-gencode=arch=compute_{gpu},code=sm_{gpu}"));
    }
    let status = command.arg("-o").arg(&out).arg("src/kernels/cuda/all.cu").status();
    assert!(
        matches!(&status, Ok(status) if status.success()),
        "the feature `cuda` needs NVIDIA's compiler, and {} did not compile the kernels ({status:?}): put nvcc of CUDA \
         12.4 or newer on PATH or set CUDA_HOME; tools/cuda-home fetches one",
        nvcc.display()
    );
}

/// Those of Orin, Hopper and Thor that the compiler knows: Thor's is new in CUDA 13.
#[cfg(feature = "cuda")]
fn architectures(nvcc: &std::path::Path) -> Vec<u32> {
    let listed = std::process::Command::new(nvcc).arg("--list-gpu-code").output();
    let listed = listed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    [87, 90, 110].into_iter().filter(|gpu| listed.lines().any(|line| line.trim() == format!("sm_{gpu}"))).collect()
}
