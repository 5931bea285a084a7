//! Generates the message types from `proto/weir.proto` (needs `protoc`: `make setup`).
fn main() -> std::io::Result<()> {
    println!("cargo:rerun-if-changed=proto/weir.proto");
    tonic_prost_build::configure()
        .build_transport(false)
        .compile_protos(&["proto/weir.proto"], &["proto"])
}
