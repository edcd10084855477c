//! Generates the wire types without protoc.
use prost::Message;

const OPEN: &[&str] = &[
    "proto/spiffe/workloadapi.proto",
    "proto/envoy/service/secret/v3/sds.proto",
    "proto/envoy/extensions/transport_sockets/tls/v3/secret.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(["proto/postern.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .build_transport(false)
        .codec_path("crate::SmallBuffers")
        .compile_fds(descriptors)?;

    // Interfaces of others. Keys and certificates are shared buffers, since many streams send the same; what holds a secret
    // has a Debug of its own, in lib.rs.
    let descriptors = protox::compile(OPEN, ["proto"])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("open.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .build_transport(false)
        .compile_well_known_types(true)
        .bytes(".")
        .skip_debug([
            "X509SVID",
            "JWTSVID",
            "ValidateJWTSVIDRequest",
            "envoy.config.core.v3.DataSource",
            "google.protobuf.Any",
        ])
        .include_file("open.rs")
        .compile_fds(descriptors)?;
    Ok(())
}
