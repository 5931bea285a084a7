//! Builds the eBPF programs, so that one `cargo build` makes the whole agent.
//!
//! The programs are compiled for the BPF target by Debian's rustc, which ships
//! a prebuilt `core` for it (a rustup toolchain would need nightly), through a
//! nested cargo with a target directory of its own under `OUT_DIR`. The object
//! is embedded by `agent/src/bpf/embedded.rs`.
//!
//! - `WEIR_EBPF_OBJ`: a prebuilt object to embed instead; nothing is compiled.
//! - `BPF_LINKER`: the linker to use; otherwise PATH, then where `make setup` puts it.
//! - `WEIR_EBPF_RUSTC`: a rustc with the BPF target, instead of `/usr/bin/rustc`.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

const TARGET: &str = "bpfel-unknown-none";
const RUSTC: &str = "/usr/bin/rustc";

fn main() {
    if let Err(message) = run() {
        // Cargo shows this as the reason why the build failed.
        panic!("\n\n{message}\n");
    }
}

fn run() -> Result<(), String> {
    let object =
        PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?).join("weir-bpf.o");
    println!("cargo::rerun-if-env-changed=WEIR_EBPF_OBJ");
    println!("cargo::rerun-if-env-changed=WEIR_EBPF_RUSTC");
    println!("cargo::rerun-if-env-changed=BPF_LINKER");
    if let Some(prebuilt) = env::var_os("WEIR_EBPF_OBJ").filter(|path| !path.is_empty()) {
        let prebuilt = PathBuf::from(prebuilt);
        println!("cargo::rerun-if-changed={}", prebuilt.display());
        return copy(&prebuilt, &object);
    }
    let root = manifest_dir()?.join("../ebpf");
    for source in [
        "Cargo.toml",
        "Cargo.lock",
        "src",
        "abi/Cargo.toml",
        "abi/src",
    ] {
        println!("cargo::rerun-if-changed={}", root.join(source).display());
    }
    let built = compile(&root)?;
    copy(&built, &object)?;
    strip(&object);
    Ok(())
}

fn manifest_dir() -> Result<PathBuf, String> {
    env::var_os("CARGO_MANIFEST_DIR")
        .map(PathBuf::from)
        .ok_or_else(|| "CARGO_MANIFEST_DIR is not set".to_owned())
}

fn compile(root: &Path) -> Result<PathBuf, String> {
    let rustc = find_rustc()?;
    let linker = find_linker()?;
    println!("cargo::rerun-if-changed={}", linker.display());
    let arch = match env::var("CARGO_CFG_TARGET_ARCH").as_deref() {
        Ok(arch @ ("x86_64" | "aarch64")) => arch.to_owned(),
        other => return Err(format!("the eBPF programs know no registers of {other:?}")),
    };
    let target_dir =
        PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?).join("ebpf");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(root)
        .args([
            "build",
            "--release",
            "--locked",
            "--target",
            TARGET,
            "--target-dir",
        ])
        .arg(&target_dir);
    forget_outer_build(&mut cargo);
    let flags = format!("-Cdebuginfo=2\x1f-Clink-arg=--btf\x1f--cfg=bpf_target_arch=\"{arch}\"");
    cargo
        .env("RUSTC", &rustc)
        // Lets this one crate use the unstable intrinsics that it needs.
        .env("RUSTC_BOOTSTRAP", "aya_ebpf")
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &linker)
        .env("CARGO_ENCODED_RUSTFLAGS", flags);
    let output = cargo
        .output()
        .map_err(|error| format!("cannot run cargo for the eBPF programs: {error}"))?;
    if !output.status.success() {
        return Err(format!(
            "the eBPF programs did not build ({}, rustc {}, linker {}).\n\
             If the toolchain is at fault, run `make setup`; or name a prebuilt object in WEIR_EBPF_OBJ.\n\n{}",
            output.status,
            rustc.display(),
            linker.display(),
            String::from_utf8_lossy(&output.stderr),
        ));
    }
    Ok(target_dir.join(TARGET).join("release/weir-bpf"))
}

/// The outer cargo's (or clippy's) settings are for the host's target.
fn forget_outer_build(cargo: &mut Command) {
    const ALSO: [&str; 12] = [
        "RUSTC",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTC_LINKER",
        "RUSTDOC",
        "RUSTFLAGS",
        "RUSTDOCFLAGS",
        "CLIPPY_ARGS",
        "CLIPPY_CONF_DIR",
        "OUT_DIR",
        "TARGET",
        "HOST",
    ];
    for (name, _) in env::vars_os() {
        let Some(name) = name.to_str() else { continue };
        let is_cargos = name.starts_with("CARGO_")
            && !matches!(name, "CARGO_HOME" | "CARGO_MAKEFLAGS" | "CARGO_NET_OFFLINE")
            && !name.starts_with("CARGO_HTTP_")
            && !name.starts_with("CARGO_REGISTRIES_");
        if is_cargos || ALSO.contains(&name) {
            cargo.env_remove(name);
        }
    }
}

fn find_rustc() -> Result<PathBuf, String> {
    let rustc = env::var_os("WEIR_EBPF_RUSTC").map_or_else(|| PathBuf::from(RUSTC), PathBuf::from);
    let missing = |what: &str| {
        format!(
            "{what}\nThe eBPF programs need a rustc that has `core` for {TARGET}: run `make setup`\n\
             (Debian packages rustc-web and libstd-rust-web-dev-bpf), or name a prebuilt object in WEIR_EBPF_OBJ."
        )
    };
    let output = Command::new(&rustc)
        .args(["--print", "target-libdir", "--target", TARGET])
        .output()
        .map_err(|error| missing(&format!("{}: {error}", rustc.display())))?;
    let libdir = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    if !output.status.success() || !libdir.is_dir() {
        return Err(missing(&format!("{} has no {TARGET}.", rustc.display())));
    }
    Ok(rustc)
}

fn find_linker() -> Result<PathBuf, String> {
    if let Some(named) = env::var_os("BPF_LINKER").filter(|path| !path.is_empty()) {
        return Ok(PathBuf::from(named));
    }
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    let installed = cache.map(|cache| cache.join("weir/tools/bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(installed)
        .map(|directory| directory.join("bpf-linker"))
        .find(|linker| linker.is_file())
        .ok_or_else(|| {
            "bpf-linker was not found (BPF_LINKER, PATH, ~/.cache/weir/tools/bin): run `make setup`,\n\
             or name a prebuilt object in WEIR_EBPF_OBJ."
                .to_owned()
        })
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    fs::copy(from, to).map(drop).map_err(|error| {
        format!(
            "cannot copy {} to {}: {error}",
            from.display(),
            to.display()
        )
    })
}

/// Drops the debug information (six parts in seven of the object); BTF stays.
/// Without llvm-strip the object is only larger.
fn strip(object: &Path) {
    for tool in [
        "llvm-strip",
        "/usr/lib/llvm-22/bin/llvm-strip",
        "llvm-strip-22",
    ] {
        let done = Command::new(tool).arg("-g").arg(object).status();
        if done.is_ok_and(|status| status.success()) {
            return;
        }
    }
}
